"""May two DFT energies be compared? Only if they are of one level: the settings that decide an energy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Level:
    """What decides a DFT energy.

    settings: by name: functional, cut-offs, density of k-points, smearing, spin, program and version.
    pseudopotentials: checksum by element. They decide only energies of crystals with that element, so a compound
    and an element need agree only in those that both have.
    """

    settings: Mapping[str, Any]
    pseudopotentials: Mapping[str, str] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Hash of all of it."""
        text = json.dumps([dict(self.settings), dict(self.pseudopotentials)], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: Level) -> list[str]:
        """What differs, e.g. ``ecutwfc 40 and 60``; empty where energies of the two may be compared."""
        names = dict.fromkeys([*self.settings, *other.settings])
        found = [
            f"{name} {self.settings.get(name)} and {other.settings.get(name)}"
            for name in names
            if self.settings.get(name) != other.settings.get(name)
        ]
        shared = [element for element in self.pseudopotentials if element in other.pseudopotentials]
        return found + [
            f"another pseudopotential of {element}"
            for element in shared
            if self.pseudopotentials[element] != other.pseudopotentials[element]
        ]
