"""How strongly, when and how far DAO-P's energy gradient moves a crystal that is being sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dao_pipeline.model.layout import Layout


@dataclass(frozen=True)
class Steering:
    """The shape of guidance, whatever its scale.

    coords, lattice: multipliers of the scale for each field. start, stop: guided while stop <= s <= start, with
    s = t / T, 1 at the beginning of sampling. clip: a crystal is moved, field by field, at most this many times
    as far as the generator itself moves it in the same step; None: as far as the energy says.
    """

    coords: float = 1.0
    lattice: float = 1.0
    start: float = 1.0
    stop: float = 0.0
    clip: float | None = None

    def acts(self, scale: float, s: float) -> bool:
        """Whether the energy is asked at time ``s``."""
        return scale > 0 and (self.coords > 0 or self.lattice > 0) and self.stop <= s <= self.start

    def of_coords(self, shift: Tensor, own: Tensor, layout: Layout) -> Tensor:
        """The shift (N, 3) of coordinates beside the generator's ``own`` move, with multiplier and bound."""
        shift = self.coords * shift
        if self.clip is None:
            return shift
        squares = torch.stack([shift.square().sum(1), own.square().sum(1)], dim=1)
        lengths = squares.new_zeros(layout.num_crystals, 2).index_add(0, layout.crystal, squares).sqrt()
        return shift * _bound(lengths[:, 0], lengths[:, 1], self.clip)[layout.crystal, None]

    def of_lattice(self, shift: Tensor, own: Tensor) -> Tensor:
        """The same for lattices, (B, 3, 3)."""
        shift = self.lattice * shift
        if self.clip is None:
            return shift
        return shift * _bound(shift.flatten(1).norm(dim=1), own.flatten(1).norm(dim=1), self.clip)[:, None, None]


def _bound(shift: Tensor, own: Tensor, clip: float) -> Tensor:
    """Factors at most 1 that bring ``shift`` down to ``clip`` times ``own``, all (B,)."""
    tiny = torch.finfo(shift.dtype).tiny
    return (clip * own / shift.clamp(min=tiny)).clamp(max=1.0)


def choose(energies: Tensor, weight: float, uniform: Tensor) -> Tensor:
    """Which of m crystals drawn for each candidate is kept, (B,), with probability ~ exp(-weight E).

    energies: (m, B), standardised; what is not finite is not kept unless nothing is. uniform: (m, B), random
    numbers between 0 and 1, double precision. With many draws the kept one
    follows the generator's distribution times exp(-weight E) (sampling, importance resampling; Rubin 1987).
    Candidates stay independent of each other, whatever else is in the batch.
    """
    logits = torch.where(energies.isfinite(), -weight * energies, -torch.inf)
    return (logits.double() - (-uniform.log()).log()).nan_to_num(neginf=-torch.inf).argmax(0)
