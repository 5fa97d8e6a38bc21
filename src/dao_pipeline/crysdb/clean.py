"""Cleaning: which rows of a crystal table cannot be trained on, and why. Whole tables at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from dao_pipeline.config import CrysDB
from dao_pipeline.crystals.flat import FlatCrystals, list_lengths
from dao_pipeline.crystals.formula import MAX_ATOMIC_NUMBER
from dao_pipeline.crystals.geometry import nearest_image_distances, shortest_distances, volumes

SAME_VOLUME = 1e-3
"""Relative difference of volume up to which two crystals may be one."""

SAME_DISTANCE = 0.01
"""Angstrom: duplicates agree in every interatomic distance to this."""

_NO_VOLUME = 1e-3
"""Angstrom^3: cells below are flat; their geometry means nothing."""


class Ledger:
    """Which rows of a table of n crystals are rejected, and why; the first reason stands."""

    def __init__(self, ids: list[str | None]) -> None:
        self.ids = ids
        self.reason = np.full(len(ids), "", dtype=object)
        self.detail = np.full(len(ids), "", dtype=object)

    @property
    def alive(self) -> np.ndarray:
        """(n,) bool: rows that are not rejected."""
        return self.reason == ""

    def reject(self, rows: Iterable[int], reason: str, detail: str | Callable[[int], str]) -> None:
        """Reject those of ``rows`` that are still alive; ``detail`` is a text, or describes the k-th of them."""
        for k, row in enumerate(rows):
            if self.reason[row] == "":
                self.reason[row] = reason
                self.detail[row] = detail if isinstance(detail, str) else detail(k)

    def rows(self, stage: str) -> list[dict[str, str]]:
        """The rejected rows as rejected.parquet has them."""
        return [
            {"id": self.ids[i] or f"row:{i}", "stage": stage, "reason": self.reason[i], "detail": self.detail[i]}
            for i in np.flatnonzero(~self.alive)
        ]


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


def repeated_ids(rows: np.ndarray, ledger: Ledger) -> None:
    """Reject ``rows`` whose id an earlier one of them has."""
    first: dict[str | None, int] = {}
    again = [row for row in rows.tolist() if first.setdefault(ledger.ids[row], row) != row]
    ledger.reject(again, "duplicate_id", lambda k: f"row {first[ledger.ids[again[k]]]} has this id")


def duplicates(flat: FlatCrystals, formulas: list[str], rank: np.ndarray) -> dict[int, int]:
    """Crystals that are the same as another one: row -> row that is kept, the one of lowest ``rank``.

    Same means: the same atoms in the cell, volumes within ``SAME_VOLUME`` and all interatomic distances,
    sorted by pair of elements, within ``SAME_DISTANCE``. That does not depend on the order of the atoms, the
    origin, or the choice among equivalent cells; mirror images count as the same. Cells must be Niggli-reduced.
    """
    kept_for: dict[int, int] = {}
    keys: dict[tuple[str, int], int] = {}
    pairs = zip(formulas, flat.counts.tolist(), strict=True)
    group = np.array([keys.setdefault(key, len(keys)) for key in pairs], dtype=np.int64)
    volume = volumes(flat.lattice)
    order = np.lexsort((volume, group))
    prints = _Fingerprints(flat)
    offset = 1
    while offset < len(order):
        left, right = order[:-offset], order[offset:]
        near = (group[left] == group[right]) & (volume[right] - volume[left] <= SAME_VOLUME * volume[right])
        if not near.any():
            break
        removed = set()
        for i, j in zip(left[near].tolist(), right[near].tolist(), strict=True):
            keep, drop = sorted((_root(kept_for, i), _root(kept_for, j)), key=lambda row: rank[row])
            if keep != drop and prints.same(i, j):
                kept_for[drop] = keep
                removed.add(drop)
        if removed:
            # neighbours moved up: those now side by side have not been compared
            order, offset = order[~np.isin(order, list(removed))], 1
        else:
            offset += 1
    return {row: _root(kept_for, row) for row in kept_for}


def _root(parents: dict[int, int], row: int) -> int:
    while row in parents:
        row = parents[row]
    return row


class _Fingerprints:
    """Sorted interatomic distances of crystals, computed when first asked for."""

    def __init__(self, flat: FlatCrystals) -> None:
        self._flat, self._ptr = flat, flat.ptr
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def same(self, i: int, j: int) -> bool:
        (pairs_i, distances_i), (pairs_j, distances_j) = self._of(i), self._of(j)
        return bool(
            np.array_equal(pairs_i, pairs_j) and np.allclose(distances_i, distances_j, rtol=0, atol=SAME_DISTANCE)
        )

    def _of(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        if row not in self._known:
            atoms = slice(self._ptr[row], self._ptr[row + 1])
            numbers, frac = self._flat.numbers[atoms], self._flat.frac[atoms]
            lattice = self._flat.lattice[row]
            distances = nearest_image_distances(lattice[None], frac[None])[0]
            first, second = np.triu_indices(len(numbers), 1)
            low, high = np.minimum(numbers[first], numbers[second]), np.maximum(numbers[first], numbers[second])
            order = np.lexsort((distances, high, low))
            key = (low * 1000 + high)[order], np.concatenate([distances[order], _cell_lengths(lattice)])
            self._known[row] = key
        return self._known[row]


def _cell_lengths(lattice: np.ndarray) -> np.ndarray:
    """(6,) angstrom: edges and shorter face diagonals; a crystal of one atom has nothing else to compare."""
    pairs = [(lattice[i], lattice[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    diagonals = [min(np.linalg.norm(v + w), np.linalg.norm(v - w)) for v, w in pairs]
    return np.concatenate([np.sort(np.linalg.norm(lattice, axis=1)), np.sort(diagonals)])
