"""A crystal's structure without its elements: distances between the atoms of its slots.

For slots i and j, the sorted distances from an atom of i to its nearest atoms of j, averaged over the atoms of i,
in units of (V/n)^(1/3). These are average minimum distances (Widdowson et al., MATCH 87, 529, 2022) kept apart by
slot, with their spread over the atoms beside the mean: the same for every choice of cell, origin and orientation,
continuous when atoms move, and unchanged by other elements. Comparing them takes microseconds, a structure matcher
milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np

from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.crystals.geometry import cell_heights, squared_distances, volumes
from dao_pipeline.templates.patterns import Pattern, slot_atoms

NEIGHBOURS = 10
"""Distances per atom and slot."""

RADIUS = 2.0
"""In units of (V/n)^(1/3): farther neighbours count as being here, so a finite set of images is exact."""

_DISTANCES_AT_ONCE = 2_000_000


def slot_prints(flat: FlatCrystals, rows: np.ndarray, elements: np.ndarray, pattern: Pattern) -> np.ndarray:
    """(r, s, s, 20) float32: prints of the crystals ``rows`` (r,) of one pattern; elements: (r, s), their slots.

    Entry (i, j): mean and standard deviation over the atoms of slot i of their distances to atoms of slot j.
    """
    slots = len(pattern)
    result = np.empty((len(rows), slots, slots, 2 * NEIGHBOURS), dtype=np.float32)
    starts = np.cumsum((0, *pattern))
    for some, _, nearest in _nearest(flat, rows, elements, pattern):
        for i, (first, last) in enumerate(pairwise(starts)):
            result[some, i, :, :NEIGHBOURS] = nearest[:, first:last].mean(1)
            result[some, i, :, NEIGHBOURS:] = nearest[:, first:last].std(1)
    return result


def site_prints(flat: FlatCrystals, rows: np.ndarray, elements: np.ndarray, pattern: Pattern) -> np.ndarray:
    """(r, n, s, 10) float32: distances from each atom, in the order of the cell, to the nearest of each slot."""
    result = np.empty((len(rows), sum(pattern), len(pattern), NEIGHBOURS), dtype=np.float32)
    for some, order, nearest in _nearest(flat, rows, elements, pattern):
        result[some[:, None], order] = nearest
    return result


def _nearest(
    flat: FlatCrystals, rows: np.ndarray, elements: np.ndarray, pattern: Pattern
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pieces (m,) of the crystals ``rows``, their atoms in order of slots (m, n), and the sorted distances from
    each to the nearest atoms of each slot (m, n, s, 10).
    """
    size = sum(pattern)
    atoms = flat.atoms_of(rows)
    order = slot_atoms(flat.numbers[atoms], elements)
    frac = flat.frac[np.take_along_axis(atoms, order, 1)]
    lattice = flat.lattice[rows]
    lattice = lattice / np.cbrt(volumes(lattice) / size)[:, None, None]
    for some, shifts in _of_equal_reach(lattice, size):
        distances = _distances(lattice[some], frac[some], shifts)
        yield some, order[some], _per_slot(distances, pattern)


def _of_equal_reach(lattice: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of the cells that need the same periodic images, and these (S, 3)."""
    # an image s steps along an axis is at least (s - 1/2) heights away
    reach = np.floor(RADIUS / cell_heights(lattice) + 0.5).astype(np.int64)
    spans, member = np.unique(reach, axis=0, return_inverse=True)
    for i, span in enumerate(spans.tolist()):
        shifts = np.array(list(product(*(range(-s, s + 1) for s in span))), dtype=np.float64)
        rows = np.flatnonzero(member.ravel() == i)
        step = max(1, _DISTANCES_AT_ONCE // (size * size * len(shifts)))
        for start in range(0, len(rows), step):
            yield rows[start : start + step], shifts


def _distances(lattice: np.ndarray, frac: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(m, n, n, S) distances, from the first atom to images of the second, at most ``RADIUS``."""
    return np.sqrt(np.clip(squared_distances(frac, lattice, shifts), 0.0, RADIUS**2)).astype(np.float32)


def _per_slot(distances: np.ndarray, pattern: Pattern) -> np.ndarray:
    """(m, n, s, 10) the smallest of distances (m, n, n, S) to the atoms of each slot."""
    m, n = distances.shape[:2]
    result = np.empty((m, n, len(pattern), NEIGHBOURS), dtype=np.float32)
    for j, (start, end) in enumerate(pairwise(np.cumsum((0, *pattern)))):
        to = distances[:, :, start:end].reshape(m, n, -1)
        if to.shape[2] < NEIGHBOURS:
            to = np.concatenate([to, np.full((m, n, NEIGHBOURS - to.shape[2]), RADIUS, np.float32)], axis=2)
        result[:, :, j] = np.sort(np.partition(to, NEIGHBOURS - 1, 2)[:, :, :NEIGHBOURS], axis=2)
    return result
