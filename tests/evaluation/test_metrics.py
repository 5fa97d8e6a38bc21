"""Ranks, results per target, rates and their intervals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dao_pipeline.evaluation.by_distance import QUARTERS, WITHOUT, by_distance
from dao_pipeline.evaluation.metrics import (
    Sample,
    interval,
    outcome_at,
    ranks_by_energy,
    summarise,
    target_result,
)


def sample(method: str = "dao", **fields: Any) -> Sample:
    values: dict[str, Any] = {
        "id": "c",
        "method": method,
        "target_id": "t",
        "composition": "NaCl",
        "formula": "NaCl",
        "num_atoms": 2,
        "sample": 0,
        "order": 1,
        "status": "ok",
        "valid": True,
        "matched": False,
        "reason": "no_match",
    }
    if fields.get("matched"):
        values["reason"] = None
    return Sample(**{**values, **fields})


def test_rank_is_by_energy_among_valid_candidates() -> None:
    energies = [0.3, None, 0.1, -5.0, 0.1]
    assert ranks_by_energy(energies, [True, True, True, False, True]) == [3, None, 1, None, 2]
    assert ranks_by_energy([], []) == []


def test_target_result_keeps_best_first_and_lowest_apart() -> None:
    samples = [
        sample("substitution", order=1, place=1, guess=1, rank=3),
        sample("substitution", order=2, place=2, guess=2, rank=1, matched=True, rmse=0.3),
        sample("substitution", order=3, place=3, guess=3, rank=2, matched=True, rmse=0.1),
        sample("substitution", order=4, place=4, valid=False, reason="flat_cell", status="flat_cell"),
    ]
    result = target_result("substitution", samples)
    assert result["candidates"] == 4
    assert result["compared"] == 3
    assert result["valid_candidates"] == 3
    assert result["matches"] == 2
    assert result["found"] is True
    assert result["rmse"] == 0.1
    assert result["rank1_by"] == "nearest_template"
    assert result["rank1_found"] is False
    assert result["energy1_found"] is True
    assert result["energy1_rmse"] == 0.3
    assert result["first_match_rank"] == 2


def test_a_match_that_is_not_ranked_is_found_but_has_no_rank() -> None:
    result = target_result("dao", [sample(matched=True, rmse=0.2, valid=False)])
    assert result["found"]
    assert result["first_match_rank"] is None
    assert not result["rank1_found"]


def test_rates_count_targets_without_candidates() -> None:
    hit = sample(matched=True, rmse=0.2, guess=1, place=1, rank=1)
    miss = sample(place=2, rank=2)
    results = [target_result("dao", samples) for samples in ([hit, miss], [miss, miss], [], [])]
    first, best = summarise(results, samples=20, bootstrap=200, seed=0)
    assert (first["k"], best["k"]) == (1, 20)
    assert first["match_rate"] == best["match_rate"] == 0.25
    assert best["n"] == 4
    assert best["matches"] == 1
    assert best["rmse"] == 0.2
    assert first["match_rate_single"] == 0.125
    assert "match_rate_single" not in best
    assert 0.0 <= best["low"] <= 0.25 <= best["high"] <= 1.0


def test_methods_keep_their_order_and_nothing_gives_nothing() -> None:
    results = [target_result(method, []) for method in ("substitution", "random", "dao")]
    assert [row["method"] for row in summarise(results, 5, 0, 0)] == [
        "dao", "dao", "random", "random", "substitution", "substitution",
    ]  # fmt: skip
    assert summarise([], 5, 10, 0) == []
    assert len(summarise(results, 1, 0, 0)) == 3
    assert summarise(results, 5, 0, 0)[0]["rmse"] is None


def test_interval_is_reproducible_and_about_right() -> None:
    values = [1.0] * 300 + [0.0] * 700
    low, high = interval(values, 1000, 1)
    assert interval(values, 1000, 1) == (low, high)
    assert low == pytest.approx(0.3 - 1.96 * 0.0145, abs=0.005)
    assert high == pytest.approx(0.3 + 1.96 * 0.0145, abs=0.005)
    assert interval(values, 0, 1) == (None, None)


def test_the_first_k_guesses_count_and_not_what_is_like_them() -> None:
    ranked = [
        sample(guess=1, place=1),
        sample(guess=None, place=1, matched=True, rmse=0.1),
        sample(guess=3, place=3, matched=True, rmse=0.4),
        sample(guess=5, place=5, matched=True, rmse=0.2),
        sample(matched=True, rmse=0.05, valid=False),
    ]
    results = [target_result("dao", ranked), target_result("dao", [])]
    rows = {row["k"]: row for row in summarise(results, 8, 0, 0, ks=[5, 3, 20, 8])}
    assert list(rows) == [1, 3, 5, 8]
    assert [rows[k]["match_rate"] for k in rows] == [0, 0.5, 0.5, 0.5]
    assert [rows[k]["rmse"] for k in rows] == [None, 0.4, 0.2, 0.05]


@given(st.lists(st.tuples(st.integers(1, 30), st.floats(0, 0.5)), max_size=20))
def test_more_guesses_find_no_less_and_no_worse(hits: list[tuple[int, float]]) -> None:
    result = target_result("dao", [sample(matched=True, guess=g, place=g, rmse=e) for g, e in hits])
    outcomes = [outcome_at(result, k) for k in range(1, 31)] + [outcome_at(result, None)]
    for (found, error), (later, less) in pairwise(outcomes):
        assert later >= found
        assert error is None or (less is not None and less <= error)


def test_targets_of_one_composition_are_resampled_together() -> None:
    """Ten copies of each of 30 targets tell no more than the 30."""
    values = [float(i % 3 == 0) for i in range(30)]
    copied = [value for value in values for _ in range(10)]
    names = [f"c{i}" for i in range(30) for _ in range(10)]
    alone, together = interval(values, 500, 1), interval(copied, 500, 1, names)
    assert together == pytest.approx(alone)
    narrow = interval(copied, 500, 1)
    assert narrow[1] - narrow[0] < 0.5 * (together[1] - together[0])
    assert interval(values, 500, 1, [None] * 30) == alone


def target(number: int, distance: float | None, found: bool) -> dict[str, Any]:
    own = sample(matched=found, rmse=0.1 if found else None, guess=1, place=1, template_distance=distance)
    return {**target_result("combined", [own]), "formula": f"c{number}"}


def test_rates_by_distance_to_the_nearest_template() -> None:
    results = [target(i, float(i), found=i < 4) for i in range(8)] + [target(9, None, found=False)]
    rows = by_distance(results[::-1], [1], 0, 0)
    assert [row["nearest"] for row in rows[::2]] == [*QUARTERS, WITHOUT]
    assert [row["n"] for row in rows[::2]] == [2, 2, 2, 2, 1]
    assert [row["match_rate"] for row in rows[::2]] == [1, 1, 0, 0, 0]
    assert [row["nearest_to"] for row in rows[::2]] == [1, 3, 5, 7, None]
    assert [row["k"] for row in rows[:2]] == [1, None]
    assert by_distance([target_result("dao", [])], [1], 0, 0) == []


def test_interval_of_all_or_nothing_has_width() -> None:
    low, high = interval([1.0] * 10, 1000, 1)
    assert (low, high) == (pytest.approx(0.722, abs=1e-3), 1.0)
    assert interval([0.0] * 10, 1000, 1)[1] == pytest.approx(0.278, abs=1e-3)
