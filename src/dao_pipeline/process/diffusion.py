"""Joint diffusion of lattice and fractional coordinates: noise levels and training targets (paper 2.1, 2.2).

Lattice: variance preserving, cosine schedule. Coordinates: variance exploding, wrapped normal with geometric
sigma. All tables have T + 1 entries, index t; index 0 is the clean crystal.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dao_pipeline.config import Process
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.base import Drawn, GenerativeProcess, Noisy
from dao_pipeline.process.wrapped_normal import score, score_second_moment

if TYPE_CHECKING:
    # Only then: training does not use it, and an edit of it must not retrain models.
    from dao_pipeline.process.noise_stream import NoiseStream

COSINE_OFFSET = 0.008
BETA_LIMITS = (1e-4, 0.9999)


class Diffusion(GenerativeProcess):
    """Tables over t = 0 .. T, float64 until moved with the model.

    alpha_bar: product of 1 - beta (lattice). sigma: coordinate noise, fractional; sigma[0] = 0.
    score_norm: lambda_t = E[score^2] of the wrapped normal, 1 at t = 0.
    """

    alpha_bar: Tensor
    score_norm: Tensor

    def __init__(self, process: Process) -> None:
        super().__init__()
        steps = process.timesteps
        self.timesteps = steps
        x = torch.linspace(0, steps, steps + 1, dtype=torch.float64)
        curve = torch.cos(((x / steps) + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2
        beta = (1 - curve[1:] / curve[:-1]).clamp(*BETA_LIMITS)
        alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - beta, 0)])
        ratio = math.log(process.sigma_max / process.sigma_min)
        sigma = process.sigma_min * torch.exp(ratio * torch.linspace(0, 1, steps, dtype=torch.float64))
        score_norm = torch.cat([torch.ones(1, dtype=torch.float64), score_second_moment(sigma)])
        sigma = torch.cat([torch.zeros(1, dtype=torch.float64), sigma])
        self.register_buffer("alpha_bar", alpha_bar, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)
        # the sampler asks step by step: plain numbers, so that a GPU need not answer
        self._alpha_bars: list[float] = alpha_bar.tolist()
        self._sigmas: list[float] = sigma.tolist()
        self.register_buffer("score_norm", score_norm, persistent=True)

    def draw(self, layout: Layout, generator: torch.Generator, dtype: torch.dtype) -> Drawn:
        """Standard normal numbers, (N, 3) and (B, 3, 3)."""
        device = layout.ptr.device
        lattice = torch.randn((layout.num_crystals, 3, 3), generator=generator, device=device, dtype=dtype)
        coords = torch.randn((len(layout.crystal), 3), generator=generator, device=device, dtype=dtype)
        return Drawn(coords, lattice)

    def draw_for(self, noise: NoiseStream, dtype: torch.dtype) -> Drawn:
        """The same for sampling."""
        return Drawn(noise.normal_coords(dtype), noise.normal_lattice(9, dtype).view(-1, 3, 3))

    def at_level(self, frac_coords: Tensor, lattice: Tensor, layout: Layout, t: Tensor, drawn: Drawn) -> Noisy:
        """L_t = sqrt(abar) L_0 + sqrt(1 - abar) eps; F_t = (F_0 + sigma_t eps) mod 1.

        Targets: eps of the lattice; negative score of the coordinates over sqrt(lambda_t), 0 where t = 0.
        """
        dtype, (eps_f, eps_l) = frac_coords.dtype, drawn
        alpha_bar = self.alpha_bar.to(dtype)[t][:, None, None]
        noisy_lattice = alpha_bar.sqrt() * lattice + (1 - alpha_bar).sqrt() * eps_l
        level = t[layout.crystal]
        sigma = self.sigma.to(dtype)[level][:, None]
        shift = sigma * eps_f
        # at t = 0 the target is unused; any positive sigma keeps it finite
        target = score(shift, torch.where(sigma > 0, sigma, torch.ones_like(sigma)))
        target = target / self.score_norm.to(dtype)[level][:, None].sqrt()
        return Noisy((frac_coords + shift) % 1.0, noisy_lattice, target * (sigma > 0), eps_l)

    def lattice_step(self, t: int, s: int) -> tuple[float, float, float, float]:
        """Coefficients of the reverse step t -> s (s < t) of the lattice; s = t - 1 is the published step.

        The posterior mean is ``a x0 + b x_t`` with standard deviation ``std``; also returns
        sqrt(alpha_bar_t), from which x0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t).
        """
        now, then = self._alpha_bars[t], self._alpha_bars[s]
        ratio = now / then
        beta = 1 - ratio
        a = math.sqrt(then) * beta / (1 - now)
        b = math.sqrt(ratio) * (1 - then) / (1 - now)
        return a, b, math.sqrt(max(beta * (1 - then) / (1 - now), 0.0)), math.sqrt(now)

    def coords_step(self, t: int, s: int) -> tuple[float, float]:
        """Reverse step t -> s of the coordinates: factor of the score, and standard deviation gamma."""
        now, then = self._sigmas[t] ** 2, self._sigmas[s] ** 2
        return now - then, math.sqrt(then * (now - then) / now)
