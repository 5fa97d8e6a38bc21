"""Space groups and standard cells, by moyopy. Nothing that runs on a GPU node imports this module."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import moyopy
import numpy as np

from dao_pipeline.crystals.crystal import Crystal, wrap
from dao_pipeline.crystals.geometry import cell_heights

# it warns about operations that the input cell cannot express, which do not touch the space group
logging.getLogger("moyo").setLevel(logging.ERROR)


_LARGEST_SHARE = 0.1
"""Tolerance over the thickness of the cell beyond which it says nothing; moyopy's search for translations then
finds so many that it does not end (a cell of 2.7 by 3.2 by 41.8 angstrom at 0.3)."""


@dataclass(frozen=True)
class Refined:
    """A crystal in the conventional standard cell of its space group, coordinates and cell made symmetric.

    atomic_numbers: (n,). frac_coords: (n, 3). lattice: (3, 3) angstrom, vectors as rows.
    """

    atomic_numbers: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray


def spacegroup(crystal: Crystal, symprec: float) -> int | None:
    """Space group number at ``symprec`` (angstrom); None where moyopy finds none, or the cell is too thin."""
    found = _dataset(crystal, symprec)
    return None if found is None else int(found.number)


def spacegroups(crystal: Crystal, symprecs: Sequence[float]) -> list[int | None]:
    """Space group number at each of ``symprecs`` (angstrom); None where moyopy finds none."""
    return [spacegroup(crystal, symprec) for symprec in symprecs]


def refined(crystal: Crystal, symprec: float) -> Refined | None:
    """The standard cell at ``symprec`` (angstrom); None where moyopy finds no space group."""
    found = _dataset(crystal, symprec)
    if found is None:
        return None
    cell = found.std_cell
    return Refined(
        np.asarray(cell.numbers, dtype=np.int64),
        wrap(np.asarray(cell.positions, dtype=np.float64).reshape(-1, 3)),
        np.asarray(cell.basis, dtype=np.float64).reshape(3, 3),
    )


def _dataset(crystal: Crystal, symprec: float) -> moyopy.MoyoDataset | None:
    if symprec > _LARGEST_SHARE * cell_heights(crystal.lattice[None]).min():
        return None
    numbers = [int(z) for z in crystal.atomic_numbers]
    cell = moyopy.Cell(crystal.lattice.tolist(), crystal.frac_coords.tolist(), numbers)
    try:
        return moyopy.MoyoDataset(cell, symprec=symprec)
    except ValueError:
        return None
