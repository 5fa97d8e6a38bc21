"""Candidates that are the same crystal, as far as the match rates go, share one probability."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence


def gathered(order: Iterable[int], same: Callable[[int, int], bool]) -> list[list[int]]:
    """Clusters in order of their first members: each item joins the first whose first member it is the same as."""
    clusters: list[list[int]] = []
    for i in order:
        for cluster in clusters:
            if same(cluster[0], i):
                cluster.append(i)
                break
        else:
            clusters.append([i])
    return clusters


def pool(mass: Sequence[float], same: Callable[[int, int], bool]) -> list[tuple[int, float | None]]:
    """The order of candidates by pooled probability, each with that probability.

    Greedy: in order of ``mass`` (own probabilities; ties in order of the list) each candidate joins the first
    cluster whose first member it matches, or founds one. First come the founders by the sum over their clusters,
    which is their probability; the sums add up to what ``mass`` adds up to. Then come the others by their own
    mass, with None: if one of them is the ground state, so is its founder.
    """
    clusters = gathered(sorted(range(len(mass)), key=lambda i: (-mass[i], i)), same)
    total = {cluster[0]: sum(mass[i] for i in cluster) for cluster in clusters}
    founders = sorted(total, key=lambda i: (-total[i], i))
    others = sorted((i for cluster in clusters for i in cluster[1:]), key=lambda i: (-mass[i], i))
    return [(i, total[i]) for i in founders] + [(i, None) for i in others]
