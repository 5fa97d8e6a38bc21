"""The training loop: exact resumption, independence of the averaged weights, curves, and what goes wrong."""

from __future__ import annotations

import itertools
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import EnergyModel
from dao_pipeline.crystals.dataset import CrystalDataset, epoch_batches, size_batches
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.model.dao import DaoModel, load_model, save_model
from dao_pipeline.process.objective import GeneratorObjective
from dao_pipeline.training.checkpoint import NAME, PREVIOUS
from dao_pipeline.training.loop import learning_rate, permute_axes, train
from dao_pipeline.training.metrics import metrics_table
from tests.training.common import SETTINGS, Disturbed, crystals, fail, new_model, run, with_settings


@pytest.mark.parametrize("at", [1, 5, 9, 12])
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, at: int) -> None:
    expected, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Disturbed(at, fail))
    found, state = run(tmp_path / "killed")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert state.records[-1]["step"] == 12


def test_sigterm_saves_and_asks_to_continue(tmp_path: Path) -> None:
    expected, _ = run(tmp_path / "whole")
    with pytest.raises(ContinueLater, match="step 6 of 12"):
        run(tmp_path / "stopped", Disturbed(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    steps = Disturbed()
    found, _ = run(tmp_path / "stopped", steps)
    assert steps.steps == 6
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    expected, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Disturbed(10, fail))
    newest = tmp_path / "killed" / NAME
    newest.write_bytes(newest.read_bytes()[:100])
    steps = Disturbed()
    found, _ = run(tmp_path / "killed", steps)
    assert steps.steps == 8  # the checkpoint of step 4
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpoints_that_lack_a_tensor_leave_nothing_behind(tmp_path: Path) -> None:
    expected, _ = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Disturbed(10, fail))
    for path in (tmp_path / "killed" / NAME, tmp_path / "killed" / PREVIOUS):
        with safe_open(path, framework="pt") as file:
            note, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        del tensors["weights/coords_head.weight"]
        save_file(tensors, path, metadata=note)
    steps = Disturbed()
    found, _ = run(tmp_path / "killed", steps)
    assert steps.steps == 12
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_checkpoint_of_another_run_is_not_used(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Disturbed(10, fail))
    steps = Disturbed()
    run(tmp_path, steps, identity="other")
    assert steps.steps == 12


class Broken(GeneratorObjective):
    def sums(self, model: DaoModel, batch: Data) -> dict[str, Tensor]:
        return {name: value * float("nan") for name, value in super().sums(model, batch).items()}


def test_non_finite_losses_are_skipped_and_then_an_error(tmp_path: Path) -> None:
    start = new_model().state_dict()
    found, state = run(tmp_path / "a", Broken())
    assert all(torch.equal(found[name], start[name]) for name in start)
    assert state.skipped == 12
    assert metrics_table("test", state.records)["skipped"][-1].as_py() == 12
    with pytest.raises(UserError, match=r"not finite in 4 steps \(training\.max_skipped is 3\), now at step 3"):
        run(tmp_path / "b", Broken(), with_settings(max_skipped=3))


def test_empty_training_set_is_a_user_error(tmp_path: Path) -> None:
    none = CrystalDataset(crystals().slice(0, 0))
    with pytest.raises(UserError, match="no crystals"):
        train(
            new_model(), GeneratorObjective(), none, None, SETTINGS, work=tmp_path, identity="x", seed=1, label="t"
        )


def test_learning_rate() -> None:
    rates = [learning_rate(SETTINGS, step) for step in range(13)]
    assert rates[0] == pytest.approx(1e-3 * 1e-3)
    assert rates[1] == pytest.approx(1e-3 * (1 / 3 + 1e-3 * 2 / 3))
    assert max(rates) == pytest.approx(1e-3)
    assert rates[12] == pytest.approx(SETTINGS.final_learning_rate)
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))


def test_training_learns_and_model_directory_round_trips(tmp_path: Path) -> None:
    model = new_model("dao_p")
    table = CrystalDataset(crystals(20), "e_above_hull")
    settings = with_settings(steps=150, learning_rate=3e-3)
    state = train(
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
    losses = [float(r["loss"] or 0) for r in state.records]
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
