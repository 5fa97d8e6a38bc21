"""Screening of whole compositions: check, group, compare with known crystals, rank.

One row per planned candidate, whatever happened to it; ``status`` is ok exactly for the valid ones. Candidates are
ranked by predicted energy or, if the campaign has a ranker, by the probability of being the ground state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Campaign, Matcher, Screen
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import shortest_distances, volumes
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.parallel import parallel_map
from dao_pipeline.ranking.pool import gathered, pool

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from dao_pipeline.crystals.matching import Sameness

_STRUCTURE = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]


def screen_table(
    table: pa.Table,
    references: dict[str, list[Crystal]],
    campaign: Campaign,
    energy_model: Path | None,
    ranker: Path | None = None,
) -> pa.Table:
    """The candidates of whole compositions, as ``gather`` gives them, with all columns of screening.

    references: known crystals by reduced formula. energy_model: DAO-P; None: ``energy_pred`` is null. ranker: what
    ``train_ranker`` wrote; None: candidates are ranked by predicted energy.
    """
    from dao_pipeline.energy.predict import predict_with_std

    energies, std = np.full(table.num_rows, np.nan), None
    if energy_model is not None:
        energies, std = predict_with_std(energy_model, table, batch_atoms=campaign.generate.batch_atoms)
    table = check_geometry(table, campaign.screen)
    table = set_column(table, "energy_pred", [float(e) if isfinite(e) else None for e in energies])
    if std is not None:
        table = set_column(table, "energy_std_pred", [float(s) if isfinite(s) else None for s in std])
    threads = campaign.compute.cpu.threads
    probabilities = None if ranker is None else predict_probabilities(ranker, table, threads)
    table = compare(table, references, campaign.screen, threads, probabilities, campaign.ranking.matcher)
    return set_column(table, "structure_type_known", known_types(table))


def set_column(table: pa.Table, name: str, values: Sequence[Any] | np.ndarray) -> pa.Table:
    """``table`` with one column of the crystal schema added or replaced; None is null."""
    column = pa.array(values, COLUMNS[name].type, from_pandas=True)
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def check_geometry(table: pa.Table, settings: Screen) -> pa.Table:
    """Add min_distance, volume_per_atom and valid; name in status what is wrong with an invalid crystal."""
    exists = np.asarray(pc.is_valid(table["lattice"]))
    flat = flatten(table.filter(pa.array(exists)))
    distance, volume = np.full(table.num_rows, np.nan), np.full(table.num_rows, np.nan)
    distance[exists] = shortest_distances(flat)
    volume[exists] = volumes(flat.lattice) / flat.counts
    close = ~(distance >= settings.min_distance)
    dense, empty = ~(volume >= settings.min_volume_per_atom), ~(volume <= settings.max_volume_per_atom)
    valid = exists & ~close & ~dense & ~empty
    status = np.array(table["status"].to_pylist(), dtype=object)
    status[exists & empty] = "too_empty"
    status[exists & dense] = "too_dense"
    status[exists & close] = "atoms_too_close"
    table = set_column(table, "status", status.tolist())
    table = set_column(table, "min_distance", distance)
    table = set_column(table, "volume_per_atom", volume)
    return set_column(table, "valid", valid)


def predict_probabilities(ranker: Path, table: pa.Table, workers: int) -> list[float | None]:
    """Probability of being the ground state of each valid candidate, energies predicted; None for the others."""
    from dao_pipeline.ranking.files import load_ranker

    valid = np.flatnonzero(np.asarray(table["valid"]))
    sound = table.take(pa.array(valid))
    found = load_ranker(ranker).probabilities(sound, sound["composition"].to_pylist(), workers)
    probabilities: list[float | None] = [None] * table.num_rows
    for row, probability in zip(valid.tolist(), found.tolist(), strict=True):
        probabilities[row] = probability
    return probabilities


def known_types(table: pa.Table) -> list[bool | None]:
    """Whether each candidate has a known structure: made from one, or in a group with one that was.

    None for generated candidates where no template was tried, or that are not valid.
    """
    if "origin" not in table.column_names:
        return [None] * table.num_rows
    origins = table["origin"].to_pylist()
    own = [origin not in (None, "generated") for origin in origins]
    places = list(zip(table["composition"].to_pylist(), table["group"].to_pylist(), strict=True))
    tried = {composition for (composition, _), template in zip(places, own, strict=True) if template}
    groups = {place for place, template in zip(places, own, strict=True) if template and place[1] is not None}
    return [
        True if template else (place in groups if place[1] is not None and place[0] in tried else None)
        for place, template in zip(places, own, strict=True)
    ]


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
    probabilities: list[float] | None = None
    alike: Matcher = field(default_factory=Matcher)


@dataclass(frozen=True)
class Verdict:
    """Columns of one candidate that come from comparing it with others; None where it is not valid."""

    spacegroup: int | None = None
    group: int | None = None
    group_size: int | None = None
    unique: bool | None = None
    novel: bool | None = None
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
    """Add space group, group, unique, novel and rank to a table that ``check_geometry`` has been through.

    probabilities: of each valid row; with them candidates are ranked by the probability of all that ``alike``
    finds to be the same, and that is added too. Compositions are independent of one another and are spread over
    processes.
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
    structures = table.select(_STRUCTURE)
    tasks = [
        Task(
            rows=rows,
            crystals=list(from_table(structures.take(pa.array(rows)))),
            energies=[energies[row] for row in rows],
            known=[known[row] for row in rows],
            references=references.get(formulas[rows[0]], []),
            symprec=settings.symprec,
            matcher=settings.matcher,
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
    from dao_pipeline.crystals.symmetry import spacegroup

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
            verdicts[i] = Verdict(
                spacegroup=spacegroup(task.crystals[i], task.symprec),
                group=number,
                group_size=len(group),
                unique=unique,
                novel=not any(same(reference, reduced[i]) for reference in references),
                rank=number + 1 if unique and (by_probability or energies[i] < inf) else None,
                probability=probability if unique else None,
            )
    return verdicts


def group_by_probability(
    probabilities: Sequence[float],
    reduced: Sequence[Structure | None],
    same: Sameness,
    alike: Sameness,
    known: Sequence[bool] | None = None,
) -> list[tuple[list[int], float | None]]:
    """Groups of candidates that match the most probable member, which stands first; in order of ``ranking.pool``;
    those with a crystal ``known`` for the composition come first.

    With each group the probability of all groups that ``alike``, the coarser matcher, finds to be the same
    crystal; None for a group that counts with a better one.
    """
    groups = group_by_energy([-p for p in probabilities], lambda i, j: same(reduced[i], reduced[j]), known)
    mass = [sum(probabilities[i] for i in group) for group in groups]
    order = pool(mass, lambda a, b: alike(reduced[groups[a][0]], reduced[groups[b][0]]))
    if known:
        order = sorted(order, key=lambda place: not known[groups[place[0]][0]])
    return [(groups[i], probability) for i, probability in order]


def group_by_energy(
    energies: Sequence[float], same: Callable[[int, int], bool], known: Sequence[bool] | None = None
) -> list[list[int]]:
    """Groups of candidates that match the lowest-energy member, which stands first; groups by its energy.

    Greedy: in order of energy (ties in order of the list) each candidate joins the first group whose first
    member it matches, or founds one. Crystals that are ``known`` for the composition come first.
    """
    known = known or [False] * len(energies)
    return gathered(sorted(range(len(energies)), key=lambda i: (not known[i], energies[i], i)), same)
