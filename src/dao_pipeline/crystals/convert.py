"""Crystals from and to pymatgen. Nothing that runs on a GPU node imports this module."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Lattice, Structure

from dao_pipeline.crystals.crystal import Crystal, wrap
from dao_pipeline.crystals.elements import SYMBOLS


def to_structure(crystal: Crystal) -> Structure:
    """The same cell as a pymatgen Structure, sites in the same order."""
    symbols = [SYMBOLS[z] for z in crystal.atomic_numbers]
    return Structure(Lattice(crystal.lattice), symbols, crystal.frac_coords)


def from_structure(structure: Structure, id: str, source: str) -> Crystal:  # noqa: A002 - the column's name
    """The same cell as a Crystal, oxidation states dropped. Raises ValueError for disordered sites."""
    if not structure.is_ordered:
        raise ValueError(f"{id}: disordered sites; only ordered crystals are supported")
    return Crystal(
        id=id,
        source=source,
        atomic_numbers=np.asarray([site.specie.Z for site in structure], dtype=np.int64),
        frac_coords=wrap(structure.frac_coords),
        lattice=np.array(structure.lattice.matrix, dtype=np.float64),
    )
