"""Known crystals that candidates are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dao_pipeline.crystals.match_search import Reduced
    from dao_pipeline.crystals.matching import Sameness


def first_match(candidate: Reduced | None, references: Sequence[Reduced | None], same: Sameness) -> int | None:
    """Place of the first reference that a candidate matches; None: it is novel."""
    return next((k for k, reference in enumerate(references) if same(reference, candidate)), None)
