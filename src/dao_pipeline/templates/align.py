"""A template laid over the crystal that it stands for: which atom is which, in which cell, from which origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from dao_pipeline.crystals.automorphisms import lattice_maps

MAX_STRAIN = 0.15
"""Root mean square strain between the cells beyond which a change of basis is not tried."""
MAX_MAPS = 64
"""Changes of basis that are tried, the least strained first; cubic cells have 48 equally good ones."""
MAX_SHIFTS = 16
"""Atoms of the rarest element that are tried as the image of the first."""
REFINED = 6
"""Places whose assignment of atoms is solved exactly, those with the smallest lower bound."""


@dataclass(frozen=True)
class Aligned:
    """A template in the cell and the order of atoms of a crystal.

    frac: (n, 3), near the crystal's coordinates: displacements are the smallest images and have mean zero.
    lattice: (3, 3) angstrom. rmse: root mean square displacement in units of (V/n)^(1/3). strain: of the cell.
    """

    frac: np.ndarray
    lattice: np.ndarray
    rmse: float
    strain: float


def align(
    numbers: np.ndarray,
    frac: np.ndarray,
    lattice: np.ndarray,
    other_numbers: np.ndarray,
    other_frac: np.ndarray,
    other_lattice: np.ndarray,
) -> Aligned | None:
    """Lay a second crystal of the same composition over a first one, (n,), (n, 3), (3, 3); both in reduced cells.

    Of the changes of basis, translations and permutations that are tried, the one with the least sum of mean
    squared displacement and squared strain. Cells may be mirrored. None if the cells are too different.
    """
    order, other_order = np.argsort(numbers, kind="stable"), np.argsort(other_numbers, kind="stable")
    kinds = numbers[order]
    if not np.array_equal(kinds, other_numbers[other_order]):
        raise ValueError("the crystals differ in composition")
    a, b = frac[order], other_frac[other_order]
    changes, strains = lattice_maps(lattice, other_lattice, MAX_STRAIN)
    changes, strains = changes[:MAX_MAPS], strains[:MAX_MAPS]
    if not len(changes):
        return None
    _, starts, counts = np.unique(kinds, return_index=True, return_counts=True)
    first, many = int(starts[counts.argmin()]), int(counts.min())
    scaled = lattice / np.cbrt(abs(np.linalg.det(lattice)) / len(kinds))
    turned = b @ np.linalg.inv(changes)  # (w, n, 3)
    shifts = a[first] - turned[:, first : first + min(many, MAX_SHIFTS)]  # (w, s, 3)
    moved = (turned[:, None] + shifts[:, :, None]).reshape(-1, len(b), 3)
    owner = np.repeat(np.arange(len(changes)), shifts.shape[1])
    blocks = [slice(s, s + c) for s, c in zip(starts.tolist(), counts.tolist(), strict=True)]
    bound = strains[owner] ** 2
    for block in blocks:
        bound = bound + _squares(a[block], moved[:, block], scaled).min(2).sum(1) / len(a)
    best: tuple[float, np.ndarray, int, float] | None = None
    for place in np.argsort(bound, kind="stable")[:REFINED]:
        if best is not None and bound[place] >= 4 * best[0]:
            break  # the drift is still in the bound, but cannot be nearly all of it
        images, square = _assigned(a, moved[place], blocks, scaled)
        cost = square + strains[owner[place]] ** 2
        if best is None or cost < best[0]:
            best = (cost, images, int(owner[place]), square)
    assert best is not None
    _, images, which, square = best
    placed = np.empty_like(images)
    placed[order] = images
    return Aligned(placed, changes[which] @ other_lattice, float(np.sqrt(square)), float(strains[which]))


def _squares(a: np.ndarray, moved: np.ndarray, scaled: np.ndarray) -> np.ndarray:
    """Squared distances (..., n, n) of atoms a (n, 3) and moved (..., n, 3) to the nearest image."""
    difference = moved[..., None, :, :] - a[:, None]
    difference -= np.rint(difference)
    return np.asarray(((difference @ scaled) ** 2).sum(-1))


def _assigned(
    a: np.ndarray, moved: np.ndarray, blocks: list[slice], scaled: np.ndarray, rounds: int = 3
) -> tuple[np.ndarray, float]:
    """Images of ``moved`` nearest to ``a`` with the same elements, drift removed, and their mean square."""
    images = moved
    for _ in range(rounds):
        placed = np.empty_like(images)
        for block in blocks:
            rows, columns = linear_sum_assignment(_squares(a[block], images[block], scaled))
            placed[block][rows] = images[block][columns]
        displacement = placed - a
        displacement -= np.rint(displacement)
        drift = displacement.mean(0)
        images = a + displacement - drift
        if np.abs(drift).max() < 1e-9:
            break
    return images, float((((images - a) @ scaled) ** 2).sum(1).mean())
