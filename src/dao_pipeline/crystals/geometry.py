"""Cells and distances of many crystals at once, in numpy.

Lattices are (m, 3, 3) with rows a, b, c in angstrom. Distances are exact for any cell, however skewed:
how many periodic images are looked at follows from a bound, not from a habit.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from dao_pipeline.crystals.flat import FlatCrystals

_PAIRS_AT_ONCE = 500_000


def volumes(lattice: np.ndarray) -> np.ndarray:
    """Cell volumes (m,) in angstrom^3, never negative."""
    return np.abs(np.linalg.det(lattice))


def cell_heights(lattice: np.ndarray) -> np.ndarray:
    """(m, 3) angstrom: distance between opposite faces of the cell; 0 for flat cells."""
    a, b, c = lattice[:, 0], lattice[:, 1], lattice[:, 2]
    faces = np.linalg.norm(np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], axis=1), axis=2)
    return volumes(lattice)[:, None] / np.maximum(faces, 1e-300)


def cell_parameters(lattice: np.ndarray) -> np.ndarray:
    """(m, 6): a, b, c in angstrom, then alpha, beta, gamma in degrees."""
    lengths = np.linalg.norm(lattice, axis=2)
    unit = lattice / lengths[:, :, None]
    cosines = np.stack([(unit[:, i] * unit[:, j]).sum(1) for i, j in ((1, 2), (0, 2), (0, 1))], axis=1)
    return np.concatenate([lengths, np.degrees(np.arccos(np.clip(cosines, -1, 1)))], axis=1)


def lattices_from_parameters(parameters: np.ndarray) -> np.ndarray:
    """(m, 3, 3) from (m, 6): right-handed, in pymatgen's orientation (c along z, a in the xz plane)."""
    a, b, c = parameters[:, :3].T
    alpha, beta, gamma = np.radians(parameters[:, 3:]).T
    cos_star = (np.cos(alpha) * np.cos(beta) - np.cos(gamma)) / (np.sin(alpha) * np.sin(beta))
    gamma_star = np.arccos(np.clip(cos_star, -1, 1))
    zero = np.zeros_like(a)
    return np.stack(
        [
            np.stack([a * np.sin(beta), zero, a * np.cos(beta)], 1),
            np.stack(
                [
                    -b * np.sin(alpha) * np.cos(gamma_star),
                    b * np.sin(alpha) * np.sin(gamma_star),
                    b * np.cos(alpha),
                ],
                1,
            ),
            np.stack([zero, zero, c], 1),
        ],
        axis=1,
    )


def compact(lattice: np.ndarray, rounds: int = 100) -> np.ndarray:
    """Bases (m, 3, 3) of the same lattices with short, nearly orthogonal vectors (pairwise reduced)."""
    basis = np.array(lattice, dtype=np.float64)
    for _ in range(rounds):
        changed = False
        for i, j in ((0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)):
            along = (basis[:, i] * basis[:, j]).sum(1) / np.maximum((basis[:, j] ** 2).sum(1), 1e-300)
            # the margin keeps ties at one half from flipping for ever
            steps = np.where(np.abs(along) > 0.5 + 1e-9, np.rint(along), 0.0)
            basis[:, i] -= steps[:, None] * basis[:, j]
            changed = changed or bool(steps.any())
        if not changed:
            break
    return basis


def shortest_distances(flat: FlatCrystals) -> np.ndarray:
    """Smallest interatomic distance (m,) in angstrom, an atom's own periodic images included.

    NaN for cells without volume or with coordinates that are not finite; infinite never occurs.
    """
    result = np.full(len(flat), np.nan)
    finite = np.isfinite(flat.lattice).all((1, 2))
    finite[flat.crystal_of_atom[~np.isfinite(flat.frac).all(1)]] = False
    sound = finite & (volumes(np.where(finite[:, None, None], flat.lattice, 0.0)) > 1e-9) & (flat.counts > 0)
    for rows in _equal_sizes(flat.counts, np.flatnonzero(sound)):
        lattice = flat.lattice[rows]
        basis = compact(lattice)
        frac = flat.frac[flat.atoms_of(rows)] @ lattice @ np.linalg.inv(basis)
        result[rows] = _shortest(basis, frac)
    return result


def _equal_sizes(counts: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of ``rows`` with one number of atoms each, small enough to hold all their pairs."""
    for size in np.unique(counts[rows]):
        same = rows[counts[rows] == size]
        step = max(1, _PAIRS_AT_ONCE // max(1, int(size) * (int(size) - 1) // 2))
        for start in range(0, len(same), step):
            yield same[start : start + step]


def _shortest(lattice: np.ndarray, frac: np.ndarray) -> np.ndarray:
    """Shortest distances of m crystals of n atoms: lattice (m, 3, 3), frac (m, n, 3) -> (m,)."""
    first, second = np.triu_indices(frac.shape[1], 1)
    difference = frac[:, first] - frac[:, second]
    difference -= np.rint(difference)
    best = (lattice**2).sum(2).min(1)  # an atom and its own image, squared
    if len(first):
        best = np.minimum(best, ((difference @ lattice) ** 2).sum(2).min(1))
    # an image s steps along an axis is at least (s - 1/2) heights away: farther ones cannot be nearer
    reach = np.floor(np.sqrt(best)[:, None] / cell_heights(lattice) + 0.5).astype(int)
    for span in np.unique(reach, axis=0):
        if not span.any():
            continue
        rows = np.flatnonzero((reach == span).all(1))
        for shift in product(*(range(-s, s + 1) for s in span)):
            if not any(shift):
                continue
            own = ((np.array(shift) @ lattice[rows]) ** 2).sum(1)
            best[rows] = np.minimum(best[rows], own)
            if len(first):
                moved = (difference[rows] + np.array(shift)) @ lattice[rows]
                best[rows] = np.minimum(best[rows], (moved**2).sum(2).min(1))
    return np.sqrt(best)


def nearest_image_distances(lattice: np.ndarray, frac: np.ndarray) -> np.ndarray:
    """Distances (m, n (n - 1) / 2) in angstrom between all pairs, to the nearest image.

    lattice: (m, 3, 3), Niggli-reduced (the nearest image is then among the 27 around); frac: (m, n, 3).
    """
    first, second = np.triu_indices(frac.shape[1], 1)
    difference = frac[:, first] - frac[:, second]
    difference -= np.rint(difference)
    best = np.full(difference.shape[:2], np.inf)
    for shift in product((-1, 0, 1), repeat=3):
        best = np.minimum(best, (((difference + np.array(shift)) @ lattice) ** 2).sum(2))
    return np.sqrt(best)


def squared_distances(frac: np.ndarray, lattice: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """(m, n, n, S) squared distances from each atom to the images of all, for m cells of n atoms.

    frac: (m, n, 3). lattice: (m, 3, 3); its unit is that of the result. shifts: (S, 3), the images, in cells; they
    must have (0, 0, 0) among them, where an atom's distance to itself is infinite. Rounding may leave a tiny
    distance below zero.
    """
    m, n = frac.shape[:2]
    difference = frac[:, :, None] - frac[:, None]
    difference -= np.rint(difference)
    pairs = difference.reshape(m, n * n, 3) @ lattice
    images = shifts @ lattice
    squared = (pairs**2).sum(2)[:, :, None] + (images**2).sum(2)[:, None] + 2 * pairs @ images.transpose(0, 2, 1)
    itself = np.arange(n) * (n + 1), int(np.flatnonzero(~shifts.any(1))[0])
    squared[:, itself[0], itself[1]] = np.inf
    return squared.reshape(m, n, n, -1)
