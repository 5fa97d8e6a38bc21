"""What a compute node has, as JSON: run there by ``dao-pipeline doctor``, with the folder that both should see.

    python -m dao_pipeline.cluster.node FOLDER TOKEN

Light where it can be: torch is imported last, and its absence is an answer.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any


def look(folder: Path, token: str) -> dict[str, Any]:
    """Name, Python, versions, GPUs, programs; whether ``folder`` holds the token. Writes an answer beside it."""
    found: dict[str, Any] = {
        "node": platform.node(),
        "python": platform.python_version(),
        "pw.x": shutil.which("pw.x"),
        "dao-pipeline": shutil.which("dao-pipeline"),
        "tmpdir": tempfile.gettempdir(),
        "sees_token": (folder / token).is_file(),
    }
    try:
        with tempfile.NamedTemporaryFile():
            found["tmpdir_writable"] = True
    except OSError:
        found["tmpdir_writable"] = False
    try:
        answer = folder / f"{token}.answer"
        answer.with_suffix(".tmp").write_text(token)
        answer.with_suffix(".tmp").rename(answer)
    except OSError as error:
        found["write_error"] = f"{error.strerror} ({error.filename})"
    try:
        import torch

        found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": _gpus(torch)}
    except (ImportError, OSError) as error:
        found["torch_error"] = str(error)
    return found


def _gpus(torch: Any) -> list[dict[str, Any]]:
    """Name and memory in GB of each GPU that a small product works on."""
    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        one = torch.ones(8, 8, device=f"cuda:{number}")
        works = float((one @ one).sum()) == 512.0
        found.append({"name": properties.name, "gb": round(properties.total_memory / 1e9), "works": works})
    return found


if __name__ == "__main__":
    print(json.dumps(look(Path(sys.argv[1]), sys.argv[2])))
