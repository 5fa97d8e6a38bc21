"""The structure type of a crystal, in a form that two crystals share exactly when their sites correspond.

Space group, and for each element the symmetry of the sites that it occupies: independent of cell, origin and
setting, and found in half a millisecond. Free coordinates do not count, so crystals of one type may still be
different; nearly all that share a type and similar elements are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.elements import MENDELEEV
from dao_pipeline.parallel import parallel_map

_MENDELEEV = np.asarray(MENDELEEV)

Role = tuple[tuple[int, str], ...]
"""Sites of one element: number of atoms in the primitive cell and site symmetry of each orbit, sorted."""


@dataclass(frozen=True)
class StructureType:
    """spacegroup: its number. counts: atoms of each element in the primitive cell, rising. roles: their sites."""

    spacegroup: int
    counts: tuple[int, ...]
    roles: tuple[Role, ...]

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
    """The type of a crystal and its elements, (slots,) int64, in the order of the type's counts and roles.

    Elements with the same role are in order of Mendeleev number. None where no symmetry is found at ``symprec``
    (angstrom).
    """
    import moyopy

    from dao_pipeline.crystals import symmetry  # noqa: F401  silences its log

    numbers = np.asarray(crystal.atomic_numbers, dtype=np.int64)
    cell = moyopy.Cell(crystal.lattice.tolist(), crystal.frac_coords.tolist(), numbers.tolist())
    try:
        found = moyopy.MoyoDataset(cell, symprec=symprec)
    except ValueError:
        return None
    primitive = len(found.prim_std_cell.numbers)
    orbits = Counter(found.orbits)
    sites: dict[int, list[tuple[int, str]]] = {}
    for first, size in orbits.items():
        letters = "".join(sorted(found.site_symmetry_symbols[first].replace(".", "")))
        sites.setdefault(int(numbers[first]), []).append((size * primitive // len(numbers), letters))
    slots = sorted(
        (sum(n for n, _ in role), tuple(sorted(role)), int(_MENDELEEV[z]), z) for z, role in sites.items()
    )
    kind = StructureType(int(found.number), tuple(s[0] for s in slots), tuple(s[1] for s in slots))
    return kind, np.array([s[3] for s in slots])
