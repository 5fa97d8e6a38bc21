"""DAO-P's training objective: the energy of a noisy crystal, with denoising beside it (paper 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import EnergyModel
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.process.objective import add_noise_to, denoise, uniform_times

LARGEST_EXPONENT = 10.0
"""exp(-E) is cut at exp(10): an untrained network must not overflow."""


@dataclass(frozen=True)
class EnergyObjective:
    """L = MSE_lattice + MSE_coords + L_energy.

    Noisy crystals (t >= 1): L_energy = MSE(exp(-E_t), exp(-y)), whose minimiser is the energy
    E_t = -log E[exp(-y) | noisy crystal] that guidance needs (Lu et al. 2023). Clean crystals (t = 0): there
    E_0 = y exactly, and a plain squared error has the same minimiser but also sees high energies.
    """

    settings: EnergyModel

    def draw(self, model: DaoModel, batch: Data, generator: torch.Generator) -> Data:
        """Noise a batch whose ``energy`` (B,) is in eV/atom, except a share of its crystals; standardise it."""
        settings, about = self.settings, model.about
        t = uniform_times(model, batch, generator)
        clean = torch.rand(len(t), generator=generator, device=t.device) < settings.clean_fraction
        drawn = add_noise_to(model, batch, torch.where(clean, 0, t), generator)
        drawn.energy = ((batch.energy - about.energy_mean) / about.energy_std).clamp(
            -settings.clip_label, settings.clip_label
        )
        return drawn

    def weights(self, batch: Data) -> dict[str, Tensor]:
        """Noisy atoms and crystals for denoising, all crystals for the energy, clean ones for its error."""
        noisy = (batch.t > 0).to(batch.energy.dtype)
        return {
            "loss_coords": (batch.ptr.diff() * noisy).sum(),
            "loss_lattice": noisy.sum(),
            "loss_energy": torch.ones_like(noisy).sum(),
            "energy_mae": (1 - noisy).sum(),
        }

    def sums(self, model: DaoModel, batch: Data) -> dict[str, Tensor]:
        """Errors summed over the crystals of ``batch``; ``energy_mae`` is of clean crystals, eV/atom."""
        result = denoise(model, batch)
        assert result.out.energy is not None
        energy, label, clean = result.out.energy, batch.energy, batch.t == 0
        error = (energy - label).square()
        if self.settings.exponential_loss:
            exponential = ((-energy).clamp(max=LARGEST_EXPONENT).exp() - (-label).exp()).square()
            error = torch.where(clean, error, exponential)
        # without noise there is nothing to denoise
        return {
            "loss_coords": (result.coords_error * ~clean[result.layout.crystal]).sum(),
            "loss_lattice": (result.lattice_error * ~clean).sum(),
            "loss_energy": error.sum(),
            "energy_mae": ((energy - label).abs() * clean).sum() * model.about.energy_std,
        }
