"""DAO-G's training objective: predict the noise in lattice and coordinates (paper 2.2).

An objective has three parts, so that a step may be cut into chunks and spread over processes without a change of
its result: ``draw`` takes every random number of the step at once; ``weights`` are the denominators of its means;
``sums`` are their numerators on any part of what was drawn, and add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.crystals.batch import PER_ATOM
from dao_pipeline.model.crysformer import Output
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.flow import Flow


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
    out = model.crysformer(
        batch.atomic_numbers,
        batch.frac_coords,
        batch.lattice,
        batch.ptr,
        batch.t,
        layout,
        batch.from_template if "from_template" in batch else None,
    )
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


AT_TEMPLATE = 0.5
"""Share of the paths from templates that are shown at their start, t = T, where every refinement begins."""


@dataclass(frozen=True)
class TemplateObjective(GeneratorObjective):
    """The same, but crystals with a template start there with probability ``share``, and not at noise.

    The two kinds of paths have losses of their own, each a mean over what is on such a path: so they weigh the
    same, whatever the share. Few templates err by much and most by very little. Of a path from a template the
    loss is therefore 2 sqrt(1 + e^2) - 2, with e^2 the mean square error of its crystal: small errors count by
    their square, large ones by their size. (With the size alone the network learned nothing in 3,000 steps: what
    it loses at the many templates without any error outweighs what it gains at others.)
    """

    share: float

    def draw(self, model: DaoModel, batch: Data, generator: torch.Generator) -> Data:
        """Noise a clean batch, or move it towards its templates (``CrystalDataset``)."""
        t = uniform_times(model, batch, generator)
        chance, early = torch.rand(2, len(t), generator=generator, device=t.device)
        chosen = (
            batch.paired & (chance < self.share) if "paired" in batch else torch.zeros_like(t, dtype=torch.bool)
        )
        t = torch.where(chosen & (early < AT_TEMPLATE), model.schedule.timesteps, t)
        drawn = add_noise_to(model, batch, t, generator)
        drawn.from_template = chosen
        if bool(chosen.any()):
            assert isinstance(model.schedule, Flow)
            layout = Layout.from_ptr(batch.ptr)
            edge = model.edge(batch.atomic_numbers, layout)
            crystal = batch.frac_coords, batch.lattice / edge
            template = batch.template_coords, batch.template_lattice / edge
            path = model.schedule.template_path(crystal, template, layout, t)
            by_atom, by_crystal = chosen[layout.crystal][:, None], chosen[:, None, None]
            for name, value in path._asdict().items():
                drawn[name] = torch.where(by_atom if name in PER_ATOM else by_crystal, value, drawn[name])
        return drawn

    def weights(self, batch: Data) -> dict[str, Tensor]:
        """Atoms and crystals on paths from noise, crystals on paths from templates."""
        template = batch.from_template.to(batch.lattice.dtype)
        return {
            "loss_coords": (batch.ptr.diff() * (1 - template)).sum(),
            "loss_lattice": (1 - template).sum(),
            "loss_template_coords": template.sum(),
            "loss_template_lattice": template.sum(),
        }

    def sums(self, model: DaoModel, batch: Data) -> dict[str, Tensor]:
        """Errors, summed over the crystals of ``batch`` on paths of either kind."""
        result = denoise(model, batch)
        layout, template = result.layout, batch.from_template
        each = layout.unsort_crystals(layout.mean(layout.sort_atoms(result.coords_error)))
        return {
            "loss_coords": (result.coords_error * ~template[layout.crystal]).sum(),
            "loss_lattice": (result.lattice_error * ~template).sum(),
            "loss_template_coords": (_robust(each) * template).sum(),
            "loss_template_lattice": (_robust(result.lattice_error) * template).sum(),
        }


def _robust(square: Tensor) -> Tensor:
    """2 sqrt(1 + e^2) - 2 of a mean square error e^2."""
    return 2 * (1 + square).sqrt() - 2
