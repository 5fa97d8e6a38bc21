"""Flow matching: what is learned, and that samplers return what the learned velocities say."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dao_pipeline.config import Process
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.flow import Flow, displacement_variance, shortest_displacements
from dao_pipeline.process.flow_sampler import Method, _guide, sample
from dao_pipeline.process.log_metric import log_metric, metric_cell, pack, unpack
from dao_pipeline.process.prior import LatticePrior
from dao_pipeline.process.sampler import Denoiser, Sampled
from tests.make import noise_of

METHODS: tuple[Method, ...] = ("euler", "midpoint")
PTR = torch.tensor([0, 2, 7, 8])
LAYOUT = Layout.from_ptr(PTR)


def make_flow(timesteps: int = 1000, std: float = 0.3, mean: float = 0.1) -> Flow:
    """A flow whose prior has another size in each direction."""
    g = torch.Generator().manual_seed(1)
    factor = std * (torch.eye(6) + 0.2 * torch.tril(torch.randn(6, 6, generator=g)))
    center = torch.tensor([mean, mean, mean, 0.0, 0.05, -0.05])
    return Flow(Process(kind="flow", timesteps=timesteps), LatticePrior(center, factor)).double()


def wrap(x: Tensor) -> Tensor:
    return (x + 0.5) % 1.0 - 0.5


def crystals(layout: Layout = LAYOUT, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Coordinates and cells (in units of the expected edge)."""
    g = torch.Generator().manual_seed(seed)
    coords = torch.rand(int(layout.ptr[-1]), 3, generator=g, dtype=torch.float64)
    y = 0.2 * torch.randn(layout.num_crystals, 6, generator=g, dtype=torch.float64)
    return coords, metric_cell(unpack(y))


def knows(flow: Flow, coords: Tensor, lattice: Tensor, layout: Layout = LAYOUT) -> Denoiser:
    """The outputs of a network that knows the crystals: it points at them from wherever it stands."""
    y_0, center = log_metric(lattice), flow.center(torch.float64)

    def denoise(noisy: Tensor, cell: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        s = (t / flow.timesteps).double()[:, None, None]
        y = log_metric(cell)
        y_1 = (y - (1 - s) * y_0) / s
        radius = (s**2 + (1 - s) ** 2).sqrt()
        w = ((1 - s) * (y_1 - center) - s * (y_0 - center)) / (radius * flow.lattice_std(torch.float64))
        u = shortest_displacements(noisy - coords, layout) / s[layout.crystal, 0]
        return u * math.sqrt(12), w

    return denoise


def test_paths_lead_from_the_crystal_to_the_prior() -> None:
    flow, (coords, lattice) = make_flow(), crystals()

    def at(t: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return flow.add_noise(coords, lattice, LAYOUT, torch.full((3,), t), torch.Generator().manual_seed(0))

    clean, half, full = at(0), at(500), at(1000)
    torch.testing.assert_close(clean[0], coords)
    torch.testing.assert_close(clean[1], lattice)
    u = full[2] / math.sqrt(12)
    torch.testing.assert_close(half[2], full[2])  # the velocity is constant along the path
    assert wrap(half[0] - coords - 0.5 * u).abs().max() < 1e-12
    assert wrap(full[0] - coords - u).abs().max() < 1e-12
    y_0, y_1 = log_metric(lattice), log_metric(full[1])
    torch.testing.assert_close(log_metric(half[1]), 0.5 * (y_0 + y_1))
    for t, noisy in ((0, clean), (500, half), (1000, full)):
        velocity = flow.lattice_velocity(noisy[3], log_metric(noisy[1]), t / 1000)
        torch.testing.assert_close(velocity, y_1 - y_0)
        torch.testing.assert_close(noisy[3], noisy[3].transpose(1, 2))


def test_each_crystal_has_its_own_level() -> None:
    flow, (coords, lattice) = make_flow(), crystals()
    noisy = flow.add_noise(coords, lattice, LAYOUT, torch.tensor([0, 1000, 0]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(noisy.frac_coords[:2], coords[:2])
    torch.testing.assert_close(noisy.lattice[[0, 2]], lattice[[0, 2]])
    assert (wrap(noisy.frac_coords - coords)[2:7]).abs().max() > 0.05


def test_displacements_are_the_shortest() -> None:
    """Against all images, all of which are followed by the best translation."""
    layout = Layout.from_ptr(torch.tensor([0, 4, 5, 9, 11]))
    u = torch.rand(11, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = shortest_displacements(u, layout)
    torch.testing.assert_close(layout.remove_mean(found), found)
    for i in range(4):
        atoms = layout.crystal == i
        start, moved = u[atoms], found[atoms]
        # the same points of the torus, but for one translation
        assert wrap(moved - start - (moved - start)[:1]).abs().max() < 1e-12
        images = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=len(start))), dtype=torch.float64)
        candidates = start[None] + images[:, :, None]
        least = (candidates - candidates.mean(1, keepdim=True)).square().sum(1).min(0).values
        torch.testing.assert_close(moved.square().sum(0), least)


def test_noise_is_where_the_sampler_starts() -> None:
    """At s = 1 differences of coordinates are uniform and cells are the prior's, whatever the data."""
    count = 20_000
    layout = Layout.from_ptr(torch.arange(0, 3 * count + 1, 3))
    flow = make_flow()
    coords = torch.tensor([[0.1, 0.2, 0.3], [0.6, 0.2, 0.8], [0.15, 0.7, 0.1]], dtype=torch.float64).repeat(
        count, 1
    )
    lattice = (0.7 * torch.eye(3, dtype=torch.float64)).repeat(count, 1, 1)
    level = torch.full((count,), 1000)
    noisy = flow.add_noise(coords, lattice, layout, level, torch.Generator().manual_seed(0))
    triples = noisy.frac_coords.view(count, 3, 3)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        phase = 2 * math.pi * (triples[:, i] - triples[:, j])
        for k in (1, 2, 3):  # Fourier coefficients of a uniform density vanish
            assert (k * phase).cos().mean(0).abs().max() < 4 / math.sqrt(count)
            assert (k * phase).sin().mean(0).abs().max() < 4 / math.sqrt(count)
    triangle = 2 * math.pi * (triples[:, 0] + triples[:, 1] - 2 * triples[:, 2])
    assert triangle.cos().mean(0).abs().max() < 4 / math.sqrt(count)
    drawn = pack(flow.draw_lattice(count, torch.Generator().manual_seed(1), torch.float64))
    reached = pack(log_metric(noisy.lattice))
    torch.testing.assert_close(reached.mean(0), drawn.mean(0), atol=0.015, rtol=0)
    torch.testing.assert_close(reached.T.cov(), drawn.T.cov(), atol=0.005, rtol=0)


@pytest.mark.parametrize("t", [1, 300, 700, 1000])
def test_targets_are_of_unit_scale(t: int) -> None:
    """Lattice: mean square 1 at every level, and uncorrelated with the noisy cell, for data like the prior."""
    count, atoms = 4000, 12
    flow = make_flow()
    layout = Layout.from_ptr(torch.arange(0, atoms * count + 1, atoms))
    g = torch.Generator().manual_seed(3)
    lattice = metric_cell(flow.draw_lattice(count, g, torch.float64))
    coords = torch.rand(atoms * count, 3, generator=g, dtype=torch.float64)
    noisy = flow.add_noise(coords, lattice, layout, torch.full((count,), t), g)
    assert float(noisy.lattice_target.square().mean()) == pytest.approx(1, rel=0.03)
    y = pack(log_metric(noisy.lattice) - flow.center(torch.float64))
    covariance = (pack(noisy.lattice_target).T @ y / count).abs().max()
    assert float(covariance) < 0.03
    coords_scale = float(noisy.coords_target.square().mean())
    assert 0.6 < coords_scale < 1  # the translation and the images took what they could
    torch.testing.assert_close(layout.remove_mean(noisy.coords_target), noisy.coords_target)


@pytest.mark.parametrize(("atoms", "expected"), [(1, 0.0), (2, 1 / 24), (3, 5 / 108), (4, 19 / 384)])
def test_variance_of_displacements(atoms: int, expected: float) -> None:
    """Second moments of a segment, a hexagon and a truncated octahedron: the cells of the lattices A_n*."""
    assert displacement_variance(atoms) == pytest.approx(expected, rel=0.015)
    assert displacement_variance(60) < 1 / 12


def test_one_atom_has_nowhere_to_go() -> None:
    flow = make_flow()
    layout = Layout.from_ptr(torch.tensor([0, 1]))
    coords, lattice = crystals(layout)
    noisy = flow.add_noise(coords, lattice, layout, torch.tensor([700]), torch.Generator().manual_seed(0))
    assert not noisy.coords_target.any()
    torch.testing.assert_close(noisy.frac_coords, coords)


def draw(
    flow: Flow, denoise: Denoiser, steps: int, method: Method = "euler", seed: int = 0, **more: object
) -> Sampled:
    return sample(
        denoise,
        LAYOUT,
        flow,
        steps=steps,
        method=method,
        noise=noise_of(LAYOUT, seed),
        dtype=torch.float64,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [10, 37])
@pytest.mark.parametrize("annealing", [0.0, 5.0])
def test_perfect_velocities_bring_the_crystal_back(method: Method, steps: int, annealing: float) -> None:
    flow, (coords, lattice) = make_flow(), crystals()
    found = draw(flow, knows(flow, coords, lattice), steps, method, annealing=annealing)
    torch.testing.assert_close(found.lattice, lattice, rtol=0, atol=1e-7)
    off = shortest_displacements(found.frac_coords - coords, LAYOUT)  # up to a translation
    assert off.abs().max() < 1e-9
    assert ((found.frac_coords >= 0) & (found.frac_coords < 1)).all()


def smooth(noisy: Tensor, cell: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of no particular meaning that vary with everything."""
    phase = 0.001 * t.double()
    out_f = torch.sin(2 * math.pi * noisy + phase[LAYOUT.crystal, None]) + 0.3 * torch.cos(
        2 * math.pi * noisy
    ).roll(1)
    return out_f, torch.tanh(log_metric(cell) * 2 + phase[:, None, None])


def test_order_of_the_methods() -> None:
    """Halving the steps' length divides Euler's error by 2 and midpoint's by 4; odd distances of levels too."""
    flow = make_flow(timesteps=1800)
    exact = draw(flow, smooth, 900, "midpoint")

    def error(steps: int, method: Method) -> tuple[float, float]:
        found = draw(flow, smooth, steps, method)
        return (
            float(wrap(found.frac_coords - exact.frac_coords).abs().max()),
            float((found.lattice - exact.lattice).abs().max()),
        )

    for method, order in (("euler", 1.0), ("midpoint", 2.0)):
        for coarse, fine in zip(error(40, method), error(80, method), strict=True):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)
    # 1000 levels in 40 steps of 25: the middle of a step is no level
    odd = make_flow(timesteps=1000)
    reference = draw(odd, lambda f, cell, t: smooth(f, cell, 1.8 * t), 500, "midpoint")
    found = draw(odd, lambda f, cell, t: smooth(f, cell, 1.8 * t), 40, "midpoint")
    assert wrap(found.frac_coords - reference.frac_coords).abs().max() < 4 * error(40, "midpoint")[0]


def counting(denoise: Denoiser) -> tuple[Denoiser, list[int]]:
    levels: list[int] = []

    def counted(noisy: Tensor, cell: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        levels.append(int(t[0]))
        return denoise(noisy, cell, t)

    return counted, levels


@pytest.mark.parametrize(
    ("method", "steps"), [("euler", 25), ("euler", 1000), ("midpoint", 25), ("midpoint", 500)]
)
def test_calls_and_levels(method: Method, steps: int) -> None:
    denoise, levels = counting(smooth)
    draw(make_flow(), denoise, steps, method)
    assert len(levels) == steps * (2 if method == "midpoint" else 1)
    assert levels == sorted(levels, reverse=True)
    assert min(levels) > 0
    assert levels[0] == 1000


def test_too_many_steps_for_midpoint() -> None:
    with pytest.raises(ValueError, match="at most 500 steps"):
        draw(make_flow(), smooth, 501, "midpoint")


def test_start_depends_on_the_seed_alone() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def first(noisy: Tensor, cell: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if int(t[0]) == 1000:
            seen.append((noisy, cell))
        return smooth(noisy, cell, t)

    for steps, method in ((10, "euler"), (50, "euler"), (10, "midpoint")):
        draw(make_flow(), first, steps, method)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for later in seen[1:] for a, b in zip(seen[0], later, strict=True))
    again, other = draw(make_flow(), smooth, 10), draw(make_flow(), smooth, 10, seed=1)
    assert torch.equal(draw(make_flow(), smooth, 10).lattice, again.lattice)
    assert not torch.equal(other.frac_coords, again.frac_coords)


def test_annealing_zero_is_plain_and_more_is_not() -> None:
    plain = draw(make_flow(), smooth, 20)
    assert torch.equal(draw(make_flow(), smooth, 20, annealing=0.0).frac_coords, plain.frac_coords)
    annealed = draw(make_flow(), smooth, 20, annealing=3.0)
    assert not torch.equal(annealed.frac_coords, plain.frac_coords)


def test_the_sampler_adds_no_drift() -> None:
    """An output that moves all atoms alike moves none."""
    flow = make_flow()

    def drifting(noisy: Tensor, cell: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full_like(noisy, 0.7), torch.zeros_like(cell)

    start = noise_of(LAYOUT).uniform_coords(torch.float64)
    assert wrap(draw(flow, drifting, 10).frac_coords - start).abs().max() < 1e-12


def test_neighbours_do_not_matter() -> None:
    """The velocities of other crystals of the batch leave a crystal as it is."""

    def disturbed(noisy: Tensor, cell: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out_f, out_l = smooth(noisy, cell, t)
        return torch.where(LAYOUT.crystal[:, None] == 1, 3.0, out_f), torch.where(
            torch.arange(3)[:, None, None] == 1, 1.0, out_l
        )

    plain, other = draw(make_flow(), smooth, 12, "midpoint"), draw(make_flow(), disturbed, 12, "midpoint")
    keep = LAYOUT.crystal != 1
    torch.testing.assert_close(other.frac_coords[keep], plain.frac_coords[keep], rtol=0, atol=1e-12)
    torch.testing.assert_close(other.lattice[[0, 2]], plain.lattice[[0, 2]], rtol=0, atol=1e-12)
    assert not torch.allclose(other.lattice[1], plain.lattice[1])


# Guidance


def energy_gradient(energy: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Gradients with respect to F and L of an energy of F, Y and t, as DAO-P gives them."""

    def gradient(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            f, cell = coords.detach().requires_grad_(), lattice.detach().requires_grad_()
            values, vectors = torch.linalg.eigh(cell)
            y = (vectors * values.log()[:, None, :]) @ vectors.transpose(1, 2)
            by_f, by_cell = torch.autograd.grad(energy(f, y, t).sum(), (f, cell))
        return by_f, by_cell

    return gradient


def no_energy(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    raise AssertionError("guidance at scale 0")


@pytest.mark.parametrize("method", METHODS)
def test_scale_zero_is_unguided_bit_for_bit(method: Method) -> None:
    plain = draw(make_flow(), smooth, 12, method)
    guided = draw(make_flow(), smooth, 12, method, guidance=no_energy, guidance_scale=0.0)
    assert torch.equal(plain.frac_coords, guided.frac_coords)
    assert torch.equal(plain.lattice, guided.lattice)


@pytest.mark.parametrize("method", METHODS)
def test_one_gradient_per_step(method: Method) -> None:
    calls: list[int] = []

    def gradient(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(int(t[0]))
        return torch.zeros_like(coords), torch.zeros_like(lattice)

    draw(make_flow(), smooth, 12, method, guidance=gradient, guidance_scale=1.0)
    assert len(calls) == 12


@pytest.mark.parametrize("method", METHODS)
def test_guided_cells_have_the_distribution_asked_for(method: Method) -> None:
    """Normal cells, quadratic energy: mean and variance of p ~ q exp(-E) are known, and so is E_s."""
    std, center, own, target, stiffness = 0.3, 0.1, 0.25, 0.35, 20.0
    eye = torch.eye(3, dtype=torch.float64)
    prior = LatticePrior(pack(center * eye[None])[0], std * torch.eye(6))
    flow = Flow(Process(kind="flow"), prior).double()
    count = 800
    layout = Layout.from_ptr(torch.arange(count + 1))

    def posterior(y: Tensor, s: float) -> tuple[Tensor, float, float]:
        """Mean of Y_0 given Y_s, its slope and variance; data about -0.2 in each length."""
        total = (1 - s) ** 2 * own**2 + s**2 * std**2
        slope = (1 - s) * own**2 / total
        mean = -0.2 * eye + slope * (y - ((s - 1) * 0.2 + s * center) * eye)
        return mean, slope, own**2 * s**2 * std**2 / total

    def denoise(noisy: Tensor, cell: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        s, y = int(t[0]) / 1000, log_metric(cell)
        y_0, _, _ = posterior(y, s)
        y_1 = (y - (1 - s) * y_0) / s
        w = ((1 - s) * (y_1 - center * eye) - s * (y_0 - center * eye)) / math.sqrt(s**2 + (1 - s) ** 2)
        return torch.zeros_like(noisy), w / flow.lattice_std(torch.float64)

    def energy(f: Tensor, y: Tensor, t: Tensor) -> Tensor:
        mean, _, variance = posterior(y, int(t[0]) / 1000)
        excess = (mean - target * eye).square().sum((1, 2))
        return 0.5 * stiffness / (1 + stiffness * variance) * excess + 0 * f.sum()

    found = sample(
        denoise,
        layout,
        flow,
        steps=100,
        method=method,
        noise=noise_of(layout),
        guidance=energy_gradient(energy),
        guidance_scale=1.0,
        dtype=torch.float64,
    )
    precision = 1 / own**2 + stiffness
    y = log_metric(found.lattice)
    mean = (-0.2 / own**2 + stiffness * target) / precision
    assert mean > 0  # far from the -0.2 of unguided cells
    assert float(y.diagonal(dim1=1, dim2=2).mean()) == pytest.approx(mean, abs=0.02)
    assert float(pack(y).std(0).mean()) == pytest.approx(precision**-0.5, rel=0.05)


PAIRS = 2000


def pair_energy(strength: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """E_s of pairs whose coordinates are uniformly random and whose energy is -strength cos(2 pi d) on each axis.

    To first order in ``strength``: noise damps the cosine by b(s) = sin(pi s) / (pi s), d being uniform on an
    interval of length s.
    """

    def energy(f: Tensor, y: Tensor, t: Tensor) -> Tensor:
        s = int(t[0]) / 1000
        damped = math.sin(math.pi * s) / (math.pi * s) * strength
        return -(1 + damped * torch.cos(2 * math.pi * (f[1::2] - f[::2]))).log().sum(1) + 0 * y.sum((1, 2))

    return energy


def at_rest(noisy: Tensor, cell: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(noisy), torch.zeros_like(cell)


def test_guidance_of_atoms_is_exact_near_the_crystal() -> None:
    """Against the velocity that continuity asks of the density 1 + strength b(s) cos(2 pi d)."""
    layout, flow, t, strength = Layout.from_ptr(torch.tensor([0, 2])), make_flow(), 100, 1e-3
    coords = torch.rand(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.diag(torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64))[None]
    by_f, by_l = _guide(energy_gradient(pair_energy(strength)), flow, layout, coords, y, t, 1.0)
    s = t / 1000
    slope = math.cos(math.pi * s) / s - math.sin(math.pi * s) / (math.pi * s**2)
    exact = -strength * slope / (2 * math.pi) * torch.sin(2 * math.pi * (coords[1] - coords[0]))
    torch.testing.assert_close(by_f[1] - by_f[0], exact, rtol=0.03, atol=0)
    assert not by_l.any()


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_guided_atoms_go_where_energy_is_low(scale: float) -> None:
    """Mean of cos(2 pi d): I_1 / I_0 asked for; the displacements are not normal, so that not all of it comes."""
    strength, layout = 0.3, Layout.from_ptr(torch.arange(0, 2 * PAIRS + 1, 2))
    found = sample(
        at_rest,
        layout,
        make_flow(),
        steps=50,
        noise=noise_of(layout),
        guidance=energy_gradient(pair_energy(scale * strength)),
        guidance_scale=1.0,
        dtype=torch.float64,
    )
    mean = float(torch.cos(2 * math.pi * (found.frac_coords[1::2] - found.frac_coords[::2])).mean())
    asked = scale * strength / 2 * (1 - strength**2 / 8)
    assert 0.5 < mean / asked < 1.1
