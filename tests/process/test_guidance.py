"""What shapes guidance, for both processes: fields, times, bounds, and the choice among several draws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dao_pipeline.config import Process
from dao_pipeline.model.layout import Layout
from dao_pipeline.process import flow_sampler, sampler
from dao_pipeline.process.diffusion import Diffusion
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.guidance import Steering, choose
from dao_pipeline.process.prior import LatticePrior
from dao_pipeline.process.sampler import Denoiser, EnergyGradient, Sampled
from tests.make import noise_of

LAYOUT = Layout.from_ptr(torch.tensor([0, 2, 7, 8]))
KINDS = ("flow", "diffusion")
STEPS = 20


def denoise(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """A smooth stand-in for the network."""
    out = torch.sin(2 * math.pi * coords) + 0.3 * torch.cos(2 * math.pi * coords.roll(1, 1))
    return out, 0.4 * torch.tanh(lattice @ lattice.transpose(1, 2))


def gradient(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(2 * math.pi * coords), lattice - 1


class Counted:
    """The gradient, and at which levels it was asked for."""

    def __init__(self, inner: EnergyGradient = gradient) -> None:
        self.inner = inner
        self.levels: list[int] = []

    def __call__(self, coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        assert not coords.requires_grad
        assert not lattice.requires_grad
        self.levels.append(int(t[0]))
        return self.inner(coords, lattice, t)


def draw(
    kind: str, scale: float, guidance: EnergyGradient | None = gradient, network: Denoiser = denoise, **shape: Any
) -> Sampled:
    common: dict[str, Any] = {
        "steps": STEPS,
        "noise": noise_of(LAYOUT, 3),
        "guidance": guidance,
        "guidance_scale": scale,
        "steering": Steering(**shape),
        "dtype": torch.float64,
    }
    process = Process(kind=kind)  # type: ignore[arg-type]
    if kind == "flow":
        flow = Flow(process, LatticePrior(torch.zeros(6), 0.3 * torch.eye(6))).double()
        return flow_sampler.sample(network, LAYOUT, flow, annealing=2.0, **common)
    return sampler.sample(network, LAYOUT, Diffusion(process), **common)


def same(a: Sampled, b: Sampled) -> tuple[bool, bool]:
    return torch.equal(a.frac_coords, b.frac_coords), torch.equal(a.lattice, b.lattice)


def refuse(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    raise AssertionError("asked for the gradient")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scale", "shape"),
    [
        (0.0, {"coords": 3.0, "lattice": 0.5, "start": 0.8, "stop": 0.1, "clip": 0.2}),
        (5.0, {"coords": 0.0, "lattice": 0.0}),
        (5.0, {"start": 0.32, "stop": 0.31}),  # between two levels
    ],
)
def test_no_guidance_is_bit_for_bit_unguided(kind: str, scale: float, shape: dict[str, Any]) -> None:
    """Whatever the other settings are; the energy is not even asked."""
    assert same(draw(kind, scale, refuse, **shape), draw(kind, 0.0, None)) == (True, True)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_guidance_at_all_times_without_a_bound(kind: str) -> None:
    counted = Counted()
    assert same(draw(kind, 1.0, counted), draw(kind, 1.0, clip=1e9)) == (True, True)
    assert len(counted.levels) == STEPS - (kind == "diffusion")  # the last step of the diffusion has no variance


@pytest.mark.parametrize("kind", KINDS)
def test_guided_only_between_start_and_stop(kind: str) -> None:
    counted = Counted()
    draw(kind, 1.0, counted, start=0.7, stop=0.3)
    assert counted.levels == list(range(700, 299, -50))


@pytest.mark.parametrize("kind", KINDS)
def test_each_field_has_its_scale(kind: str) -> None:
    """With a network that looks at one field only, the other field is as unguided where its multiplier is 0."""

    def apart(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.sin(2 * math.pi * coords), 0.4 * torch.tanh(lattice @ lattice.transpose(1, 2))

    plain = draw(kind, 0.0, None, apart)
    assert same(draw(kind, 2.0, network=apart, coords=0.0), plain) == (True, False)
    assert same(draw(kind, 2.0, network=apart, lattice=0.0), plain) == (False, True)
    both = draw(kind, 2.0, network=apart)
    halves = draw(kind, 1.0, network=apart, coords=2.0, lattice=2.0)
    assert same(both, halves) == (True, True)


@pytest.mark.parametrize("kind", KINDS)
def test_bounded_by_the_generators_own_move_in_each_crystal(kind: str) -> None:
    """An energy that is a million times too steep in one crystal leaves it finite, and its neighbours alone."""

    def steep(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        by_f, by_l = gradient(coords, lattice, t)
        return torch.where(LAYOUT.crystal[:, None] == 1, 1e6, 1.0) * by_f, by_l

    tame, wild = draw(kind, 0.01, clip=0.5), draw(kind, 0.01, steep, clip=0.5)
    others = LAYOUT.crystal != 1
    torch.testing.assert_close(wild.frac_coords[others], tame.frac_coords[others], rtol=0, atol=1e-12)
    torch.testing.assert_close(wild.lattice, tame.lattice, rtol=0, atol=1e-12)
    assert not torch.allclose(wild.frac_coords[~others], tame.frac_coords[~others])


def test_bounds_are_lengths_relative_to_the_own_move() -> None:
    g = torch.Generator().manual_seed(0)
    shift, own = torch.randn(2, 8, 3, generator=g, dtype=torch.float64)
    shift[0:2] *= 1e-3  # within the bound
    shift[7] = 0
    found = Steering(coords=2.0, clip=0.5).of_coords(shift, own, LAYOUT)
    torch.testing.assert_close(found[:2], 2 * shift[:2])
    assert float(found[2:7].norm()) == pytest.approx(0.5 * float(own[2:7].norm()))
    torch.testing.assert_close(found[2:7] / found[2:7].norm(), shift[2:7] / shift[2:7].norm())
    assert not found[7].any()
    cells = torch.randn(2, 3, 3, 3, generator=g, dtype=torch.float64)
    bounded = Steering(lattice=9.0, clip=0.1).of_lattice(cells[0], cells[1])
    torch.testing.assert_close(bounded.flatten(1).norm(dim=1), 0.1 * cells[1].flatten(1).norm(dim=1))


def test_choice_is_a_boltzmann_draw_of_each_candidate_by_itself() -> None:
    energies = torch.tensor([0.0, 1.0, 3.0])[:, None].expand(3, 20_000)
    uniform = noise_of(Layout.from_ptr(torch.arange(20_001))).choice(3)
    kept = choose(energies, 0.7, uniform)
    shares = kept.bincount(minlength=3) / kept.numel()
    torch.testing.assert_close(shares, torch.softmax(-0.7 * energies[:, 0], 0), rtol=0, atol=0.015)
    even = choose(energies, 0.0, uniform).bincount(minlength=3) / kept.numel()
    torch.testing.assert_close(even, torch.full((3,), 1 / 3), rtol=0, atol=0.015)


def test_choice_passes_over_what_is_not_finite() -> None:
    nan = float("nan")
    energies = torch.tensor([[nan, 1.0, nan], [2.0, nan, nan], [nan, float("inf"), float("inf")]])
    for seed in range(20):
        kept = choose(energies, 1.0, noise_of(LAYOUT, seed).choice(3)).tolist()
        assert kept[:2] == [1, 0]
        assert kept[2] in (0, 1, 2)
