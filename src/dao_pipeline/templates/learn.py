"""A distance between compositions, learned from which known crystals share a structure type.

Each element gets two vectors, u and v. A template with elements b on its places is

    d(a, b) = sum_i w_i |u[a_i] - u[b_i]|^2 + |sum_i x_i (v[a_i] - v[b_i])|^2

from a composition with elements a (``metric.Metric``). The first part is small where elements are alike; the
second where what they change cancels over the whole, as charges do: no oxidation states are needed. Templates vote
with exp(-d), and the vectors are those for which the votes of all other known crystals give each crystal's own
type the highest probability (neighbourhood components analysis, Goldberger et al., NIPS 2004): minus its logarithm
is the loss. Templates of a crystal's own composition have no vote.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dao_pipeline.config import LearnedDistance
from dao_pipeline.crystals.elements import COVALENT_RADIUS, ELECTRONEGATIVITY, MENDELEEV
from dao_pipeline.model.descriptors import NUM_DESCRIPTORS, element_descriptors
from dao_pipeline.templates.buckets import Bucket, above_hull
from dao_pipeline.templates.metric import NUM, Metric
from dao_pipeline.templates.patterns import Pattern

_QUERIES = 32
"""Crystals of one pattern in one step."""
_ENTRIES = 3_000
"""Templates and assignments that may vote in one step; of larger buckets, a random part."""


class Vectors(nn.Module):
    """u (119, width) and v (119, whole) of each element: a linear map of facts about it, and a part of its own."""

    facts: Tensor

    def __init__(self, width: int, whole: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("facts", _facts())
        columns = self.facts.shape[1]
        spread = torch.randn(columns, width + whole, generator=generator) / columns**0.5
        self.map = nn.Parameter(spread)
        self.own = nn.Parameter(torch.zeros(NUM, width + whole))
        self.stability = nn.Parameter(torch.tensor(0.0))
        self.power = nn.Parameter(torch.tensor(1.0))
        self.width = width

    def forward(self) -> tuple[Tensor, Tensor]:
        """u and v."""
        both = self.facts @ self.map + self.own
        return both[:, : self.width], both[:, self.width :]

    def metric(self) -> Metric:
        """As the index uses it."""
        with torch.no_grad():
            u, v = (part.double() for part in self())
            cost = torch.cdist(u, u, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        return Metric("learned", cost.numpy(), 1.0, float(self.power.detach()), v.numpy())


def _facts() -> Tensor:
    """(119, 95) float32: binned descriptors, and Mendeleev number, radius and electronegativity, standardised."""
    binned = torch.zeros(NUM, NUM_DESCRIPTORS)
    known = element_descriptors()
    binned[: min(NUM, len(known))] = known[:NUM]
    numbers = [np.asarray(MENDELEEV), np.log(np.maximum(COVALENT_RADIUS, 0.2)), np.minimum(ELECTRONEGATIVITY, 4.0)]
    scale = np.stack([(x - x[1:104].mean()) / x[1:104].std() for x in numbers], 1)
    return torch.cat([binned, torch.as_tensor(2 * scale, dtype=torch.float32)], 1)


def learn_metric(
    buckets: Mapping[Pattern, Bucket], settings: LearnedDistance, fallback: Metric, seed: int = 0
) -> tuple[Metric, float]:
    """The learned distance, and what a template's vote loses, in its logarithm, per eV/atom above the hull.

    ``fallback`` where fewer than ``settings.least`` crystals have another of their type to learn from.
    """
    generator = torch.Generator().manual_seed(seed)
    random = np.random.default_rng(seed)
    model = Vectors(settings.width, settings.whole, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    lessons = [lesson for lesson in map(Lesson, buckets.values()) if len(lesson.queries)]
    if sum(len(lesson.queries) for lesson in lessons) < settings.least:
        return fallback, 0.0
    chance = np.array([len(lesson.queries) for lesson in lessons], dtype=np.float64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.steps)
    for _ in range(settings.steps):
        optimizer.zero_grad()
        u, v = model()
        cost = torch.cdist(u, u, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        chosen = random.choice(len(lessons), size=min(4, len(lessons)), p=chance / chance.sum())
        losses = [lessons[i].loss(cost, v, model.power, model.stability, random) for i in chosen]
        loss = torch.cat(losses).mean() + settings.decay * (model.own**2).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.metric(), float(model.stability.detach())


class Lesson:
    """The crystals of one pattern that have others of their type and another composition, and all that vote."""

    def __init__(self, bucket: Bucket) -> None:
        self.bucket = bucket
        own = bucket.sorted_slots()
        self.composition = np.unique(own, axis=0, return_inverse=True)[1].ravel()
        pair = np.unique(np.stack([bucket.label, self.composition], 1), axis=0)
        several = np.bincount(pair[:, 0] - bucket.label[0])
        self.queries = np.flatnonzero(several[bucket.label - bucket.label[0]] > 1)
        self.share = torch.tensor(bucket.pattern, dtype=torch.float32) / sum(bucket.pattern)
        self.stability = torch.as_tensor(above_hull(bucket.stability)).float()

    def loss(
        self, cost: Tensor, v: Tensor, power: Tensor, stability: Tensor, random: np.random.Generator
    ) -> Tensor:
        """(q,) minus ln of the share of votes that some crystals' own types get from the others."""
        bucket = self.bucket
        template, way, _, _ = bucket.entries
        label = bucket.label[template]
        count = len(self.queries)
        queries = self.queries[random.permutation(count)[:_QUERIES]]
        targets = bucket.elements[queries]  # in places: the right assignment is the first
        right = (label == bucket.label[queries][:, None]) & (bucket.classes[template, way] == 0)
        lookup = bucket.lookup
        if len(template) > _ENTRIES:
            some = np.sort(random.permutation(len(template))[:_ENTRIES])
            template, lookup, right = template[some], lookup[:, some], right[:, some]
        absent = self.composition[template] == self.composition[queries][:, None]
        weight = self.share**power
        table = cost[targets] * (weight / weight.sum())[:, None]
        table = table.flatten(1)
        distance = sum(table[:, torch.from_numpy(place)] for place in lookup)
        if v.shape[1]:
            own = torch.einsum("s,qsd->qd", self.share, v[targets])
            other = torch.einsum("s,msd->md", self.share, v[bucket.elements])
            distance = distance + (torch.cdist(own, other) ** 2)[:, torch.from_numpy(template)]
        vote = -distance - stability * self.stability[template]
        vote = vote.masked_fill(torch.from_numpy(absent), -torch.inf)
        rightly = vote.masked_fill(~torch.from_numpy(right), -torch.inf)
        there = torch.from_numpy((right & ~absent).any(1))
        return torch.logsumexp(vote[there], 1) - torch.logsumexp(rightly[there], 1)
