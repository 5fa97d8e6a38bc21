"""What diffusion and flow matching have in common: levels t = 0 .. T, 0 clean and T pure noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dao_pipeline.model.layout import Layout


class Noisy(NamedTuple):
    """A noisy batch and what the network should say about it; both targets are of unit scale.

    frac_coords: (N, 3) in [0, 1). lattice: (B, 3, 3), in the unit of the process. coords_target: (N, 3).
    lattice_target: (B, 3, 3).
    """

    frac_coords: Tensor
    lattice: Tensor
    coords_target: Tensor
    lattice_target: Tensor


class GenerativeProcess(nn.Module, ABC):
    """A way from crystals to noise that a network learns to go back.

    timesteps: T. sigma: (T + 1,), standard deviation of the displacement of fractional coordinates at each
    level, 0 at t = 0.
    """

    timesteps: int
    sigma: Tensor

    @abstractmethod
    def add_noise(
        self, frac_coords: Tensor, lattice: Tensor, layout: Layout, t: Tensor, generator: torch.Generator
    ) -> Noisy:
        """Noise clean crystals to level t.

        frac_coords: (N, 3). lattice: (B, 3, 3), in the unit of the process. layout: of the batch. t: (B,), 0 to
        T; a crystal at t = 0 stays as it is. ``generator`` lives on the device of the crystals.
        """
