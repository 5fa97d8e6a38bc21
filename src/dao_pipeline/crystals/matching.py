"""Are two crystals the same? pymatgen's StructureMatcher, made safe for cells that it cannot bear, and fast.

Fast by comparing only crystals with the same atoms in the primitive cell, by reducing each crystal once, and by
``match_search``, which leaves out what pymatgen would reject. Decisions and displacements are pymatgen's. Nothing
that runs on a GPU node imports this module.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from pymatgen.core import Lattice, Structure
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
    return to_structure(_not_skewed(crystal))


def _not_skewed(crystal: Crystal) -> Crystal:
    if not cell_heights(crystal.lattice[None]).min() < _THIN:
        return crystal
    basis = compact(crystal.lattice[None])[0]
    if not np.linalg.norm(basis, axis=1).min() > _TOO_THIN:
        raise ValueError("the cell is flat")
    coords = crystal.frac_coords @ crystal.lattice @ np.linalg.inv(basis)
    return replace(crystal, lattice=basis, frac_coords=coords)


def reduced(crystal: Crystal) -> Reduced:
    """The crystal in the primitive cell that the matcher compares, Niggli-reduced.

    Bit by bit what ``get_reduced_structure`` and ``get_primitive_structure`` make of ``comparable(crystal)``,
    without making sites for it. Raises whatever pymatgen, numpy or scipy raise for a degenerate cell.
    """
    crystal = _not_skewed(crystal)
    lattice, frac = Lattice(crystal.lattice), crystal.frac_coords
    niggli = lattice.get_niggli_reduced_lattice()
    if niggli != lattice:
        # atom by atom, as pymatgen does: products of matrices may be rounded in another way
        cart = [np.dot(one, lattice.matrix) for one in frac]
        frac = np.array([np.mod(np.dot(one, niggli.inv_matrix), 1) for one in cart])
        lattice = niggli
    found = Reduced(np.asarray(crystal.atomic_numbers), frac, lattice.matrix)
    return found if _surely_primitive(found) else Reduced.of(found.structure.get_primitive_structure())


def _surely_primitive(crystal: Reduced, tolerance: float = 0.25) -> bool:
    """Whether ``get_primitive_structure`` would return the cell as it is; False: it may, or may not.

    A smaller cell needs a formula unit less than the cell, and a translation that brings each atom to less than
    twice the tolerance (angstrom, along each axis) from one of its element. pymatgen looks for it among the
    vectors from an atom of the rarest element to the others, as is done here, with a tolerance a little wider.
    Without any but zero, the vectors of a smaller cell, multiples of 1 / units of the present ones, are near none
    of them, unless an axis is so short that the tolerance is as much.
    """
    numbers, frac = crystal.numbers, crystal.frac
    elements, counts = np.unique(numbers, return_counts=True)
    units = int(np.gcd.reduce(counts))
    if units == 1:
        return True
    near = 2 * tolerance / np.linalg.norm(crystal.matrix, axis=1) * (1 + 1e-6) + 1e-9
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
