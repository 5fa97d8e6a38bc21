"""Space groups and standard cells, by moyopy. Nothing that runs on a GPU node imports this module."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import moyopy
import numpy as np

from dao_pipeline.crystals.crystal import Crystal, wrap
from dao_pipeline.crystals.geometry import cell_heights, compact

# it warns about operations that the input cell cannot express, which do not touch the space group
logging.getLogger("moyo").setLevel(logging.ERROR)


_WIDE = 0.1
"""Tolerance over the thickness of a cell."""
_LONG = 6.0
"""Longest edge over thickness. Where a tolerance is wide *and* the cell long, moyopy finds so many vectors that
are alike that it does not end (seen at 0.3 for 2.4 by 3.0 by 28.5 and for 2.7 by 3.2 by 41.8 angstrom)."""


@dataclass(frozen=True)
class Refined:
    """A crystal in the conventional standard cell of its space group, coordinates and cell made symmetric.

    atomic_numbers: (n,). frac_coords: (n, 3). lattice: (3, 3) angstrom, vectors as rows.
    """

    atomic_numbers: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray


def spacegroup(crystal: Crystal, symprec: float) -> int | None:
    """Space group number at ``symprec`` (angstrom); None where moyopy finds none, or would not end."""
    found = dataset(crystal, symprec)
    return None if found is None else int(found.number)


def spacegroups(crystal: Crystal, symprecs: Sequence[float]) -> list[int | None]:
    """Space group number at each of ``symprecs`` (angstrom); None where moyopy finds none."""
    return [spacegroup(crystal, symprec) for symprec in symprecs]


def refined(crystal: Crystal, symprec: float) -> Refined | None:
    """The standard cell at ``symprec`` (angstrom); None where moyopy finds no space group."""
    found = dataset(crystal, symprec)
    if found is None:
        return None
    cell = found.std_cell
    return Refined(
        np.asarray(cell.numbers, dtype=np.int64),
        wrap(np.asarray(cell.positions, dtype=np.float64).reshape(-1, 3)),
        np.asarray(cell.basis, dtype=np.float64).reshape(3, 3),
    )


def dataset(crystal: Crystal, symprec: float) -> moyopy.MoyoDataset | None:
    """What moyopy finds at ``symprec`` (angstrom); None where it finds nothing, or would not come back."""
    basis = compact(crystal.lattice[None])
    thickness = cell_heights(basis).min()
    if symprec > _WIDE * thickness and np.linalg.norm(basis[0], axis=1).max() > _LONG * thickness:
        return None
    numbers = [int(z) for z in crystal.atomic_numbers]
    cell = moyopy.Cell(crystal.lattice.tolist(), crystal.frac_coords.tolist(), numbers)
    try:
        return moyopy.MoyoDataset(cell, symprec=symprec)
    except ValueError:
        return None
