"""Are two crystals the same? pymatgen's StructureMatcher, made safe for cells that it cannot bear.

Nothing that runs on a GPU node imports this module.
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


def structure_matcher(settings: Matcher) -> StructureMatcher:
    """pymatgen's matcher with the tolerances of the campaign, other arguments default."""
    return StructureMatcher(ltol=settings.ltol, stol=settings.stol, angle_tol=settings.angle_tol)


class Sameness:
    """Whether two crystals match, for many pairs of few crystals: each is reduced once.

    Decides as ``StructureMatcher.fit`` does; a failure counts as no match.
    """

    def __init__(self, settings: Matcher) -> None:
        self.matcher = structure_matcher(settings)

    def reduce(self, crystal: Crystal) -> Structure | None:
        """Primitive cell, reduced as the matcher would; None where that fails: such a crystal matches nothing."""
        try:
            return comparable(crystal).get_reduced_structure(reduction_algo="niggli").get_primitive_structure()
        except Exception:  # whatever a degenerate cell provokes in pymatgen, numpy or scipy
            return None

    def __call__(self, first: Structure | None, second: Structure | None) -> bool:
        """Whether two reduced crystals match."""
        if first is None or second is None:
            return False
        try:
            return bool(self.matcher.fit(first, second, skip_structure_reduction=True))
        except Exception:  # whatever a degenerate cell provokes in pymatgen, numpy or scipy
            return False

    def rms(self, first: Structure | None, second: Structure | None) -> float:
        """Displacement of the atoms of two reduced crystals in units of (V/n)^(1/3); NaN where they do not match.

        What ``StructureMatcher.get_rms_dist`` finds for the whole crystals, which it would reduce for every pair.
        """
        if first is None or second is None:
            return float("nan")
        matcher = self.matcher
        try:
            pair = matcher._preprocess(first, second, niggli=False, skip_structure_reduction=True)
            found = matcher._match(*pair, use_rms=True, break_on_match=False)
        except Exception:  # whatever a degenerate cell provokes in pymatgen, numpy or scipy
            return float("nan")
        return float("nan") if found is None else float(found[0])
