"""Slots, patterns and assignments."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from dao_pipeline.templates.patterns import assignments, compositions, cosets, slots_of


def test_slots_are_elements_by_rising_count() -> None:
    slots = slots_of(compositions([np.array([8, 22, 8, 38, 8]), np.array([17, 11]), np.array([6] * 4)]))
    assert slots.elements.tolist() == [[22, 38, 8], [11, 17, 0], [6, 0, 0]]
    assert slots.counts.tolist() == [[1, 1, 3], [1, 1, 0], [4, 0, 0]]
    assert {pattern: rows.tolist() for pattern, rows in slots.groups().items()} == {
        (1, 1, 3): [0], (1, 1): [1], (4,): [2],
    }  # fmt: skip


def test_the_order_of_atoms_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    cell = rng.integers(1, 100, 12)
    slots = slots_of(compositions([cell, rng.permutation(cell)]))
    assert (slots.elements[0] == slots.elements[1]).all()


def test_assignments_are_all_that_keep_counts() -> None:
    pattern = (1, 1, 2, 2, 2, 3)
    counts = np.array(pattern)
    wanted = [p for p in permutations(range(6)) if (counts[list(p)] == counts).all()]
    ways = assignments(pattern)
    assert sorted(map(tuple, ways.tolist())) == sorted(wanted)
    assert ways[0].tolist() == list(range(6))
    with pytest.raises(ValueError, match="too many"):
        assignments((1,) * 8)


def test_assignments_that_differ_by_a_symmetry_are_one_class() -> None:
    pattern = (1, 1, 1)
    ways = assignments(pattern)
    nothing = (ways == [0, 1, 2]).all(1)
    assert len(set(cosets(pattern, nothing).tolist())) == 6
    swap = nothing | (ways == [1, 0, 2]).all(1)  # the first two slots are equivalent
    labels = cosets(pattern, swap)
    assert len(set(labels.tolist())) == 3
    for p, way in enumerate(ways.tolist()):
        partner = [way[1], way[0], way[2]]
        assert labels[p] == labels[ways.tolist().index(partner)]
    assert set(cosets(pattern, np.ones(6, bool)).tolist()) == {0}
