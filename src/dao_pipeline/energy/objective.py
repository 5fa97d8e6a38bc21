"""DAO-P's training objective: the energy of a noisy crystal, with denoising beside it (paper 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import EnergyModel
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.process.objective import denoise

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

    def __call__(self, model: DaoModel, batch: Data, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch whose ``energy`` (B,) is in eV/atom; ``energy_mae`` is of clean crystals, eV/atom."""
        settings, about = self.settings, model.about
        crystals, device = len(batch.lattice), batch.lattice.device
        t = torch.randint(1, model.schedule.timesteps + 1, (crystals,), generator=generator, device=device)
        clean = torch.rand(crystals, generator=generator, device=device) < settings.clean_fraction
        t = torch.where(clean, 0, t)
        label = ((batch.energy - about.energy_mean) / about.energy_std).clamp(
            -settings.clip_label, settings.clip_label
        )
        result = denoise(model, batch, t, generator)
        assert result.out.energy is not None
        energy, noisy = result.out.energy, (~clean).to(label.dtype)
        plain = (energy - label).square()
        if settings.exponential_loss:
            error = ((-energy).clamp(max=LARGEST_EXPONENT).exp() - (-label).exp()).square()
            error = torch.where(clean, plain, error)
        else:
            error = plain
        # without noise there is nothing to denoise
        atoms = batch.ptr.diff().to(label.dtype)
        coords = (result.coords_error * noisy).sum() / (atoms * noisy).sum().clamp(min=1)
        lattice = (result.lattice_error * noisy).sum() / noisy.sum().clamp(min=1)
        mae = ((energy - label).abs() * clean).sum() / clean.sum().clamp(min=1) * about.energy_std
        return {
            "loss": coords + lattice + error.mean(),
            "loss_coords": coords,
            "loss_lattice": lattice,
            "loss_energy": error.mean(),
            "energy_mae": mae,
        }
