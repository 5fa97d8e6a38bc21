"""Predictor-corrector sampling of the diffusion, optionally guided by DAO-P (paper 2.3, 5)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dao_pipeline.model.layout import Layout
from dao_pipeline.process.diffusion import Diffusion
from dao_pipeline.process.guidance import Steering
from dao_pipeline.process.noise_stream import NoiseStream

Denoiser = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(F (N, 3), L (B, 3, 3), t (B,)) -> the network's outputs for coordinates (N, 3) and lattice (B, 3, 3)."""

EnergyGradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(F, L, t) -> gradients of the summed energy with respect to F (N, 3) and L (B, 3, 3)."""

Watch = Callable[[int, Tensor, Tensor], None]
"""(level, F, L): is shown the crystals on their way."""

LARGEST_LATTICE = 4.0
"""Bound on the root mean square length of a predicted clean lattice, in units of the expected edge.

The first reverse steps divide the network's error by sqrt(alpha_bar) ~ 1e-5; the bound keeps that from throwing
lattices far from anything the network knows. It is never active near the end.
"""


class Sampled(NamedTuple):
    """frac_coords: (N, 3) in [0, 1). lattice: (B, 3, 3), in the unit of the process."""

    frac_coords: Tensor
    lattice: Tensor


class Start(NamedTuple):
    """Noisy crystals to start from in place of pure noise.

    frac_coords: (N, 3). lattice: (B, 3, 3), in the unit of the process. t: their noise level, 1 to T.
    """

    frac_coords: Tensor
    lattice: Tensor
    t: int


def sample(
    denoise: Denoiser,
    layout: Layout,
    schedule: Diffusion,
    *,
    steps: int,
    noise: NoiseStream,
    corrector: bool = True,
    step_size: float = 1e-5,
    guidance: EnergyGradient | None = None,
    guidance_scale: float = 0.0,
    steering: Steering = Steering(),
    bound: bool = True,
    start: Start | None = None,
    watch: Watch | None = None,
    dtype: torch.dtype = torch.float32,
) -> Sampled:
    """Draw one crystal for each of the layout's B crystals, from pure noise or from ``start``.

    With steps == timesteps, corrector and bound=False this is the published sampler: per level one Langevin
    step on the coordinates and one ancestral step on both. ``guidance`` adds -variance * scale * gradient to
    the predictor's means, as ``steering`` shapes it; at scale 0 it is not called, so results equal those without
    it bit for bit. ``watch`` sees the start and the crystals after each step.
    """
    device, crystals = layout.ptr.device, layout.num_crystals
    if start is None:
        coords, lattice = noise.uniform_coords(dtype), noise.normal_lattice(9, dtype).view(-1, 3, 3)
    else:
        coords, lattice = start.frac_coords, start.lattice
    times = times_from(start, schedule.timesteps, steps)
    if watch is not None:
        watch(times[0], coords, lattice)
    random = noise.steps(times[:-2], dtype, corrector)
    sigmas, score_norms = schedule.sigma.tolist(), schedule.score_norm.tolist()
    for t, s in itertools.pairwise(times):
        drawn = next(random) if s > 0 else None
        level = torch.full((crystals,), t, device=device, dtype=torch.int64)
        root = math.sqrt(score_norms[t])
        if corrector:
            eta = step_size * (sigmas[t] / sigmas[1]) ** 2
            eps_f, _ = denoise(coords, lattice, level)
            coords = coords - eta * root * eps_f
            if drawn is not None and drawn.corrector is not None:
                coords = coords + math.sqrt(2 * eta) * drawn.corrector
            coords = coords % 1.0
        eps_f, eps_l = denoise(coords, lattice, level)
        a, b, lattice_std, root_alpha = schedule.lattice_step(t, s)
        score_factor, gamma = schedule.coords_step(t, s)
        clean = (lattice - math.sqrt(1 - root_alpha**2) * eps_l) / root_alpha
        if bound:
            clean = _bound(clean)
        next_coords = coords - score_factor * root * eps_f
        next_lattice = a * clean + b * lattice
        if guidance is not None and s > 0 and steering.acts(guidance_scale, t / schedule.timesteps):
            grad_f, grad_l = guidance(coords, lattice, level)
            shift_f, shift_l = -(gamma**2) * guidance_scale * grad_f, -(lattice_std**2) * guidance_scale * grad_l
            next_coords = next_coords + steering.of_coords(shift_f, next_coords - coords, layout)
            next_lattice = next_lattice + steering.of_lattice(shift_l, next_lattice - lattice)
        if drawn is not None:
            next_coords = next_coords + gamma * drawn.coords
            next_lattice = next_lattice + lattice_std * drawn.lattice
        coords, lattice = next_coords % 1.0, next_lattice
        if watch is not None:
            watch(s, coords, lattice)
    return Sampled(coords, lattice)


def _bound(lattice: Tensor) -> Tensor:
    """Shrink lattices whose root mean square vector length exceeds the bound; rotations commute with it."""
    size = (lattice.square().sum((1, 2), keepdim=True) / 3).sqrt()
    return lattice * (LARGEST_LATTICE / size).clamp(max=1.0)


def times_from(start: Start | None, timesteps: int, steps: int) -> list[int]:
    """Noise levels from ``start`` down to 0: of ``steps`` from T to 0, its share."""
    if start is None:
        return reverse_times(timesteps, steps)
    return reverse_times(start.t, max(1, steps * start.t // timesteps))


def reverse_times(timesteps: int, steps: int) -> list[int]:
    """``steps`` + 1 noise levels from T down to 0, evenly spaced; every level if steps == timesteps."""
    return [round(timesteps * (1 - i / steps)) for i in range(steps + 1)]
