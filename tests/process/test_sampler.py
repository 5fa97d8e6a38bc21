"""The sampler against the published update rules, and what guidance may and may not do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dao_pipeline.config import Process
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.diffusion import Diffusion
from dao_pipeline.process.sampler import sample
from tests.make import noise_of

STEPS = 40
PTR = torch.tensor([0, 2, 5])
LAYOUT = Layout.from_ptr(PTR)
CRYSTALS = 2


def denoise(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """A smooth stand-in for the network, different at every level."""
    phase = 0.01 * t.to(coords.dtype)
    per_atom = phase[torch.repeat_interleave(torch.arange(CRYSTALS), PTR.diff())][:, None]
    return torch.sin(2 * math.pi * coords + per_atom), torch.tanh(lattice + phase[:, None, None])


def gradient(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(2 * math.pi * coords), lattice


def run(guidance_scale: float, use_gradient: bool = True, seed: int = 7) -> tuple[Tensor, Tensor]:
    return sample(
        denoise,
        LAYOUT,
        Diffusion(Process(kind="diffusion", timesteps=STEPS)),
        steps=STEPS,
        noise=noise_of(LAYOUT, seed),
        guidance=gradient if use_gradient else None,
        guidance_scale=guidance_scale,
        bound=False,
        dtype=torch.float64,
    )


def published(scale: float, seed: int = 7) -> tuple[Tensor, Tensor]:
    """Predictor-corrector loop as the paper's code writes it, in its own symbols (2.3, 5)."""
    schedule = Diffusion(Process(kind="diffusion", timesteps=STEPS))
    abar, sigma, lam = schedule.alpha_bar, schedule.sigma, schedule.score_norm
    noise = noise_of(LAYOUT, seed)
    f = noise.uniform_coords(torch.float64)
    cell = noise.normal_lattice(9, torch.float64).view(-1, 3, 3)
    for t in range(STEPS, 0, -1):
        level = torch.full((CRYSTALS,), t)
        alpha = abar[t] / abar[t - 1]
        eta = 1e-5 * (sigma[t] / sigma[1]) ** 2
        score = lam[t].sqrt() * denoise(f, cell, level)[0]
        f = f - eta * score
        z = next(noise.steps([t], torch.float64, corrector=True))
        if t > 1:
            f = f + (2 * eta).sqrt() * z.corrector
        f = f % 1.0
        eps_f, eps_l = denoise(f, cell, level)
        var_f = sigma[t - 1] ** 2 * (sigma[t] ** 2 - sigma[t - 1] ** 2) / sigma[t] ** 2
        var_l = (1 - alpha) * (1 - abar[t - 1]) / (1 - abar[t])
        grad_f, grad_l = gradient(f, cell, level)
        new_f = f - (sigma[t] ** 2 - sigma[t - 1] ** 2) * lam[t].sqrt() * eps_f - var_f * scale * grad_f
        new_l = (cell - (1 - alpha) / (1 - abar[t]).sqrt() * eps_l) / alpha.sqrt() - var_l * scale * grad_l
        if t > 1:
            new_f = new_f + var_f.sqrt() * z.coords
            new_l = new_l + var_l.sqrt() * z.lattice
        f, cell = new_f % 1.0, new_l
    return f, cell


def close_on_the_circle(a: Tensor, b: Tensor) -> None:
    assert ((a - b + 0.5) % 1.0 - 0.5).abs().max() < 1e-9


def test_equals_the_published_loop() -> None:
    for scale in (0.0, 2.0):
        coords, lattice = run(scale)
        expected_coords, expected_lattice = published(scale)
        close_on_the_circle(coords, expected_coords)
        torch.testing.assert_close(lattice, expected_lattice, rtol=1e-8, atol=1e-8)


def test_scale_zero_is_unguided_bit_for_bit() -> None:
    guided, plain = run(0.0), run(0.0, use_gradient=False)
    assert torch.equal(guided[0], plain[0])
    assert torch.equal(guided[1], plain[1])


def test_guidance_acts_and_seeds_decide() -> None:
    assert not torch.equal(run(2.0)[1], run(0.0)[1])
    assert torch.equal(run(2.0)[0], run(2.0)[0])
    assert not torch.equal(run(0.0, seed=8)[0], run(0.0)[0])


def test_perfect_denoiser_brings_the_crystal_back() -> None:
    """With the exact score of a single crystal the sampler returns it, up to a translation of the atoms."""
    schedule = Diffusion(Process(kind="diffusion", timesteps=200))
    truth_f = torch.tensor([[0.0, 0, 0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    truth_l = torch.diag(torch.tensor([0.9, 1.0, 1.2], dtype=torch.float64))[None]
    from dao_pipeline.process.wrapped_normal import score

    def exact(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        level = int(t[0])
        sigma = schedule.sigma[level]
        eps_f = score(coords - truth_f, sigma.expand(2, 3)) / schedule.score_norm[level].sqrt()
        abar = schedule.alpha_bar[level]
        return eps_f, (lattice - abar.sqrt() * truth_l) / (1 - abar).sqrt()

    coords, lattice = sample(
        exact,
        Layout.from_ptr(torch.tensor([0, 2])),
        schedule,
        steps=200,
        noise=noise_of(Layout.from_ptr(torch.tensor([0, 2]))),
        dtype=torch.float64,
    )
    torch.testing.assert_close(lattice, truth_l, atol=1e-6, rtol=0)
    assert ((coords - truth_f + 0.5) % 1.0 - 0.5).abs().max() < 0.02
