from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.show import show
from dao_pipeline.crystals.table import provenance, write_rejected, write_table
from dao_pipeline.errors import UserError
from tests.make import binary


def shown(path: Path, rows: int = 3) -> str:
    output = io.StringIO()
    show(path, rows, Console(file=output, width=200))
    return output.getvalue()


def test_table(tmp_path: Path) -> None:
    about = provenance("download", campaign="demo", settings={"data": {"limit": 3}})
    write_table(to_table([binary(i, e_above_hull=i / 10) for i in range(8)]), tmp_path / "raw.parquet", about)
    text = shown(tmp_path / "raw.parquet")
    for part in (
        "download",
        "demo",
        "settings.data.limit",
        "8 rows",
        "0 to 0.7, mean 0.35",
        "eV/atom",
        "PBE (8)",
        "t-2",
    ):
        assert part in text
    assert re.findall(r"^ +(t-\d)", text, re.MULTILINE) == ["t-0", "t-1", "t-2"]  # only three were asked for


def test_shards_and_rejected(tmp_path: Path) -> None:
    for i in range(2):
        write_table(to_table([binary(i)]), tmp_path / f"shard-{i}.parquet", {"stage": "generate"})
    rows = [{"id": "x", "stage": "s", "reason": "[red]too_close[/red]", "detail": "0.1"}]
    write_rejected(rows, tmp_path / "rejected.parquet", {})
    text = shown(tmp_path)
    assert "2 shards" in text
    assert "2 rows" in text
    assert "[red]too_close[/red] (1)" in shown(tmp_path / "rejected.parquet")


def test_model_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"kind": "DAO-P", "architecture": {"layers": 4}}))
    (tmp_path / "model.safetensors").write_bytes(b"0" * 2_000_000)
    text = shown(tmp_path)
    for part in ("DAO-P", "architecture.layers", "2.0 MB"):
        assert part in text


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "note.parquet").write_text("no table")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        show(tmp_path / "note.parquet")
    with pytest.raises(UserError, match="no such file"):
        show(tmp_path / "nowhere.parquet")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        show(tmp_path)
