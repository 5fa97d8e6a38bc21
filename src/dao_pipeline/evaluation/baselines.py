"""The random baseline: what a generator finds that knows nothing but the volume of atoms and their size."""

from __future__ import annotations

import zlib
from itertools import product

import numpy as np

from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.elements import COVALENT_RADIUS
from dao_pipeline.crystals.geometry import lattices_from_parameters

_RADIUS = np.asarray(COVALENT_RADIUS)
_IMAGES = np.array(list(product((-1, 0, 1), repeat=3)), dtype=np.float64)


def random_crystals(
    target_id: str, atomic_numbers: np.ndarray, element_volumes: np.ndarray, count: int, seed: int
) -> list[Crystal]:
    """``count`` random crystals of one composition; each depends on seed, target and its number alone.

    element_volumes: (101,) angstrom^3, see ``crystals.volume``.
    """
    volume = float(element_volumes[atomic_numbers].sum())
    key = zlib.crc32(target_id.encode())
    crystals = []
    for number in range(count):
        rng = np.random.default_rng([seed, key, number])
        lattice = random_lattice(volume * np.exp(rng.normal(0.0, 0.1)), rng)
        crystals.append(
            Crystal(
                id=f"random:{target_id}:{number}",
                source="random",
                atomic_numbers=np.asarray(atomic_numbers, dtype=np.int64),
                frac_coords=random_coordinates(atomic_numbers, lattice, rng),
                lattice=lattice,
            )
        )
    return crystals


def random_lattice(volume: float, rng: np.random.Generator) -> np.ndarray:
    """A cell (3, 3) of ``volume`` angstrom^3: edges within a factor e of each other, angles of 60 to 120 degrees.

    Flat cells (less than half of the volume of a box with the same edges) are drawn again.
    """
    while True:
        lengths = np.exp(rng.uniform(-0.5, 0.5, 3))
        parameters = np.concatenate([lengths, rng.uniform(60.0, 120.0, 3)])
        cosines = np.cos(np.radians(parameters[3:]))
        if 1.0 - (cosines**2).sum() + 2.0 * cosines.prod() > 0.25:
            cell = lattices_from_parameters(parameters[None])[0]
            return cell * (volume / abs(np.linalg.det(cell))) ** (1 / 3)


def random_coordinates(
    atomic_numbers: np.ndarray, lattice: np.ndarray, rng: np.random.Generator, attempts: int = 30
) -> np.ndarray:
    """Fractional coordinates (n, 3), one atom after the other, none nearer than 0.8 of the sum of the radii.

    Where an atom finds no such place in ``attempts`` tries, the distance asked for shrinks by a tenth.
    """
    n, share = len(atomic_numbers), 0.8
    coords = np.zeros((n, 3))
    for i in range(n):
        apart = _RADIUS[atomic_numbers[:i]] + _RADIUS[atomic_numbers[i]]
        while True:
            tried = rng.random((attempts, 3))
            difference = tried[:, None] - coords[None, :i]
            vectors = (difference[:, :, None] + _IMAGES) @ lattice
            distance = np.sqrt((vectors**2).sum(-1)).min(-1, initial=np.inf)
            free = (distance >= share * apart).all(1)
            if free.any():
                coords[i] = tried[int(free.argmax())]
                break
            share *= 0.9
    return coords
