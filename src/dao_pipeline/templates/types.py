"""Structure types: crystals of one pattern whose prints agree, whatever their elements.

Decided once, when an index is built. Each type has a leader, and *places*: the leader's slots. Every member knows
which of its elements stands on which place, so that templates of one type can be compared place by place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dao_pipeline.templates.patterns import Pattern, assignments, cosets


@dataclass(frozen=True)
class Types:
    """Types of r crystals of one pattern.

    label: (r,) int64, 0 to t - 1. places: (r, s) int64, the crystal's slot on each place of its type.
    leaders: (t,) int64, rows. classes: (t, P) int64, assignments with the same label give the same crystal.
    """

    label: np.ndarray
    places: np.ndarray
    leaders: np.ndarray
    classes: np.ndarray


def find_types(prints: np.ndarray, pattern: Pattern, tolerance: float, order: np.ndarray | None = None) -> Types:
    """Types of the crystals with these prints (r, s, s, f): within ``tolerance`` of a leader, root mean square.

    Leaders are found one after the other in ``order`` (preferred crystals first), then once more with the middles
    of large types first, so that a large type is not cut in two by who came first. At last each crystal joins
    the nearest leader.
    """
    r = len(prints)
    order = np.arange(r) if order is None else order
    first = _join(prints, pattern, tolerance, order)
    if len(np.unique(first[0])) < r:
        order = _central_first(prints, *first[:2], order)
        first = _join(prints, pattern, tolerance, order)
    label, places, leaders = first
    ways = assignments(pattern)
    classes = np.array(
        [cosets(pattern, _rms(_renamed(prints[leader], ways), prints[leader]) <= tolerance) for leader in leaders]
    ).reshape(len(leaders), len(ways))
    return Types(label, places, leaders, classes)


def _renamed(one: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """(P, s, s, f): a print with its slots in another order."""
    return one[ways[:, :, None], ways[:, None, :]]


def _rms(many: np.ndarray, one: np.ndarray) -> np.ndarray:
    difference = (many - one).reshape(len(many), -1)
    return np.sqrt((difference**2).mean(1))


def _join(
    prints: np.ndarray, pattern: Pattern, tolerance: float, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (r,), places (r, s), leaders (t,)."""
    r, ways = len(prints), assignments(pattern)
    flat = prints.reshape(r, -1)
    squares = (flat**2).sum(1)
    nearest = np.full(r, np.inf)
    label, way = np.zeros(r, np.int64), np.zeros(r, np.int64)
    leaders: list[int] = []
    for leader in order.tolist():
        if nearest[leader] <= tolerance:
            continue
        renamed = _renamed(prints[leader], ways).reshape(len(ways), -1)
        squared = squares[:, None] + squares[leader] - 2 * flat @ renamed.T
        closest = squared.argmin(1)
        distance = np.sqrt(np.maximum(squared[np.arange(r), closest], 0.0) / flat.shape[1])
        distance[leader], closest[leader] = 0.0, 0
        nearer = distance < nearest
        nearest[nearer], label[nearer], way[nearer] = distance[nearer], len(leaders), closest[nearer]
        leaders.append(leader)
    return label, np.argsort(ways, axis=1)[way], np.array(leaders, dtype=np.int64)


def _central_first(prints: np.ndarray, label: np.ndarray, places: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Members of large types first, and of a type those first that are nearest to its middle."""
    aligned = np.stack([p[q][:, q] for p, q in zip(prints, places, strict=True)]).reshape(len(prints), -1)
    count = np.bincount(label)
    middle = np.zeros((len(count), aligned.shape[1]))
    np.add.at(middle, label, aligned)
    middle /= count[:, None]
    away = np.sqrt(((aligned - middle[label]) ** 2).mean(1))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return np.lexsort((rank, away.round(3), label, -count[label]))
