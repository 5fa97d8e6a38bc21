"""Was a known crystal found? pymatgen's StructureMatcher as the published match rates use it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pymatgen.core.structure_matcher import StructureMatcher

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.matching import comparable, structure_matcher


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
    try:
        found = matcher.get_rms_dist(comparable(predicted), comparable(known))
    except Exception as error:
        # whatever a degenerate cell provokes in pymatgen, numpy or scipy: the pair is counted, as no match
        return Match(None, f"{type(error).__name__}: {error}"[:200])
    return Match(None if found is None else float(found[0]))


def match_target(known: Crystal, candidates: Sequence[Crystal], settings: Matcher) -> list[Match]:
    """Each candidate against one known crystal, in order."""
    matcher = structure_matcher(settings)
    return [match(candidate, known, matcher) for candidate in candidates]
