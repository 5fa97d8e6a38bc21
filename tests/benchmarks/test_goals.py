"""A goal that is not reached is not reached."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from goals import GOALS, Goal, goal_row, reliability

ROW: dict[str, Any] = {"match_rate": 0.7496, "low": 0.72, "high": 0.78, "rmse": 0.0301}


@pytest.mark.parametrize(
    ("goal", "reached"),
    [
        (Goal("match_rate", 1, 0.75), False),
        (Goal("match_rate", 1, 0.74), True),
        (Goal("rmse", 1, 0.030), False),
        (Goal("rmse", 1, 0.031), True),
    ],
)
def test_rounding_reaches_no_goal(goal: Goal, reached: bool) -> None:
    row = goal_row(goal, ROW)
    assert row.endswith("| yes |") == reached
    assert row.endswith("| **no** |") != reached


def test_goals_are_of_campaigns_that_exist() -> None:
    campaigns = Path(__file__).parents[2] / "config" / "campaigns"
    assert all((campaigns / f"{name}.yaml").is_file() for name in GOALS)


def test_reliability_counts_first_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    first = [{"method": "combined", "guess": 1, "probability": p, "matched": m} for p, m in ((0.95, 1), (0.9, 0))]
    others = [{**first[0], "guess": 2}, {**first[0], "method": "dao"}]
    reliability([*first, *others])
    assert "| 0.9 | 2 | 0.925 | 0.500 |" in capsys.readouterr().out
