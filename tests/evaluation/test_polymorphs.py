"""How many known structures of one composition k samples find."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.evaluation.polymorphs import Recall, bootstrap_mean, distinct, polymorphs
from tests.make import crystal

FACE_CENTRED = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def rock_salt(edge: float = 5.6, name: str = "rock salt") -> Crystal:
    return crystal(name, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], FACE_CENTRED * edge)


def caesium_chloride() -> Crystal:
    return crystal("cscl", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 3.5)


def zinc_blende() -> Crystal:
    return crystal("zinc blende", ["Na", "Cl"], [[0, 0, 0], [0.25, 0.25, 0.25]], FACE_CENTRED * 6.1)


def two_cells() -> Crystal:
    """Caesium chloride again, in a cell of four atoms."""
    frac = [[0, 0, 0], [0, 0, 0.5], [0.5, 0.5, 0.25], [0.5, 0.5, 0.75]]
    return crystal("large", ["Na", "Na", "Cl", "Cl"], frac, np.diag([3.5, 3.5, 7.0]))


def test_only_different_structures_with_the_same_atoms_count() -> None:
    known = [rock_salt(), rock_salt(5.7, "again"), caesium_chloride(), two_cells()]
    assert [c.id for c in distinct(known)] == ["rock salt", "cscl"]
    [found] = polymorphs(known)
    assert [c.id for c in found] == ["rock salt", "cscl"]
    assert not polymorphs([rock_salt(), rock_salt(5.7)])
    assert not polymorphs([rock_salt(), caesium_chloride(), zinc_blende()], most=2)
    assert len(polymorphs([rock_salt(), caesium_chloride(), zinc_blende()])[0]) == 3


def test_samples_are_compared_with_every_known_structure() -> None:
    moved = replace(rock_salt(5.8), frac_coords=np.array([[0.1, 0.1, 0.1], [0.6, 0.6, 0.62]]))
    recall = Recall.of(
        [rock_salt(), caesium_chloride(), zinc_blende()], [None, moved, caesium_chloride()], Matcher()
    )
    assert recall.hits.tolist() == [[False, True, False], [False, False, True], [False, False, False]]
    assert 0 < recall.rmse[0] < 0.1
    assert recall.rmse[1] == pytest.approx(0, abs=1e-6)
    assert np.isnan(recall.rmse[2])
    assert recall.found(3) == pytest.approx(2 / 3)
    assert recall.all_found(3) == pytest.approx(0)


def test_a_sample_finds_only_what_it_is_nearest_to() -> None:
    """To the field's tolerances rock salt and zinc blende are one."""
    known = [zinc_blende(), rock_salt()]
    both = [Recall.of([one], [rock_salt(5.7)], Matcher()).hits.item() for one in known]
    assert both == [True, True]
    assert Recall.of(known, [rock_salt(5.7)], Matcher()).hits.tolist() == [[False], [True]]


@pytest.mark.parametrize("structures", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 2, 4, 6])
def test_expectations_equal_the_mean_over_all_choices(structures: int, k: int) -> None:
    hits = np.random.default_rng(structures).random((structures, 6)) < 0.3
    recall = Recall(hits, np.full(structures, np.nan))
    choices = [hits[:, list(chosen)].any(1) for chosen in itertools.combinations(range(6), k)]
    assert recall.found(k) == pytest.approx(np.mean([c.mean() for c in choices]))
    assert recall.all_found(k) == pytest.approx(np.mean([c.all() for c in choices]))


def test_intervals_hold_the_mean_and_shrink() -> None:
    rng = np.random.default_rng(0)
    few, many = (bootstrap_mean(rng.random(n)) for n in (20, 2000))
    for mean, low, high in (few, many):
        assert low < mean < high
    assert many[2] - many[1] < (few[2] - few[1]) / 5
