"""The largest of many scores, equal ones included."""

from __future__ import annotations

import numpy as np
import pytest

from dao_pipeline.templates.buckets import _largest


@pytest.mark.parametrize("k", [0, 1, 2, 5, 7, 30])
def test_equal_scores_are_taken_in_their_order(k: int) -> None:
    rng = np.random.default_rng(0)
    score = rng.integers(0, 4, (20, 30)).astype(np.float32)
    score[rng.random(score.shape) < 0.2] = -np.inf
    score[0] = -np.inf
    row, column = _largest(score, k)
    expected = [
        (i, j)
        for i, values in enumerate(score)
        for j in np.argsort(-values, kind="stable")[:k]
        if values[j] > -np.inf
    ]
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == expected
