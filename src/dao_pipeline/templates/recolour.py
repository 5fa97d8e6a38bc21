"""Known structures with other numbers of elements on their sites.

Where few known crystals have the stoichiometry pattern of a composition, its structure may be known all the same,
under another colouring: corundum is ilmenite with one element in place of two, and ilmenite is corundum with its
metal sites shared out. *Merged* crystals have one element on the sites of two; *split* crystals have two on the
sites of one, each on whole sets of sites that look alike (on any of them, where there are few). These crystals are
hypothetical, made of real elements: what is merged takes either of its elements, and what is split off takes the
element that is most like the one it replaces, so that they are near to compositions as other templates are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dao_pipeline.crystals.flat import FlatCrystals, formulas, structure_columns
from dao_pipeline.templates.cells import primitive_cells
from dao_pipeline.templates.patterns import Pattern, Slots, assignments, slots_of
from dao_pipeline.templates.prints import site_prints, slot_prints
from dao_pipeline.templates.types import find_types

if TYPE_CHECKING:
    from dao_pipeline.templates.index import TemplateIndex

ALIKE = 0.02
"""Sites whose distances to all others differ by less, each in units of (V/n)^(1/3), are taken for equivalent."""
FEW = 10
"""Ways to choose sites that are all tried, equivalent or not."""
MOST_SETS = 8
"""Sets of equivalent sites; with more, an element is not shared out."""


@dataclass(frozen=True)
class Recoloured:
    """Recoloured crystals of one pattern, as an index of their own. parent: (r,) rows of the index they are from.

    Types are numbered from where those of that index end.
    """

    index: TemplateIndex
    parent: np.ndarray


def recolour(index: TemplateIndex, pattern: Pattern) -> Recoloured | None:
    """One known crystal of each type of an index, recoloured to ``pattern`` in all ways, where that gives a
    structure type that no crystal of this pattern has; None: there are none.
    """
    slots = index.slots
    groups = {p: bucket.rows for p, bucket in index.buckets.items() if sum(p) == sum(pattern)}
    groups = {p: rows[np.unique(index.label[rows], return_index=True)[1]] for p, rows in groups.items()}
    crystals, parent = recoloured(index.flat, slots, groups, pattern, index.metric.cost)
    new = primitive_cells(crystals).counts == crystals.counts  # else they are supercells of something smaller
    crystals, parent = crystals.select(new), parent[new]
    if not len(parent):
        return None
    elements = slots_of(crystals).elements[:, : len(pattern)]
    prints = slot_prints(crystals, np.arange(len(parent)), elements, pattern)
    if pattern in groups:
        known = groups[pattern]
        own = slot_prints(index.flat, known, slots.elements[known][:, : len(pattern)], pattern)
        new = _unlike(prints, own, pattern, index.settings.same_type)
        crystals, parent, elements, prints = crystals.select(new), parent[new], elements[new], prints[new]
        if not len(parent):
            return None
    found = find_types(prints, pattern, index.settings.same_type)
    columns = structure_columns(crystals, formulas(crystals))
    table = pa.table({"id": index.table["id"].take(pa.array(parent)), **columns})
    table = table.append_column("e_above_hull", pa.nulls(len(parent), pa.float64()))
    made = replace(
        index,
        table=table,
        label=int(index.label.max()) + 1 + found.label,
        places=np.take_along_axis(elements, found.places, 1),
        classes={pattern: found.classes},
    )
    return Recoloured(made, parent)


def _unlike(prints: np.ndarray, known: np.ndarray, pattern: Pattern, tolerance: float) -> np.ndarray:
    """(r,) bool: prints (r, s, s, f) that differ from all known ones under every assignment."""
    flat = prints.reshape(len(prints), -1)
    nearest = np.full(len(flat), np.inf)
    for way in assignments(pattern):
        other = known[:, way][:, :, way].reshape(len(known), -1)
        squared = (flat**2).sum(1)[:, None] + (other**2).sum(1) - 2 * flat @ other.T
        nearest = np.minimum(nearest, squared.min(1) / flat.shape[1])
    return nearest > tolerance**2


def recoloured(
    flat: FlatCrystals, slots: Slots, groups: dict[Pattern, np.ndarray], pattern: Pattern, cost: np.ndarray
) -> tuple[FlatCrystals, np.ndarray]:
    """All crystals of ``pattern`` that come from merging two slots of others, or from splitting one, and the rows
    (r,) that they come from.

    slots: of ``flat``; groups: rows by pattern (``patterns.slots_of``). cost: (119, 119) distances of elements.
    """
    ptr = flat.ptr
    rows: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    for source, i, j in merges(pattern, groups):
        some = groups[source]
        atoms = flat.numbers[flat.atoms_of(some)]
        first, second = slots.elements[some, i, None], slots.elements[some, j, None]
        rows += [some, some]
        numbers += [np.where(atoms == second, first, atoms), np.where(atoms == first, second, atoms)]
    for source, slot, part in splits(pattern, groups):
        for row, chosen in _shares(flat, slots, groups[source], source, slot, part):
            atoms = flat.numbers[ptr[row] : ptr[row + 1]].copy()
            atoms[chosen] = _most_like(int(atoms[chosen[0]]), atoms, cost)
            rows.append(np.array([row]))
            numbers.append(atoms[None])
    parent = np.concatenate([np.zeros(0, np.int64), *rows])
    colours = np.concatenate([np.zeros((0, sum(pattern)), np.int64), *numbers])
    counts = np.full(len(parent), sum(pattern), dtype=np.int64)
    frac = flat.frac[flat.atoms_of(parent)].reshape(-1, 3) if len(parent) else np.zeros((0, 3))
    made = FlatCrystals(numbers=colours.ravel(), frac=frac, lattice=flat.lattice[parent], counts=counts)
    return made, parent


def merges(pattern: Pattern, known: dict[Pattern, np.ndarray]) -> Iterator[tuple[Pattern, int, int]]:
    """Known patterns of as many atoms, and pairs of their slots that make ``pattern`` when they are one."""
    for source in known:
        if len(source) != len(pattern) + 1:
            continue
        for i, j in combinations(range(len(source)), 2):
            rest = [c for n, c in enumerate(source) if n not in (i, j)]
            if tuple(sorted([*rest, source[i] + source[j]])) == pattern:
                yield source, i, j


def splits(pattern: Pattern, known: dict[Pattern, np.ndarray]) -> Iterator[tuple[Pattern, int, int]]:
    """Known patterns of as many atoms, a slot, and how many of its atoms another element needs for ``pattern``."""
    for source in known:
        if len(source) != len(pattern) - 1:
            continue
        for slot, count in enumerate(source):
            rest = source[:slot] + source[slot + 1 :]
            for part in range(1, count // 2 + 1):
                if tuple(sorted([*rest, part, count - part])) == pattern:
                    yield source, slot, part


def _shares(
    flat: FlatCrystals, slots: Slots, rows: np.ndarray, source: Pattern, slot: int, part: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Rows, and ``part`` atoms of their slot ``slot`` that may be another element's."""
    elements, ptr = slots.elements[rows][:, : len(source)], flat.ptr
    for row, own, sites in zip(rows.tolist(), elements, site_prints(flat, rows, elements, source), strict=True):
        atoms = np.flatnonzero(flat.numbers[ptr[row] : ptr[row + 1]] == own[slot])
        sets = list(atoms[:, None]) if comb(len(atoms), part) <= FEW else alike(atoms, sites[atoms])
        if len(sets) > max(MOST_SETS, FEW):
            continue
        for size in range(1, min(len(sets), part) + 1):
            for some in combinations(sets, size):
                chosen = np.concatenate(some)
                # of two halves, the one with the first atom
                if len(chosen) == part and (2 * part < len(atoms) or atoms[0] in chosen):
                    yield row, chosen


def alike(atoms: np.ndarray, sites: np.ndarray) -> list[np.ndarray]:
    """Sets of atoms whose prints (a, s, 10) are alike."""
    near = (np.abs(sites[:, None] - sites) < ALIKE).all((2, 3))
    first = near.argmax(1)
    return [atoms[first == leader] for leader in np.unique(first)]


def _most_like(number: int, present: np.ndarray, cost: np.ndarray) -> int:
    """The element most like another one that is not present; of those that crystals are made of."""
    away = cost[number, :95].copy()
    away[0] = np.inf
    away[present] = np.inf
    return int(away.argmin())
