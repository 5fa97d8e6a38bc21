from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.crystals.geometry import (
    cell_heights,
    cell_parameters,
    compact,
    lattices_from_parameters,
    shortest_distances,
    volumes,
)
from dao_pipeline.crystals.niggli import niggli_reduce
from tests.make import random_cells, random_flat


def shortest_by_pymatgen(flat: FlatCrystals, row: int) -> float:
    """Brute force: every neighbour within the longest edge, images included."""
    atoms = slice(flat.ptr[row], flat.ptr[row + 1])
    structure = Structure(Lattice(flat.lattice[row]), ["H"] * int(flat.counts[row]), flat.frac[atoms])
    reach = float(np.linalg.norm(flat.lattice[row], axis=1).min()) + 1e-6
    return float(structure.get_neighbor_list(reach)[3].min())


@pytest.mark.parametrize("skew", [0.3, 2.0, 6.0])
def test_shortest_distances_equal_pymatgen(skew: float) -> None:
    flat = random_flat(40, seed=3, skew=skew)
    expected = [shortest_by_pymatgen(flat, row) for row in range(len(flat))]
    np.testing.assert_allclose(shortest_distances(flat), expected, rtol=1e-9)


def test_shortest_distance_of_a_needle() -> None:
    # the unreduced cell of a simple cubic lattice of 3 angstrom: a naive search over 27 images misses 3.0
    sheared = np.array([[3.0, 0, 0], [30.0, 3.0, 0], [0, 45.0, 3.0]])
    flat = FlatCrystals(numbers=np.array([29]), frac=np.zeros((1, 3)), lattice=sheared[None], counts=np.array([1]))
    np.testing.assert_allclose(shortest_distances(flat), [3.0])


def test_shortest_distances_do_not_depend_on_the_cell() -> None:
    flat = random_flat(60, seed=5, skew=3.0)
    reduced, failures = niggli_reduce(flat)
    assert not failures
    np.testing.assert_allclose(shortest_distances(flat), shortest_distances(reduced), rtol=1e-8)


def test_shortest_distances_of_broken_cells_are_nan() -> None:
    lattice = np.tile(np.eye(3) * 4, (4, 1, 1))
    lattice[0, 2] = lattice[0, 1]
    lattice[1, 0, 0] = np.nan
    frac = np.zeros((4, 3))
    frac[2, 1] = np.inf
    flat = FlatCrystals(numbers=np.full(4, 6), frac=frac, lattice=lattice, counts=np.ones(4, dtype=int))
    distances = shortest_distances(flat)
    assert np.isnan(distances[:3]).all()
    assert distances[3] == 4


def test_parameters_and_back_equal_pymatgen() -> None:
    cells = random_cells(50, seed=1)
    parameters = cell_parameters(cells)
    rebuilt = lattices_from_parameters(parameters)
    for cell, row, again in zip(cells, parameters, rebuilt, strict=True):
        np.testing.assert_allclose(row, Lattice(cell).parameters, rtol=1e-10)
        np.testing.assert_allclose(again, Lattice.from_parameters(*row).matrix, atol=1e-10)
    np.testing.assert_allclose(volumes(rebuilt), volumes(cells), rtol=1e-9)
    assert (np.linalg.det(rebuilt) > 0).all()


def test_heights() -> None:
    cells = np.array([np.diag([2.0, 3.0, 4.0]), [[1.0, 0, 0], [5.0, 1.0, 0], [0, 0, 1.0]]])
    np.testing.assert_allclose(cell_heights(cells), [[2, 3, 4], [1 / np.sqrt(26), 1, 1]])


def test_compact_keeps_the_lattice() -> None:
    cells = random_cells(50, seed=2, skew=8.0)
    change = compact(cells) @ np.linalg.inv(cells)
    np.testing.assert_allclose(change, np.rint(change), atol=1e-6)
    np.testing.assert_allclose(np.abs(np.linalg.det(change)), 1, rtol=1e-6)
