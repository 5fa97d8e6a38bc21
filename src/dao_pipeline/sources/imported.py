"""What every source gives: pieces of a crystal table, and the rows that did not become crystals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.schema import COLUMNS, CRYSTAL

OPTIONAL = ("published", "precursor_of")
"""Columns that a source may fill besides those of every crystal table."""

RAW_SCHEMA = pa.schema([pa.field(name, COLUMNS[name].type) for name in (*CRYSTAL, *OPTIONAL)])
"""Columns of the table that the download stage writes."""


@dataclass
class Imported:
    """A crystal table, the rows that did not become one, and how many rows were looked at."""

    table: pa.Table
    rejected: list[dict[str, str]] = field(default_factory=list)
    examined: int = 0


@dataclass
class Source:
    """Crystals piece by piece, and what belongs to them.

    file: what they are read from, if it is no server. snapshot: what provenance says of a server's; its
    ``checksum`` is over all of it. tables: further ones that go beside the crystals. done: called when all
    crystals are safely written, to remove what was kept for an interruption.
    """

    parts: Iterator[Imported]
    file: Path | None = None
    snapshot: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Path] = field(default_factory=dict)
    done: Callable[[], None] = lambda: None


def rejected_row(name: str, reason: str, detail: str) -> dict[str, str]:
    """A row of rejected.parquet."""
    return {"id": encodable(name), "stage": "download", "reason": reason, "detail": encodable(detail)}


@overload
def encodable(text: str) -> str: ...
@overload
def encodable(text: None) -> None: ...
def encodable(text: str | None) -> str | None:
    """``text`` with ``?`` for halves of characters, which JSON can name but UTF-8, and so no table, can hold."""
    return text if text is None else text.encode("utf-8", errors="replace").decode("utf-8")


def from_crystals(crystals: Sequence[Crystal], rejected: list[dict[str, str]], examined: int) -> Imported:
    """Crystals as a piece of the raw table."""
    return Imported(raw_columns(to_table(crystals)), rejected, examined)


def raw_columns(table: pa.Table) -> pa.Table:
    """``table`` with exactly the columns of ``RAW_SCHEMA``, null where it lacks one."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in RAW_SCHEMA
    ]
    return pa.table(columns, schema=RAW_SCHEMA)


def cut(imported: Imported, limit: int) -> Imported:
    """The first ``limit`` crystals of a piece; its rejected rows stay."""
    return Imported(imported.table.slice(0, limit), imported.rejected, imported.examined)
