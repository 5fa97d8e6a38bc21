"""Diffusions and wrapped normal against the paper's reference values and against autograd."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dao_pipeline.config import Process
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.diffusion import Diffusion
from dao_pipeline.process.sampler import reverse_times
from dao_pipeline.process.wrapped_normal import score, score_second_moment


@pytest.fixture(scope="module")
def schedule() -> Diffusion:
    return Diffusion(Process(kind="diffusion"))


@pytest.mark.parametrize(
    ("t", "value"), [(1, 0.9999), (100, 0.9717), (500, 0.4937), (900, 0.0241), (999, 2.4e-6), (1000, 2.4e-10)]
)
def test_alpha_bar(schedule: Diffusion, t: int, value: float) -> None:
    assert float(schedule.alpha_bar[t]) == pytest.approx(value, rel=0.02)


def test_sigma_is_geometric(schedule: Diffusion) -> None:
    ratio = schedule.sigma[2:] / schedule.sigma[1:-1]
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.004620), rtol=1e-6, atol=0)
    assert [float(schedule.sigma[t]) for t in (0, 1, 1000)] == pytest.approx([0.0, 0.005, 0.5])


@pytest.mark.parametrize(("t", "value"), [(1, 4.0e4), (500, 401.0), (800, 19.7), (1000, 0.0041)])
def test_lambda(schedule: Diffusion, t: int, value: float) -> None:
    assert float(schedule.score_norm[t]) == pytest.approx(value, rel=0.02)


def test_lambda_by_quadrature_is_the_expectation() -> None:
    sigma = torch.tensor([0.02, 0.1, 0.3], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = sigma[:, None] * torch.randn(3, 200_000, generator=generator, dtype=torch.float64)
    sampled = score(draws, sigma[:, None]).square().mean(-1)
    torch.testing.assert_close(score_second_moment(sigma), sampled, rtol=0.02, atol=0)


def test_posterior_variances(schedule: Diffusion) -> None:
    gamma = [schedule.coords_step(t, t - 1)[1] ** 2 for t in range(1, 1001)]
    lattice = [schedule.lattice_step(t, t - 1)[2] ** 2 for t in range(1, 1001)]
    assert gamma[0] == 0.0
    assert lattice[0] == 0.0
    assert sum(gamma) == pytest.approx(0.248, abs=5e-4)
    assert sum(lattice) == pytest.approx(12.4, abs=0.05)
    assert sum(lattice[990:]) == pytest.approx(4.3, abs=0.05)


def test_score_is_the_gradient_of_the_log_density() -> None:
    x = torch.linspace(-0.7, 0.9, 41, dtype=torch.float64, requires_grad=True)
    images = torch.arange(-30, 31, dtype=torch.float64)
    for sigma in (0.005, 0.05, 0.2, 0.5):
        log_p = torch.logsumexp(-((x[:, None] + images) ** 2) / (2 * sigma**2), -1)
        expected = -torch.autograd.grad(log_p.sum(), x)[0]
        found = score(x.detach(), torch.full_like(x, sigma).detach())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_score_limits() -> None:
    x = torch.tensor([0.003, -0.01], dtype=torch.float64)
    torch.testing.assert_close(score(x, torch.tensor(0.005, dtype=torch.float64)), x / 0.005**2, rtol=1e-9, atol=0)
    assert score(torch.tensor([0.25]).double(), torch.tensor(0.5).double()).abs().max() < 0.2


@pytest.mark.parametrize("steps", [1000, 250, 37, 2])
def test_reverse_times(steps: int) -> None:
    times = reverse_times(1000, steps)
    assert times[0] == 1000
    assert times[-1] == 0
    assert len(times) == steps + 1
    assert all(a > b for a, b in itertools.pairwise(times))


def test_strided_steps_compose(schedule: Diffusion) -> None:
    """One long ancestral step has the marginal variance of the forward process, as many short ones do."""
    for t, s in ((1000, 990), (600, 400), (3, 1)):
        a, b, std, root = schedule.lattice_step(t, s)
        then = float(schedule.alpha_bar[s])
        # of x_s given x0: mean sqrt(abar_s) x0 and variance 1 - abar_s, through x_t
        assert a + b * root == pytest.approx(math.sqrt(then), abs=1e-9)
        assert b**2 * (1 - root**2) + std**2 == pytest.approx(1 - then, abs=1e-9)


def test_noise_keeps_clean_crystals_and_wraps(schedule: Diffusion) -> None:
    generator = torch.Generator().manual_seed(3)
    coords, lattice = torch.rand(6, 3, generator=generator), torch.randn(2, 3, 3, generator=generator)
    layout = Layout.from_ptr(torch.tensor([0, 3, 6]))
    noisy = schedule.add_noise(coords, lattice, layout, torch.tensor([0, 1000]), generator)
    torch.testing.assert_close(noisy.frac_coords[:3], coords[:3])
    torch.testing.assert_close(noisy.lattice[0], lattice[0])
    assert not noisy.coords_target[:3].any()
    assert ((noisy.frac_coords >= 0) & (noisy.frac_coords <= 1)).all()
    torch.testing.assert_close(noisy.lattice[1], noisy.lattice_target[1], atol=1e-3, rtol=0)
