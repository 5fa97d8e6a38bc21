"""Figures of a comparison with their uncertainty: every one an average over rows that are themselves written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np


class Figure(TypedDict):
    """One number: name, unit, value, 95 % bootstrap interval over ``n`` things, which are named."""

    source: str
    metric: str
    unit: str
    value: float
    low: float | None
    high: float | None
    n: int
    over: str


def figure(
    source: str,
    metric: str,
    unit: str,
    rows: Sequence[Sequence[float]] | np.ndarray,
    resamples: int,
    seed: int,
    over: str,
    statistic: Callable[[np.ndarray], float] = lambda values: float(values.mean()),
) -> Figure | None:
    """``statistic`` of ``rows`` (n,) or (n, columns), with its percentile bootstrap interval; None without rows.

    From a single row no interval follows.
    """
    data = np.asarray(rows, dtype=np.float64)
    if not len(data):
        return None
    low = high = None
    if resamples and len(data) > 1:
        rng = np.random.default_rng(seed)
        drawn = [statistic(data[rng.integers(len(data), size=len(data))]) for _ in range(resamples)]
        low, high = (float(q) for q in np.nanquantile(drawn, [0.025, 0.975]))
    return Figure(
        source=source, metric=metric, unit=unit, value=statistic(data), low=low, high=high, n=len(data), over=over
    )


def ratio_of_sums(values: np.ndarray) -> float:
    """Sum of the first column over that of the second, (n, 2): a share over groups of different sizes."""
    total = values[:, 1].sum()
    return float(values[:, 0].sum() / total) if total else float("nan")


def mean_absolute_error(values: np.ndarray) -> float:
    """Of the first column (n, 2) against the second."""
    return float(np.abs(values[:, 0] - values[:, 1]).mean())


def error_without_offset(values: np.ndarray) -> float:
    """The same once the mean difference of the two is taken out: what a constant shift cannot mend."""
    difference = values[:, 0] - values[:, 1]
    return float(np.abs(difference - difference.mean()).mean())


def error_of_the_mean(values: np.ndarray) -> float:
    """Mean absolute deviation of the second column from its own mean: what knowing nothing but it would give."""
    return float(np.abs(values[:, 1] - values[:, 1].mean()).mean())
