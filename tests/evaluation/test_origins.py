"""Candidates from templates in the evaluation: generated ones are scored by themselves, all of them together."""

from __future__ import annotations

from typing import Any

import numpy as np

from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.evaluation.compare import Target, _among_themselves, _campaign_samples
from dao_pipeline.evaluation.matching import Match
from dao_pipeline.evaluation.metrics import methods_of, summarise, target_result

CRYSTAL = Crystal(id="t", atomic_numbers=np.array([11, 17]), frac_coords=np.zeros((2, 3)), lattice=np.eye(3))


def row(
    number: int, origin: str | None, group: int | None, energy: float | None, rank: int | None
) -> dict[str, Any]:
    made = {} if origin is None else {"origin": origin}
    if origin not in (None, "generated"):
        made |= {"template_id": "mp-1", "template_distance": 0.5}
    return made | {
        "id": f"cand:0:{number}",
        "composition": "NaCl",
        "formula": "NaCl",
        "sample": number,
        "status": "ok",
        "valid": True,
        "energy_pred": energy,
        "group": group,
        "rank": rank,
        "crystal": CRYSTAL,
    }


ROWS = [
    row(0, "template", 0, 0.1, 1),
    row(1, "known", 2, 0.5, 3),
    row(2, "generated", 1, 0.3, 2),
    row(3, "generated", 0, 0.2, None),
    row(4, "generated", 0, 0.15, None),
    row(5, "generated", None, None, None),
]
MATCHES = [Match(0.01), Match(None), Match(None), Match(0.1), Match(0.05), Match(None)]


def test_generated_candidates_are_ranked_among_themselves() -> None:
    """The group of the template is first, and led by the best that was generated."""
    samples = _campaign_samples(Target("NaCl", CRYSTAL, ROWS), MATCHES)
    own = [s for s in samples if s.method == "dao"]
    assert [(s.sample, s.rank, s.place) for s in own] == [(2, 2, 2), (3, None, 1), (4, 1, 1), (5, None, None)]
    assert all(s.template_id is None for s in own)
    together = [s for s in samples if s.method == "combined"]
    assert [s.rank for s in together] == [r["rank"] for r in ROWS]
    assert [s.matched for s in together] == [m.rmse is not None for m in MATCHES]
    assert together[0].template_id == "mp-1"
    assert together[0].first


def test_without_templates_nothing_changes() -> None:
    free = [
        row(0, None, 0, 0.1, 1),
        row(1, None, 1, 0.3, 2),
        row(2, None, 0, 0.2, None),
        row(3, None, None, None, None),
    ]
    assert _among_themselves(free) == free
    samples = _campaign_samples(Target("NaCl", CRYSTAL, free), MATCHES[:4])
    assert {s.method for s in samples} == {"dao"}
    assert methods_of(samples) == ["dao", "random", "substitution"]
    assert methods_of([]) == ["dao", "random", "substitution"]


def test_a_candidate_without_template_counts_as_a_miss_of_all_candidates() -> None:
    missing = row(6, None, None, None, None) | {"status": "no_template", "crystal": None, "valid": False}
    samples = _campaign_samples(Target("NaCl", CRYSTAL, [*ROWS[:1], missing]), MATCHES[:1])
    assert {s.method for s in samples} == {"combined"}
    assert [(s.matched, s.reason) for s in samples] == [(True, None), (False, "no_template")]
    nothing = _campaign_samples(Target("NaCl", CRYSTAL, [missing]), [])
    assert [(s.method, s.matched) for s in nothing] == [("combined", False)]


def test_rates_say_how_many_candidates_were_generated() -> None:
    samples = _campaign_samples(Target("NaCl", CRYSTAL, ROWS), MATCHES)
    assert methods_of(samples) == ["dao", "combined", "random", "substitution"]
    results = [target_result(m, [s for s in samples if s.method == m]) for m in ("dao", "combined")]
    rates = {(r["method"], r["k"]): r["match_rate"] for r in summarise(results, 6, 0, 0)}
    assert rates == {("dao", 1): 1.0, ("dao", 4): 1.0, ("combined", 1): 1.0, ("combined", 6): 1.0}
    only = [s for s in samples if s.method == "combined"]
    assert methods_of(only) == ["combined", "random", "substitution"]
