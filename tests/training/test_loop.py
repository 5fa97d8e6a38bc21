"""The training loop: exact resumption, independence of the averaged weights, curves, and what goes wrong."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import Backbone, EnergyModel, Process, Training
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.dataset import CrystalDataset, epoch_batches, size_batches
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.model.dao import About, DaoModel, load_model, save_model
from dao_pipeline.process.objective import generator_objective
from dao_pipeline.training.checkpoint import NAME
from dao_pipeline.training.loop import learning_rate, permute_axes, train

SETTINGS = Training(
    steps=12, batch_atoms=40, learning_rate=1e-3, warmup_steps=3, validate_every=5, checkpoint_every=4
)


def crystals(count: int = 40, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return to_table(
        Crystal(
            id=f"row:{i}",
            source="test",
            atomic_numbers=random.integers(1, 90, n),
            frac_coords=random.random((n, 3)),
            lattice=(4 + random.random()) * np.eye(3) + 0.3 * random.standard_normal((3, 3)),
            extra={"e_above_hull": float(random.random())},
        )
        for i, n in enumerate(random.integers(1, 7, count))
    )


def new_model(kind: str = "dao_g") -> DaoModel:
    torch.manual_seed(0)
    about = About(
        kind=kind,
        backbone=Backbone(preset="tiny", layers=1, width=16, heads=2, frequencies=4).model_dump(),
        process=Process(timesteps=50).model_dump(),
        energy_label="e_above_hull" if kind == "dao_p" else None,
        energy_mean=0.5,
        energy_std=0.3,
    )
    return DaoModel(about, fit_element_volumes(crystals()))


def run(
    work: Path, objective: Callable[..., dict[str, Tensor]] = generator_objective, settings: Training = SETTINGS
) -> tuple[dict[str, Tensor], list[dict[str, float | int | str | None]]]:
    model = new_model()
    table = CrystalDataset(crystals())
    records = train(
        model,
        objective,
        table,
        CrystalDataset(crystals(6, seed=5)),
        settings,
        work=work,
        identity="x",
        seed=1,
        label="test",
    )
    return {name: value.clone() for name, value in model.state_dict().items()}, records


class Stopping:
    """An objective that sends a signal, or fails, at its n-th training call."""

    def __init__(self, at: int, act: Callable[[], None]) -> None:
        self.calls, self.at, self.act = 0, at, act

    def __call__(self, model: DaoModel, batch: Data, generator: torch.Generator) -> dict[str, Tensor]:
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls == self.at:
                self.act()
        return generator_objective(model, batch, generator)


def raise_killed() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("at", [1, 5, 9, 12])
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, at: int) -> None:
    expected, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Stopping(at, raise_killed))
    found, records = run(tmp_path / "killed")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert records[-1]["step"] == 12


def test_sigterm_saves_and_asks_to_continue(tmp_path: Path) -> None:
    expected, _ = run(tmp_path / "whole")
    with pytest.raises(ContinueLater, match="step 6 of 12"):
        run(tmp_path / "stopped", Stopping(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    steps = Stopping(10**6, raise_killed)
    found, _ = run(tmp_path / "stopped", steps)
    assert steps.calls == 6
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    expected, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Stopping(10, raise_killed))
    newest = tmp_path / "killed" / NAME
    newest.write_bytes(newest.read_bytes()[:100])
    steps = Stopping(10**6, raise_killed)
    found, _ = run(tmp_path / "killed", steps)
    assert steps.calls == 8  # the checkpoint of step 4
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Stopping(10, raise_killed))
    steps = Stopping(10**6, raise_killed)
    model = new_model()
    train(
        model,
        steps,
        CrystalDataset(crystals()),
        None,
        SETTINGS,
        work=tmp_path,
        identity="other",
        seed=1,
        label="test",
    )
    assert steps.calls == 12


def test_non_finite_losses_are_skipped_and_then_an_error(tmp_path: Path) -> None:
    def broken(model: DaoModel, batch: Data, generator: torch.Generator) -> dict[str, Tensor]:
        parts = generator_objective(model, batch, generator)
        return {**parts, "loss": parts["loss"] * float("nan")}

    start = new_model().state_dict()
    found, _ = run(tmp_path / "a", broken)
    assert all(torch.equal(found[name], start[name]) for name in start)
    with pytest.raises(UserError, match="not finite"):
        run(tmp_path / "b", broken, SETTINGS.model_copy(update={"steps": 200}))


def test_empty_training_set_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no crystals"):
        train(
            new_model(),
            generator_objective,
            CrystalDataset(crystals().slice(0, 0)),
            None,
            SETTINGS,
            work=tmp_path,
            identity="x",
            seed=1,
            label="test",
        )


def test_learning_rate() -> None:
    rates = [learning_rate(SETTINGS, step) for step in range(13)]
    assert rates[0] == pytest.approx(1e-3 / 3)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[12] == pytest.approx(SETTINGS.final_learning_rate)
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))


def test_training_learns_and_model_directory_round_trips(tmp_path: Path) -> None:
    model = new_model("dao_p")
    table = CrystalDataset(crystals(20), "e_above_hull")
    settings = SETTINGS.model_copy(update={"steps": 150, "learning_rate": 3e-3})
    records = train(
        model,
        EnergyObjective(EnergyModel()),
        table,
        None,
        settings,
        work=tmp_path / "w",
        identity="x",
        seed=1,
        label="test",
    )
    losses = [float(r["loss"] or 0) for r in records]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.about == model.about
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_model_directory_with_foreign_weights_is_refused(tmp_path: Path) -> None:
    save_model(new_model(), tmp_path / "a")
    other = new_model()
    with torch.no_grad():
        other.crysformer.node.bias += 1
    save_model(other, tmp_path / "b")
    (tmp_path / "a" / "model.safetensors").write_bytes((tmp_path / "b" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"not the file that config\.json describes"):
        load_model(tmp_path / "a")
    with pytest.raises(UserError, match="not a sound model directory"):
        load_model(tmp_path / "nowhere")


def test_batches_hold_every_crystal_once_and_stay_small() -> None:
    sizes = np.random.default_rng(0).integers(1, 20, 500)
    for batches in (epoch_batches(sizes, 100, seed=3, epoch=2), size_batches(sizes, 100)):
        assert sorted(np.concatenate(batches)) == list(range(500))
        assert all(sizes[b].sum() <= 100 for b in batches)
        assert all((np.diff(sizes[b]) >= 0).all() for b in batches)
    first, second = (np.concatenate(epoch_batches(sizes, 100, 3, e)) for e in (0, 1))
    assert not np.array_equal(first, second)


def test_select_gathers_what_the_dataset_holds() -> None:
    table = crystals()
    dataset = CrystalDataset(table, "e_above_hull")
    assert len(dataset) == table.num_rows
    chosen = np.array([7, 0, 31, 7])
    batch = dataset.select(chosen)
    for k, i in enumerate(chosen):
        one = dataset[int(i)]
        atoms = slice(int(batch.ptr[k]), int(batch.ptr[k + 1]))
        assert torch.equal(batch.atomic_numbers[atoms], one.atomic_numbers)
        assert torch.equal(batch.frac_coords[atoms], one.frac_coords)
        assert torch.equal(batch.lattice[k], one.lattice[0])
        assert torch.equal(batch.energy[k], one.energy[0])
        assert table["atomic_numbers"][int(i)].as_py() == one.atomic_numbers.tolist()


def test_permuting_axes_keeps_the_crystal() -> None:
    batch = CrystalDataset(crystals(8), dtype=torch.float64).select(np.arange(8))
    cartesian = torch.einsum(
        "ni,nij->nj", batch.frac_coords, batch.lattice[torch.repeat_interleave(torch.arange(8), batch.ptr.diff())]
    )
    before = batch.lattice.clone()
    moved = permute_axes(batch, torch.Generator().manual_seed(0))
    crystal = torch.repeat_interleave(torch.arange(8), batch.ptr.diff())
    torch.testing.assert_close(torch.einsum("ni,nij->nj", moved.frac_coords, moved.lattice[crystal]), cartesian)
    assert not torch.equal(moved.lattice, before)
    torch.testing.assert_close(torch.linalg.det(moved.lattice).abs(), torch.linalg.det(before).abs())
