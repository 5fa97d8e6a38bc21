"""Prints and structure types, against the structure matcher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.evaluation.matching import match_target
from dao_pipeline.sources.files import read_crystals
from dao_pipeline.templates.patterns import slots_of
from dao_pipeline.templates.prints import slot_prints
from dao_pipeline.templates.types import find_types
from tests.make import shared_data


def prints_of(crystals: list[Crystal]) -> np.ndarray:
    """Prints of crystals of one pattern."""
    flat = flatten(to_table(crystals))
    slots = slots_of(flat)
    ((pattern, rows),) = slots.groups().items()
    return slot_prints(flat, rows, slots.elements[rows][:, : len(pattern)], pattern)


def test_prints_do_not_depend_on_cell_origin_orientation_scale_or_order() -> None:
    rng = np.random.default_rng(0)
    for crystal in from_table(read_crystals(shared_data("mp20/val.parquet"), limit=25).table):
        change = np.array([[1, 1, 0], [0, 1, -1], [0, 0, 1]])
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        order = rng.permutation(crystal.num_atoms)
        coords = crystal.frac_coords @ np.linalg.inv(change) + rng.random(3)
        other = replace(
            crystal,
            lattice=1.3 * change @ crystal.lattice @ turn,
            frac_coords=coords[order],
            atomic_numbers=crystal.atomic_numbers[order],
        )
        first, second = prints_of([crystal, other])
        np.testing.assert_allclose(first, second, atol=2e-3)


def test_prints_change_a_little_when_atoms_move_a_little() -> None:
    rng = np.random.default_rng(0)
    for crystal in from_table(read_crystals(shared_data("mp20/val.parquet"), limit=10).table):
        moved = replace(
            crystal,
            frac_coords=crystal.frac_coords
            + rng.normal(0, 0.01, (crystal.num_atoms, 3)) @ np.linalg.inv(crystal.lattice),
        )
        first, second = prints_of([crystal, moved])
        assert np.abs(first - second).max() < 0.02


def test_types_agree_with_the_structure_matcher() -> None:
    """Crystals of a type match its leader once they have its elements; leaders of different types do not."""
    flat = flatten(read_crystals(shared_data("mp20/train_part.parquet"), limit=2000).table)
    slots, ptr = slots_of(flat), flat.ptr
    groups = sorted(slots.groups().items(), key=lambda item: -len(item[1]))
    rng = np.random.default_rng(0)

    def dressed(row: int, old: np.ndarray, new: np.ndarray) -> Crystal:
        inside = slice(ptr[row], ptr[row + 1])
        swap = dict(zip(old.tolist(), new.tolist(), strict=True))
        numbers = np.array([swap[z] for z in flat.numbers[inside].tolist()])
        return Crystal(
            id=str(row), atomic_numbers=numbers, frac_coords=flat.frac[inside], lattice=flat.lattice[row]
        )

    together, apart = [], []
    for pattern, rows in groups[:8]:
        elements = slots.elements[rows][:, : len(pattern)]
        found = find_types(slot_prints(flat, rows, elements, pattern), pattern, 0.05)
        places = np.take_along_axis(elements, found.places, 1)
        names = np.arange(1, len(pattern) + 1)
        leader = [dressed(rows[i], places[i], names) for i in found.leaders]
        members = np.setdiff1d(np.arange(len(rows)), found.leaders)
        for i in rng.permutation(members)[:5]:
            one = dressed(rows[i], places[i], names)
            together.append(match_target(leader[found.label[i]], [one], Matcher())[0].rmse is not None)
        for _ in range(5):
            a, b = rng.choice(len(leader), 2, replace=False)
            apart.append(match_target(leader[a], [leader[b]], Matcher())[0].rmse is not None)
    assert np.mean(together) > 0.9
    assert np.mean(apart) < 0.2


def test_each_crystal_is_within_the_tolerance_of_its_leader() -> None:
    flat = flatten(read_crystals(shared_data("mp20/train_part.parquet"), limit=1500).table)
    slots = slots_of(flat)
    pattern, rows = max(slots.groups().items(), key=lambda item: len(item[1]))
    prints = slot_prints(flat, rows, slots.elements[rows][:, : len(pattern)], pattern)
    found = find_types(prints, pattern, 0.05)
    for i, (label, places) in enumerate(zip(found.label, found.places, strict=True)):
        own = prints[i][places][:, places]
        leader = found.leaders[label]
        assert np.sqrt(((own - prints[leader]) ** 2).mean()) < 0.051
    assert (found.places[found.leaders] == np.arange(len(pattern))).all()
