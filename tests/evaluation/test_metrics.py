"""Ranks, results per target, rates and their intervals."""

from __future__ import annotations

from typing import Any

import pytest

from dao_pipeline.evaluation.metrics import Sample, interval, ranks_by_energy, summarise, target_result


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
        sample("substitution", order=1, place=1, first=True, rank=3),
        sample("substitution", order=2, place=2, rank=1, matched=True, rmse=0.3),
        sample("substitution", order=3, place=3, rank=2, matched=True, rmse=0.1),
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
    hit = sample(matched=True, rmse=0.2, first=True, place=1, rank=1)
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


def test_interval_of_all_or_nothing_has_width() -> None:
    low, high = interval([1.0] * 10, 1000, 1)
    assert (low, high) == (pytest.approx(0.722, abs=1e-3), 1.0)
    assert interval([0.0] * 10, 1000, 1)[1] == pytest.approx(0.278, abs=1e-3)
