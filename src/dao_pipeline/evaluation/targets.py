"""Which known crystals are to be found, and among which candidates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow.parquet as pq

from dao_pipeline.candidates.compositions import Requested
from dao_pipeline.crystals.table import read_table


class Wanted(NamedTuple):
    """A known crystal, and the cell whose candidates may be it."""

    id: str
    cell: Requested


def wanted(test: Path, cells: Sequence[Requested], which: Literal["stable", "all"]) -> list[Wanted]:
    """The targets of the ``cells`` that a campaign asks for, in their order.

    which: stable, the crystal that each cell was asked for, the most stable of its composition and number of
    atoms; all: every crystal of the test split with one of these compositions and numbers of atoms. Each is then
    matched against the same candidates.
    """
    if which == "stable":
        return [Wanted(str(cell.target_id), cell) for cell in cells]
    present = pq.read_schema(test).names
    columns = [name for name in ("id", "formula", "num_atoms", "precursor_of") if name in present]
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for row in read_table(test, columns=columns).to_pylist():
        if row.get("precursor_of") is None:
            found[row["formula"], row["num_atoms"]].append(row["id"])
    return [Wanted(name, cell) for cell in cells for name in found[cell.formula, cell.num_atoms]]
