"""A short vector per crystal that is the same for every choice of cell: which pairs are worth comparing at all."""

from __future__ import annotations

from itertools import product

import numpy as np

from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.crystals.geometry import cell_heights, squared_distances, volumes

NEIGHBOURS = 12
"""Distances per atom that count."""

RADIUS = 1.8
"""In units of (V/n)^(1/3): farther neighbours count as being here, so a finite set of images is exact."""

_DISTANCES_AT_ONCE = 2_000_000


def fingerprints(flat: FlatCrystals) -> np.ndarray:
    """(m, 12) float32: sorted distances to the nearest neighbours, averaged over the atoms of a crystal.

    Distances are in units of (V/n)^(1/3), so crystals that differ by a uniform strain agree. These average minimum
    distances (Widdowson et al., MATCH 87, 529, 2022) depend neither on the cell nor on origin, orientation and
    order of the atoms, and change continuously when atoms move: a space group, which would divide crystals as
    well, jumps at its tolerance. Reduced cells need fewer periodic images; the result is right for any.
    """
    result = np.empty((len(flat), NEIGHBOURS), dtype=np.float32)
    ptr, unit = flat.ptr, np.cbrt(volumes(flat.lattice) / flat.counts)
    # an image s steps along an axis is at least (s - 1/2) heights away
    reach = np.floor(RADIUS * unit[:, None] / cell_heights(flat.lattice) + 0.5).astype(np.int64)
    kind = np.concatenate([flat.counts[:, None], reach], axis=1)
    kinds, member = np.unique(kind, axis=0, return_inverse=True)
    order = np.argsort(member, kind="stable")
    ends = np.searchsorted(member[order], np.arange(len(kinds)), side="right")
    for start, end, (size, *span) in zip([0, *ends[:-1].tolist()], ends.tolist(), kinds.tolist(), strict=True):
        shifts = np.array(list(product(*(range(-s, s + 1) for s in span))), dtype=np.float64)
        step = max(1, _DISTANCES_AT_ONCE // (size * size * len(shifts)))
        for first in range(start, end, step):
            rows = order[first : min(end, first + step)]
            atoms = ptr[rows][:, None] + np.arange(size)
            lattice = flat.lattice[rows] / unit[rows, None, None]
            result[rows] = _averages(flat.frac[atoms], lattice, shifts)
    return result


def _averages(frac: np.ndarray, lattice: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(m, 12) for crystals of n atoms: frac (m, n, 3), lattice (m, 3, 3) in units of (V/n)^(1/3), shifts (S,
    3)."""
    m, n = frac.shape[:2]
    squared = np.minimum(squared_distances(frac, lattice, shifts).reshape(m, n, -1), RADIUS**2)
    if squared.shape[2] < NEIGHBOURS:
        squared = np.concatenate([squared, np.full((m, n, NEIGHBOURS - squared.shape[2]), RADIUS**2)], axis=2)
    nearest = np.sort(np.partition(squared, NEIGHBOURS - 1, 2)[:, :, :NEIGHBOURS], axis=2)
    return np.sqrt(np.maximum(nearest, 0)).mean(1)
