"""An index on disk: a folder with crystals (Parquet), arrays (safetensors) and settings (JSON)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dao_pipeline.config import Templates
from dao_pipeline.crystals.table import read_table, replacing, write_table, write_text
from dao_pipeline.errors import UserError
from dao_pipeline.templates.index import RECOLOURED, SUPERCELL, TemplateIndex
from dao_pipeline.templates.metric import Metric
from dao_pipeline.templates.patterns import Pattern
from dao_pipeline.templates.volume import VolumeModel

_FORMAT = 1


def save(index: TemplateIndex, folder: Path, about: dict[str, Any]) -> None:
    """Write an index; ``index.json`` appears last, so a folder that has it is whole.

    about: where the crystals come from (see ``crystals.table.provenance``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.json").unlink(missing_ok=True)
    write_table(index.table, folder / "templates.parquet", about)
    arrays = {
        "label": index.label,
        "places": index.places,
        "volume.elements": index.volume.elements,
        "volume.pairs": index.volume.pairs,
        "metric.cost": index.metric.cost,
        "metric.whole": index.metric.whole,
        **{f"classes.{_name(pattern)}": labels for pattern, labels in index.classes.items()},
    }
    with replacing(folder / "index.safetensors") as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
    metric = {"name": index.metric.name, "width": index.metric.width, "power": index.metric.power}
    note = {"format": _FORMAT, "settings": index.settings.model_dump(mode="json"), "metric": metric}
    note |= {"instability": index.instability, "supercell": index.supercell, "recoloured": index.recoloured}
    write_text(folder / "index.json", json.dumps(note, indent=1) + "\n")


def load(folder: Path) -> TemplateIndex:
    """Read what ``save`` wrote. Raises UserError where the folder is not a whole index of this format."""
    try:
        note = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "index.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: no template index, or half of one ({error}). Build it again.") from error
    if note.get("format") != _FORMAT:
        raise UserError(f"{folder}: template index of format {note.get('format')}, not {_FORMAT}. Build it again.")
    table = read_table(folder / "templates.parquet")
    if len(arrays["label"]) != table.num_rows:
        raise UserError(
            f"{folder}: index.safetensors and templates.parquet do not belong together. Build it again."
        )
    return TemplateIndex(
        table=table,
        settings=Templates.model_validate(note["settings"]),
        metric=Metric(cost=arrays["metric.cost"], whole=arrays["metric.whole"], **note["metric"]),
        label=arrays["label"],
        places=arrays["places"],
        classes={_pattern(n): a for n, a in arrays.items() if n.startswith("classes.")},
        volume=VolumeModel(arrays["volume.elements"], arrays["volume.pairs"]),
        instability=note["instability"],
        supercell=note.get("supercell", SUPERCELL),
        recoloured=note.get("recoloured", RECOLOURED),
    )


def _name(pattern: Pattern) -> str:
    return "-".join(str(count) for count in pattern)


def _pattern(name: str) -> Pattern:
    return tuple(int(count) for count in name.removeprefix("classes.").split("-"))
