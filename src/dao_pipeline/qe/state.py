"""What a calculation remembers between runs of pw.x, and between jobs: one JSON file in its work folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.table import write_text
from dao_pipeline.qe.inputs import Steering
from dao_pipeline.qe.recovery import Start

FILE = "state.json"


@dataclass
class State:
    """One calculation on its way.

    identity: hash of crystal and settings; a state of another one is not used.
    crystal: geometry in the input of the next run. last: the latest geometry after the candidate's, None before
    there is one; a run that starts from QE's own files starts there.
    jobs: whose time or memory ran out. rounds, used: of recovery. start: where the next run starts from.
    running: a run of pw.x was started and its end not yet seen.
    runs: runs of pw.x that have ended. seconds, cpu_seconds, steps, scf_steps: of these together.
    """

    identity: str
    crystal: Crystal
    last: Crystal | None = None
    jobs: int = 0
    rounds: int = 0
    used: dict[str, int] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)
    steering: Steering = field(default_factory=Steering)
    start: Start = "scratch"
    running: bool = False
    runs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    steps: int = 0
    scf_steps: int = 0

    def save(self, folder: Path) -> None:
        """Write it into the work folder."""
        values = {**vars(self), "steering": asdict(self.steering)}
        values |= {"crystal": _plain(self.crystal), "last": None if self.last is None else _plain(self.last)}
        write_text(folder / FILE, json.dumps(values, indent=1))


def load_state(folder: Path, identity: str) -> State | None:
    """The state in a work folder; None where there is none of this calculation that can be read."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if values["identity"] != identity:
            return None
        values["steering"] = Steering(**values["steering"])
        values["crystal"] = _crystal(values["crystal"])
        values["last"] = None if values["last"] is None else _crystal(values["last"])
        return State(**values)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _plain(crystal: Crystal) -> dict[str, Any]:
    return {
        "id": crystal.id,
        "atomic_numbers": crystal.atomic_numbers.tolist(),
        "frac_coords": crystal.frac_coords.tolist(),
        "lattice": crystal.lattice.tolist(),
    }


def _crystal(values: dict[str, Any]) -> Crystal:
    return Crystal(
        id=values["id"],
        source="quantum_espresso",
        atomic_numbers=np.array(values["atomic_numbers"], dtype=np.int64),
        frac_coords=np.array(values["frac_coords"], dtype=np.float64),
        lattice=np.array(values["lattice"], dtype=np.float64),
    )
