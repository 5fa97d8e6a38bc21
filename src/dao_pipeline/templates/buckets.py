"""The templates of one stoichiometry pattern, and how strongly each of their types is voted for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from dao_pipeline.templates.metric import NUM, Metric
from dao_pipeline.templates.patterns import Pattern, assignments

_ENTRIES_AT_ONCE = 2_000_000
_KNOWN = 1e4
"""Vote for a known crystal of the target's own composition: more than any number of others."""
_UNKNOWN_STABILITY = 1.0
"""eV/atom above hull of a crystal for which it is not known, when known crystals are put in order."""


@dataclass(frozen=True)
class Choices:
    """c chosen *options* (a type, and one of its classes of assignments) for the targets of one pattern.

    target: (c,) which target. score: (c,) ln of all votes for the option; total: (targets,) of all options.
    template: (c,) row in the bucket, nearest of the type; way: (c,) its row of ``assignments``; distance: (c,).
    label: (c,) type. votes: (c,) templates of the type. known: (c,) bool.
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
        return assignments(self.pattern)[way].T * NUM + self.elements[template].T

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
        table = (metric.cost[targets] * metric.weights(self.pattern)[:, None]).astype(np.float32)
        # the weight of a slot belongs to its place, and slots that change places have equal counts
        table = table.reshape(len(targets), -1)
        distance = table[:, self.lookup[0]]
        for place in self.lookup[1:]:
            distance += table[:, place]
        if metric.whole.shape[1]:
            own, other = metric.means(targets, self.pattern), metric.means(self.elements, self.pattern)
            squared = (own**2).sum(1)[:, None] + (other**2).sum(1) - 2 * own @ other.T
            distance += np.maximum(squared, 0.0).astype(np.float32)[:, self.entries[0]]
        return distance

    def choose(
        self, targets: np.ndarray, k: int, metric: Metric, banned: np.ndarray, own_composition: bool
    ) -> Choices:
        """The ``k`` most voted options for targets with slots (g, s); options without any vote are left out.

        banned: (m,) bool, templates that are not there. own_composition: whether templates with the composition
        of a target are there for it; they come first then, as known crystals.
        """
        step = max(1, _ENTRIES_AT_ONCE // len(self.entries[0]))
        parts = [
            self._choose(targets[i : i + step], i, k, metric, banned, own_composition)
            for i in range(0, len(targets), step)
        ]
        return Choices(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Choices)))

    def _choose(
        self, targets: np.ndarray, first: int, k: int, metric: Metric, banned: np.ndarray, own_composition: bool
    ) -> Choices:
        template, way, starts, label = self.entries
        distance = self.distances(targets, metric)
        vote = (self.weight[template] - distance / metric.width).astype(np.float32)
        for i, slots in enumerate(targets):
            same = self.of_composition(slots)
            if not len(same):
                continue
            own = np.flatnonzero(np.isin(template, same))
            if own_composition:
                unchanged = (slots[assignments(self.pattern)[way[own]]] == self.elements[template[own]]).all(1)
                own = own[unchanged]
                vote[i, own] = _KNOWN - np.nan_to_num(self.stability[template[own]], nan=_UNKNOWN_STABILITY)
                distance[i, own] = 0.0
            else:
                vote[i, own] = -np.inf
        vote[:, banned[template]] = -np.inf
        score = _log_sums(vote, starts)
        known = score > _KNOWN / 2
        total = np.logaddexp.reduce(np.where(known, -np.inf, score), axis=1)
        target, option = _largest(score, k)
        chosen, entry = _segments(starts[option], np.append(starts[1:], len(template))[option])
        votes = vote[target[chosen], entry]
        there = np.isfinite(votes)
        away = np.where(there, distance[target[chosen], entry], np.inf)
        begin = np.searchsorted(chosen, np.arange(len(target)))
        nearest = entry[np.lexsort((-votes, away, chosen))[begin]]
        share = np.exp(votes - score[target, option][chosen])
        members = np.lexsort((template[entry], chosen))
        new = np.r_[True, (np.diff(chosen[members]) != 0) | (np.diff(template[entry[members]]) != 0)]
        counted = np.add.reduceat((new & there[members]).astype(np.int64), begin) if len(target) else begin
        return Choices(
            target=target + first,
            score=score[target, option],
            total=total[target],
            template=template[nearest],
            way=way[nearest],
            distance=distance[target, nearest].astype(np.float64),
            label=label[option],
            votes=counted,
            known=known[target, option],
            log_volume=np.add.reduceat(share * self.log_volume[template[entry]], begin) if len(target) else share,
        )


def above_hull(stability: np.ndarray) -> np.ndarray:
    """eV/atom above the hull as far as they count for a vote: up to 0.5; 0.1 where it is not known."""
    return np.clip(np.nan_to_num(stability, nan=0.1), 0.0, 0.5)


def _log_sums(vote: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(g, options) ln of the sum of exp(vote) (g, E) over the entries of each option; -inf for no vote."""
    top = np.maximum.reduceat(vote, starts, axis=1)
    lengths = np.diff(np.append(starts, vote.shape[1]))
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.add.reduceat(np.exp(vote - np.repeat(safe, lengths, axis=1)), starts, axis=1)) + safe


def _largest(score: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the ``k`` largest finite entries of each row, largest first.

    Of equal entries the first are taken: those for a smaller k are the beginning of those for a larger one.
    """
    k = min(k, score.shape[1])
    last = -np.partition(-score, k - 1, axis=1)[:, k - 1 : k]
    above, equal = score > last, score == last
    wanted = above | (equal & (np.cumsum(equal, axis=1) <= k - above.sum(axis=1, keepdims=True)))
    column = np.nonzero(wanted)[1].reshape(len(score), k)
    value = np.take_along_axis(score, column, 1)
    order = np.lexsort((column, -value), axis=1)
    column, value = np.take_along_axis(column, order, 1), np.take_along_axis(value, order, 1)
    row = np.broadcast_to(np.arange(len(score))[:, None], column.shape)
    finite = np.isfinite(value)
    return row[finite], column[finite]


def _segments(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All numbers in the ranges, and which range each is in."""
    lengths = ends - starts
    owner = np.repeat(np.arange(len(starts)), lengths)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return owner, starts[owner] + offset
