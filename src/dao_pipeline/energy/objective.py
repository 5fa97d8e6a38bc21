"""DAO-P's training objective: the energy of a noisy crystal, with denoising beside it (paper 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import EnergyModel
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.objective import add_noise_to, denoise, uniform_times

LARGEST_EXPONENT = 10.0
"""exp(-E) is cut at exp(10): an untrained network must not overflow."""
LARGEST_EXCESS = 4.0
"""Where E exceeds y by more standard deviations, linex goes on as its tangent: an outlier must not rule a step."""


def linex(excess: Tensor) -> Tensor:
    """2 (exp(d) - d - 1) of d = E - y: d^2 near 0, and least on average where exp(-E) is the mean of exp(-y).

    Its derivative 2 (exp(E - y) - 1) vanishes on average there. So the minimiser is that of the squared error of
    exp(-E), but errors weigh the same at all energies (LINEX, Varian 1975; for such free energies also Garg et
    al. 2023, "Extreme Q-learning").
    """
    inside = excess.clamp(max=LARGEST_EXCESS)
    beyond = (excess - LARGEST_EXCESS).clamp(min=0) * (math.exp(LARGEST_EXCESS) - 1)
    return 2 * (inside.expm1() - inside + beyond)


@dataclass(frozen=True)
class EnergyObjective:
    """L = MSE_lattice + MSE_coords + energy_weight L_energy.

    Noisy crystals (t >= 1): the minimiser of L_energy is the energy E_t = -log E[exp(-y) | noisy crystal] that
    guidance needs (Lu et al. 2023): of the published MSE(exp(-E_t), exp(-y)), and of ``linex``. Clean crystals
    (t = 0): there E_0 = y exactly, and a plain squared error has the same minimiser.
    """

    settings: EnergyModel

    def draw(self, model: DaoModel, batch: Data, generator: torch.Generator) -> Data:
        """Noise a batch whose ``energy`` (B,) is in eV/atom, except a share of its crystals; standardise it."""
        settings, about = self.settings, model.about
        energy = batch.energy - model.reference(batch.atomic_numbers, Layout.from_ptr(batch.ptr))
        t = uniform_times(model, batch, generator)
        clean = torch.rand(len(t), generator=generator, device=t.device) < settings.clean_fraction
        if settings.precursors == "clean" and "precursor" in batch:
            clean |= batch.precursor
        drawn = add_noise_to(model, batch, torch.where(clean, 0, t), generator)
        drawn.energy = ((energy - about.energy_mean) / about.energy_std).clamp(
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
        if self.settings.loss != "squared":
            error = torch.where(clean, error, self._free_energy_error(energy, label))
        # without noise there is nothing to denoise
        return {
            "loss_coords": (result.coords_error * ~clean[result.layout.crystal]).sum(),
            "loss_lattice": (result.lattice_error * ~clean).sum(),
            "loss_energy": error.sum() * self.settings.energy_weight,
            "energy_mae": ((energy - label).abs() * clean).sum() * model.about.energy_std,
        }

    def _free_energy_error(self, energy: Tensor, label: Tensor) -> Tensor:
        if self.settings.loss == "linex":
            return linex(energy - label)
        return ((-energy).clamp(max=LARGEST_EXPONENT).exp() - (-label).exp()).square()
