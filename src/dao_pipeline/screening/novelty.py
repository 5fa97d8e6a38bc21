"""Known crystals that candidates are compared with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.table import iter_tables
from dao_pipeline.screening.columns import STRUCTURE

if TYPE_CHECKING:
    from dao_pipeline.crystals.match_search import Reduced
    from dao_pipeline.crystals.matching import Sameness


def read_references(crysdb: Path, formulas: Collection[str]) -> dict[str, list[Crystal]]:
    """Crystals of the training and validation splits with one of the reduced ``formulas``, by formula.

    Streamed: only what is compared is held in memory.
    """
    wanted = pa.array(sorted(formulas), pa.string())
    found: dict[str, list[Crystal]] = defaultdict(list)
    for name in ("train", "val"):
        for piece in iter_tables(crysdb / f"{name}.parquet", columns=STRUCTURE):
            rows = piece.filter(pc.is_in(piece["formula"], value_set=wanted))
            for crystal, formula in zip(from_table(rows), rows["formula"].to_pylist(), strict=True):
                found[formula].append(crystal)
    return dict(found)


def first_match(candidate: Reduced | None, references: Sequence[Reduced | None], same: Sameness) -> int | None:
    """Place of the first reference that a candidate matches; None: it is novel."""
    return next((k for k, reference in enumerate(references) if same(reference, candidate)), None)
