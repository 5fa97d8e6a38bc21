"""Paths from templates: what the network is to say of them leads back, and what it need not know is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from dao_pipeline.config import Backbone, Process
from dao_pipeline.crystals.crystal import wrap
from dao_pipeline.crystals.dataset import CrystalDataset, paired_rows
from dao_pipeline.crystals.flat import FlatCrystals, flatten, structure_columns
from dao_pipeline.model.dao import About, DaoModel, load_model, save_model
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.log_metric import log_metric, metric_cell
from dao_pipeline.process.objective import GeneratorObjective, TemplateObjective
from dao_pipeline.process.sampler import Sampled
from dao_pipeline.process.symmetrize import Symmetrizer
from dao_pipeline.process.template_errors import template_errors
from dao_pipeline.process.template_sampler import noised, refine
from dao_pipeline.sources.embedded import load
from tests.make import noise_of

BACKBONE = Backbone(preset="tiny", layers=2, width=32, heads=4, frequencies=8, distances="none")


def crystals(count: int = 8) -> pa.Table:
    return load().slice(40, count)


def pairs_of(table: pa.Table, scale: float = 0.02, seed: int = 0) -> pa.Table:
    """Templates: the crystals themselves, strained and with displaced atoms."""
    flat, rng = flatten(table), np.random.default_rng(seed)
    strain = rng.normal(0, scale, (len(flat), 3, 3))
    moved = FlatCrystals(
        numbers=flat.numbers,
        frac=wrap(flat.frac + rng.normal(0, scale, flat.frac.shape)),
        lattice=flat.lattice @ (np.eye(3) + strain + strain.transpose(0, 2, 1)),
        counts=flat.counts,
    )
    columns = structure_columns(moved, table["formula"].to_pylist())
    return pa.table({"id": table["id"].combine_chunks(), **columns})


def new_model(errors: tuple[float, float] | None) -> DaoModel:
    torch.manual_seed(0)
    about = About(
        kind="dao_g", backbone=BACKBONE.model_dump(), process=Process().model_dump(), template_errors=errors
    )
    return DaoModel.fitted(about, load().slice(0, 200)).double()


def path(t: int) -> tuple[Flow, Layout, Tensor, Tensor, Tensor, Tensor, object]:
    table = crystals()
    batch = CrystalDataset(table, dtype=torch.float64, templates=pairs_of(table)).select(np.arange(8))
    layout = Layout.from_ptr(batch.ptr)
    flow = Flow(Process(), template_errors=(0.02, 0.05))
    own, template = (batch.frac_coords, batch.lattice), (batch.template_coords, batch.template_lattice)
    noisy = flow.template_path(own, template, layout, torch.full((8,), t))
    return flow, layout, *own, *template, noisy


def same_points(a: Tensor, b: Tensor, layout: Layout) -> float:
    """Largest distance between coordinates, up to images and one translation per crystal."""
    difference = a - b
    return float(layout.remove_mean(difference - difference.round()).abs().max())


def test_a_path_leads_from_the_crystal_to_its_template() -> None:
    _, layout, frac, lattice, template_frac, template_lattice, start = path(0)
    assert same_points(start.frac_coords, frac, layout) < 1e-12
    torch.testing.assert_close(log_metric(start.lattice), log_metric(lattice))
    *_, end = path(1000)
    assert same_points(end.frac_coords, template_frac, layout) < 1e-12
    torch.testing.assert_close(log_metric(end.lattice), log_metric(template_lattice))


@pytest.mark.parametrize("steps", [1, 10])
def test_what_the_network_is_to_say_leads_back_to_the_crystal(steps: int) -> None:
    flow, layout, frac, lattice, template_frac, template_lattice, noisy = path(1000)
    template = Sampled(template_frac, template_lattice)
    found = refine(lambda *_: (noisy.coords_target, noisy.lattice_target), layout, flow, template, steps=steps)
    assert same_points(found.frac_coords, frac, layout) < 1e-10
    torch.testing.assert_close(log_metric(found.lattice), log_metric(lattice))


def test_a_network_that_says_nothing_leaves_templates_as_they_are() -> None:
    flow, layout, _, _, frac, lattice, noisy = path(1000)
    nothing = torch.zeros_like(noisy.coords_target), torch.zeros_like(noisy.lattice_target)
    found = refine(lambda *_: nothing, layout, flow, Sampled(frac, lattice), steps=4)
    torch.testing.assert_close(found.frac_coords, frac)
    torch.testing.assert_close(log_metric(found.lattice), log_metric(lattice))


def test_errors_of_templates_are_their_root_mean_squares() -> None:
    table = load().slice(0, 200)
    coords, lattice = template_errors(table, pairs_of(table, 0.02))
    atoms = flatten(table).counts
    # one direction of each crystal's displacements is its translation, which does not count
    assert coords == pytest.approx(0.02 * np.sqrt((atoms - 1).sum() / atoms.sum()), rel=0.05)
    assert 0.02 < lattice < 0.06
    none = template_errors(table, pairs_of(table).slice(0, 0))
    assert none == (1e-3, 1e-3)


def test_crystals_without_a_pair_are_their_own_template() -> None:
    table = crystals(6)
    pairs = pairs_of(table).take([4, 1])
    assert paired_rows(table, pairs).tolist() == [-1, 1, -1, -1, 0, -1]
    batch = CrystalDataset(table, templates=pairs).select(np.arange(6))
    assert batch.paired.tolist() == [False, True, False, False, True, False]
    first = slice(0, int(batch.ptr[1]))
    assert torch.equal(batch.template_coords[first], batch.frac_coords[first])
    other = pairs.set_column(
        pairs.schema.get_field_index("atomic_numbers"),
        "atomic_numbers",
        pa.array([[1] * len(n) for n in pairs["atomic_numbers"].to_pylist()], pa.list_(pa.int16())),
    )
    assert (paired_rows(table, other) == -1).all()


def test_the_objective_starts_where_it_is_told() -> None:
    table = crystals()
    model = new_model((0.02, 0.05))
    batch = CrystalDataset(table, dtype=torch.float64, templates=pairs_of(table)).select(np.arange(8))

    def drawn(objective: GeneratorObjective) -> object:
        return objective.draw(model, batch.clone(), torch.Generator().manual_seed(3))

    never, always, plain = (
        drawn(TemplateObjective(0.0)),
        drawn(TemplateObjective(1.0)),
        drawn(GeneratorObjective()),
    )
    assert not never.from_template.any()
    assert always.from_template.all()
    assert torch.equal(never.t, plain.t)
    early = always.t == 1000
    assert 0 < early.sum() < 8
    atoms = early[Layout.from_ptr(batch.ptr).crystal]
    assert same_points(always.frac_coords, batch.template_coords, Layout.from_ptr(batch.ptr)) < 0.2
    assert torch.allclose(
        ((always.frac_coords - batch.template_coords + 0.5) % 1.0 - 0.5)[atoms].abs().amax(),
        torch.zeros(()).double(),
        atol=0.05,
    )
    objective = TemplateObjective(0.5)
    some = drawn(objective)
    weights = objective.weights(some)
    assert float(weights["loss_lattice"] + weights["loss_template_lattice"]) == 8
    sums = objective.sums(model, some)
    assert set(sums) == set(weights)
    sum(sums.values()).backward()
    heads = model.crysformer.template_heads
    assert all(head.weight.grad is not None and head.weight.grad.abs().sum() > 0 for head in heads)


def test_a_model_without_such_paths_is_as_it_was(tmp_path: Path) -> None:
    with_paths, without = new_model((0.02, 0.05)), new_model(None)
    assert with_paths.parameter_count() - without.parameter_count() == 32 * (1 + 3 + 9)
    table = crystals(4)
    batch = CrystalDataset(table, dtype=torch.float64).select(np.arange(4))
    t = torch.full((4,), 500)
    inputs = (batch.atomic_numbers, batch.frac_coords, batch.lattice, batch.ptr, t)
    with torch.no_grad():
        plain = with_paths.crysformer(*inputs)
        flagged = with_paths.crysformer(*inputs, from_template=torch.zeros(4, dtype=torch.bool))
        moved = with_paths.crysformer(*inputs, from_template=torch.tensor([True, False, False, False]))
    assert torch.equal(plain.coords, flagged.coords)
    own = int(batch.ptr[1])
    assert moved.coords[:own].abs().max() == 0
    assert moved.lattice[0].abs().max() == 0
    torch.testing.assert_close(moved.coords[own:], plain.coords[own:])
    with pytest.raises(ValueError, match="has not learned paths from templates"):
        without.crysformer(*inputs, from_template=torch.ones(4, dtype=torch.bool))
    save_model(with_paths, tmp_path)
    assert load_model(tmp_path).schedule.template_errors == (0.02, 0.05)


def test_noised_templates_lie_between_template_and_noise() -> None:
    flow, layout, _, _, frac, lattice, _ = path(1000)
    small, large = (noised(flow, layout, Sampled(frac, lattice), share, noise_of(layout)) for share in (0.01, 0.5))
    assert (small.t, large.t) == (10, 500)
    assert same_points(small.frac_coords, frac, layout) < 0.02 < same_points(large.frac_coords, frac, layout)


# Symmetry


def symmetrizer(table: pa.Table) -> Symmetrizer:
    return Symmetrizer.of(flatten(table), torch.device("cpu"), torch.float64)


def test_symmetric_movements_are_a_projection() -> None:
    table = crystals(20)
    symmetry, flat = symmetrizer(table), flatten(table)
    u = torch.randn(len(flat.numbers), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    once = symmetry.displacements(u)
    torch.testing.assert_close(symmetry.displacements(once), once)
    y = log_metric(torch.from_numpy(flat.lattice)) + 0.05 * torch.randn(20, 3, 3, dtype=torch.float64)
    y = 0.5 * (y + y.transpose(1, 2))
    torch.testing.assert_close(symmetry.log_metrics(symmetry.log_metrics(y)), symmetry.log_metrics(y))


def test_special_positions_and_cubic_cells_stay() -> None:
    table = load()
    cubic = table.filter(pa.compute.equal(table["spacegroup"], 221)).slice(0, 5)
    symmetry, flat = symmetrizer(cubic), flatten(cubic)
    u = torch.randn(len(flat.numbers), 3, dtype=torch.float64)
    fixed = flat.counts <= 5  # AB and ABX3: no atom is free to move
    atoms = torch.from_numpy(np.repeat(fixed, flat.counts))
    assert fixed.any()
    assert symmetry.displacements(u)[atoms].abs().max() < 1e-12
    y = log_metric(torch.from_numpy(flat.lattice))
    strained = y + 0.1 * torch.diag(torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64))
    cells = metric_cell(symmetry.log_metrics(strained))
    lengths = cells.norm(dim=2)
    assert (lengths - lengths[:, :1]).abs().max() < 1e-9


def test_a_cell_that_is_lost_leaves_the_others_alone() -> None:
    table = crystals(5)
    symmetry, flat = symmetrizer(table), flatten(table)
    y = log_metric(torch.from_numpy(flat.lattice))
    damaged = y.clone()
    damaged[3] = torch.nan
    found, healthy = symmetry.log_metrics(damaged), torch.arange(5) != 3
    torch.testing.assert_close(found[healthy], symmetry.log_metrics(y)[healthy])
    assert found[3].isnan().all()
