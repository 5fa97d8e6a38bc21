"""Fitting a ranker: its network on training compositions, its calibration on validation compositions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dao_pipeline.ranking.features import FEATURES
from dao_pipeline.ranking.model import Groups, Ranker, likelihood

PATIENCE = 40
"""Steps without a better validation after which training ends."""

STOPPED_BY = 0.2
"""Share of the training compositions that are not learned from but say when to stop. Not the validation split: its
crystals may be of other sources, and what is calibrated on should not have been chosen by."""

_RIDGE = {"log_temperature": 0.5, "none_shift": 1.0, "energy_weight": 20.0, "none_slope": 0.5}
"""By how much each is expected to differ from where it begins; the weight of the energy is in atoms/eV."""


@dataclass(frozen=True)
class Labelled:
    """Candidates and (g, s) which of them match the known crystal."""

    groups: Groups
    hit: Tensor

    @classmethod
    def of(cls, groups: Groups, matched: np.ndarray) -> Labelled:
        """``matched``: (rows,) of the table that the groups describe."""
        return cls(groups, groups.spread(matched.astype(bool)))

    def take(self, rows: Tensor) -> Labelled:
        """Some of the groups."""
        return Labelled(self.groups.take(rows), self.hit[rows])

    def loss(self, log_probability: Tensor) -> Tensor:
        """Mean negative log likelihood."""
        return -likelihood(log_probability, self.hit).mean()


def fit_ranker(
    train: Labelled,
    val: Labelled,
    seed: int,
    hidden: int = 64,
    steps: int = 600,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    without: Sequence[str] = (),
) -> tuple[Ranker, list[dict[str, float]]]:
    """A ranker, calibrated on ``val``, and the losses on the way.

    It has the weights that did best on a part of the training compositions that it does not learn from.

    without: features that it must not use, or ``energy``.
    """
    torch.manual_seed(seed)
    ranker = Ranker(hidden)
    order = torch.randperm(len(train.hit))
    apart = int(STOPPED_BY * len(order))
    stop, train = train.take(order[:apart]), train.take(order[apart:])
    values = train.groups.values[train.groups.here]
    ranker.mean.copy_(values.mean(0))
    ranker.scale.copy_(values.std(0).clamp(min=1e-3))
    ranker.used.copy_(torch.tensor([float(name not in without) for name in FEATURES]))
    optimiser = torch.optim.AdamW(
        [*(ranker.head.parameters() if ranker.head else ()), ranker.none_slope, ranker.none_bias],
        learning_rate,
        weight_decay=weight_decay,
    )
    best, best_step, kept = np.inf, 0, copy.deepcopy(ranker.state_dict())
    records = []
    for step in range(1, steps + 1):
        loss = train.loss(torch.log_softmax(ranker.evidence(train.groups), dim=1))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 5 == 0:
            with torch.no_grad():
                checked = float(stop.loss(torch.log_softmax(ranker.evidence(stop.groups), dim=1)))
            records.append({"step": step, "train": float(loss.detach()), "stop": checked})
            if checked < best:
                best, best_step, kept = checked, step, copy.deepcopy(ranker.state_dict())
            elif step - best_step >= PATIENCE:
                break
    ranker.load_state_dict(kept)
    calibrate(ranker, val, energy="energy" not in without)
    return ranker.eval(), records


def calibrate(ranker: Ranker, val: Labelled, energy: bool = True) -> float:
    """Fit temperature, shift of none and, if wanted, the weight of the energy; the rest stays. Returns the loss.

    Where there is no network, nothing was trained before, and the slope of none is fitted too.

    ``val`` must be compositions that neither the ranker nor DAO-P was trained on.
    """
    names = ["log_temperature", "none_shift", *(["energy_weight"] if energy else [])]
    names += [] if ranker.head else ["none_slope"]
    free = [getattr(ranker, name) for name in names]
    begin = [value.detach().clone() for value in free]
    optimiser = torch.optim.LBFGS(free, max_iter=100, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimiser.zero_grad()
        # a prior, in units of one composition's likelihood, keeps a handful of compositions from saying too much
        away = zip(names, free, begin, strict=True)
        prior = sum(((value - first) / _RIDGE[name]) ** 2 / 2 for name, value, first in away)
        loss = val.loss(ranker(val.groups)) + prior / len(val.hit)
        loss.backward()
        return loss

    optimiser.step(objective)
    with torch.no_grad():
        ranker.energy_weight.clamp_(min=0.0)
        return float(val.loss(ranker(val.groups)))
