"""The valid candidates of each composition against each other and against known crystals.

Compositions are independent of one another and are spread over processes; each crystal is reduced once for all
its comparisons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import pyarrow as pa

from dao_pipeline.config import Matcher, Screen
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.parallel import parallel_map
from dao_pipeline.screening.columns import STRUCTURE, set_column
from dao_pipeline.screening.groups import group_by_energy, group_by_probability
from dao_pipeline.screening.novelty import first_match


@dataclass(frozen=True)
class Task:
    """The valid candidates of one composition (rows of the table, with their energies) and known crystals.

    probabilities: of the candidates, if they are to rank them; ``alike`` decides which of them are added.
    """

    rows: list[int]
    crystals: list[Crystal]
    energies: list[float | None]
    known: list[bool]
    references: list[Crystal]
    symprec: float
    matcher: Matcher
    symprecs: Sequence[float] = ()
    probabilities: list[float] | None = None
    alike: Matcher = field(default_factory=Matcher)


@dataclass(frozen=True)
class Verdict:
    """Columns of one candidate that come from comparing it with others; None where it is not valid."""

    spacegroup: int | None = None
    spacegroups: list[int | None] | None = None
    refined_atomic_numbers: list[int] | None = None
    refined_frac_coords: list[float] | None = None
    refined_lattice: list[float] | None = None
    group: int | None = None
    group_size: int | None = None
    unique: bool | None = None
    novel: bool | None = None
    known_id: str | None = None
    rank: int | None = None
    probability: float | None = None


COMPARED = tuple(name for name in Verdict.__dataclass_fields__ if name != "probability")
"""Columns that ``compare`` adds; ``probability`` as well where there is a ranker."""


def compare(
    table: pa.Table,
    references: dict[str, list[Crystal]],
    settings: Screen,
    workers: int,
    probabilities: Sequence[float | None] | None = None,
    alike: Matcher = Matcher(),
) -> pa.Table:
    """Add space groups, group, unique, novel and rank to a table that ``check_geometry`` has been through.

    probabilities: of each valid row; with them candidates are ranked by the probability of all that ``alike``
    finds to be the same, and that is added too.
    """
    members: dict[str, list[int]] = defaultdict(list)
    valid = table["valid"].to_pylist()
    for row, composition in enumerate(table["composition"].to_pylist()):
        if valid[row]:
            members[composition].append(row)
    formulas, energies = table["formula"].to_pylist(), table["energy_pred"].to_pylist()
    known = [False] * table.num_rows
    if "origin" in table.column_names:
        known = [origin == "known" for origin in table["origin"].to_pylist()]
    structures = table.select(STRUCTURE)
    tasks = [
        Task(
            rows=rows,
            crystals=list(from_table(structures.take(pa.array(rows)))),
            energies=[energies[row] for row in rows],
            known=[known[row] for row in rows],
            references=references.get(formulas[rows[0]], []),
            symprec=settings.symprec,
            matcher=settings.matcher,
            symprecs=settings.symprecs,
            probabilities=None if probabilities is None else [probabilities[row] or 0.0 for row in rows],
            alike=alike,
        )
        for rows in members.values()
    ]
    verdicts = [Verdict()] * table.num_rows
    for task, result in zip(tasks, parallel_map(screen_composition, tasks, workers), strict=True):
        for row, verdict in zip(task.rows, result, strict=True):
            verdicts[row] = verdict
    for name in COMPARED if probabilities is None else (*COMPARED, "probability"):
        table = set_column(table, name, [getattr(verdict, name) for verdict in verdicts])
    return table


def screen_composition(task: Task) -> list[Verdict]:
    """Compare the valid candidates of one composition with each other and with known crystals."""
    from dao_pipeline.crystals.matching import Sameness
    from dao_pipeline.crystals.symmetry import refined, spacegroup, spacegroups

    same = Sameness(task.matcher)
    reduced = [same.reduce(crystal) for crystal in task.crystals]
    references = [same.reduce(crystal) for crystal in task.references]
    energies = [inf if energy is None else energy for energy in task.energies]
    by_probability = task.probabilities is not None
    ranked: list[tuple[list[int], float | None]]
    if task.probabilities is None:
        groups = group_by_energy(energies, lambda i, j: same(reduced[i], reduced[j]), task.known)
        ranked = [(group, None) for group in groups]
    else:
        ranked = group_by_probability(task.probabilities, reduced, same, Sameness(task.alike), task.known)
    verdicts: list[Verdict] = [Verdict()] * len(reduced)
    for number, (group, probability) in enumerate(ranked):
        for place, i in enumerate(group):
            unique = place == 0
            crystal = task.crystals[i]
            match = first_match(reduced[i], references, same)
            standard = refined(crystal, task.symprec) if unique else None
            verdicts[i] = Verdict(
                spacegroup=spacegroup(crystal, task.symprec),
                spacegroups=spacegroups(crystal, task.symprecs),
                refined_atomic_numbers=None if standard is None else standard.atomic_numbers.tolist(),
                refined_frac_coords=None if standard is None else standard.frac_coords.ravel().tolist(),
                refined_lattice=None if standard is None else standard.lattice.ravel().tolist(),
                group=number,
                group_size=len(group),
                unique=unique,
                novel=match is None,
                known_id=None if match is None else task.references[match].id,
                rank=number + 1 if unique and (by_probability or energies[i] < inf) else None,
                probability=probability if unique else None,
            )
    return verdicts
