"""Crysformer as the network of a flow: symmetries of its lattice output, objectives, and what is saved."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from dao_pipeline.config import Backbone, EnergyModel, Process
from dao_pipeline.crystals.dataset import CrystalDataset
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import About, DaoModel, load_model, save_model
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.diffusion import Diffusion
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.objective import GeneratorObjective, add_noise_to, denoise
from dao_pipeline.sources.embedded import load
from dao_pipeline.training.objective import Objective, total_loss

PUBLISHED = {"edge_norm": "joint", "distances": "none", "noise_aware": False}
FORMS = pytest.mark.parametrize("form", [{}, PUBLISHED], ids=["default", "published"])


def new_model(form: dict[str, object], kind: str = "dao_g") -> DaoModel:
    torch.manual_seed(0)
    sizes = {"preset": "tiny", "layers": 2, "width": 32, "heads": 4, "frequencies": 8}
    about = About(
        kind=kind,
        backbone=Backbone.model_validate(sizes | form).model_dump(),
        process=Process(kind="flow").model_dump(),
        energy_label="e_above_hull",
        energy_std=0.1,
    )
    return DaoModel.fitted(about, load().slice(0, 200)).double()


@FORMS
def test_lattice_output_is_symmetric_and_does_not_turn(form: dict[str, object]) -> None:
    model = new_model(form)
    batch = CrystalDataset(load().slice(10, 6), dtype=torch.float64).select(torch.arange(6).numpy())
    t = torch.tensor([1, 200, 400, 600, 800, 1000])
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    with torch.no_grad():
        plain, turned = (
            model(batch.atomic_numbers, batch.frac_coords, lattice, batch.ptr, t)
            for lattice in (batch.lattice, batch.lattice @ turn)
        )
    assert plain.lattice.abs().max() > 1e-3
    torch.testing.assert_close(plain.lattice, plain.lattice.transpose(1, 2))
    torch.testing.assert_close(turned.lattice, plain.lattice, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(turned.coords, plain.coords, rtol=1e-8, atol=1e-9)


@FORMS
def test_objectives_have_gradients_for_every_head(form: dict[str, object]) -> None:
    batch = CrystalDataset(load().slice(0, 20), "e_above_hull", dtype=torch.float64).select(
        torch.arange(20).numpy()
    )
    objectives: dict[str, Objective] = {"dao_g": GeneratorObjective(), "dao_p": EnergyObjective(EnergyModel())}
    for kind, objective in objectives.items():
        model = new_model(form, kind)
        drawn = objective.draw(model, batch, torch.Generator().manual_seed(0))
        sums = objective.sums(model, drawn)
        assert all(torch.isfinite(value) for value in sums.values())
        total_loss(sums, objective.weights(drawn)).backward()
        heads = [model.crysformer.coords_head.weight, model.crysformer.lattice_head.weight]
        assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in heads)


def test_a_clean_crystal_keeps_its_energy() -> None:
    """At t = 0 the cell is turned into its symmetric form, which no model sees."""
    model = new_model({}, "dao_p")
    batch = CrystalDataset(load().slice(0, 8), dtype=torch.float64).select(torch.arange(8).numpy())
    t = torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        seen = denoise(model, add_noise_to(model, batch, t, torch.Generator().manual_seed(0))).out.energy
        layout = Layout.from_ptr(batch.ptr)
        energy = model.energy(batch.atomic_numbers, batch.frac_coords, batch.lattice, t, layout)
    assert seen is not None
    torch.testing.assert_close(seen * model.about.energy_std, energy, rtol=1e-7, atol=1e-9)


def test_the_prior_is_saved_with_the_weights(tmp_path: Path) -> None:
    model = new_model({}).float()
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert isinstance(again.schedule, Flow)
    assert isinstance(model.schedule, Flow)
    assert torch.equal(again.schedule.prior_mean, model.schedule.prior_mean)
    assert torch.equal(again.schedule.prior_factor, model.schedule.prior_factor)
    assert again.schedule.prior_mean.abs().max() > 0


def test_models_from_before_there_were_flows_are_diffusions(tmp_path: Path) -> None:
    about = new_model({}).about
    process = {k: v for k, v in Process(kind="diffusion").model_dump().items() if k != "kind"}
    model = DaoModel.fitted(dataclasses.replace(about, process=process), load().slice(0, 50))
    assert "schedule.score_norm" in model.state_dict()
    save_model(model, tmp_path)
    assert isinstance(load_model(tmp_path).schedule, Diffusion)


def test_weights_of_the_other_process_are_refused(tmp_path: Path) -> None:
    save_model(new_model({}), tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"kind": "flow"', '"kind": "diffusion"'))
    with pytest.raises(UserError, match="not a sound model directory"):
        load_model(tmp_path)
