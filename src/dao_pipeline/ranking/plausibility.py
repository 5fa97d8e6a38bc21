"""Are the distances in a crystal those that its elements would keep? Plain geometry, for many crystals at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from dao_pipeline.crystals.elements import COVALENT_RADIUS, ELECTRONEGATIVITY
from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.crystals.geometry import compact, volumes

PLAUSIBILITY = ("closest", "contact", "contact_spread", "closest_like", "neighbours", "log_volume")
"""Distances are in units of the sum of the covalent radii of the two atoms.

closest: smallest distance. contact, contact_spread: mean and standard deviation over the atoms of the distance to
the nearest neighbour. closest_like: smallest distance between atoms of about the same electronegativity.
neighbours: mean logarithm of the number of atoms nearly as near as the nearest. log_volume: logarithm of the cell
volume over the one expected of the elements.
"""

_LIKE = 0.5
"""Difference in electronegativity below which two atoms are like each other."""

_NEARLY = 1.25
_FAR = 4.0
_DISTANCES_AT_ONCE = 1_000_000
_SHIFTS = np.array(list(product((-1, 0, 1), repeat=3)), dtype=np.float64)
_RADIUS, _NEGATIVITY = np.asarray(COVALENT_RADIUS), np.asarray(ELECTRONEGATIVITY)


def plausibility(flat: FlatCrystals, element_volumes: np.ndarray) -> np.ndarray:
    """(m, 6) float64, see ``PLAUSIBILITY``; element_volumes: (101,) angstrom^3.

    Cells must have a volume and coordinates must be finite. Images beyond the first around a compact basis are not
    looked at: for needles and plates some distances may be too large.
    """
    result = np.zeros((len(flat), len(PLAUSIBILITY)))
    expected = np.bincount(
        flat.crystal_of_atom, element_volumes[np.minimum(flat.numbers, len(element_volumes) - 1)], len(flat)
    )
    result[:, 5] = np.log(volumes(flat.lattice) / expected)
    for rows in _pieces(flat.counts):
        atoms = flat.atoms_of(rows)
        lattice = compact(flat.lattice[rows])
        frac = flat.frac[atoms] @ flat.lattice[rows] @ np.linalg.inv(lattice)
        result[rows, :5] = _contacts(lattice, frac, flat.numbers[atoms])
    return result


def _pieces(counts: np.ndarray) -> Iterator[np.ndarray]:
    for size in np.unique(counts).tolist():
        rows = np.flatnonzero(counts == size)
        step = max(1, _DISTANCES_AT_ONCE // (size * size * len(_SHIFTS)))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def _contacts(lattice: np.ndarray, frac: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """(m, 5) of m crystals of n atoms each."""
    m, n = numbers.shape
    difference = frac[:, :, None] - frac[:, None]
    difference -= np.rint(difference)
    vectors = (difference.reshape(m, n * n, 1, 3) + _SHIFTS).reshape(m, -1, 3) @ lattice
    distance = np.sqrt((vectors**2).sum(2)).reshape(m, n, n, len(_SHIFTS))
    itself = len(_SHIFTS) // 2
    distance[:, np.arange(n), np.arange(n), itself] = np.inf
    radius = _RADIUS[numbers]
    ratio = np.minimum(distance / (radius[:, :, None] + radius[:, None])[..., None], _FAR)
    negativity = _NEGATIVITY[numbers]
    like = np.abs(negativity[:, :, None] - negativity[:, None]) < _LIKE
    nearest = ratio.reshape(m, n, -1).min(2)
    neighbours = (ratio.reshape(m, n, -1) < _NEARLY * nearest[:, :, None]).sum(2)
    closest_like = np.where(like[..., None], ratio, _FAR).reshape(m, -1).min(1)
    coordination = np.log(np.maximum(neighbours, 1)).mean(1)
    return np.stack([nearest.min(1), nearest.mean(1), nearest.std(1), closest_like, coordination], axis=1)
