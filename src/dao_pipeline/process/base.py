"""What diffusion and flow matching have in common: levels t = 0 .. T, 0 clean and T pure noise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dao_pipeline.model.layout import Layout

if TYPE_CHECKING:
    # Only then: training does not use it, and an edit of it must not retrain models.
    from dao_pipeline.process.noise_stream import NoiseStream


class Noisy(NamedTuple):
    """A noisy batch and what the network should say about it; both targets are of unit scale.

    frac_coords: (N, 3) in [0, 1). lattice: (B, 3, 3), in the unit of the process. coords_target: (N, 3).
    lattice_target: (B, 3, 3).
    """

    frac_coords: Tensor
    lattice: Tensor
    coords_target: Tensor
    lattice_target: Tensor


class Drawn(NamedTuple):
    """Random numbers that noise one batch, of the distributions that the process asks for.

    coords: (N, 3). lattice: one row per crystal.
    """

    coords: Tensor
    lattice: Tensor


class GenerativeProcess(nn.Module, ABC):
    """A way from crystals to noise that a network learns to go back.

    timesteps: T. sigma: (T + 1,), standard deviation of the displacement of fractional coordinates at each
    level, 0 at t = 0.
    """

    timesteps: int
    sigma: Tensor

    @abstractmethod
    def draw(self, layout: Layout, generator: torch.Generator, dtype: torch.dtype) -> Drawn:
        """Random numbers for training, from a ``generator`` on the device of the crystals."""

    @abstractmethod
    def draw_for(self, noise: NoiseStream, dtype: torch.dtype) -> Drawn:
        """The same for sampling: they belong to the candidates."""

    @abstractmethod
    def at_level(self, frac_coords: Tensor, lattice: Tensor, layout: Layout, t: Tensor, drawn: Drawn) -> Noisy:
        """Clean crystals with so much noise.

        frac_coords: (N, 3). lattice: (B, 3, 3), in the unit of the process. layout: of the batch. t: (B,), 0 to
        T; a crystal at t = 0 stays as it is.
        """

    def add_noise(
        self, frac_coords: Tensor, lattice: Tensor, layout: Layout, t: Tensor, generator: torch.Generator
    ) -> Noisy:
        """``at_level`` with noise from a generator."""
        return self.at_level(frac_coords, lattice, layout, t, self.draw(layout, generator, frac_coords.dtype))
