"""Motions that map crystals onto themselves, against known groups and spglib."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from dao_pipeline.crystals.automorphisms import lattice_maps, symmetries, unimodular
from dao_pipeline.crystals.convert import to_structure
from dao_pipeline.crystals.crystal import from_table
from dao_pipeline.sources.embedded import load

PEROVSKITE = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])


def test_changes_of_basis_keep_the_volume() -> None:
    assert len(unimodular()) == 6960
    assert np.allclose(np.abs(np.linalg.det(unimodular())), 1)


@pytest.mark.parametrize(
    ("stretch", "group"),
    [([1, 1, 1], 48), ([1, 1, 1.1], 16), ([1, 1.05, 1.1], 8)],
    ids=["cubic", "tetragonal", "box"],
)
def test_perovskite_has_the_motions_of_its_cell(stretch: list[float], group: int) -> None:
    rotations, images = symmetries(np.array([56, 22, 8, 8, 8]), PEROVSKITE, 4.0 * np.diag(stretch))
    assert len(rotations) == group
    assert {tuple(row[:2]) for row in images} == {(0, 1)}
    assert np.allclose(np.sort(images, 1), np.arange(5))


def test_every_motion_is_one() -> None:
    """Atoms land on their images, up to one translation for all of them, and distances stay."""
    for crystal in list(from_table(load()))[:60]:
        rotations, images = symmetries(crystal.atomic_numbers, crystal.frac_coords, crystal.lattice)
        metric = crystal.lattice @ crystal.lattice.T
        length = np.linalg.norm(crystal.lattice, axis=1)
        change = rotations @ metric @ rotations.transpose(0, 2, 1) - metric
        assert (np.abs(change) < 0.04 * np.outer(length, length)).all()
        for rotation, image in zip(rotations, images, strict=True):
            shift = crystal.frac_coords[image] - crystal.frac_coords @ rotation
            shift -= shift[0]
            assert np.abs(shift - np.rint(shift)).max() < 0.03
            assert np.array_equal(crystal.atomic_numbers[image], crystal.atomic_numbers)


def test_as_many_motions_as_spglib_finds() -> None:
    crystals = list(from_table(load()))[::80]
    same = 0
    for crystal in crystals:
        found, _ = symmetries(crystal.atomic_numbers, crystal.frac_coords, crystal.lattice)
        known = SpacegroupAnalyzer(to_structure(crystal), symprec=0.02).get_symmetry_dataset()
        same += len(found) == len(known.rotations)
    assert same >= 0.95 * len(crystals)


def test_strains_of_maps_are_small_first() -> None:
    cell = np.diag([3.0, 4.0, 5.0])
    maps, strain = lattice_maps(cell, cell @ (np.eye(3) + 0.02), 0.15)
    assert (np.diff(strain) >= 0).all()
    assert np.allclose(np.abs(maps[0]), np.eye(3))
    assert len(lattice_maps(cell, 2 * cell, 0.15)[0]) == 0
