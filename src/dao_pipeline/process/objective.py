"""DAO-G's training objective: predict the noise in lattice and coordinates (paper 2.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.model.crysformer import Output
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout


class Denoised(NamedTuple):
    """Heads on a noised batch, and squared errors per crystal of coordinates and lattice, each (B,)."""

    out: Output
    coords_error: Tensor
    lattice_error: Tensor


def denoise(model: DaoModel, batch: Data, t: Tensor, generator: torch.Generator) -> Denoised:
    """Noise ``batch`` to levels ``t`` (B,) and let the model look at it.

    coords_error sums over a crystal's atoms and averages over axes: the loss is per atom, so that large
    crystals weigh more, as published. lattice_error averages over the nine entries.
    """
    layout = Layout.from_ptr(batch.ptr)
    scaled = batch.lattice / model.edge(batch.atomic_numbers, layout)
    noisy = model.schedule.add_noise(batch.frac_coords, scaled, layout, t, generator)
    out = model.crysformer(batch.atomic_numbers, noisy.frac_coords, noisy.lattice, batch.ptr, t, layout)
    error = out.coords - noisy.coords_target
    if model.process.remove_drift:
        error = layout.remove_mean(error)
    per_atom = error.square().mean(-1)
    coords_error = torch.zeros_like(scaled[:, 0, 0]).index_add(0, layout.crystal, per_atom)
    lattice_error = (out.lattice - noisy.lattice_target).square().mean((1, 2))
    return Denoised(out, coords_error, lattice_error)


def generator_objective(model: DaoModel, batch: Data, generator: torch.Generator) -> dict[str, Tensor]:
    """L = MSE(eps_L) + MSE(eps_F), t uniform on 1 .. T, one level per crystal."""
    crystals = len(batch.lattice)
    t = torch.randint(
        1, model.schedule.timesteps + 1, (crystals,), generator=generator, device=batch.lattice.device
    )
    result = denoise(model, batch, t, generator)
    coords = result.coords_error.sum() / len(batch.atomic_numbers)
    lattice = result.lattice_error.mean()
    return {"loss": coords + lattice, "loss_coords": coords, "loss_lattice": lattice}
