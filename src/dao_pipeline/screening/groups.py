"""Which candidates of a composition are the same crystal, and in which order the different ones come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dao_pipeline.ranking.pool import gathered, pool

if TYPE_CHECKING:
    from dao_pipeline.crystals.match_search import Reduced
    from dao_pipeline.crystals.matching import Sameness


def group_by_energy(
    energies: Sequence[float], same: Callable[[int, int], bool], known: Sequence[bool] | None = None
) -> list[list[int]]:
    """Groups of candidates that match the lowest-energy member, which stands first; groups by its energy.

    Greedy: in order of energy (ties in order of the list) each candidate joins the first group whose first
    member it matches, or founds one. Crystals that are ``known`` for the composition come first.
    """
    known = known or [False] * len(energies)
    return gathered(sorted(range(len(energies)), key=lambda i: (not known[i], energies[i], i)), same)


def group_by_probability(
    probabilities: Sequence[float],
    reduced: Sequence[Reduced | None],
    same: Sameness,
    alike: Sameness,
    known: Sequence[bool] | None = None,
) -> list[tuple[list[int], float | None]]:
    """Groups of candidates that match the most probable member, which stands first; in order of ``ranking.pool``;
    those with a crystal ``known`` for the composition come first.

    With each group the probability of all groups that ``alike``, the coarser matcher, finds to be the same
    crystal; None for a group that counts with a better one.
    """
    groups = group_by_energy([-p for p in probabilities], lambda i, j: same(reduced[i], reduced[j]), known)
    mass = [sum(probabilities[i] for i in group) for group in groups]
    order = pool(mass, lambda a, b: alike(reduced[groups[a][0]], reduced[groups[b][0]]))
    if known:
        order = sorted(order, key=lambda place: not known[groups[place[0]][0]])
    return [(groups[i], probability) for i, probability in order]
