"""Crystal tables as flat numpy arrays: atoms of all crystals in a row, for work on whole tables at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.crystals.crystal import reduced_formula, wrap
from dao_pipeline.crystals.schema import COLUMNS


@dataclass(frozen=True, kw_only=True)
class FlatCrystals:
    """m crystals with N atoms in total.

    numbers: (N,) int64, atomic numbers.
    frac: (N, 3) float64, fractional coordinates.
    lattice: (m, 3, 3) float64, angstrom, rows are a, b, c.
    counts: (m,) int64, atoms of each crystal.
    """

    numbers: np.ndarray
    frac: np.ndarray
    lattice: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def ptr(self) -> np.ndarray:
        """(m + 1,) int64: atoms of crystal i are ``ptr[i]:ptr[i + 1]``."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @property
    def crystal_of_atom(self) -> np.ndarray:
        """(N,) int64: the crystal of each atom."""
        return np.repeat(np.arange(len(self)), self.counts)

    def select(self, keep: np.ndarray) -> FlatCrystals:
        """The crystals where the boolean mask ``keep`` (m,) is set, in order."""
        atoms = np.repeat(keep, self.counts)
        return FlatCrystals(
            numbers=self.numbers[atoms],
            frac=self.frac[atoms],
            lattice=self.lattice[keep],
            counts=self.counts[keep],
        )

    def atoms_of(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows), n) int64: indices of the atoms of crystals that all have the same n atoms."""
        return self.ptr[rows][:, None] + np.arange(int(self.counts[rows[0]]) if len(rows) else 0)


def list_lengths(column: pa.ChunkedArray) -> np.ndarray:
    """Length of each list in a list column; 0 where it is null."""
    return pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)


def list_values(column: pa.ChunkedArray) -> np.ndarray:
    """All values of a list column in a row, null lists left out; null values become NaN."""
    chunks = [chunk.flatten() for chunk in column.chunks]
    return pa.chunked_array(chunks, column.type.value_type).to_numpy()


def flatten(table: pa.Table) -> FlatCrystals:
    """The structures of a crystal table whose rows are complete (see ``crysdb.clean.malformed``)."""
    return FlatCrystals(
        numbers=list_values(table["atomic_numbers"]).astype(np.int64),
        frac=list_values(table["frac_coords"]).astype(np.float64).reshape(-1, 3),
        lattice=list_values(table["lattice"]).astype(np.float64).reshape(-1, 3, 3),
        counts=list_lengths(table["atomic_numbers"]),
    )


def formulas(flat: FlatCrystals) -> list[str]:
    """Reduced formula of each crystal; atomic numbers must lie in 1 to 118, and no crystal may be empty."""
    if not len(flat):
        return []
    # elements of each crystal with their counts, in order: one entry per crystal and element
    entry, count = np.unique(flat.crystal_of_atom * 128 + flat.numbers, return_counts=True)
    crystal, number = np.divmod(entry, 128)
    first = np.searchsorted(crystal, np.arange(len(flat)))
    reduced = count // np.gcd.reduceat(count, first)[crystal]
    table = np.zeros((len(flat), int(np.bincount(crystal).max())), dtype=np.int64)
    table[crystal, np.arange(len(entry)) - first[crystal]] = reduced * 128 + number
    _, example, composition = np.unique(table, axis=0, return_index=True, return_inverse=True)
    ptr = flat.ptr
    names = [reduced_formula(flat.numbers[ptr[i] : ptr[i + 1]]) for i in example.tolist()]
    return np.array(names, dtype=object)[composition.ravel()].tolist()


def structure_columns(flat: FlatCrystals, formula: Sequence[str]) -> dict[str, pa.Array]:
    """The columns of the crystal table that hold the structure itself, coordinates wrapped into [0, 1)."""
    with np.errstate(invalid="ignore"):  # infinite coordinates become NaN; build_crysdb rejects both
        frac = wrap(flat.frac)
    atoms = pa.array(flat.ptr, pa.int32())
    coords = pa.array(3 * flat.ptr, pa.int32())
    return {
        "formula": pa.array(formula, pa.string()),
        "num_atoms": pa.array(flat.counts, COLUMNS["num_atoms"].type),
        "atomic_numbers": pa.ListArray.from_arrays(atoms, pa.array(flat.numbers, pa.int16())),
        "frac_coords": pa.ListArray.from_arrays(coords, pa.array(frac.ravel())),
        "lattice": pa.FixedSizeListArray.from_arrays(pa.array(flat.lattice.ravel()), 9),
    }
