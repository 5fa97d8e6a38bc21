"""Crystals from and to pymatgen. Nothing that runs on a GPU node imports this module."""

from __future__ import annotations

from typing import Any

import numpy as np
from pymatgen.core import DummySpecies, Lattice, Structure

from dao_pipeline.crystals.crystal import Crystal, wrap
from dao_pipeline.crystals.elements import SYMBOLS


class NotACrystal(ValueError):  # noqa: N818 - it says what the structure is
    """A structure that the crystal table cannot hold; ``reason`` is short, for rejected.parquet."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def to_structure(crystal: Crystal) -> Structure:
    """The same cell as a pymatgen Structure, sites in the same order."""
    symbols = [SYMBOLS[z] for z in crystal.atomic_numbers]
    return Structure(Lattice(crystal.lattice), symbols, crystal.frac_coords)


def from_structure(
    structure: Structure,
    id: str,  # noqa: A002 - the column's name
    source: str = "",
    extra: dict[str, Any] | None = None,
) -> Crystal:
    """The same cell as a Crystal; oxidation states and other site data are dropped.

    Raises NotACrystal for disordered or partly filled sites, species that are no elements, and empty cells.
    """
    if not len(structure):
        raise NotACrystal("no_atoms", "the cell is empty")
    for site in structure:
        if not site.is_ordered:
            raise NotACrystal("disordered", f"a site holds {site.species_string}")
        if isinstance(site.specie, DummySpecies):
            raise NotACrystal("unknown_element", f"{site.species_string} is no element")
    return Crystal(
        id=id,
        source=source,
        atomic_numbers=np.asarray([site.specie.Z for site in structure], dtype=np.int64),
        frac_coords=wrap(structure.frac_coords),
        lattice=np.array(structure.lattice.matrix, dtype=np.float64),
        extra=extra or {},
    )
