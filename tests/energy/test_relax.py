"""Relaxation: it finds minima, keeps what is unsound as it was, and no crystal feels another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from dao_pipeline.config import Backbone, Campaign, EnergyModel, Process, Relax
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.table import provenance, read_table, write_table
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.energy.predict import guidance_gradient, predict_energies
from dao_pipeline.energy.relax import relax
from dao_pipeline.energy.relax_dataset import relax_dataset, relax_table, verdicts
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import About, DaoModel, save_model
from dao_pipeline.model.layout import Layout

SETTINGS = Relax(steps=60, max_step=0.1, force_tolerance=1e-3)


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
        backbone=Backbone(preset="tiny", layers=2, width=32, heads=2, frequencies=2).model_dump(),
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


def test_finds_the_minimum_of_a_known_energy() -> None:
    numbers, coords, lattice, ptr = flat(crystals(4))
    settings = Relax(steps=400, max_step=0.2, force_tolerance=1e-6)
    result = relax(Springs(), numbers, coords, lattice, ptr, settings)  # type: ignore[arg-type]
    assert result.converged.all()
    assert (result.energy_after < 1e-8 + result.energy_before).all()
    torch.testing.assert_close(
        torch.linalg.det(result.lattice) / ptr.diff(),
        torch.full((4,), 12.0, dtype=torch.float64),
        rtol=1e-3,
        atol=0,
    )


def test_energy_never_rises_and_no_crystal_feels_another() -> None:
    model = dao_p().double()
    numbers, coords, lattice, ptr = flat(crystals())
    together = relax(model, numbers, coords, lattice, ptr, SETTINGS)
    assert (together.energy_after <= together.energy_before).all()
    assert (together.energy_after < together.energy_before - 1e-4).any()
    for i in range(len(lattice)):
        atoms = slice(int(ptr[i]), int(ptr[i + 1]))
        alone = relax(model, numbers[atoms], coords[atoms], lattice[i : i + 1], ptr[i : i + 2] - ptr[i], SETTINGS)
        torch.testing.assert_close(alone.energy_after[0], together.energy_after[i], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(alone.lattice[0], together.lattice[i], rtol=1e-5, atol=1e-6)


def test_rotated_cells_relax_alike() -> None:
    model = dao_p().double()
    numbers, coords, lattice, ptr = flat(crystals(3))
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))[0]
    plain = relax(model, numbers, coords, lattice, ptr, SETTINGS)
    turned = relax(model, numbers, coords, lattice @ turn, ptr, SETTINGS)
    torch.testing.assert_close(plain.energy_after, turned.energy_after, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(plain.lattice @ turn, turned.lattice, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "displacement", "volume", "distance", "verdict"),
    [
        (-0.1, 0.2, 0.05, 2.0, "accepted"),
        (0.0, 0.0, 0.0, 2.0, "energy_did_not_fall"),
        (-0.1, 9.0, 0.05, 2.0, "moved_too_far"),
        (-0.1, 0.2, -0.6, 2.0, "volume_changed_too_much"),
        (-0.1, 0.2, 0.05, 0.3, "atoms_too_close"),
        (-0.1, float("nan"), 0.05, 2.0, "not_finite"),
    ],
)
def test_verdicts(change: float, displacement: float, volume: float, distance: float, verdict: str) -> None:
    found = verdicts(*(np.array([x]) for x in (change, displacement, volume, distance)), settings=SETTINGS)
    assert found.tolist() == [verdict]


def test_window_decides_and_rejected_originals_are_kept() -> None:
    table = crystals()
    settings = SETTINGS.model_copy(update={"max_displacement": 1e-9, "max_volume_change": 1e-9})
    kept = relax_table(dao_p(), table, settings)
    assert kept["frac_coords"].equals(table["frac_coords"])
    assert kept["lattice"].equals(table["lattice"])
    status = kept["relax_status"].to_pylist()
    inside = [0.08 < e <= 0.5 for e in table["e_above_hull"].to_pylist()]
    assert [s != "not_selected" for s in status] == inside
    assert [e is not None for e in kept["energy_after"].to_pylist()] == inside
    assert set(relax_table(dao_p(), crystals(energies=False), SETTINGS)["relax_status"].to_pylist()) == {
        "not_selected"
    }


def campaign(**relax_settings: int) -> Campaign:
    return Campaign(name="test", relax=Relax(**{"steps": 5, "shard_size": 2, **relax_settings}))


def test_stage_covers_every_crystal_in_any_number_of_jobs(tmp_path: Path) -> None:
    table = crystals()
    write_table(table, tmp_path / "crysdb" / "train.parquet", provenance("test"))
    save_model(dao_p(), tmp_path / "model")
    relax_dataset(campaign(), tmp_path / "crysdb", tmp_path / "model", tmp_path / "one.parquet", tmp_path / "w", 0)
    whole = read_table(tmp_path / "one.parquet")
    assert whole["id"].to_pylist() == table["id"].to_pylist()
    assert "accepted" in whole["relax_status"].to_pylist()
    for job in range(2):
        relax_dataset(
            campaign(jobs=2),
            tmp_path / "crysdb",
            tmp_path / "model",
            tmp_path / "two" / f"shard-{job:03d}.parquet",
            tmp_path / f"w{job}",
            job,
        )
    split = read_table(tmp_path / "two").sort_by("id")
    assert split["id"].to_pylist() == table["id"].to_pylist()
    assert split["lattice"].to_pylist() == whole.sort_by("id")["lattice"].to_pylist()
    with pytest.raises(UserError, match=r"relax\.jobs is 1"):
        relax_dataset(campaign(), tmp_path / "crysdb", tmp_path / "model", tmp_path / "x", tmp_path / "w", 1)


def test_finished_shards_are_reused_and_foreign_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dao_pipeline.energy.relax_dataset as module

    write_table(crystals(), tmp_path / "crysdb" / "train.parquet", provenance("test"))
    save_model(dao_p(), tmp_path / "model")
    calls: list[int] = []
    real = module.relax_table

    def counted(model: DaoModel, table: pa.Table, settings: Relax) -> pa.Table:
        calls.append(table.num_rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(model, table, settings)

    monkeypatch.setattr(module, "relax_table", counted)
    arguments = (tmp_path / "crysdb", tmp_path / "model", tmp_path / "out.parquet", tmp_path / "work", 0)
    with pytest.raises(KeyboardInterrupt):
        relax_dataset(campaign(), *arguments)
    assert not (tmp_path / "out.parquet").exists()
    relax_dataset(campaign(), *arguments)
    assert len(calls) == 3 + 3  # five shards, two were finished
    assert read_table(tmp_path / "out.parquet").num_rows == 9


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
