"""Relaxation: it finds minima, and no crystal feels another; energies and gradients of DAO-P."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from dao_pipeline.config import Backbone, EnergyModel, Process, Relax
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.flat import FlatCrystals, flatten, structure_columns
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.energy.predict import guidance_gradient, predict_energies
from dao_pipeline.energy.relax import relax, start
from dao_pipeline.energy.relax_base import Relaxed
from dao_pipeline.energy.relax_lbfgs import BULK, STIFFNESS, Lbfgs
from dao_pipeline.model.dao import About, DaoModel
from dao_pipeline.model.layout import Layout


def free(**settings: float) -> Relax:
    """Settings that stop nobody on the way."""
    return Relax.model_validate({"max_displacement": 99, "max_volume_change": 99, **settings})


SETTINGS = free(steps=12, max_step=0.2, max_strain=0.06, force_tolerance=0.03, stress_tolerance=0.7)


def crystals(count: int = 9, energies: bool = True) -> pa.Table:
    random = np.random.default_rng(1)
    return to_table(
        Crystal(
            id=f"row:{i}",
            source="test",
            atomic_numbers=random.integers(3, 30, n),
            frac_coords=random.random((n, 3)),
            lattice=(2.5 + n / 3) * np.eye(3) + 0.2 * random.standard_normal((3, 3)),
            extra={"e_above_hull": float(0.05 + 0.07 * i) if energies else None},
        )
        for i, n in enumerate(random.integers(1, 6, count))
    )


def dao_p() -> DaoModel:
    torch.manual_seed(4)
    about = About(
        kind="dao_p",
        backbone=Backbone(preset="tiny", layers=1, width=32, heads=2, frequencies=2).model_dump(),
        process=Process(timesteps=50).model_dump(),
        energy_label="e_above_hull",
        energy_mean=0.2,
        energy_std=0.3,
    )
    model = DaoModel(about, fit_element_volumes(crystals()))
    for parameter in model.parameters():  # a landscape with some relief
        parameter.data *= 1.5
    return model.eval()


class Springs:
    """A stand-in for DAO-P with a known minimum: pairs want distances of rest, cells a volume."""

    dtype = torch.float64
    element_volumes = torch.zeros(1)

    def energy(self, numbers: Tensor, coords: Tensor, lattice: Tensor, t: Tensor, layout: Layout) -> Tensor:
        volume = torch.linalg.det(lattice) / layout.ptr.diff()
        shape = (lattice @ lattice.transpose(1, 2)) / volume[:, None, None].pow(2 / 3)
        total = (volume - 12.0).square() * 0.05 + 0.2 * (shape - torch.eye(3, dtype=lattice.dtype)).square().sum(
            (1, 2)
        )
        first = coords[layout.ptr[:-1]][layout.crystal]
        offset = torch.einsum("ni,nij->nj", coords - first, lattice[layout.crystal])
        spring = 0.5 * (offset.norm(dim=-1) - 1.5 * (offset.norm(dim=-1) > 0)).square()
        return total.index_add(0, layout.crystal, spring)


def flat(table: pa.Table) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = list(from_table(table))
    return (
        torch.cat([torch.tensor(c.atomic_numbers) for c in rows]),
        torch.cat([torch.tensor(c.frac_coords) for c in rows]),
        torch.stack([torch.tensor(c.lattice) for c in rows]),
        torch.tensor([0, *(c.num_atoms for c in rows)]).cumsum(0),
    )


def to_rows(result: Relaxed, table: pa.Table) -> pa.Table:
    """``table`` with the relaxed structures."""
    old = flatten(table)
    moved = replace(old, frac=result.frac_coords.numpy(), lattice=result.lattice.numpy())
    for name, column in structure_columns(moved, table["formula"].to_pylist()).items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def pieces(table: pa.Table) -> list[FlatCrystals]:
    return [flatten(table.slice(i, 1)) for i in range(table.num_rows)]


def close(a: Relaxed, b: Relaxed, rows: slice, atoms: slice, tolerance: float) -> None:
    """``a`` is the part of ``b`` that is named."""
    for field in fields(Relaxed):
        part = getattr(b, field.name)[atoms if field.name == "frac_coords" else rows]
        difference = getattr(a, field.name).double() - part.double()
        if field.name == "frac_coords":
            difference -= difference.round()
        assert float(difference.abs().max()) < tolerance, field.name


def test_finds_the_minimum_of_a_known_energy() -> None:
    settings = free(steps=400, force_tolerance=1e-4, stress_tolerance=1e-3)
    flat = flatten(crystals(4))
    result = relax(Springs(), flat, settings)  # type: ignore[arg-type]
    assert result.converged.all()
    assert (result.energy_after < result.energy_before).all()
    volumes = torch.linalg.det(result.lattice) / torch.from_numpy(flat.counts)
    torch.testing.assert_close(volumes, torch.full((4,), 12.0, dtype=torch.float64), rtol=1e-3, atol=0)


def test_no_step_is_longer_than_it_may_be() -> None:
    settings = free(max_step=0.03, max_strain=0.004, force_tolerance=1e-6)
    flat = flatten(crystals(6))
    relaxation = Lbfgs(Springs(), flat, settings)  # type: ignore[arg-type]
    before = None
    for _ in range(8):
        relaxation.advance()
        state = relaxation.state()
        point, lattice = state["batch.point"], flat.lattice[state["batch.index"].numpy()]
        length = np.sqrt(np.abs(np.linalg.det(lattice)) * BULK / STIFFNESS)
        if before is not None:
            moved = point - before
            assert float(moved[:, :-3].norm(dim=2).max()) <= 0.03 + 1e-12
            assert (
                np.linalg.norm(moved[:, -3:].numpy() / length[:, None, None], axis=(1, 2)).max() <= 0.004 + 1e-12
            )
        before = point.clone()
    assert before is not None
    assert float(before.norm(dim=2).max()) > 0.03


def test_a_batch_does_not_matter_nor_who_leaves_and_comes_in() -> None:
    """Alone, all together, and with room for a few at a time: crystals of 1 to 5 atoms, double precision."""
    model, table = dao_p().double(), crystals(10)
    together = relax(model, flatten(table), SETTINGS)
    assert len(set(together.steps.tolist())) >= 3, "crystals ought to leave at different times"
    for room in (1, 7):
        few = relax(model, flatten(table), SETTINGS.model_copy(update={"batch_atoms": room}))
        close(few, together, slice(None), slice(None), 1e-6)
    ptr = flatten(table).ptr
    for i, crystal in enumerate(pieces(table)[:4]):
        close(relax(model, crystal, SETTINGS), together, slice(i, i + 1), slice(ptr[i], ptr[i + 1]), 1e-6)


def test_room_is_bounded_and_refilled() -> None:
    settings = SETTINGS.model_copy(update={"batch_atoms": 8})
    flat = flatten(crystals(12))
    relaxation = Lbfgs(dao_p(), flat, settings)
    seen: list[set[int]] = []
    while not relaxation.finished:
        relaxation.advance()
        under_way = relaxation.state()["batch.index"].tolist()
        assert flat.counts[under_way].sum() <= 8
        seen.append(set(under_way))
    assert set().union(*seen) == set(range(12))
    assert any(a & b and a != b for a, b in pairwise(seen)), "some came in while others were under way"


def test_energy_never_rises() -> None:
    for model in (dao_p(), dao_p().double()):
        result = relax(model, flatten(crystals()), SETTINGS)
        assert (result.energy_after <= result.energy_before).all()
        assert (result.energy_after < result.energy_before - 1e-2).any()
        moved = to_rows(result, crystals())
        np.testing.assert_allclose(predict_energies(model.float(), moved), result.energy_after, atol=1e-5)


def test_a_relaxation_goes_on_where_it_was_bit_for_bit() -> None:
    settings = SETTINGS.model_copy(update={"batch_atoms": 7})
    model, flat = dao_p(), flatten(crystals(12))
    whole = relax(model, flat, settings)
    first = Lbfgs(model, flat, settings)
    while not first.result.done.any():
        first.advance()
    for _ in range(3):  # into the middle of those that came in after
        first.advance()
    assert not first.finished
    second = Lbfgs(model, flat, settings)
    second.restore({name: value.clone() for name, value in first.state().items()})
    while not second.finished:
        second.advance()
    for field in fields(Relaxed):
        assert torch.equal(getattr(second.result, field.name), getattr(whole, field.name)), field.name


def test_rotated_cells_relax_alike() -> None:
    model, flat = dao_p().double(), flatten(crystals(3))
    turn = np.linalg.qr(np.random.default_rng(2).standard_normal((3, 3)))[0]
    plain = relax(model, flat, SETTINGS)
    turned = relax(model, replace(flat, lattice=flat.lattice @ turn), SETTINGS)
    torch.testing.assert_close(plain.energy_after, turned.energy_after, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(plain.lattice @ torch.from_numpy(turn), turned.lattice, rtol=1e-5, atol=1e-6)


def test_what_has_no_energy_leaves_at_once_and_harms_nobody() -> None:
    model = dao_p().double()
    flat = flatten(crystals(5))
    broken = replace(flat, frac=np.where(flat.crystal_of_atom[:, None] == 2, np.nan, flat.frac))
    result, sound = relax(model, broken, SETTINGS), relax(model, flat, SETTINGS)
    assert result.done.all()
    assert torch.isnan(result.energy_after[2])
    assert int(result.steps[2]) == 0
    for i in (0, 1, 3, 4):
        torch.testing.assert_close(result.energy_after[i], sound.energy_after[i], rtol=1e-6, atol=1e-8)


def test_paper_mode_is_torchs_lbfgs_over_all_crystals_of_a_hundred() -> None:
    """The published procedure, written out; and crystals of one group feel one another, others do not."""
    model, flat = dao_p().double(), flatten(crystals(6))
    settings = Relax(method="paper", steps=5)
    rows = np.array([0, 60, 99, 100, 101, 230])
    relaxation = start(model, flat, settings, rows)
    while not relaxation.finished:
        relaxation.advance()
    found = relaxation.result
    group = flat.select(rows < 100)
    coords = torch.from_numpy(group.frac.copy()).requires_grad_()
    lattice = torch.from_numpy(group.lattice.copy()).requires_grad_()
    optimizer = torch.optim.LBFGS([coords, lattice], lr=1.0, max_iter=5)
    layout = Layout.from_ptr(torch.from_numpy(group.ptr))
    edge = model.edge(torch.from_numpy(group.numbers), layout)

    def closure() -> Tensor:
        optimizer.zero_grad()
        t = torch.zeros(len(group), dtype=torch.int64)
        numbers = torch.from_numpy(group.numbers)
        loss = model.crysformer.energy(numbers, coords, lattice / edge, t, layout).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(found.frac_coords[: group.ptr[-1]], coords.detach() % 1.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.lattice[:3], lattice.detach(), rtol=1e-9, atol=1e-9)
    alone = relax(model, flat.select(rows == 230), settings)
    close(alone, found, slice(5, 6), slice(flat.ptr[5], None), 1e-9)
    first = relax(model, flat.select(rows == 0), settings)
    assert not torch.allclose(first.lattice[0], found.lattice[0], atol=1e-6)


def test_predicted_energies_and_guidance_gradient() -> None:
    model, table = dao_p(), crystals(5)
    energies = predict_energies(model, table, batch_atoms=6)
    assert np.isfinite(energies).all()
    np.testing.assert_allclose(energies, predict_energies(model, table), rtol=1e-5, atol=1e-6)
    model = model.double()
    numbers, coords, lattice, ptr = flat(table)
    layout = Layout.from_ptr(ptr)
    edge = model.edge(numbers, layout)
    t = torch.full((5,), 10)
    by_coords, by_lattice = guidance_gradient(model, numbers, edge, layout)(coords, lattice / edge, t)

    def total(f: Tensor, cell: Tensor) -> float:
        return float(model.energy(numbers, f, cell * edge, t, layout).sum().detach() / model.about.energy_std)

    for k in range(3):
        step = torch.zeros_like(coords)
        step[2, k] = 1e-5
        slope = (total(coords + step, lattice / edge) - total(coords - step, lattice / edge)) / 2e-5
        assert slope == pytest.approx(float(by_coords[2, k]), rel=1e-4, abs=1e-7)
        cell_step = torch.zeros_like(lattice)
        cell_step[1, k, 0] = 1e-5
        slope = (total(coords, lattice / edge + cell_step) - total(coords, lattice / edge - cell_step)) / 2e-5
        assert slope == pytest.approx(float(by_lattice[1, k, 0]), rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("loss", ["linex", "exponential"])
def test_the_loss_of_noisy_crystals_learns_the_free_energy(loss: str) -> None:
    """Two clean crystals that look alike under full noise: E_T must be -log mean exp(-y), not the mean."""
    from torch_geometric.data import Data

    torch.manual_seed(0)
    about = About(
        kind="dao_p",
        backbone=Backbone(preset="tiny", layers=1, width=16, heads=2, frequencies=2).model_dump(),
        process=Process(kind="diffusion", timesteps=10, sigma_max=2.0).model_dump(),
        energy_label="e_above_hull",
    )
    model = DaoModel(about, np.full(101, 20.0))
    objective = EnergyObjective(EnergyModel(clean_fraction=0.0, loss=loss))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    size = 256
    labels = torch.tensor([0.0, 2.0]).repeat(size // 2)
    for step in range(150):
        batch = Data(
            atomic_numbers=torch.full((size,), 14),
            frac_coords=torch.zeros(size, 3),
            lattice=(2.7 * torch.eye(3)).repeat(size, 1, 1),
            ptr=torch.arange(size + 1),
            energy=labels,
        )
        drawn = objective.draw(model, batch, torch.Generator().manual_seed(step))
        loss = objective.sums(model, drawn)["loss_energy"] / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        layout = Layout.from_ptr(torch.arange(65))
        cells = torch.randn(64, 3, 3, generator=torch.Generator().manual_seed(1))
        energy = model.crysformer.energy(
            torch.full((64,), 14), torch.rand(64, 3), cells, torch.full((64,), 10), layout
        )
    assert float(energy.mean()) == pytest.approx(-np.log(np.mean(np.exp([0.0, -2.0]))), abs=0.08)
