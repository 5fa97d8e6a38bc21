"""Which changes of basis map a cell onto another one, and which motions map a crystal onto itself.

A change of basis is a whole-numbered W with determinant 1 or -1: the rows of W L are another basis of the lattice
with the rows of L. Coordinates are row vectors, f L = (f W^-1) (W L). Mirror images count as equal, as they do for
everything that knows a cell by its metric L L^T.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

LATTICE_TOLERANCE = 0.01
"""Relative difference of metrics below which a change of basis is a symmetry of the lattice."""
DISTANCE_TOLERANCE = 0.02
"""In units of the cube root of the volume per atom: how far atoms may lie from where a symmetry puts them."""


@cache
def unimodular() -> np.ndarray:
    """(6960, 3, 3) whole-numbered matrices with entries -1, 0, 1 and determinant 1 or -1.

    Between reduced cells of one lattice, and of nearly the same lattice, no larger entries are needed.
    """
    matrices = np.array(list(product((-1, 0, 1), repeat=9)), dtype=np.float64).reshape(-1, 3, 3)
    determinant = np.rint(np.linalg.det(matrices))
    return matrices[np.abs(determinant) == 1]


def lattice_maps(target: np.ndarray, source: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Changes of basis W that bring ``source`` near to ``target`` (3, 3): (w, 3, 3), and their strains (w,).

    The strain is the root mean square over the six entries of 1/2 (T^-1 W S S^T W^T T^-T - 1); those up to
    ``tolerance`` are returned, the smallest first.
    """
    changes = unimodular()
    metric = source @ source.T
    diagonal = ((changes @ metric) * changes).sum(2)
    ratio = diagonal / (target**2).sum(1)
    near = (np.abs(np.log(ratio)) < 6 * tolerance).all(1)  # wide: what follows is exact
    changes = changes[near]
    inverse = np.linalg.inv(target)
    moved = inverse @ changes @ metric @ changes.transpose(0, 2, 1) @ inverse.T
    strain = np.sqrt(((0.5 * (moved - np.eye(3))) ** 2).sum((1, 2)) / 6)
    order = np.argsort(strain, kind="stable")
    order = order[strain[order] <= tolerance]
    return changes[order], strain[order]


def symmetries(numbers: np.ndarray, frac: np.ndarray, lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Motions that map a crystal in a reduced cell onto itself: (g, 3, 3) W and (g, n) images.

    Atom i goes to where atom ``images[:, i]`` is, and a displacement u_i to u_i W there. Lattice translations of
    a cell that is not primitive are among them. The identity is always there.
    """
    rotations, _ = lattice_maps(lattice, lattice, LATTICE_TOLERANCE)  # f L -> f W L = f L R, R orthogonal
    size = np.cbrt(abs(np.linalg.det(lattice)) / len(numbers))
    elements, counts = np.unique(numbers, return_counts=True)
    rarest = np.flatnonzero(numbers == elements[counts.argmin()])
    turned = frac @ rotations
    shifts = frac[rarest][None] - turned[:, rarest[0]][:, None]
    moved = turned[:, None] + shifts[:, :, None]
    found_rotations, found_images = [], []
    for rotation, images in zip(rotations, moved, strict=True):
        difference = images[:, :, None] - frac[None, None]
        difference -= np.rint(difference)
        distance = ((difference @ lattice) ** 2).sum(-1)
        distance = np.where(numbers[:, None] == numbers, distance, np.inf)
        image = distance.argmin(2)
        far = np.sqrt(np.take_along_axis(distance, image[:, :, None], 2)[:, :, 0]).max(1)
        one_to_one = np.sort(image, 1) == np.arange(len(numbers))
        good = (far < DISTANCE_TOLERANCE * size) & one_to_one.all(1)
        found_rotations += [rotation] * int(good.sum())
        found_images += list(image[good])
    return np.array(found_rotations), np.array(found_images, dtype=np.int64)
