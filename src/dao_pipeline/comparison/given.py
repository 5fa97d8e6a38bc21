"""DFT results that others made: tables of energies or relaxed structures, put beside our candidates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from dao_pipeline.comparison.computed import Computed
from dao_pipeline.config import DFTBaseline, Matcher, expand_path
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.matching import structure_matcher
from dao_pipeline.evaluation.matching import match
from dao_pipeline.sources.files import read_crystals


@dataclass(frozen=True)
class Table:
    """Crystals of a baseline's file, and how many rows became none."""

    crystals: list[Crystal]
    rejected: int


@dataclass(frozen=True)
class Given:
    """What a table told: results by candidate, and how many of its crystals belong to no candidate."""

    results: list[Computed]
    unmatched: int
    rejected: int


def read_baseline(baseline: DFTBaseline) -> Table:
    """Read a baseline's file. Raises UserError for files that are missing, unreadable or of another kind."""
    # a crystal table has no column of total energies: they travel in that of formation energies
    place = "formation_energy" if baseline.quantity == "total" else baseline.quantity
    columns: dict[str, str] = {place: baseline.column} if baseline.column else {}
    read = read_crystals(expand_path(baseline.path), columns=columns)
    return Table(list(from_table(read.table)), len(read.rejected))


def assign(baseline: DFTBaseline, table: Table, candidates: Sequence[Crystal], matcher: Matcher) -> Given:
    """Results of ``baseline`` for ``candidates``.

    A row with a candidate's id belongs to that candidate; any other to the candidates of its composition that
    StructureMatcher finds to be the same crystal, the nearest row to each.
    """
    by_id = {c.id: c for c in candidates}
    by_formula: dict[str, list[Crystal]] = defaultdict(list)
    for candidate in candidates:
        by_formula[candidate.formula].append(candidate)
    same = structure_matcher(matcher)
    best: dict[str, tuple[float, Crystal]] = {}
    unmatched = 0
    for row in table.crystals:
        if row.id in by_id and row.formula == by_id[row.id].formula:
            best[row.id] = (-1.0, row)
            continue
        hits = 0
        for candidate in by_formula.get(row.formula, ()):
            rmse = match(candidate, row, same).rmse
            if rmse is not None:
                hits += 1
                if rmse < best.get(candidate.id, (float("inf"), row))[0]:
                    best[candidate.id] = (rmse, row)
        unmatched += not hits
    results = [_result(baseline, name, row) for name, (_, row) in best.items()]
    return Given(results, unmatched, table.rejected)


def _result(baseline: DFTBaseline, name: str, row: Crystal) -> Computed:
    value = row.extra.get("formation_energy" if baseline.quantity == "total" else baseline.quantity)
    energies = {"total": None, "formation_energy": None, "e_above_hull": None, baseline.quantity: value}
    return Computed(
        id=name,
        source=baseline.name,
        crystal=row,
        relaxed=baseline.relaxed,
        total=energies["total"],
        formation=energies["formation_energy"],
        above_hull=energies["e_above_hull"],
    )
