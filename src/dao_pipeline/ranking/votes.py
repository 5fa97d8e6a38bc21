"""Known crystals vote on the structure type of a composition, and how much each vote weighs is learned.

A known crystal j suggests a kind g(j) (``known``) with weight exp(s_j). The probability that a composition x has
kind g is the share of the votes for it,

    p(g | x) = sum_{j: g(j) = g} exp(s_j) / (exp(s_0) + sum_j exp(s_j)),

where s_0, learned too, stands for everything that no known crystal suggests. s_j falls with the distance between
the elements that replace each other, -a sum_i w_i |e(x_i) - e(t_i)|, e being an embedding of the elements
(neighbourhood components analysis, Goldberger et al., NIPS 2004), to which a small network of the sum over slots
of features of each replacement is added: which replacements go together. Trained by maximum likelihood on known
crystals, each voted on by those of other compositions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dao_pipeline.crystals.elements import COVALENT_RADIUS, ELECTRONEGATIVITY, MENDELEEV
from dao_pipeline.ranking.known import NO_KIND, KnownTypes, Suggestions

NUM_ELEMENTS = 119
_WIDTH = 16
_PAIR_WIDTH = 24
_ENERGY_CAP = 0.5
"""eV/atom above hull; a template that is less stable counts as being here."""

_SMALL = 1e-3
_NEVER = -1e9


@dataclass(frozen=True)
class VoteData:
    """Suggestions for c compositions as tensors, see ``Suggestions``; facts (c, k, 3) of the known crystals."""

    new: Tensor
    old: Tensor
    weight: Tensor
    facts: Tensor
    kind: Tensor

    @classmethod
    def of(cls, found: Suggestions, known: KnownTypes) -> VoteData:
        """Elements of suggestions, whether they have another size, and how stable the known crystals are."""
        energy = known.e_above_hull[found.row]
        facts = np.stack(
            [found.resized, np.clip(np.nan_to_num(energy), 0.0, _ENERGY_CAP), np.isnan(energy)], axis=2
        )
        return cls(
            new=torch.from_numpy(found.new),
            old=torch.from_numpy(found.old),
            weight=torch.from_numpy(found.weight).float(),
            facts=torch.from_numpy(facts.astype(np.float32)),
            kind=torch.from_numpy(found.kind),
        )

    def take(self, rows: Tensor) -> VoteData:
        """Some of the compositions."""
        return VoteData(*(getattr(self, name)[rows] for name in VoteData.__dataclass_fields__))


class Votes(nn.Module):
    """How much the vote of each suggestion weighs."""

    base: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("base", _descriptors())
        self.embed = nn.Linear(self.base.shape[1], _WIDTH, bias=False)
        self.free = nn.Embedding(NUM_ELEMENTS, _WIDTH)
        nn.init.normal_(self.free.weight, std=0.01)
        self.pair = nn.Sequential(nn.Linear(2 * _WIDTH + 2, 32), nn.SiLU(), nn.Linear(32, _PAIR_WIDTH))
        self.head = nn.Sequential(nn.Linear(_PAIR_WIDTH + 2, 32), nn.SiLU(), nn.Linear(32, 1))
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.fact = nn.Parameter(torch.tensor([-2.0, -3.0, -0.5]))
        self.none = nn.Parameter(torch.tensor(-3.0))

    def forward(self, data: VoteData) -> Tensor:
        """s_j, (c, k); very low for padding."""
        e = self.embed(self.base) + self.free.weight
        away = ((e[:, None] - e).pow(2).sum(2) + _SMALL).sqrt() - _SMALL**0.5
        distance = (away[data.new, data.old] * data.weight[:, None]).sum(2)
        n = NUM_ELEMENTS
        pairs = torch.cat(
            [e[:, None].expand(n, n, -1), e - e[:, None], away[:, :, None], torch.eye(n)[:, :, None]], dim=2
        )
        table = self.pair(pairs).view(n * n, -1)
        each = functional.embedding(data.new * n + data.old, table)
        together = (each * data.weight.sqrt()[:, None, :, None]).sum(2)
        score = self.head(torch.cat([together, data.facts[:, :, :2]], dim=2))[:, :, 0]
        score = score - self.log_scale.exp() * distance + data.facts @ self.fact
        return score.masked_fill(data.kind == NO_KIND, _NEVER)

    def loss(self, data: VoteData, kind: Tensor) -> Tensor:
        """Negative log likelihood of the compositions' own kinds (c,), mean; not suggested counts as none."""
        score = self(data)
        none = self.none.expand(len(kind), 1)
        own = (data.kind == kind[:, None]) & (kind != NO_KIND)[:, None]
        total = torch.logsumexp(torch.cat([score, none], dim=1), dim=1)
        voted = torch.logsumexp(score.masked_fill(~own, _NEVER), dim=1)
        return (total - torch.where(own.any(1), voted, none[:, 0])).mean()


def _descriptors() -> Tensor:
    """(119, 16): where an element stands among the Mendeleev numbers, its electronegativity and radius."""
    number = torch.tensor(MENDELEEV[:NUM_ELEMENTS], dtype=torch.float32)[:, None]
    place = torch.exp(-(((number - torch.linspace(0, 103, 14)) / 8) ** 2) / 2)
    negativity = torch.tensor(ELECTRONEGATIVITY[:NUM_ELEMENTS]).clamp(max=4.0)
    facts = torch.stack([negativity, torch.tensor(COVALENT_RADIUS[:NUM_ELEMENTS])], dim=1).float()
    return torch.cat([place, (facts - facts[1:].mean(0)) / facts[1:].std(0)], dim=1)


def fit_votes(
    data: VoteData, kind: Tensor, seed: int, epochs: int, batch: int = 256, learning_rate: float = 6e-3
) -> tuple[Votes, list[float]]:
    """Votes trained on compositions whose kinds are known, and the mean loss of each epoch."""
    torch.manual_seed(seed)
    votes = Votes()
    optimiser = torch.optim.Adam(votes.parameters(), lr=learning_rate)
    steps = -(-len(kind) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=max(2, epochs * steps))
    losses = []
    for _ in range(epochs):
        order = torch.randperm(len(kind))
        total = 0.0
        for rows in order.split(batch):
            loss = votes.loss(data.take(rows), kind[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += float(loss.detach()) * len(rows)
        losses.append(total / len(kind))
    return votes.eval(), losses
