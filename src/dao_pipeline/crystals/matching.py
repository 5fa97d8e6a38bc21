"""Are two crystals the same? pymatgen's StructureMatcher, made safe for cells that it cannot bear, and fast.

Fast by comparing only crystals with the same atoms in the primitive cell, by reducing each crystal once, and by
``match_search``, which leaves out what pymatgen would reject. Decisions and displacements are pymatgen's. Nothing
that runs on a GPU node imports this module.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.convert import to_structure
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.geometry import cell_heights, compact
from dao_pipeline.crystals.match_search import Reduced, displacement, is_match

_THIN = 0.5
_TOO_THIN = 0.01
"""Angstrom. pymatgen needs minutes to reduce very skewed cells (so those that seem thin get another basis
first), and more to compare truly flat ones."""


def comparable(crystal: Crystal) -> Structure:
    """The crystal for pymatgen, in a basis that is not skewed beyond measure.

    Raises ValueError for cells without thickness, which are no crystals.
    """
    if cell_heights(crystal.lattice[None]).min() < _THIN:
        basis = compact(crystal.lattice[None])[0]
        if not np.linalg.norm(basis, axis=1).min() > _TOO_THIN:
            raise ValueError("the cell is flat")
        coords = crystal.frac_coords @ crystal.lattice @ np.linalg.inv(basis)
        crystal = replace(crystal, lattice=basis, frac_coords=coords)
    return to_structure(crystal)


def reduced(crystal: Crystal) -> Reduced:
    """The crystal in the primitive cell that the matcher compares, Niggli-reduced.

    Raises whatever pymatgen, numpy or scipy raise for a degenerate cell.
    """
    niggli = comparable(crystal).get_reduced_structure(reduction_algo="niggli")
    return Reduced(niggli if _surely_primitive(niggli) else niggli.get_primitive_structure())


def _surely_primitive(structure: Structure, tolerance: float = 0.25) -> bool:
    """Whether ``get_primitive_structure`` would return the cell as it is; False: it may, or may not.

    A smaller cell needs a formula unit less than the cell, and a translation that brings each atom to less than
    twice the tolerance (angstrom, along each axis) from one of its element. pymatgen looks for it among the
    vectors from an atom of the rarest element to the others, as is done here, with a tolerance a little wider.
    Without any but zero, the vectors of a smaller cell, multiples of 1 / units of the present ones, are near none
    of them, unless an axis is so short that the tolerance is as much.
    """
    numbers = np.array([site.specie.Z for site in structure])
    elements, counts = np.unique(numbers, return_counts=True)
    units = int(np.gcd.reduce(counts))
    if units == 1:
        return True
    frac = structure.frac_coords
    near = 2 * tolerance / np.array(structure.lattice.abc) * (1 + 1e-6) + 1e-9
    if not near.max() * units < 2:
        return False
    # which of several rarest elements pymatgen takes, and which atom of it, follows from their names: try them all
    for element in elements[counts == counts.min()]:
        own = frac[numbers == element]
        vectors = (own[None, :] - own[:, None])[~np.eye(len(own), dtype=bool)]
        for other in elements:
            atoms = frac[numbers == other]
            difference = (atoms[:, None] - atoms[None, :])[None] + vectors[:, None, None]
            difference -= np.rint(difference)
            vectors = vectors[(np.abs(difference) <= near).all(3).any(2).all(1)]
        if len(vectors):
            return False
    return True


def structure_matcher(settings: Matcher) -> StructureMatcher:
    """pymatgen's matcher with the tolerances of the campaign, other arguments default."""
    return StructureMatcher(ltol=settings.ltol, stol=settings.stol, angle_tol=settings.angle_tol)


class Sameness:
    """Whether two crystals match, for many pairs of few crystals: each is reduced once.

    Decides as ``StructureMatcher.fit`` does; a failure counts as no match.
    """

    def __init__(self, settings: Matcher) -> None:
        self.matcher = structure_matcher(settings)

    def reduce(self, crystal: Crystal) -> Reduced | None:
        """Primitive cell, reduced as the matcher would; None where that fails: such a crystal matches nothing."""
        try:
            return reduced(crystal)
        except Exception:  # whatever a degenerate cell provokes in pymatgen, numpy or scipy
            return None

    def __call__(self, first: Reduced | None, second: Reduced | None) -> bool:
        """Whether two reduced crystals match."""
        if first is None or second is None:
            return False
        try:
            return is_match(self.matcher, first, second)
        except Exception:  # whatever a degenerate cell provokes in pymatgen, numpy or scipy
            return False

    def rms(self, first: Reduced | None, second: Reduced | None) -> float:
        """Displacement of the atoms of two reduced crystals in units of (V/n)^(1/3); NaN where they do not match.

        What ``StructureMatcher.get_rms_dist`` finds for the whole crystals, which it would reduce for every pair.
        """
        if first is None or second is None:
            return float("nan")
        try:
            found = displacement(self.matcher, first, second)
        except Exception:  # whatever a degenerate cell provokes in pymatgen, numpy or scipy
            return float("nan")
        return float("nan") if found is None else found
