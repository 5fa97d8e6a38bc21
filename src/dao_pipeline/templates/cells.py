"""Smaller and larger cells of the same crystal: primitive cells and supercells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dao_pipeline.crystals.crystal import wrap
from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.crystals.geometry import compact
from dao_pipeline.crystals.niggli import niggli_reduce
from dao_pipeline.templates.patterns import slots_of

TOLERANCE = 0.05
"""Angstrom: how far an atom may be from where a translation puts it."""

_PAIRS_AT_ONCE = 1_000_000


def primitive_cells(flat: FlatCrystals) -> FlatCrystals:
    """The crystals in primitive, Niggli-reduced cells; those that are primitive already stay as they are.

    Atoms that a translation maps onto each other are replaced by their mean.
    """
    slots = slots_of(flat)
    ptr = flat.ptr
    changed: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    for pattern, rows in slots.groups().items():
        if np.gcd.reduce(pattern) == 1:
            continue  # a smaller cell would divide every slot
        rarest, size = pattern[0], sum(pattern)
        step = max(1, _PAIRS_AT_ONCE // (rarest * size * size))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            atoms = flat.atoms_of(some)
            found = _translations(
                flat.numbers[atoms], flat.frac[atoms], flat.lattice[some], slots.elements[some, 0], rarest
            )
            for row, shifts in zip(some.tolist(), found, strict=True):
                if len(shifts) > 1:
                    inside = slice(ptr[row], ptr[row + 1])
                    changed[row] = _reduced(flat.numbers[inside], flat.frac[inside], flat.lattice[row], shifts)
    if not changed:
        return flat
    cells = [
        changed.get(i) or (flat.numbers[a:b], flat.frac[a:b], flat.lattice[i])
        for i, (a, b) in enumerate(zip(ptr[:-1].tolist(), ptr[1:].tolist(), strict=True))
    ]
    smaller = FlatCrystals(
        numbers=np.concatenate([numbers for numbers, _, _ in cells]),
        frac=np.concatenate([frac for _, frac, _ in cells]),
        lattice=np.stack([lattice for _, _, lattice in cells]),
        counts=np.array([len(numbers) for numbers, _, _ in cells], dtype=np.int64),
    )
    return niggli_reduce(smaller)[0]


def _translations(
    numbers: np.ndarray, frac: np.ndarray, lattice: np.ndarray, element: np.ndarray, count: int
) -> list[np.ndarray]:
    """For each of m cells of n atoms the translations (t, 3), with zero, that map it onto itself.

    element: (m,), one with ``count`` atoms in each cell. Only translations that permute its atoms can do it.
    """
    m = len(numbers)
    chosen = np.argsort(numbers != element[:, None], axis=1, kind="stable")[:, :count]
    anchors = np.take_along_axis(frac, chosen[:, :, None], 1)
    shifts = anchors - anchors[:, :1]  # (m, c, 3)
    difference = frac[:, None, :, None] + shifts[:, :, None, None] - frac[:, None, None]
    difference -= np.rint(difference)
    squared = ((difference.reshape(m, -1, 3) @ lattice) ** 2).sum(2).reshape(difference.shape[:-1])
    hit = (squared < TOLERANCE**2) & (numbers[:, None, :, None] == numbers[:, None, None])
    maps = (hit.sum(3) == 1).all(2) & (hit.sum(2) == 1).all(2)
    # what is left has to be a group: n must be a multiple of its order, or a tolerance has let too many through
    return [s[keep] if numbers.shape[1] % keep.sum() == 0 else s[:1] for s, keep in zip(shifts, maps, strict=True)]


def _reduced(
    numbers: np.ndarray, frac: np.ndarray, lattice: np.ndarray, shifts: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = len(shifts)
    steps = np.rint((shifts % 1.0) * order).astype(np.int64)  # translations of a group of this order
    basis = _span(np.concatenate([order * np.eye(3, dtype=np.int64), steps])) / order
    cell = basis @ lattice
    if np.linalg.det(cell) < 0:
        cell, basis = -cell, -basis
    coords = frac @ np.linalg.inv(basis)
    away = coords[:, None] - coords[None]
    away -= np.rint(away)
    near = ((away @ cell) ** 2).sum(2) < (3 * TOLERANCE) ** 2
    near &= numbers[:, None] == numbers
    first = np.flatnonzero(near.argmax(1) == np.arange(len(numbers)))
    if len(first) * order != len(numbers):
        return numbers, frac, lattice
    mean = np.stack([(coords[i] - away[i][near[i]]).mean(0) for i in first])
    return numbers[first], wrap(mean), cell


def _span(rows: np.ndarray) -> np.ndarray:
    """(3, 3) integer basis of all sums of integer rows of rank 3 (Hermite form)."""
    rows = rows.copy()
    for column in range(3):
        while True:
            entries = np.abs(rows[column:, column])
            if (entries > 0).sum() <= 1:
                break
            pivot = column + int(np.where(entries > 0, entries, np.iinfo(np.int64).max).argmin())
            rows[[column, pivot]] = rows[[pivot, column]]
            rows[column + 1 :] -= (rows[column + 1 :, column] // rows[column, column])[:, None] * rows[column]
        pivot = column + int(np.abs(rows[column:, column]).argmax())
        rows[[column, pivot]] = rows[[pivot, column]]
    return rows[:3]


def supercells(flat: FlatCrystals, multiple: np.ndarray) -> FlatCrystals:
    """Each crystal repeated ``multiple`` (m,) times, always along what is its shortest axis then."""
    if (multiple == 1).all():
        return flat
    repeats = np.ones((len(flat), 3), dtype=np.int64)
    lengths = np.linalg.norm(compact(flat.lattice), axis=2)
    for i in np.flatnonzero(multiple > 1).tolist():
        for prime in sorted(_primes(int(multiple[i])), reverse=True):
            repeats[i, (lengths[i] * repeats[i]).argmin()] *= prime
    larger = repeats.prod(1) > 1
    base = np.where(larger[:, None, None], compact(flat.lattice), flat.lattice)
    step = flat.lattice @ np.linalg.inv(base)
    frac = np.einsum("ni,nij->nj", flat.frac, step[flat.crystal_of_atom])
    # every atom, with every image
    images = multiple[flat.crystal_of_atom]
    atom = np.repeat(np.arange(len(images)), images)
    image = np.arange(len(atom)) - np.repeat(np.cumsum(images) - images, images)
    times = repeats[flat.crystal_of_atom[atom]]
    shift = np.stack(
        [image % times[:, 0], image // times[:, 0] % times[:, 1], image // (times[:, 0] * times[:, 1])], axis=1
    )
    return replace(
        flat,
        numbers=flat.numbers[atom],
        frac=wrap((frac[atom] + shift) / times),
        lattice=base * repeats[:, :, None],
        counts=flat.counts * multiple,
    )


def _primes(number: int) -> list[int]:
    found, prime = [], 2
    while number > 1:
        while number % prime == 0:
            found.append(prime)
            number //= prime
        prime += 1
    return found
