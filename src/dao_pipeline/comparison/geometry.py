"""What DFT does to a candidate's geometry: is it still the same crystal, how far did cell and atoms move?"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.util.coord import pbc_diff

from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.evaluation.matching import match


class Change(TypedDict):
    """A candidate and its relaxed self.

    matched, rmse: by StructureMatcher; rmse in units of (V/n)^(1/3), None without a match.
    volume_change: relative. strain: the principal strain of largest size, None where the two cells cannot be put
    side by side. displacement: largest distance that an atom moved in the relaxed cell, rigid shifts taken out,
    angstrom; None likewise.
    """

    matched: bool
    rmse: float | None
    volume_change: float
    strain: float | None
    displacement: float | None


def change(before: Crystal, after: Crystal, matcher: StructureMatcher) -> Change:
    """From ``before`` to ``after``, which have the same composition, and the same cell unless it came from
    another program."""
    found = match(before, after, matcher)
    per_atom = (after.volume / after.num_atoms) / (before.volume / before.num_atoms)
    strain = displacement = None
    if np.array_equal(before.atomic_numbers, after.atomic_numbers):
        strain = largest_strain(before.lattice, after.lattice)
        if abs(strain) > _ANOTHER_BASIS:
            strain = None
        else:
            displacement = largest_displacement(before, after)
    return Change(
        matched=found.rmse is not None,
        rmse=found.rmse,
        volume_change=float(per_atom - 1),
        strain=strain,
        displacement=displacement,
    )


_ANOTHER_BASIS = 0.5
"""A principal strain beyond this says that the cells are written in different bases, not that one was strained."""


def largest_strain(before: np.ndarray, after: np.ndarray) -> float:
    """The principal strain of largest size, with its sign: lattices (3, 3) with vectors as rows, same basis.

    The deformation F with ``after = before F`` has the right stretch U, F = R U; the strains are the eigenvalues
    of U less 1, so rotations do not count.
    """
    stretches = np.linalg.svd(np.linalg.solve(before, after), compute_uv=False)
    return float(max(stretches - 1, key=abs))


def largest_displacement(before: Crystal, after: Crystal) -> float:
    """How far an atom moved at most, angstrom, in the relaxed cell and beyond the shift of all atoms together."""
    moved = pbc_diff(after.frac_coords, before.frac_coords)
    return float(np.linalg.norm((moved - moved.mean(0)) @ after.lattice, axis=1).max())
