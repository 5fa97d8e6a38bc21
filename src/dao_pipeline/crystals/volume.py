"""The volume to expect of a composition: one volume per element, fitted on known crystals."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dao_pipeline.crystals.elements import COVALENT_RADIUS

NUM_ELEMENTS = 101
"""Length of per-element tables: index is the atomic number, 0 a placeholder."""


def flat_atoms(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers of all rows in a row, (N,) int64, and the row boundaries ``ptr``, (rows + 1,) int64."""
    column = table["atomic_numbers"].combine_chunks()
    ptr = np.asarray(column.offsets, dtype=np.int64)
    numbers = np.asarray(column.values, dtype=np.int64)[ptr[0] : ptr[-1]]
    return numbers, ptr - ptr[0]


def lattices(table: pa.Table) -> np.ndarray:
    """Lattice vectors of all rows, (rows, 3, 3) float64, angstrom, rows a, b, c."""
    return np.asarray(table["lattice"].combine_chunks().flatten(), dtype=np.float64).reshape(-1, 3, 3)


def element_counts(numbers: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    """How many atoms of each element each crystal has, (rows, 101) float64."""
    counts = np.zeros((len(ptr) - 1, NUM_ELEMENTS))
    np.add.at(counts, (np.repeat(np.arange(len(ptr) - 1), np.diff(ptr)), numbers), 1.0)
    return counts


def fit_element_volumes(table: pa.Table, ridge: float = 2.0) -> np.ndarray:
    """Per-element volumes, (101,) float64 in angstrom^3, whose sums reproduce the cell volumes of ``table``.

    Ridge regression of the volume per atom towards spheres of the covalent radius, scaled to the data: an
    element that occurs rarely or never keeps a sensible value. ``ridge`` is the weight of that prior in
    crystals.
    """
    numbers, ptr = flat_atoms(table)
    counts = element_counts(numbers, ptr)
    atoms = np.diff(ptr)
    per_atom = np.abs(np.linalg.det(lattices(table))) / atoms
    shares = counts / atoms[:, None]
    prior = np.asarray(COVALENT_RADIUS[:NUM_ELEMENTS]) ** 3
    prior *= np.median(per_atom / np.maximum(shares @ prior, 1e-9))
    normal = shares.T @ shares + ridge * np.eye(NUM_ELEMENTS)
    volumes = prior + np.linalg.solve(normal, shares.T @ (per_atom - shares @ prior))
    return np.clip(volumes, 0.2 * np.median(per_atom), None)
