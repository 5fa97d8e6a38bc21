"""One crystal as arrays, and lists of crystals as Arrow tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.crystals.formula import reduced
from dao_pipeline.crystals.schema import COLUMNS, CRYSTAL


@dataclass(frozen=True, kw_only=True)
class Crystal:
    """A periodic crystal with ordered sites.

    id: unique in its table.
    atomic_numbers: (n,) int, 1 to 118.
    frac_coords: (n, 3) float64, fractional coordinates in [0, 1).
    lattice: (3, 3) float64, angstrom, **rows** are a, b, c (as in pymatgen and ASE).
    extra: further columns of ``schema.COLUMNS``.
    """

    id: str
    atomic_numbers: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray
    source: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def num_atoms(self) -> int:
        """Atoms in the cell."""
        return len(self.atomic_numbers)

    @property
    def formula(self) -> str:
        """Reduced formula, elements in order of atomic number, e.g. ``O3Ti1Sr1`` is written O3TiSr."""
        return reduced_formula(self.atomic_numbers)

    @property
    def volume(self) -> float:
        """Cell volume in angstrom^3 (not signed)."""
        return float(abs(np.linalg.det(self.lattice)))


def reduced_formula(atomic_numbers: np.ndarray) -> str:
    """Reduced formula of a cell: elements by rising electronegativity as pymatgen prints them.

    Two cells have the same string exactly when their compositions agree after reduction.
    """
    numbers, counts = np.unique(np.asarray(atomic_numbers, dtype=int), return_counts=True)
    return reduced({SYMBOLS[z]: n for z, n in zip(numbers.tolist(), counts.tolist(), strict=True)})


def wrap(frac_coords: np.ndarray) -> np.ndarray:
    """Map fractional coordinates into [0, 1); 1 - tiny rounds to 0, never to 1."""
    wrapped = np.asarray(frac_coords, dtype=np.float64) % 1.0
    wrapped[wrapped >= 1.0] = 0.0
    return wrapped


def to_table(crystals: Iterable[Crystal]) -> pa.Table:
    """Crystals as an Arrow table: every column of the crystal schema, and the stage columns they carry."""
    rows = list(crystals)
    names = list(CRYSTAL) + [n for n in COLUMNS if n not in CRYSTAL and any(n in c.extra for c in rows)]
    unknown = {n for c in rows for n in c.extra} - set(COLUMNS)
    if unknown:
        raise ValueError(f"columns {sorted(unknown)} are not in the schema")
    own: dict[str, list[Any]] = {
        "id": [c.id for c in rows],
        "source": [c.source for c in rows],
        "formula": [c.formula for c in rows],
        "num_atoms": [c.num_atoms for c in rows],
        "atomic_numbers": [np.asarray(c.atomic_numbers, dtype=np.int16) for c in rows],
        "frac_coords": [wrap(c.frac_coords).ravel() for c in rows],
        "lattice": [np.asarray(c.lattice, dtype=np.float64).ravel() for c in rows],
    }
    arrays = {
        name: pa.array(own[name] if name in own else [c.extra.get(name) for c in rows], COLUMNS[name].type)
        for name in names
    }
    return pa.table(arrays)


def from_table(table: pa.Table) -> Iterator[Crystal]:
    """Crystals of a table, row by row (for pymatgen and other per-crystal work; models use ``batch``)."""
    known = [n for n in table.column_names if n in COLUMNS and n not in _OWN]
    columns = {n: table[n].to_pylist() for n in known}
    ids, sources = table["id"].to_pylist(), table["source"].to_pylist()
    numbers = table["atomic_numbers"]
    coords, lattices = table["frac_coords"], table["lattice"]
    for i in range(table.num_rows):
        yield Crystal(
            id=ids[i],
            source=sources[i],
            atomic_numbers=np.asarray(numbers[i].values, dtype=np.int64),
            frac_coords=np.asarray(coords[i].values, dtype=np.float64).reshape(-1, 3),
            lattice=np.asarray(lattices[i].values, dtype=np.float64).reshape(3, 3),
            extra={n: columns[n][i] for n in known},
        )


_OWN = {"id", "source", "formula", "num_atoms", "atomic_numbers", "frac_coords", "lattice"}
