"""Does the model order the polymorphs of a composition as DFT does? No reference phases are needed for that.

Energies of one composition differ by what differs between total energies, between formation energies and between
distances to the hull: whatever the model predicts, differences mean the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from scipy.stats import kendalltau, spearmanr


class Order(TypedDict):
    """How the energies of one composition's candidates compare.

    candidates: with both energies. spearman, kendall: rank correlations, None where one side has no differences.
    pairs, pairs_right: pairs with different DFT energies, and those that the model puts in the same order; a pair
    that it does not tell apart counts half. top1: whether the model's lowest is DFT's lowest, to within ``tie``.
    regret: DFT energy of the model's lowest above DFT's lowest, eV/atom. mae: mean absolute error of energies
    relative to their mean, eV/atom.
    """

    candidates: int
    spearman: float | None
    kendall: float | None
    pairs: int
    pairs_right: float
    top1: bool
    regret: float
    mae: float


def order(predicted: Sequence[float], dft: Sequence[float], tie: float = 1e-3) -> Order | None:
    """Compare energies (eV/atom) of candidates of one composition; None for less than two.

    tie: DFT energies within it are taken for the same crystal, and make no pair.
    """
    model, truth = np.asarray(predicted, dtype=np.float64), np.asarray(dft, dtype=np.float64)
    if len(model) < 2:
        return None
    i, j = np.triu_indices(len(model), 1)
    real = np.abs(truth[i] - truth[j]) > tie
    signs = np.sign(model[i] - model[j])[real] * np.sign(truth[i] - truth[j])[real]
    regret = float(truth[model.argmin()] - truth.min())
    return Order(
        candidates=len(model),
        spearman=_finite(spearmanr, model, truth),
        kendall=_finite(kendalltau, model, truth),
        pairs=int(real.sum()),
        pairs_right=float(((signs + 1) / 2).sum()),
        top1=regret <= tie,
        regret=regret,
        mae=float(np.abs((model - model.mean()) - (truth - truth.mean())).mean()),
    )


def _finite(correlation: object, a: np.ndarray, b: np.ndarray) -> float | None:
    """A rank correlation; None where one side is constant, for which it is not defined."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(correlation(a, b).statistic)  # type: ignore[operator]
