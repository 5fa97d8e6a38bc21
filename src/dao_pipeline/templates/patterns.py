"""Stoichiometry patterns: which atoms of a cell can stand for which atoms of another.

The *slots* of a cell are its elements, by rising number of atoms (then by atomic number); its *pattern* is the
number of atoms of each slot: (1, 1, 3) for a perovskite of five atoms. Only cells of one pattern can take each
other's elements, and a slot only those of a slot with as many atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from math import factorial, prod

import numpy as np

from dao_pipeline.crystals.flat import FlatCrystals

Pattern = tuple[int, ...]
"""Atoms of each slot, rising."""

MOST_ASSIGNMENTS = 5040
"""Ways to assign elements to slots that are tried one by one: seven elements of equal numbers of atoms."""


@dataclass(frozen=True)
class Slots:
    """Slots of m cells, in rows padded with zeros at the end.

    elements: (m, s) int64, atomic numbers. counts: (m, s) int64, atoms of each.
    """

    elements: np.ndarray
    counts: np.ndarray

    def groups(self) -> dict[Pattern, np.ndarray]:
        """Rows of each pattern, rising."""
        if not len(self.counts):
            return {}
        patterns, member = np.unique(self.counts, axis=0, return_inverse=True)
        order = np.argsort(member.ravel(), kind="stable")
        ends = np.cumsum(np.bincount(member.ravel()))
        rows = np.split(order, ends[:-1])
        return {tuple(int(c) for c in p[p > 0]): r for p, r in zip(patterns, rows, strict=True)}


def slots_of(flat: FlatCrystals) -> Slots:
    """The slots of each cell; atomic numbers must lie in 1 to 118, and no cell may be empty."""
    if not len(flat):
        return Slots(np.zeros((0, 1), np.int64), np.zeros((0, 1), np.int64))
    entry, count = np.unique(flat.crystal_of_atom * 128 + flat.numbers, return_counts=True)
    crystal, number = np.divmod(entry, 128)
    order = np.lexsort((number, count, crystal))
    crystal, number, count = crystal[order], number[order], count[order]
    place = np.arange(len(crystal)) - np.searchsorted(crystal, crystal)
    elements = np.zeros((len(flat), int(place.max()) + 1), dtype=np.int64)
    counts = np.zeros_like(elements)
    elements[crystal, place], counts[crystal, place] = number, count
    return Slots(elements, counts)


def compositions(cells: Sequence[np.ndarray]) -> FlatCrystals:
    """Cells without structure, for ``slots_of``: only numbers and counts mean anything."""
    counts = np.array([len(cell) for cell in cells], dtype=np.int64)
    numbers = (
        np.concatenate([np.asarray(c, dtype=np.int64) for c in cells]) if len(cells) else np.zeros(0, np.int64)
    )
    return FlatCrystals(
        numbers=numbers, frac=np.zeros((len(numbers), 3)), lattice=np.zeros((len(counts), 3, 3)), counts=counts
    )


def slot_atoms(numbers: np.ndarray, elements: np.ndarray) -> np.ndarray:
    """(m, n) order of the atoms by slot: numbers (m, n) of cells of one pattern, elements (m, s) their slots."""
    slot = (numbers[:, :, None] == elements[:, None, :]).argmax(2)
    return np.argsort(slot, axis=1, kind="stable")


@cache
def assignments(pattern: Pattern) -> np.ndarray:
    """(P, s): every way to fill slots with elements of equal counts; row p puts element p[i] into slot i.

    The first row changes nothing. Raises ValueError where they are more than ``MOST_ASSIGNMENTS``.
    """
    runs = [[i for i, c in enumerate(pattern) if c == count] for count in sorted(set(pattern))]
    if prod(factorial(len(run)) for run in runs) > MOST_ASSIGNMENTS:
        raise ValueError(f"pattern {pattern}: too many assignments to try each")
    ways = product(*(permutations(run) for run in runs))
    return np.array([[i for run in way for i in run] for way in ways], dtype=np.int64)


@cache
def _places(pattern: Pattern) -> dict[tuple[int, ...], int]:
    return {tuple(way): i for i, way in enumerate(assignments(pattern).tolist())}


def cosets(pattern: Pattern, same: np.ndarray) -> np.ndarray:
    """(P,) labels of assignments, equal where they differ by renamings of slots that change nothing.

    same: (P,) bool, the assignments that map a structure onto itself. A label is the first assignment of its
    class.
    """
    ways, places = assignments(pattern), _places(pattern)
    labels = np.arange(len(ways))
    if same.sum() < 2:
        return labels
    steps = [np.array([places[tuple(way)] for way in ways[:, a].tolist()]) for a in ways[same]]
    while True:  # those found within a tolerance need not be a group: close them
        lowest = np.minimum.reduce([labels, *(labels[step] for step in steps)])
        for step in steps:
            np.minimum.at(lowest, step, lowest.copy())
        if (lowest == labels).all():
            return labels
        labels = lowest
