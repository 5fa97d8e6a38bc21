"""Space groups, by moyopy. Nothing that runs on a GPU node imports this module."""

from __future__ import annotations

import logging

import moyopy

from dao_pipeline.crystals.crystal import Crystal

# it warns about operations that the input cell cannot express, which do not touch the space group
logging.getLogger("moyo").setLevel(logging.ERROR)


def spacegroup(crystal: Crystal, symprec: float) -> int | None:
    """Space group number at ``symprec`` (angstrom); None where moyopy finds none."""
    numbers = [int(z) for z in crystal.atomic_numbers]
    cell = moyopy.Cell(crystal.lattice.tolist(), crystal.frac_coords.tolist(), numbers)
    try:
        return int(moyopy.MoyoDataset(cell, symprec=symprec).number)
    except ValueError:
        return None
