"""The ranker: probabilities of candidates of one composition, and of none of them being the ground state.

A candidate's logit is the logarithm of its share of votes plus a small network of its features. Softmax over
siblings and the option *none of these* makes the probabilities of a composition sum to at most 1. DAO-P's energy
enters with a weight that, like the temperature, is fitted on crystals that DAO-P was not trained on: on its own
training crystals its energies are better than they will ever be again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dao_pipeline.ranking.features import FEATURES, Features

_NEVER = -1e9
_ENERGY_CAP = 0.5
"""eV/atom; a sibling higher above the lowest counts as being here."""


@dataclass(frozen=True)
class Groups:
    """Candidates as (groups, siblings) blocks, padded. values: (g, s, f); none: (g,); energy, here: (g, s).

    row: (g, s) int64, the candidate's row in the table; -1: padding.
    """

    values: Tensor
    none: Tensor
    energy: Tensor
    here: Tensor
    row: Tensor

    @classmethod
    def of(cls, features: Features) -> Groups:
        """Features, whose rows are sorted by group, as blocks."""
        count = torch.bincount(features.group, minlength=features.groups)
        width = int(count.max()) if len(count) else 0
        place = torch.arange(len(features.group)) - (torch.cumsum(count, 0) - count)[features.group]

        def block(source: Tensor, fill: float) -> Tensor:
            out = source.new_full((features.groups, width, *source.shape[1:]), fill)
            out[features.group, place] = source
            return out

        energy = torch.nan_to_num(features.energy, nan=_ENERGY_CAP).clamp(max=_ENERGY_CAP)
        known = block(torch.isfinite(features.energy).float(), 0.0).sum(1) > 0
        return cls(
            values=block(features.values, 0.0),
            none=features.none,
            energy=block(energy, 0.0) * known[:, None],
            here=block(torch.ones(len(features.group), dtype=torch.bool), False),
            row=block(torch.from_numpy(features.rows), -1),
        )

    def take(self, rows: Tensor) -> Groups:
        """Some of the groups."""
        return Groups(*(getattr(self, name)[rows] for name in Groups.__dataclass_fields__))

    def spread(self, values: np.ndarray) -> Tensor:
        """(g, s): values of the table's rows; 0 for padding."""
        taken = torch.from_numpy(values)[self.row.clamp(min=0)]
        return torch.where(self.here, taken, torch.zeros_like(taken))


class Ranker(nn.Module):
    """Logits of candidates and of none of them. ``mean``, ``scale``: (features,), of the training candidates."""

    mean: Tensor
    scale: Tensor
    used: Tensor

    def __init__(self, hidden: int) -> None:
        super().__init__()
        width = len(FEATURES)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("used", torch.ones(width))
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)  # so that it begins with the votes alone
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)
        self.none_slope = nn.Parameter(torch.tensor(1.0))
        self.none_bias = nn.Parameter(torch.tensor(0.0))
        self.log_temperature = nn.Parameter(torch.tensor(0.0))
        self.none_shift = nn.Parameter(torch.tensor(0.0))
        self.energy_weight = nn.Parameter(torch.tensor(0.0))

    def evidence(self, groups: Groups) -> Tensor:
        """(g, 1 + s) logits before calibration; *none of these* stands first."""
        x = (groups.values - self.mean) / self.scale * self.used
        share = groups.values[:, :, FEATURES.index("log_share")]
        logit = (share + self.head(x)[:, :, 0]).masked_fill(~groups.here, _NEVER)
        none = self.none_slope * groups.none + self.none_bias
        return torch.cat([none[:, None], logit], dim=1)

    def calibrated(self, evidence: Tensor, groups: Groups) -> Tensor:
        """(g, 1 + s) log probabilities of what ``evidence`` says."""
        logit = evidence * (-self.log_temperature).exp()
        none, own = logit[:, :1] + self.none_shift, logit[:, 1:] - self.energy_weight * groups.energy
        own = own.masked_fill(~groups.here, _NEVER)
        return torch.log_softmax(torch.cat([none, own], dim=1), dim=1)

    def forward(self, groups: Groups) -> Tensor:
        """(g, 1 + s) log probabilities; *none of these* stands first."""
        return self.calibrated(self.evidence(groups), groups)

    @torch.no_grad()
    def probabilities(self, features: Features) -> np.ndarray:
        """(rows,) float64 of the table that ``features`` describe."""
        groups = Groups.of(features)
        result = np.zeros(len(features.rows))
        result[groups.row[groups.here].numpy()] = self(groups)[:, 1:].exp()[groups.here].double().numpy()
        return result


def likelihood(log_probability: Tensor, hit: Tensor) -> Tensor:
    """(g,) log probability of what is the case: one of the matching candidates (g, s), or none of them."""
    own = log_probability[:, 1:].masked_fill(~hit, _NEVER)
    return torch.where(hit.any(1), torch.logsumexp(own, dim=1), log_probability[:, 0])
