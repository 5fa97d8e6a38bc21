"""Was a known crystal found? pymatgen's StructureMatcher as the published match rates use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pymatgen.core.structure_matcher import StructureMatcher

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.match_search import Reduced, displacement
from dao_pipeline.crystals.matching import reduced, structure_matcher


@dataclass(frozen=True)
class Match:
    """Outcome for one pair.

    rmse: root-mean-square displacement in units of (V/n)^(1/3) of the average cell; None: no match.
    error: why the matcher could not decide, which counts as no match; None where it could.
    """

    rmse: float | None
    error: str | None = None


def match(predicted: Crystal, known: Crystal, matcher: StructureMatcher) -> Match:
    """Compare a predicted with a known crystal as the published match rates do (``get_rms_dist``)."""
    return _compare(predicted, _attempt(known), matcher)


def match_target(known: Crystal, candidates: Sequence[Crystal], settings: Matcher) -> list[Match]:
    """Each candidate against one known crystal, in order."""
    matcher, other = structure_matcher(settings), _attempt(known)
    return [_compare(candidate, other, matcher) for candidate in candidates]


def _attempt(crystal: Crystal) -> Reduced | Match:
    """The crystal as the matcher compares it, or why it cannot be."""
    try:
        return reduced(crystal)
    except Exception as error:  # whatever a degenerate cell provokes in pymatgen, numpy or scipy
        return _failure(error)


def _failure(error: Exception) -> Match:
    """The pair is counted, as no match."""
    return Match(None, f"{type(error).__name__}: {error}"[:200])


def _compare(predicted: Crystal, known: Reduced | Match, matcher: StructureMatcher) -> Match:
    mine = _attempt(predicted)
    if isinstance(mine, Match):
        return mine
    if isinstance(known, Match):
        return known
    try:
        return Match(displacement(matcher, mine, known))
    except Exception as error:  # as above
        return _failure(error)
