"""What every way to relax crystals with DAO-P has in common: crystals in, outcomes out, a state to resume from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from dao_pipeline.config import Relax
from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.model.dao import DaoModel


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """Outcomes of m crystals with N atoms, on the host; a row means something once it is ``done``.

    frac_coords: (N, 3) float64. lattice: (m, 3, 3) float64, angstrom. energy_before, energy_after: (m,) eV/atom.
    steps: (m,) int32, steps taken. displacement: (m,) angstrom, largest of an atom; what strain does to the
    positions is not in it. volume_change: (m,) relative. converged: (m,) bool, forces and stress are below their
    tolerances. done: (m,) bool.
    """

    frac_coords: Tensor
    lattice: Tensor
    energy_before: Tensor
    energy_after: Tensor
    steps: Tensor
    displacement: Tensor
    volume_change: Tensor
    converged: Tensor
    done: Tensor

    @classmethod
    def untouched(cls, crystals: FlatCrystals) -> Relaxed:
        """Nothing done yet."""
        count = len(crystals)
        unknown = torch.full((count,), float("nan"), dtype=torch.float64)
        return cls(
            frac_coords=torch.from_numpy(np.array(crystals.frac, dtype=np.float64)),
            lattice=torch.from_numpy(np.array(crystals.lattice, dtype=np.float64)),
            energy_before=unknown,
            energy_after=unknown.clone(),
            steps=torch.zeros(count, dtype=torch.int32),
            displacement=unknown.clone(),
            volume_change=unknown.clone(),
            converged=torch.zeros(count, dtype=torch.bool),
            done=torch.zeros(count, dtype=torch.bool),
        )


class Relaxation(ABC):
    """Crystals on their way down in DAO-P's energy of clean crystals (t = 0).

    ``advance`` until ``finished``; outcomes appear in ``result`` as crystals finish. ``state`` and ``restore``
    let another process go on: it ends with the same numbers, bit for bit on a CPU.
    """

    def __init__(self, model: DaoModel, crystals: FlatCrystals, settings: Relax) -> None:
        self.model, self.crystals, self.settings = model, crystals, settings
        self.result = Relaxed.untouched(crystals)

    @property
    def finished(self) -> bool:
        """Whether all crystals are done."""
        return bool(self.result.done.all())

    @abstractmethod
    def advance(self) -> None:
        """Some work for some of the crystals."""

    def state(self) -> dict[str, Tensor]:
        """Everything that going on needs, outcomes included."""
        return {f"result.{f.name}": getattr(self.result, f.name) for f in fields(Relaxed)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on where ``state`` was taken; crystals and settings must be the same."""
        self.result = Relaxed(**{f.name: state[f"result.{f.name}"] for f in fields(Relaxed)})
