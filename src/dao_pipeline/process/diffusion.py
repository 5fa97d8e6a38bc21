"""Joint diffusion of lattice and fractional coordinates: forward noise and training targets (paper 2.1, 2.2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dao_pipeline.process.schedule import Schedule
from dao_pipeline.process.wrapped_normal import score


class Noisy(NamedTuple):
    """A noisy batch and what the network should say about it.

    frac_coords: (N, 3) in [0, 1). lattice: (B, 3, 3), diffusing unit. coords_target: (N, 3), negative score
    over sqrt(lambda_t), 0 where t = 0. lattice_target: (B, 3, 3), the Gaussian noise.
    """

    frac_coords: Tensor
    lattice: Tensor
    coords_target: Tensor
    lattice_target: Tensor


def add_noise(
    frac_coords: Tensor,
    lattice: Tensor,
    crystal: Tensor,
    t: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
) -> Noisy:
    """Noise clean crystals to level t.

    frac_coords: (N, 3). lattice: (B, 3, 3), diffusing unit. crystal: (N,), crystal of each atom. t: (B,), 0 to
    T. L_t = sqrt(abar) L_0 + sqrt(1 - abar) eps; F_t = (F_0 + sigma_t eps) mod 1.
    """
    dtype, device = frac_coords.dtype, frac_coords.device
    eps_l = torch.randn(lattice.shape, generator=generator, device=device, dtype=dtype)
    eps_f = torch.randn(frac_coords.shape, generator=generator, device=device, dtype=dtype)
    alpha_bar = schedule.alpha_bar.to(dtype)[t][:, None, None]
    noisy_lattice = alpha_bar.sqrt() * lattice + (1 - alpha_bar).sqrt() * eps_l
    level = t[crystal]
    sigma = schedule.sigma.to(dtype)[level][:, None]
    shift = sigma * eps_f
    # at t = 0 the target is unused; any positive sigma keeps it finite
    target = score(shift, torch.where(sigma > 0, sigma, torch.ones_like(sigma)))
    target = target / schedule.score_norm.to(dtype)[level][:, None].sqrt()
    return Noisy((frac_coords + shift) % 1.0, noisy_lattice, target * (sigma > 0), eps_l)
