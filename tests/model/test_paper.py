"""Paper mode: the presets, and the campaign that sets everything as published."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dao_pipeline.config import Backbone, Campaign
from dao_pipeline.model.dao import PRESETS, About, DaoModel, backbone_sizes
from dao_pipeline.model.layout import Layout
from dao_pipeline.preflight import check_campaigns
from dao_pipeline.process.noise_stream import NoiseStream
from dao_pipeline.process.sampler import sample
from dao_pipeline.process.wrapped_normal import score
from tests.make import binary, noise_of, raw_file
from tests.model import reference

PAPER = Path(__file__).parents[2] / "config" / "campaigns" / "paper.yaml"


@pytest.fixture
def campaign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Campaign:
    """config/campaigns/paper.yaml, checked as ``dao-pipeline check`` does it, with a small table for its file."""
    monkeypatch.setenv("DAO_CRYSDB", str(raw_file(tmp_path / "crysdb.parquet", [binary(0)])))
    return check_campaigns([PAPER])[PAPER]


def make(campaign: Campaign, kind: str, preset: str | None = None) -> DaoModel:
    backbone = campaign.energy_model.backbone if kind == "dao_p" else campaign.generator.backbone
    if preset is not None:
        backbone = backbone.model_copy(update={"preset": preset})
    about = About(kind=kind, backbone=backbone.model_dump(), process=campaign.process.model_dump())
    return DaoModel(about, np.ones(101))


def test_parameters_of_the_paper(campaign: Campaign) -> None:
    assert make(campaign, "dao_g").parameter_count() == 25_211_352
    assert make(campaign, "dao_p").parameter_count() == 25_359_577


@pytest.mark.parametrize(
    ("preset", "sizes"), [("tiny", (4, 96, 4, 32)), ("small", (8, 256, 8, 32)), ("base", (12, 384, 8, 128))]
)
def test_presets(campaign: Campaign, preset: str, sizes: tuple[int, ...]) -> None:
    """Layers, width, heads, frequencies; the parameters follow from them."""
    assert tuple(PRESETS[preset].values()) == sizes
    layers, d, heads, frequencies = sizes
    model = make(campaign, "dao_g", preset).crysformer
    edge = 9 + 6 * frequencies
    attention = (d * d + d) + (2 * d * d + 2 * d) + (d * edge + d) + (d * d + d) + 2 * edge
    block = attention + 2 * d + 3 * d + (8 * d * d + 5 * d) + 2 * d + 3 * d
    outside = (92 * d + d) + (d * (d + 256) + d) + 3 * d + 9 * d
    assert sum(p.numel() for p in model.parameters()) == layers * block + outside
    assert {block.attention.heads for block in model.blocks} == {heads}


def test_overrides_of_a_preset() -> None:
    sizes = backbone_sizes(Backbone(preset="base", layers=3, frequencies=16))
    assert sizes == {"layers": 3, "width": 384, "heads": 8, "frequencies": 16}


def test_settings_of_the_paper(campaign: Campaign) -> None:
    """What a default must not change unseen: the values of the paper, spelt out once more."""
    process, energy = campaign.process, campaign.energy_model
    assert (process.timesteps, process.sigma_min, process.sigma_max) == (1000, 0.005, 0.5)
    assert (process.remove_drift, process.lattice_scale) == (False, "none")
    for backbone in (energy.backbone, campaign.generator.backbone):
        assert (backbone.preset, backbone.edge_norm, backbone.noise_aware) == ("base", "joint", False)
        assert backbone.residual == "gated"
    assert (energy.loss, energy.clean_fraction, energy.energy_weight) == ("exponential", 0.0, 1.0)
    assert (energy.reference, energy.precursors) == ("none", "noisy")
    runs = {
        "dao_p": (energy.training, 2e-4, 0.0, 800),
        "stage1": (campaign.pretrain.stage1, 3e-4, 0.0, 800),
        "stage2": (campaign.pretrain.stage2, 1e-4, 0.0, 500),
        "finetune": (campaign.finetune.training, 2e-5, 1e-5, 1000),
    }
    for name, (training, rate, decay, epochs) in runs.items():
        assert (training.learning_rate, training.weight_decay) == (rate, decay), name
        assert (training.final_learning_rate, training.ema_decay, training.permute_axes) == (1e-6, 0.0, False)
        assert (training.clip, training.clip_value, training.decoupled_decay) == ("value", 0.5, False)
        assert (training.precision, training.keep) == ("fp32", "last")
        assert training.warmup_steps * epochs == training.steps * 50, name
    generate, matcher = campaign.generate, campaign.evaluate.matcher
    assert (generate.steps, generate.corrector, generate.step_size) == (1000, True, 1e-5)
    assert generate.guidance_scale == 20.0
    assert (matcher.ltol, matcher.stol, matcher.angle_tol) == (0.3, 0.5, 10.0)
    assert (campaign.crysdb.min_atoms, campaign.crysdb.max_atoms) == (1, 30)
    assert (campaign.relax.min_e_above_hull, campaign.relax.max_e_above_hull) == (0.08, 0.5)


def test_noise_of_the_paper(campaign: Campaign) -> None:
    """Every level against the equations of section 2.1, written out once more; reference values of section 11."""
    schedule = make(campaign, "dao_g", "tiny").schedule
    curve = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    abar, sigma = [1.0], [0.0]
    for t in range(1, 1001):
        abar.append(abar[-1] * (1 - min(max(1 - curve[t] / curve[t - 1], 1e-4), 0.9999)))
        sigma.append(0.005 * 100 ** ((t - 1) / 999))
    torch.testing.assert_close(schedule.alpha_bar, torch.tensor(abar, dtype=torch.float64), rtol=1e-10, atol=0)
    torch.testing.assert_close(schedule.sigma, torch.tensor(sigma, dtype=torch.float64), rtol=1e-10, atol=0)
    assert sum(abar[t] / abar[t - 1] > 0.9999 - 1e-9 for t in range(1, 1001)) == 13
    for t in range(1, 1001):
        beta = 1 - abar[t] / abar[t - 1]
        variance = beta * (1 - abar[t - 1]) / (1 - abar[t])
        gamma = sigma[t - 1] ** 2 * (sigma[t] ** 2 - sigma[t - 1] ** 2) / sigma[t] ** 2
        assert schedule.lattice_step(t, t - 1)[2] ** 2 == pytest.approx(variance, rel=1e-8, abs=1e-14)
        assert schedule.coords_step(t, t - 1)[1] ** 2 == pytest.approx(gamma, rel=1e-8, abs=1e-14)


def test_lambda_agrees_with_the_published_estimate(campaign: Campaign) -> None:
    """The published mean over 10,000 draws scatters about the quadrature with its own standard error."""
    schedule = make(campaign, "dao_g", "tiny").schedule
    g = torch.Generator().manual_seed(0)
    errors = []
    for t in range(1, 1001, 50):
        sigma = schedule.sigma[t]
        x = sigma * torch.randn(10_000, generator=g, dtype=torch.float64)
        images = x[:, None] + torch.arange(-10, 11)
        density = torch.exp(-images.square() / (2 * sigma**2))
        square = ((images / sigma**2 * density).sum(-1) / density.sum(-1)).square()
        errors.append(float((square.mean() - schedule.score_norm[t]) / (square.std() / 100)))
    assert max(map(abs, errors)) < 4
    assert 0.4 < float(torch.tensor(errors).std()) < 1.8


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_wrapped_normal_score_of_the_paper(dtype: torch.dtype, tolerance: float) -> None:
    """The truncated sum, relative to the size of the score: 1 / (sigma sqrt(lambda)) is its unit."""
    x = torch.linspace(-0.49, 0.49, 99, dtype=dtype)
    for sigma in (0.005, 0.02, 0.1, 0.25, 0.5):
        images = x.double()[:, None] + torch.arange(-10, 11)
        log = -images.square() / (2 * sigma**2)
        density = torch.exp(log - log.amax(-1, keepdim=True))
        exact = (images / sigma**2 * density).sum(-1) / density.sum(-1)
        found = score(x, torch.tensor(sigma, dtype=dtype)).double()
        torch.testing.assert_close(found, exact, rtol=tolerance, atol=tolerance * float(exact.abs().max()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=str)
def test_sampling_equals_the_plain_reference(dtype: torch.dtype, tolerance: float) -> None:
    """Our sampler with our network, against the published loop with the plain network (sections 1 and 2.3)."""
    steps, ptr = 12, torch.tensor([0, 2, 5, 6])
    backbone = Backbone(
        preset="tiny", layers=2, width=32, frequencies=8, edge_norm="joint", distances="none", noise_aware=False
    )
    process = {"timesteps": steps, "lattice_scale": "none", "remove_drift": False}
    torch.manual_seed(1)
    about = About(kind="dao_g", backbone=backbone.model_dump(), process=process)
    model = DaoModel(about, np.ones(101)).requires_grad_(False).to(dtype)
    weights = reference.of_model(model.crysformer)
    numbers = torch.tensor([3, 8, 11, 17, 17, 26])

    def ours(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return model(numbers, coords, lattice, ptr, t)[:2]

    def plain(coords: Tensor, lattice: Tensor, t: int) -> tuple[Tensor, Tensor]:
        parts = [slice(a, b) for a, b in itertools.pairwise(ptr.tolist())]
        said = [reference.crysformer(weights, numbers[p], coords[p], lattice[i], t) for i, p in enumerate(parts)]
        return torch.cat([s[0] for s in said]), torch.stack([s[1] for s in said])

    noise = noise_of(Layout.from_ptr(ptr))
    found = sample(
        ours,
        noise.layout,
        model.schedule,
        steps=steps,
        noise=noise,
        bound=False,
        dtype=dtype,
    )
    tables = {name: value.double() for name, value in model.schedule.named_buffers()}
    coords, lattice = published_loop(plain, tables, steps, noise, dtype)
    difference = (found.frac_coords - coords + 0.5) % 1.0 - 0.5
    assert difference.abs().max() <= tolerance
    torch.testing.assert_close(found.lattice, lattice, rtol=tolerance, atol=tolerance * float(lattice.abs().max()))


def published_loop(
    denoise: Any, tables: dict[str, Tensor], steps: int, noise: NoiseStream, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Predictor-corrector sampling as published (2.3), with the noise of the test above."""
    abar, sigma, lam = (tables[name].tolist() for name in ("alpha_bar", "sigma", "score_norm"))
    f = noise.uniform_coords(dtype)
    cell = noise.normal_lattice(9, dtype).view(-1, 3, 3)
    for t in range(steps, 0, -1):
        alpha = abar[t] / abar[t - 1]
        z = next(noise.steps([t], dtype, corrector=True))
        eta = 1e-5 * (sigma[t] / sigma[1]) ** 2
        f = f - eta * math.sqrt(lam[t]) * denoise(f, cell, t)[0]
        if t > 1:
            f = f + math.sqrt(2 * eta) * z.corrector
        f = f % 1.0
        eps_f, eps_l = denoise(f, cell, t)
        shrink = sigma[t] ** 2 - sigma[t - 1] ** 2
        f = f - shrink * math.sqrt(lam[t]) * eps_f
        cell = (cell - (1 - alpha) / math.sqrt(1 - abar[t]) * eps_l) / math.sqrt(alpha)
        if t > 1:
            f = f + sigma[t - 1] * math.sqrt(shrink) / sigma[t] * z.coords
            spread = math.sqrt((1 - alpha) * (1 - abar[t - 1]) / (1 - abar[t]))
            cell = cell + spread * z.lattice
        f = f % 1.0
    return f, cell
