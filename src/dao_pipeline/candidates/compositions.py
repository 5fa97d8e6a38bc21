"""What a campaign asks for: compositions with the cell to fill, from the campaign or from the test split."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dao_pipeline.candidates.asked import asked, asked_file
from dao_pipeline.config import Campaign
from dao_pipeline.crystals.crystal import reduced_formula
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, SYMBOLS
from dao_pipeline.crystals.formula import formula_text, parse_formula, reduced
from dao_pipeline.crystals.table import iter_tables, read_about, read_table
from dao_pipeline.errors import UserError

log = logging.getLogger(__name__)

_TEST_COLUMNS = ("id", "formula", "num_atoms", "atomic_numbers", "e_above_hull", "precursor_of")


@dataclass(frozen=True)
class Requested:
    """One composition to predict.

    composition: formula of the whole cell, elements in the order asked, e.g. ``Sr2Ti2O6``.
    formula: reduced formula.
    atomic_numbers: of the cell to generate, elements in that same order.
    target_id: id of the known test crystal, None for compositions given by the user.
    asked_by: what of the user's asked for it.
    """

    composition: str
    formula: str
    atomic_numbers: tuple[int, ...]
    target_id: str | None = None
    asked_by: str | None = None

    @property
    def num_atoms(self) -> int:
        """Atoms in the cell."""
        return len(self.atomic_numbers)


def requested(formula: str, units: int, target_id: str | None = None) -> Requested:
    """The cell of ``units`` formula units. Raises ValueError for what is no plain formula."""
    counts = {symbol: count * units for symbol, count in parse_formula(formula).items()}
    numbers = tuple(ATOMIC_NUMBERS[symbol] for symbol, count in counts.items() for _ in range(count))
    return Requested(
        composition=formula_text(counts),
        formula=reduced(counts),
        atomic_numbers=numbers,
        target_id=target_id,
    )


def known_targets(test: pa.Table, limit: int, preferred: Sequence[str] = ()) -> list[Requested]:
    """Known crystals of the test split as targets: the most stable per reduced formula and number of atoms.

    In order of first appearance in the table, ``limit`` at most; crystals whose ids are in ``preferred`` come
    first, in that order. Precursors of relaxed crystals are no targets.
    """
    rows = [row for row in test.to_pylist() if row.get("precursor_of") is None]
    by_id = {row["id"]: row for row in rows}
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for name in preferred:
        if name in by_id:
            best.setdefault(_cell(by_id[name]), by_id[name])
    fixed = set(best)
    for row in rows:
        cell = _cell(row)
        if cell not in best or (cell not in fixed and _hull(row) < _hull(best[cell])):
            best[cell] = row
    return [_from_crystal(row["atomic_numbers"], row["id"]) for row in list(best.values())[:limit]]


def _cell(row: dict[str, Any]) -> tuple[str, int]:
    return row["formula"], row["num_atoms"]


def _hull(row: dict[str, Any]) -> float:
    value: float | None = row.get("e_above_hull")
    return inf if value is None else value


def _from_crystal(atomic_numbers: list[int], target_id: str) -> Requested:
    formula = reduced_formula(np.asarray(atomic_numbers))
    units = len(atomic_numbers) // sum(parse_formula(formula).values())
    return requested(formula, units, target_id)


def count_compositions(campaign: Campaign) -> int:
    """How many compositions a campaign asks for, known before any stage has run; of the test split at most.

    The numbers of shards and of jobs follow from it.
    """
    return campaign.generate.test_split.limit if campaign.generate.known else asked(campaign).count


def asked_compositions(campaign: Campaign, start: int = 0, stop: int | None = None) -> list[Requested] | None:
    """Compositions ``start`` to ``stop`` of those that are known before any stage has run.

    None where they come from the test split.
    """
    if campaign.generate.known:
        return None
    table = asked(campaign).table
    piece = table.slice(start, None if stop is None else max(0, stop - start))
    columns = ("composition", "formula", "atomic_numbers", "asked_by")
    rows = zip(*(piece[name].to_pylist() for name in columns), strict=True)
    return [Requested(name, formula, tuple(numbers), asked_by=by) for name, formula, numbers, by in rows]


def campaign_compositions(
    campaign: Campaign, crysdb: Path, start: int = 0, stop: int | None = None
) -> list[Requested]:
    """Compositions ``start`` to ``stop`` of those that a campaign asks for, feasible or not.

    A composition's place among all of them is its number: in candidates' ids and in the division into shards.

    Raises UserError when the test split is asked for and holds no target, or nothing is asked for.
    """
    found = asked_compositions(campaign, start, stop)
    if found is not None:
        if not count_compositions(campaign):
            raise UserError(
                f"campaign {campaign.name}: there is nothing to predict; see compositions_dropped.parquet beside "
                f"{asked_file(campaign)} for what was asked for, or ask for more in section generate."
            )
        return found
    path = crysdb / "test.parquet"
    test = read_table(path, columns=_present(path, _TEST_COLUMNS))
    targets = known_targets(test, campaign.generate.test_split.limit, _preferred(campaign))
    if not targets:
        raise UserError(
            f"{path}: the test split holds no crystal, so there is nothing to predict. "
            "Give generate.compositions, or raise crysdb.test_fraction."
        )
    return targets[start:stop]


def _preferred(campaign: Campaign) -> Sequence[str]:
    """Ids of the demo's targets, where the embedded crystals are a source."""
    if all(source.source != "embedded" for _, source in campaign.data.each()):
        return ()
    from dao_pipeline.sources.embedded import DEMO_TARGETS

    return DEMO_TARGETS


def _present(path: Path, columns: Sequence[str]) -> list[str]:
    if not path.exists():
        raise UserError(f"{path}: no such file. Run build_crysdb, or correct --crysdb.")
    names = set(pq.read_schema(path).names)
    return [name for name in columns if name in names]


def known_elements(table: Path) -> set[int]:
    """Atomic numbers that occur in a crystal table: what its metadata says, or else what it holds, streamed."""
    noted = read_about(table).get("elements")
    if noted is not None:
        return set(noted)
    known: set[int] = set()
    for piece in iter_tables(table, rows=50_000, columns=["atomic_numbers"]):
        known.update(np.unique(np.asarray(piece["atomic_numbers"].combine_chunks().flatten())).tolist())
    return known


def infeasible(asked: Requested, known: Collection[int], max_atoms: int) -> str | None:
    """Why no candidates can be generated for a composition; None if they can."""
    unseen = [SYMBOLS[z] for z in dict.fromkeys(asked.atomic_numbers) if z not in known]
    if unseen:
        return f"no training crystal contains {', '.join(unseen)}"
    if asked.num_atoms > max_atoms:
        return f"{asked.num_atoms} atoms, more than generate.max_atoms ({max_atoms})"
    return None
