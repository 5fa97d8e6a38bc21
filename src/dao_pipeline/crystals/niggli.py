"""Niggli reduction of many cells at once.

The algorithm of Grosse-Kunstleve, Sauter and Adams (Acta Cryst. A60, 2004), as pymatgen has it, on all cells
together. Its tolerance matters: edges that are equal or angles that are right only up to the digits of a file
would else fall to either side of a condition, and equal crystals would get different cells.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.crystals.geometry import cell_parameters, compact, lattices_from_parameters, volumes

TOLERANCES = (1e-4, 1e-6, 1e-8)
"""Of the conditions on the metric, in units of the cube root of the volume, tried in turn where a cell goes round
in circles. The first is ten times that of the paper and of pymatgen: structures with six digits need it."""

_ROUNDS = 100
_SWAP_AB = np.array([[0, -1, 0], [-1, 0, 0], [0, 0, -1]])
_SWAP_BC = np.array([[-1, 0, 0], [0, 0, -1], [0, -1, 0]])
_ADD_AB_TO_C = np.array([[1, 0, 1], [0, 1, 1], [0, 0, 1]])


def niggli_reduce(flat: FlatCrystals) -> tuple[FlatCrystals, dict[int, str]]:
    """The same crystals in their Niggli cells, rebuilt from the cell parameters, and failures by row.

    Left-handed cells become right-handed by another choice of vectors, so no crystal is mirrored.
    A row that fails keeps its cell and is named in the second value with the reason.
    """
    failures: dict[int, str] = {}
    sound = np.isfinite(flat.lattice).all((1, 2)) & (volumes(np.nan_to_num(flat.lattice)) > 1e-9)
    basis = np.where(sound[:, None, None], flat.lattice, np.eye(3))
    start = compact(basis)
    change, converged = _reduction(start, TOLERANCES[0])
    for tolerance in TOLERANCES[1:]:
        change[~converged], converged[~converged] = _reduction(start[~converged], tolerance)
    reduced = np.einsum("mji,mjk->mik", change, start)
    reduced[np.linalg.det(reduced) < 0] *= -1
    # coordinates: f @ basis = (f @ step) @ reduced, and step is whole-numbered up to rounding
    step = np.rint(basis @ np.linalg.inv(reduced))
    frac = np.einsum("ni,nij->nj", flat.frac, step[flat.crystal_of_atom])
    rebuilt = lattices_from_parameters(cell_parameters(reduced))
    bad = ~sound | ~converged
    for row in np.flatnonzero(bad).tolist():
        failures[row] = "did not converge" if sound[row] else "the cell has no volume"
    rebuilt[bad] = flat.lattice[bad]
    kept = bad[flat.crystal_of_atom]
    frac[kept] = flat.frac[kept]
    return replace(flat, lattice=rebuilt, frac=frac), failures


def _reduction(basis: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """(m, 3, 3) changes M, so that the rows of ``M^T basis`` are Niggli-reduced, and (m,) whether they are."""
    metric = basis @ basis.transpose(0, 2, 1)
    total = np.tile(np.eye(3), (len(basis), 1, 1))
    e = tolerance * np.cbrt(volumes(basis))
    converged = np.zeros(len(basis), dtype=bool)
    for _ in range(_ROUNDS):
        rows = np.flatnonzero(~converged)
        if not len(rows):
            break
        change, finished = _round(metric[rows], e[rows])
        metric[rows] = change.transpose(0, 2, 1) @ metric[rows] @ change
        total[rows] = total[rows] @ change
        converged[rows] = finished
    return total, converged


class _Metric(NamedTuple):
    """The entries of a metric that the conditions are about, each (m,), with the paper's names."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    xi: np.ndarray
    eta: np.ndarray
    zeta: np.ndarray


def _entries(metric: np.ndarray) -> _Metric:
    diagonal = metric[:, 0, 0], metric[:, 1, 1], metric[:, 2, 2]
    return _Metric(*diagonal, 2 * metric[:, 1, 2], 2 * metric[:, 0, 2], 2 * metric[:, 0, 1])


def _round(metric: np.ndarray, e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One pass of the steps A1 to A8: changes (m, 3, 3), and (m,) whether no condition was broken."""
    metric = metric.copy()
    total = np.tile(np.eye(3), (len(metric), 1, 1))
    going = np.ones(len(metric), dtype=bool)  # rows for which the pass is not over yet

    def apply(rows: np.ndarray, change: np.ndarray) -> _Metric:
        if rows.any():
            change = change if change.ndim == 2 else change[rows]
            metric[rows] = np.swapaxes(change, -1, -2) @ metric[rows] @ change
            total[rows] = total[rows] @ change
        return _entries(metric)

    def stop(broken: np.ndarray, change: np.ndarray) -> _Metric:
        """Change the rows where a condition is broken, and begin their next pass."""
        nonlocal going
        broken = broken & going
        going = going & ~broken
        return apply(broken, change)

    m = _entries(metric)
    m = apply((m.b + e < m.a) | ((abs(m.a - m.b) < e) & (abs(m.xi) > abs(m.eta) + e)), _SWAP_AB)  # A1
    m = stop((m.c + e < m.b) | ((abs(m.b - m.c) < e) & (abs(m.eta) > abs(m.zeta) + e)), _SWAP_BC)  # A2
    m = apply(going, _signs(m, e))  # A3, A4
    for edge, product, left, right, place in (
        (m.b, m.xi, m.zeta, m.eta, (1, 2)),  # A5
        (m.a, m.eta, m.zeta, m.xi, (0, 2)),  # A6
        (m.a, m.zeta, m.eta, m.xi, (0, 1)),  # A7
    ):
        broken = abs(product) > edge + e
        broken |= (abs(product - edge) < e) & (left - e > 2 * right)
        broken |= (abs(product + edge) < e) & (-e > left)
        stop(broken, _shear(place, np.sign(product)))  # rows that go on keep their metric, and so m
    trace = m.xi + m.eta + m.zeta + m.a + m.b
    stop((-e > trace) | ((abs(trace) < e) & (e < m.zeta + 2 * (m.a + m.eta))), _ADD_AB_TO_C)  # A8
    return total, going


def _signs(metric: _Metric, e: np.ndarray) -> np.ndarray:
    """(m, 3, 3) diagonal changes that make xi, eta, zeta all positive, or none of them positive."""
    products = np.stack([metric.xi, metric.eta, metric.zeta], axis=1)
    signs = np.where(np.abs(products) < e[:, None], 0, np.sign(products))
    positive = signs.prod(1) == 1
    flips = np.where(positive[:, None], np.where(signs == -1, -1.0, 1.0), np.where(signs == 1, -1.0, 1.0))
    # an axis whose product is zero is free: it takes the sign that keeps the handedness
    free = np.where(signs[:, 2] == 0, 2, np.where(signs[:, 1] == 0, 1, 0))
    mirrored = np.flatnonzero(~positive & (flips.prod(1) == -1))
    flips[mirrored, free[mirrored]] = -1.0
    return flips[:, :, None] * np.eye(3)


def _shear(place: tuple[int, int], sign: np.ndarray) -> np.ndarray:
    change = np.tile(np.eye(3), (len(sign), 1, 1))
    change[:, place[0], place[1]] = -sign
    return change
