from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pymatgen.core import Lattice

from dao_pipeline.crystals.flat import FlatCrystals, flatten
from dao_pipeline.crystals.geometry import cell_parameters, nearest_image_distances, volumes
from dao_pipeline.crystals.niggli import niggli_reduce
from dao_pipeline.crystals.table import read_table
from tests.make import random_cells, random_flat, shared_data


def sorted_distances(lattice: np.ndarray, frac: np.ndarray) -> np.ndarray:
    distances = Lattice(lattice).get_all_distances(frac, frac)
    return np.sort(distances[np.triu_indices(len(frac), 1)])


def test_niggli_keeps_the_crystal() -> None:
    flat = random_flat(60, seed=7, skew=3.0)
    flat.lattice[::2, 0] *= -1  # half of them left-handed
    reduced, _ = niggli_reduce(flat)
    assert (np.linalg.det(reduced.lattice) > 0).all()
    for row in range(len(flat)):
        atoms = slice(flat.ptr[row], flat.ptr[row + 1])
        before = sorted_distances(flat.lattice[row], flat.frac[atoms])
        np.testing.assert_allclose(sorted_distances(reduced.lattice[row], reduced.frac[atoms]), before, atol=1e-7)
        if len(before):
            nearest = nearest_image_distances(reduced.lattice[row : row + 1], reduced.frac[atoms][None])[0]
            np.testing.assert_allclose(np.sort(nearest), before, atol=1e-7)


def test_left_handed_cells_are_not_mirrored() -> None:
    """Chirality, the sign of a triple product of differences, survives a left-handed input cell."""
    frac = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.2, 0], [0, 0, 0.3]])
    lattice = np.array([[0, 5.0, 0], [4.0, 0, 0], [0, 0, 6.0]])
    flat = FlatCrystals(numbers=np.array([6, 7, 8, 9]), frac=frac, lattice=lattice[None], counts=np.array([4]))
    reduced, _ = niggli_reduce(flat)

    def handedness(frac: np.ndarray, lattice: np.ndarray) -> float:
        difference = frac[1:] - frac[0]
        return float(np.linalg.det((difference - np.rint(difference)) @ lattice))

    np.testing.assert_allclose(handedness(reduced.frac, reduced.lattice[0]), handedness(frac, lattice))


def pymatgen_parameters(lattice: np.ndarray) -> np.ndarray:
    return np.array([Lattice(cell).get_niggli_reduced_lattice().parameters for cell in lattice])


def one_atom_each(lattice: np.ndarray) -> FlatCrystals:
    n = len(lattice)
    return FlatCrystals(
        numbers=np.full(n, 6), frac=np.zeros((n, 3)), lattice=lattice, counts=np.ones(n, dtype=int)
    )


def test_equals_pymatgen_on_random_cells() -> None:
    lattice = random_cells(200, seed=11, skew=3.0)
    reduced, failures = niggli_reduce(one_atom_each(lattice))
    assert not failures
    np.testing.assert_allclose(cell_parameters(reduced.lattice), pymatgen_parameters(lattice), atol=1e-4)


@pytest.mark.parametrize(
    ("lattice", "expected"),
    [
        (Lattice.cubic(4.0), (4, 4, 4, 90, 90, 90)),
        (Lattice.hexagonal(3.0, 5.0), (3, 3, 5, 90, 90, 120)),
        (Lattice([[0, 2, 2], [2, 0, 2], [2, 2, 0]]), (*[8**0.5] * 3, 60, 60, 60)),
        (Lattice([[-2, 2, 2], [2, -2, 2], [2, 2, -2]]), (*[12**0.5] * 3, *[109.4712206] * 3)),
    ],
)
def test_known_cells(lattice: Lattice, expected: tuple[float, ...]) -> None:
    reduced, _ = niggli_reduce(one_atom_each(np.array([lattice.matrix])))
    ours = cell_parameters(reduced.lattice)[0]
    np.testing.assert_allclose(ours, lattice.get_niggli_reduced_lattice().parameters, atol=1e-6)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_equals_pymatgen_on_real_crystals() -> None:
    flat = flatten(read_table(shared_data("mp20/train_part.parquet")).slice(0, 200))
    reduced, failures = niggli_reduce(flat)
    assert not failures
    ours, theirs = cell_parameters(reduced.lattice), pymatgen_parameters(flat.lattice)
    np.testing.assert_allclose(ours[:, :3], theirs[:, :3], atol=5e-4)
    # Where edges are equal, pymatgen ends with any cell whose angles agree to one degree, and near right
    # angles its smaller tolerance may choose the other of two cells: a few percent differ, none by much.
    assert np.isclose(ours, theirs, atol=0.02).all(1).mean() > 0.95
    off = np.minimum(np.abs(ours - theirs), np.abs(180 - ours - theirs))[:, 3:]
    assert off.max() < 1.0
    np.testing.assert_allclose(volumes(reduced.lattice), volumes(flat.lattice), rtol=1e-9)


def test_digits_of_a_file_do_not_change_the_cell() -> None:
    """Six digits of the same crystal: the symmetric cells of real data are where naive conditions flip."""
    flat = flatten(read_table(shared_data("mp20/train_part.parquet")).slice(0, 1000))
    noise = np.random.default_rng(0).normal(size=flat.lattice.shape)
    again = replace(flat, lattice=flat.lattice * (1 + 1e-6 * noise))
    one, two = (cell_parameters(niggli_reduce(cells)[0].lattice) for cells in (flat, again))
    np.testing.assert_allclose(one, two, atol=0.05)


def test_failure_is_named_and_leaves_the_cell() -> None:
    lattice = np.array([np.zeros((3, 3)), np.eye(3) * 4, np.full((3, 3), np.nan)])
    reduced, failures = niggli_reduce(one_atom_each(lattice))
    assert failures == {0: "the cell has no volume", 2: "the cell has no volume"}
    np.testing.assert_allclose(reduced.lattice[1], np.eye(3) * 4, atol=1e-12)
    np.testing.assert_array_equal(reduced.lattice[0], np.zeros((3, 3)))
