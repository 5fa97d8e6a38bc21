"""The coverage of a CrysDB as a table: what came in from each source, and what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dao_pipeline.crysdb.split import SPLITS
from dao_pipeline.crystals.table import read_about
from dao_pipeline.errors import UserError

_ADDED = ("duplicates_within", "duplicates_across")


def coverage(folder: Path) -> str:
    """A Markdown table with a row per source and one for all: crystals in, rejected by reason, and on each side.

    Duplicates are divided into copies of a crystal of the same source and of another one. Each row adds up.

    Raises UserError for a folder that build_crysdb did not write.
    """
    about = read_about(folder / "train.parquet")
    found: dict[str, dict[str, Any]] | None = about.get("coverage")
    if found is None:
        raise UserError(f"{folder}: not a CrysDB of this version. Run build_crysdb, or name its folder.")
    reasons = [reason for reason in about["counts"]["rejected"] if reason != "duplicate"]
    rows = [[name or "(no source)", *_row(entry, reasons)] for name, entry in sorted(found.items())]
    total = [sum(values) for values in zip(*(row[1:] for row in rows), strict=True)]
    head = ["source", "in", *reasons, "duplicate within", "duplicate across", *SPLITS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in [*rows, ["all", *total]])])


def _row(entry: dict[str, Any], reasons: list[str]) -> list[int]:
    rejected = entry["rejected"]
    return [
        entry["raw"],
        *(rejected.get(reason, 0) for reason in reasons),
        *(entry.get(name, 0) for name in _ADDED),
        *(entry[name] for name in SPLITS),
    ]
