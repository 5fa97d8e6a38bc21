"""A DFT result for a candidate, whoever computed it."""

from __future__ import annotations

from dataclasses import dataclass

from dao_pipeline.comparison.level import Level
from dao_pipeline.crystals.crystal import Crystal

QUANTUM_ESPRESSO = "quantum_espresso"


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What one source says of one candidate; energies in eV/atom.

    crystal: as it came out; relaxed: whether its geometry was relaxed. total, formation, above_hull: whichever is
    known. level: of ``total``, None where it is not known. core_seconds, steps: what it cost, None likewise.
    """

    id: str
    source: str
    crystal: Crystal | None = None
    relaxed: bool = False
    total: float | None = None
    formation: float | None = None
    above_hull: float | None = None
    level: Level | None = None
    core_seconds: float | None = None
    steps: int | None = None

    @property
    def energy(self) -> float | None:
        """The energy that puts candidates of one composition in order."""
        return next((e for e in (self.total, self.formation, self.above_hull) if e is not None), None)
