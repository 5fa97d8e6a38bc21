"""The structure type of a crystal, in a form that two crystals share exactly when their sites correspond.

Space group, and for each element the symmetry of the sites that it occupies: independent of cell, origin and
setting, and found in half a millisecond. Elements on sites of the same symmetry, such as A and B of a cubic
perovskite, are told apart by how crowded the sites are. Free coordinates do not count, so crystals of one type may
still be different; nearly all that share a type and similar elements are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise, product

import numpy as np

from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.elements import MENDELEEV
from dao_pipeline.crystals.geometry import compact
from dao_pipeline.parallel import parallel_map

_MENDELEEV = np.asarray(MENDELEEV)

Role = tuple[tuple[int, str], ...]
"""Sites of one element: number of atoms in the primitive cell and site symmetry of each orbit, sorted."""


_WIDTH = 0.6
"""Of the Gaussian that counts neighbours, in units of (V/n)^(1/3): the first shell counts most."""

_ALIKE = 0.02
"""Relative difference in crowding below which sites of the same symmetry are taken to be alike."""

_SHIFTS = np.array(list(product((-1, 0, 1), repeat=3)), dtype=np.float64)


@dataclass(frozen=True)
class StructureType:
    """spacegroup: its number. counts: atoms of each element in the primitive cell, rising. roles: their sites.

    places: of elements with the same count and role, how crowded they are: 0 the least, equal where alike.
    """

    spacegroup: int
    counts: tuple[int, ...]
    roles: tuple[Role, ...]
    places: tuple[int, ...]

    @property
    def num_atoms(self) -> int:
        """Atoms in the primitive cell."""
        return sum(self.counts)


def structure_types(
    crystals: Sequence[Crystal], symprec: float, workers: int = 1
) -> list[tuple[StructureType, np.ndarray] | None]:
    """``structure_type`` of each crystal, on several processes."""
    return parallel_map(partial(structure_type, symprec=symprec), crystals, workers)


def structure_type(crystal: Crystal, symprec: float) -> tuple[StructureType, np.ndarray] | None:
    """The type of a crystal and its elements, (slots,) int64, in the order of the type's counts, roles and places.

    Elements that are alike in all of these are in order of Mendeleev number. None where no symmetry is found at
    ``symprec`` (angstrom).
    """
    from dao_pipeline.crystals.symmetry import dataset

    numbers = np.asarray(crystal.atomic_numbers, dtype=np.int64)
    found = dataset(crystal, symprec)
    if found is None:
        return None
    primitive = len(found.prim_std_cell.numbers)
    orbits = Counter(found.orbits)
    sites: dict[int, list[tuple[int, str]]] = {}
    for first, size in orbits.items():
        letters = "".join(sorted(found.site_symmetry_symbols[first].replace(".", "")))
        sites.setdefault(int(numbers[first]), []).append((size * primitive // len(numbers), letters))
    slots = sorted((sum(n for n, _ in role), tuple(sorted(role)), z) for z, role in sites.items())
    place = _places(crystal, [(s[:2], s[2]) for s in slots])
    slots.sort(key=lambda s: (*s[:2], place[s[2]], _MENDELEEV[s[2]], s[2]))
    kind = StructureType(
        spacegroup=int(found.number),
        counts=tuple(s[0] for s in slots),
        roles=tuple(s[1] for s in slots),
        places=tuple(place[s[2]] for s in slots),
    )
    return kind, np.array([s[2] for s in slots])


def _places(crystal: Crystal, slots: list[tuple[tuple[int, Role], int]]) -> dict[int, int]:
    """Place of each element, see ``StructureType``. slots: (count, role) and element, sorted."""
    place = {z: 0 for _, z in slots}
    crowding: dict[int, float] | None = None
    for _, group in groupby(slots, key=lambda slot: slot[0]):
        elements = [z for _, z in group]
        if len(elements) == 1:
            continue
        crowding = crowding or _crowding(crystal)
        elements.sort(key=crowding.__getitem__)
        for before, z in pairwise(elements):
            place[z] = place[before] + (crowding[z] > (1 + _ALIKE) * crowding[before])
    return place


def _crowding(crystal: Crystal) -> dict[int, float]:
    """How many neighbours the atoms of each element have, mean of a sum of Gaussians of the distances."""
    lattice = compact(crystal.lattice[None])[0]
    frac = crystal.frac_coords @ crystal.lattice @ np.linalg.inv(lattice)
    difference = frac[:, None] - frac
    difference -= np.rint(difference)
    n = crystal.num_atoms
    vectors = (difference.reshape(n * n, 1, 3) + _SHIFTS).reshape(-1, 3) @ lattice
    width = _WIDTH * np.cbrt(abs(np.linalg.det(lattice)) / n)
    near = np.exp(-(vectors**2).sum(1) / (2 * width**2)).reshape(n, -1).sum(1)
    return {int(z): float(near[crystal.atomic_numbers == z].mean()) for z in np.unique(crystal.atomic_numbers)}
