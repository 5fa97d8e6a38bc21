"""Cleaning: which rows of a crystal table cannot be trained on, and why. A piece of a table at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from dao_pipeline.config import CrysDB
from dao_pipeline.crysdb.ledger import Ledger
from dao_pipeline.crystals.flat import FlatCrystals, flatten, list_lengths
from dao_pipeline.crystals.formula import MAX_ATOMIC_NUMBER
from dao_pipeline.crystals.geometry import shortest_distances, volumes
from dao_pipeline.crystals.niggli import niggli_reduce

_NO_VOLUME = 1e-3
"""Angstrom^3: cells below are flat; their geometry means nothing."""


def clean(table: pa.Table, limits: CrysDB, ledger: Ledger) -> tuple[FlatCrystals, np.ndarray]:
    """The usable structures of a piece of a table in their Niggli cells, and their rows; the others are
    rejected."""
    malformed(table, ledger)
    rows = np.flatnonzero(ledger.alive)
    flat = flatten(table.filter(pa.array(ledger.alive)))
    implausible(flat, rows, ledger, limits)
    flat, rows = _alive(flat, rows, ledger)
    flat, failures = niggli_reduce(flat)
    failed = list(failures)
    ledger.reject(rows[failed], "niggli_failed", lambda k: failures[failed[k]])
    flat, rows = _alive(flat, rows, ledger)
    too_close(flat, rows, ledger, limits.min_distance)
    return _alive(flat, rows, ledger)


def _alive(flat: FlatCrystals, rows: np.ndarray, ledger: Ledger) -> tuple[FlatCrystals, np.ndarray]:
    keep = ledger.alive[rows]
    return (flat, rows) if keep.all() else (flat.select(keep), rows[keep])


def malformed(table: pa.Table, ledger: Ledger) -> None:
    """Reject null structures and lists of unequal length: the rest can be flattened."""
    for name in ("id", "atomic_numbers", "frac_coords", "lattice"):
        null = np.flatnonzero(table[name].is_null().to_numpy())
        ledger.reject(null, "missing_value", f"{name} is null")
    counts, coords = list_lengths(table["atomic_numbers"]), list_lengths(table["frac_coords"])
    inner_null = [
        np.flatnonzero(_inner_nulls(table[name])) for name in ("atomic_numbers", "frac_coords", "lattice")
    ]
    ledger.reject(np.unique(np.concatenate(inner_null)), "missing_value", "a list holds null")
    ledger.reject(np.flatnonzero(counts == 0), "no_atoms", "the cell is empty")
    unequal = np.flatnonzero(coords != 3 * counts)
    ledger.reject(
        unequal, "length_mismatch", lambda k: f"{coords[unequal[k]]} coordinates for {counts[unequal[k]]} atoms"
    )


def _inner_nulls(column: pa.ChunkedArray) -> np.ndarray:
    """(m,) bool: rows whose list holds a null."""
    lengths = list_lengths(column)
    flags = [chunk.flatten().is_null().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    rows = np.repeat(np.arange(len(lengths)), lengths)
    marked = np.zeros(len(lengths), dtype=bool)
    marked[rows[np.concatenate([*flags, np.zeros(0, dtype=bool)])]] = True
    return marked


def implausible(flat: FlatCrystals, rows: np.ndarray, ledger: Ledger, limits: CrysDB) -> None:
    """Reject by elements, size and volume; ``rows`` (m,) are the crystals' rows in the ledger."""
    atom_crystal = flat.crystal_of_atom
    finite = np.isfinite(flat.lattice).all((1, 2))
    _reject(ledger, rows, ~finite, "not_finite", lambda i: "the lattice holds NaN or infinity")
    bad_atoms = np.zeros(len(flat), dtype=bool)
    bad_atoms[atom_crystal[~np.isfinite(flat.frac).all(1)]] = True
    _reject(ledger, rows, bad_atoms, "not_finite", lambda i: "coordinates hold NaN or infinity")
    strange = (flat.numbers < 1) | (flat.numbers > MAX_ATOMIC_NUMBER)
    number = dict(zip(atom_crystal[strange][::-1].tolist(), flat.numbers[strange][::-1].tolist(), strict=True))
    unknown = np.isin(np.arange(len(flat)), list(number))
    _reject(
        ledger,
        rows,
        unknown,
        "unknown_element",
        lambda i: f"atomic number {number[i]} is outside 1 to {MAX_ATOMIC_NUMBER}",
    )
    few, many = flat.counts < limits.min_atoms, flat.counts > limits.max_atoms
    _reject(ledger, rows, few, "too_few_atoms", lambda i: f"{flat.counts[i]}, at least {limits.min_atoms}")
    _reject(ledger, rows, many, "too_many_atoms", lambda i: f"{flat.counts[i]}, at most {limits.max_atoms}")
    volume = volumes(np.where(finite[:, None, None], flat.lattice, 0.0))
    _reject(ledger, rows, volume < _NO_VOLUME, "zero_volume", lambda i: f"{volume[i]:.2g} angstrom^3")
    share = volume / flat.counts
    outside = (share < limits.min_volume_per_atom) | (share > limits.max_volume_per_atom)
    bounds = f"{limits.min_volume_per_atom:g} to {limits.max_volume_per_atom:g}"
    _reject(ledger, rows, outside, "volume", lambda i: f"{share[i]:.4g} angstrom^3 per atom, not {bounds}")


def too_close(flat: FlatCrystals, rows: np.ndarray, ledger: Ledger, min_distance: float) -> None:
    """Reject crystals with two atoms, or an atom and its own image, nearer than ``min_distance`` angstrom."""
    distance = shortest_distances(flat)
    near = ~(distance >= min_distance)
    _reject(ledger, rows, near, "too_close", lambda i: f"{distance[i]:.3f} angstrom, at least {min_distance:g}")


def _reject(ledger: Ledger, rows: np.ndarray, bad: np.ndarray, reason: str, detail: Callable[[int], str]) -> None:
    chosen = np.flatnonzero(bad)
    ledger.reject(rows[chosen], reason, lambda k: detail(int(chosen[k])))
