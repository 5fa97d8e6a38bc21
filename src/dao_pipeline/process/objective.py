"""DAO-G's training objective: predict the noise in lattice and coordinates (paper 2.2).

An objective has three parts, so that a step may be cut into chunks and spread over processes without a change of
its result: ``draw`` takes every random number of the step at once; ``weights`` are the denominators of its means;
``sums`` are their numerators on any part of what was drawn, and add up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.model.crysformer import Output
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout


class Denoised(NamedTuple):
    """Heads on a noised batch, and squared errors of coordinates, (N,), and lattice, (B,).

    Both average over axes or entries. The coordinates' loss is per atom, so that large crystals weigh more, as
    published.
    """

    out: Output
    coords_error: Tensor
    lattice_error: Tensor
    layout: Layout


def add_noise_to(model: DaoModel, batch: Data, t: Tensor, generator: torch.Generator) -> Data:
    """``batch``, clean and in angstrom, at noise levels ``t`` (B,).

    Returns ``Data`` with ``atomic_numbers``, ``ptr`` and ``t``, the noisy ``frac_coords`` (N, 3) and ``lattice``
    (B, 3, 3), the latter in the model's unit, and the targets ``coords_target`` and ``lattice_target``.
    """
    layout = Layout.from_ptr(batch.ptr)
    scaled = batch.lattice / model.edge(batch.atomic_numbers, layout)
    noisy = model.schedule.add_noise(batch.frac_coords, scaled, layout, t, generator)
    return Data(
        atomic_numbers=batch.atomic_numbers,
        frac_coords=noisy.frac_coords,
        lattice=noisy.lattice,
        coords_target=noisy.coords_target,
        lattice_target=noisy.lattice_target,
        t=t,
        ptr=batch.ptr,
        num_nodes=len(batch.atomic_numbers),
    )


def denoise(model: DaoModel, batch: Data) -> Denoised:
    """Let the model look at a batch of ``add_noise_to``.

    Errors have the precision of the targets, whatever that of the network is.
    """
    layout = Layout.from_ptr(batch.ptr)
    out = model.crysformer(batch.atomic_numbers, batch.frac_coords, batch.lattice, batch.ptr, batch.t, layout)
    dtype = batch.coords_target.dtype
    energy = None if out.energy is None else out.energy.to(dtype)
    out = Output(out.coords.to(dtype), out.lattice.to(dtype), energy)
    error = out.coords - batch.coords_target
    if model.process.remove_drift:
        error = layout.remove_mean(error)
    lattice_error = (out.lattice - batch.lattice_target).square().mean((1, 2))
    return Denoised(out, error.square().mean(-1), lattice_error, layout)


def uniform_times(model: DaoModel, batch: Data, generator: torch.Generator) -> Tensor:
    """Noise levels, (B,) int64, uniform on 1 .. T."""
    device = batch.lattice.device
    return torch.randint(
        1, model.schedule.timesteps + 1, (len(batch.lattice),), generator=generator, device=device
    )


class GeneratorObjective:
    """L = MSE(eps_L) + MSE(eps_F), t uniform on 1 .. T, one level per crystal."""

    def draw(self, model: DaoModel, batch: Data, generator: torch.Generator) -> Data:
        """Noise a clean batch."""
        return add_noise_to(model, batch, uniform_times(model, batch, generator), generator)

    def weights(self, batch: Data) -> dict[str, Tensor]:
        """Atoms and crystals."""
        one = batch.lattice.new_ones(())
        return {"loss_coords": one * len(batch.atomic_numbers), "loss_lattice": one * len(batch.lattice)}

    def sums(self, model: DaoModel, batch: Data) -> dict[str, Tensor]:
        """Squared errors, summed over the crystals of ``batch``."""
        result = denoise(model, batch)
        return {"loss_coords": result.coords_error.sum(), "loss_lattice": result.lattice_error.sum()}
