"""The templates of one stoichiometry pattern, and how strongly each of their types is voted for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from dao_pipeline.templates.metric import NUM, Metric
from dao_pipeline.templates.patterns import Pattern, assignments

_ENTRIES_AT_ONCE = 1_000_000
_KNOWN = 100.0
"""Vote for a known crystal of the target's own composition: more than any number of others of at most 1 or
so, but not so much that its stability is lost in rounding."""
_UNKNOWN_STABILITY = 1.0
"""eV/atom above hull of a crystal for which it is not known, when known crystals are put in order."""


@dataclass(frozen=True)
class Choices:
    """c chosen *options* (a type, and one of its classes of assignments) for the targets of one pattern.

    target: (c,) which target. score: (c,) ln of all votes for the option; total: (targets,) of all options.
    template: (c,) row in the bucket, the one with the largest vote; way: (c,) its row of ``assignments``;
    distance: (c,) its. label: (c,) type. votes: (c,) templates of the type. known: (c,) bool.
    log_volume: (c,) mean of ``Bucket.log_volume`` over the type, weighted by vote.
    """

    target: np.ndarray
    score: np.ndarray
    total: np.ndarray
    template: np.ndarray
    way: np.ndarray
    distance: np.ndarray
    label: np.ndarray
    votes: np.ndarray
    known: np.ndarray
    log_volume: np.ndarray


@dataclass(frozen=True)
class _Voters:
    """What one call of ``Bucket.choose`` asks by.

    means: (m, d), see ``Metric.means``. weight: (E,) float32, ln of each entry's vote at distance 0; -inf: banned.
    there: (E,) bool, entries that count as a template of their option; counts: (options,) how many do.
    """

    metric: Metric
    means: np.ndarray
    weight: np.ndarray
    there: np.ndarray
    counts: np.ndarray
    own_composition: bool | None


@dataclass(frozen=True)
class Bucket:
    """m templates of one pattern with s slots, sorted by type.

    rows: (m,) int64 in the index's table. elements: (m, s), the element on each place of its type.
    label: (m,) types, numbered through the index. classes: (m, P), see ``types.Types.classes``.
    weight: (m,) ln of the vote of a template at distance 0. stability: (m,) eV/atom above hull, NaN unknown.
    log_volume: (m,) ln of its volume over what its composition lets expect.
    """

    pattern: Pattern
    rows: np.ndarray
    elements: np.ndarray
    label: np.ndarray
    classes: np.ndarray
    weight: np.ndarray
    stability: np.ndarray
    log_volume: np.ndarray

    @cached_property
    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Every template under every assignment, sorted by option: template, way, start of each option, label."""
        template, way = (a.ravel() for a in np.indices(self.classes.shape))
        order = np.lexsort((way, template, self.classes.ravel(), self.label[template]))
        template, way = template[order], way[order]
        option = np.stack([self.label[template], self.classes.ravel()[order]], 1)
        starts = np.flatnonzero(np.r_[True, (option[1:] != option[:-1]).any(1)])
        return template, way, starts, option[starts, 0]

    @cached_property
    def lookup(self) -> np.ndarray:
        """(s, E): where the cost of each entry's slot i stands in a target's flattened (s, elements) table."""
        template, way, _, _ = self.entries
        return np.ascontiguousarray(assignments(self.pattern)[way].T * NUM + self.elements[template].T)

    @cached_property
    def _option(self) -> np.ndarray:
        """(E,) which option each entry belongs to."""
        template, _, starts, _ = self.entries
        return np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(template))))

    @cached_property
    def _entries_of(self) -> np.ndarray:
        """(m, P) the entries of each template, by way."""
        template, way, _, _ = self.entries
        place = np.empty(self.classes.shape, dtype=np.int64)
        place[template, way] = np.arange(len(template))
        return place

    @cached_property
    def _log_volume_of_entry(self) -> np.ndarray:
        return self.log_volume[self.entries[0]].astype(np.float32)

    @cached_property
    def _first_of_template(self) -> np.ndarray:
        """(E,) bool, whether an entry is the first of its template in its option."""
        template = self.entries[0]
        return np.r_[True, (np.diff(template) != 0) | (np.diff(self._option) != 0)]

    @cached_property
    def _same_composition(self) -> dict[bytes, np.ndarray]:
        """Templates of each composition, by their slots."""
        own = self.sorted_slots()
        _, first, member = np.unique(own, axis=0, return_index=True, return_inverse=True)
        members = np.split(np.argsort(member.ravel(), kind="stable"), np.cumsum(np.bincount(member.ravel()))[:-1])
        return {own[i].tobytes(): rows for i, rows in zip(first, members, strict=True)}

    def sorted_slots(self) -> np.ndarray:
        """(m, s) the templates' slots in the order of ``patterns.slots_of``."""
        counts = np.broadcast_to(self.pattern, self.elements.shape)
        return np.take_along_axis(self.elements, np.lexsort((self.elements, counts), axis=1), 1)

    def of_composition(self, slots: np.ndarray) -> np.ndarray:
        """Templates with exactly these slots (s,), in the order of ``patterns.slots_of``."""
        return self._same_composition.get(np.ascontiguousarray(slots, dtype=np.int64).tobytes(), np.zeros(0, int))

    def distances(self, targets: np.ndarray, metric: Metric) -> np.ndarray:
        """(g, E) float32 distances of targets with slots (g, s) to every entry."""
        return self._distances(targets, metric, metric.means(self.elements, self.pattern))

    def _distances(self, targets: np.ndarray, metric: Metric, means: np.ndarray) -> np.ndarray:
        """``distances``; means: (m, d) of the templates (``Metric.means``)."""
        table = (metric.cost[targets] * metric.weights(self.pattern)[:, None]).astype(np.float32)
        # the weight of a slot belongs to its place, and slots that change places have equal counts
        table = table.reshape(len(targets), -1)
        distance = table.take(self.lookup[0], axis=1)
        part = np.empty_like(distance)
        for place in self.lookup[1:]:
            distance += table.take(place, axis=1, out=part, mode="clip")
        if metric.whole.shape[1]:
            own = metric.means(targets, self.pattern)
            squared = own @ means.T
            squared *= -2
            squared += (means**2).sum(1)
            squared += (own**2).sum(1)[:, None]
            squared = np.maximum(squared, 0.0, out=squared).astype(np.float32)
            distance += squared.take(self.entries[0], axis=1, out=part, mode="clip")
        return distance

    def choose(
        self, targets: np.ndarray, k: int, metric: Metric, banned: np.ndarray, own_composition: bool | None
    ) -> Choices:
        """The ``k`` most voted options for targets with slots (g, s); options without any vote are left out.

        banned: (m,) bool, templates that are not there. own_composition: whether templates with the composition
        of a target are there for it; they come first then, as known crystals. None: they are like all others.
        """
        template, _, starts, _ = self.entries
        weight = np.where(banned, -np.inf, self.weight).astype(np.float32)[template]
        there = self._first_of_template & (weight > -np.inf)
        voters = _Voters(
            metric=metric,
            means=metric.means(self.elements, self.pattern),
            weight=weight,
            there=there,
            counts=np.add.reduceat(there.astype(np.int64), starts),
            own_composition=own_composition,
        )
        step = max(1, _ENTRIES_AT_ONCE // len(template))
        parts = [self._choose(targets[i : i + step], i, k, voters) for i in range(0, len(targets), step)]
        return Choices(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Choices)))

    def _choose(self, targets: np.ndarray, first: int, k: int, voters: _Voters) -> Choices:
        """``choose`` for some of the targets; ``first``: number of the first of them."""
        template, way, starts, label = self.entries
        distance = self._distances(targets, voters.metric, voters.means)
        vote = distance * np.float32(-1 / voters.metric.width)
        vote += voters.weight
        counted = np.repeat(voters.counts[None], len(targets), axis=0)
        for i, slots in enumerate(targets):
            same = self.of_composition(slots) if voters.own_composition is not None else ()
            if not len(same):
                continue
            own = self._entries_of[same].ravel()
            if voters.own_composition:
                unchanged = (slots[assignments(self.pattern)[way[own]]] == self.elements[template[own]]).all(1)
                own = own[unchanged & (voters.weight[own] > -np.inf)]
                vote[i, own] = _KNOWN - np.nan_to_num(self.stability[template[own]], nan=_UNKNOWN_STABILITY)
                distance[i, own] = 0.0
            else:
                vote[i, own] = -np.inf
                np.subtract.at(counted[i], self._option[own], voters.there[own])
        top = np.maximum.reduceat(vote, starts, axis=1)
        safe = np.where(np.isfinite(top), top, np.float32(0.0))
        vote -= safe.take(self._option, axis=1)
        share = np.exp(vote, out=vote)  # of each entry, in units of the largest vote for its option
        summed = np.add.reduceat(share, starts, axis=1)
        with np.errstate(divide="ignore"):
            score = np.log(summed) + safe
        known = score > _KNOWN / 2
        target, option = _largest(score, k)
        best = self._best(share, target, option)
        share *= self._log_volume_of_entry
        log_volume = np.add.reduceat(share, starts, axis=1)[target, option] / summed[target, option]
        return Choices(
            target=target + first,
            score=score[target, option],
            total=_log_sum(np.where(known, -np.inf, score))[target],
            template=template[best],
            way=way[best],
            distance=distance[target, best].astype(np.float64),
            label=label[option],
            votes=counted[target, option],
            known=known[target, option],
            log_volume=log_volume.astype(np.float64),
        )

    def _best(self, share: np.ndarray, target: np.ndarray, option: np.ndarray) -> np.ndarray:
        """(c,) the entry with the largest vote of each chosen option; its ``share`` (g, E) of that vote is 1."""
        row, entry = np.divmod(np.flatnonzero(share == 1), share.shape[1])
        key = row * len(self.entries[2]) + self._option[entry]  # rises
        return np.asarray(entry[np.searchsorted(key, target * len(self.entries[2]) + option)])


def _log_sum(score: np.ndarray) -> np.ndarray:
    """(g,) ln of the sum of exp(score) over each row; -inf where there is nothing."""
    top = score.max(1)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(score - top[:, None]).sum(1)) + top)


def above_hull(stability: np.ndarray) -> np.ndarray:
    """eV/atom above the hull as far as they count for a vote: up to 0.5; 0.1 where it is not known."""
    return np.clip(np.nan_to_num(stability, nan=0.1), 0.0, 0.5)


def _largest(score: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the ``k`` largest finite entries of each row, largest first, of equal ones the first."""
    k = min(k, score.shape[1])
    if k == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    least = np.partition(score, score.shape[1] - k, axis=1)[:, score.shape[1] - k, None]
    row, column = np.divmod(np.flatnonzero((score >= least) & (score > -np.inf)), score.shape[1])
    order = np.lexsort((column, -score[row, column], row))
    row, column = row[order], column[order]
    first = np.arange(len(row)) - np.searchsorted(row, row) < k
    return row[first], column[first]
