"""A step is the same whatever its chunks and processes; memory, clipping, precision, best weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dao_pipeline.config import EnergyModel
from dao_pipeline.crystals.batch import cut, cut_evenly, part
from dao_pipeline.crystals.dataset import CrystalDataset
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.process.objective import GeneratorObjective
from dao_pipeline.training.checkpoint import BEST, NAME
from dao_pipeline.training.chunks import compute_share
from dao_pipeline.training.distributed import Processes
from dao_pipeline.training.gradient import Gradient
from dao_pipeline.training.objective import Objective, total_loss
from dao_pipeline.training.property_model import PropertyObjective
from tests.training.common import LABEL, Disturbed, SmallMemory, crystals, fail, new_model, run, with_settings

CPU = torch.device("cpu")
CPU_ERROR = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory: you tried to allocate"


def drawn_batch(objective: Objective, model: DaoModel, dtype: torch.dtype) -> tuple[object, np.ndarray]:
    dataset = CrystalDataset(crystals(), LABEL, dtype=dtype)
    order = np.argsort(dataset.sizes, kind="stable")
    drawn = objective.draw(model, dataset.select(order), torch.Generator().manual_seed(3))
    return drawn, dataset.sizes[order]


def step_of(
    objective: Objective, model: DaoModel, budget: int, count: int, dtype: torch.dtype
) -> tuple[float, Tensor]:
    """Loss and gradient of one step on ``count`` processes, one after the other."""
    drawn, sizes = drawn_batch(objective, model, dtype)
    weights = objective.weights(drawn)
    gradient = Gradient(list(model.crysformer.parameters()), 1)

    def compute(chunk) -> None:
        loss = total_loss(objective.sums(model, chunk), weights)
        gradient.add(loss)
        gradient.extra.add_(loss.detach())

    for rank in range(count):
        assert not compute_share(drawn, sizes, budget, Processes(CPU, rank, count), compute)
    return float(gradient.extra), gradient.weights.clone()


@pytest.mark.parametrize(
    ("objective", "kind"),
    [
        (GeneratorObjective(), "dao_g"),
        (EnergyObjective(EnergyModel(clean_fraction=0.4)), "dao_p"),
        (PropertyObjective(), "dao_p"),
    ],
)
def test_chunks_and_processes_do_not_change_loss_and_gradient(objective: Objective, kind: str) -> None:
    model = new_model(kind).double()
    loss, gradient = step_of(objective, model, 10**6, 1, torch.float64)
    assert float(gradient.norm()) > 1e-3
    for budget, count in ((17, 1), (1, 1), (10**6, 2), (13, 3), (40, 50)):
        other, found = step_of(objective, model, budget, count, torch.float64)
        assert other == pytest.approx(loss, rel=1e-12)
        assert float((found - gradient).norm() / gradient.norm()) < 1e-10


@pytest.mark.parametrize("loss", ["linex", "exponential", "squared"])
def test_the_loss_in_parts_is_the_plain_mean(loss: str) -> None:
    """Written out once more, over the whole batch, from the heads."""
    torch.manual_seed(1)
    settings = EnergyModel(clean_fraction=0.4, loss=loss, energy_weight=3.0)
    model, objective = new_model("dao_p").double(), EnergyObjective(settings)
    drawn, _ = drawn_batch(objective, model, torch.float64)
    out = model.crysformer(drawn.atomic_numbers, drawn.frac_coords, drawn.lattice, drawn.ptr, drawn.t)
    crystal = torch.repeat_interleave(torch.arange(len(drawn.t)), drawn.ptr.diff())
    error = out.coords - drawn.coords_target
    drift = torch.stack([error[crystal == k].mean(0) for k in range(len(drawn.t))])
    noisy = drawn.t > 0
    coords = (error - drift[crystal])[noisy[crystal]].square().mean()
    lattice = (out.lattice - drawn.lattice_target)[noisy].square().mean()
    excess = out.energy - drawn.energy
    of_noisy = {
        "linex": 2 * (excess.exp() - excess - 1),
        "exponential": ((-out.energy).exp() - (-drawn.energy).exp()).square(),
        "squared": excess.square(),
    }
    energy = 3 * torch.where(noisy, of_noisy[loss], excess.square()).mean()
    sums, weights = objective.sums(model, drawn), objective.weights(drawn)
    expected = {"loss_coords": coords, "loss_lattice": lattice, "loss_energy": energy}
    for name, value in expected.items():
        torch.testing.assert_close(sums[name] / weights[name], value)
    torch.testing.assert_close(total_loss(sums, weights), coords + lattice + energy)
    mae = (out.energy - drawn.energy).abs()[~noisy].mean() * 0.3
    torch.testing.assert_close(sums["energy_mae"] / weights["energy_mae"], mae)


def test_parts_of_a_batch() -> None:
    dataset = CrystalDataset(crystals(), LABEL)
    whole = dataset.select(np.arange(40))
    chosen = np.array([3, 17, 5])
    some, expected = part(whole, chosen, dataset.sizes), dataset.select(chosen)
    assert part(whole, np.arange(40), dataset.sizes) is whole
    for name in ("atomic_numbers", "frac_coords", "lattice", "ptr", "energy"):
        assert torch.equal(some[name], expected[name])


def test_cuts_are_bounded_and_even() -> None:
    sizes = np.sort(np.random.default_rng(0).integers(1, 20, 300))
    order = np.arange(300)
    total = int(sizes.sum())
    for limit in (1, 20, 150, 1000, total - 1, total, 2 * total):
        for pieces in (cut(order, sizes, limit), cut_evenly(order, sizes, limit)):
            assert np.array_equal(np.concatenate(pieces), order)
            assert all(len(p) == 1 or sizes[p].sum() <= limit for p in pieces)
        if limit >= 150:
            atoms = [int(sizes[p].sum()) for p in cut_evenly(order, sizes, limit)]
            assert min(atoms) > 0.5 * max(atoms)
    assert cut_evenly(order[:0], sizes, 10) == []


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_ERROR)])
def test_memory_that_runs_out_halves_the_chunks_for_good(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = run(tmp_path / "enough")
    small = SmallMemory(11, error)
    found, state = run(tmp_path / "little", small)
    assert max(small.chunks) <= 11
    # once each of 40, 20 and 10 atoms was tried
    assert (state.halvings, state.records[-1]["chunk_atoms"]) == (2, 10)
    assert "out of memory at step 0: chunks of 20 atoms from now on, after 40" in caplog.text
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", _killed_with_little(error))
    again = SmallMemory(11, error)
    resumed, state = run(tmp_path / "killed", again)
    assert all(torch.equal(resumed[name], found[name]) for name in found)
    assert state.halvings == 2


def _killed_with_little(error: Exception) -> SmallMemory:
    small = SmallMemory(11, error)
    small.at, small.act = 9, fail
    return small


def test_memory_that_runs_out_in_the_backward_pass_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = run(tmp_path / "enough", chunk_atoms=20)
    whole, calls = torch.autograd.grad, []

    def grad(loss: Tensor, *args: object, **kwargs: object) -> object:
        calls.append(1)
        found = whole(loss, *args, **kwargs)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("injected")
        return found

    monkeypatch.setattr(torch.autograd, "grad", grad)
    found, state = run(tmp_path / "little")
    assert state.halvings == 1
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def test_other_errors_are_not_taken_for_lack_of_memory(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path, SmallMemory(11, RuntimeError("shapes differ")))


def test_a_crystal_that_does_not_fit_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a single crystal of \d atoms does not fit into memory\. Raise compute"):
        run(tmp_path, SmallMemory(3, torch.OutOfMemoryError("injected")))


@pytest.mark.parametrize("kind", ["dao_g", "dao_p"])
def test_validation_does_not_depend_on_chunks_or_batches(tmp_path: Path, kind: str) -> None:
    objective = EnergyObjective(EnergyModel()) if kind == "dao_p" else None
    curves = []
    for number, (chunk_atoms, batch_atoms) in enumerate(((None, 40), (7, 40), (None, 30))):
        settings = with_settings(learning_rate=1e-12, final_learning_rate=0, batch_atoms=batch_atoms)
        _, state = run(tmp_path / str(number), objective, settings, kind=kind, chunk_atoms=chunk_atoms)
        curves.append([r["loss"] for r in state.records if r["split"] == "val"])
    assert len(curves[0]) == 3
    for curve in curves:
        assert curve == pytest.approx([curves[0][0]] * 3, rel=1e-5)


@pytest.mark.parametrize(("clip", "value"), [("norm", 0.1), ("value", 0.01), ("none", 0.01)])
def test_clipping(clip: str, value: float) -> None:
    weights = torch.nn.Parameter(torch.zeros(3))
    gradient = Gradient([weights], 0)
    gradient.add((weights * torch.tensor([3.0, -4.0, 0.001])).sum())
    gradient.clip(with_settings(clip=clip, clip_value=value), gradient.norm())
    expected = {"norm": [0.06, -0.08, 0.00002], "value": [0.01, -0.01, 0.001], "none": [3.0, -4.0, 0.001]}[clip]
    torch.testing.assert_close(weights.grad, torch.tensor(expected), rtol=1e-4, atol=1e-7)


def test_weight_decay_is_decoupled_or_part_of_the_gradient(tmp_path: Path) -> None:
    """Against torch.optim on the same gradients would be a copy; without any gradient the two differ in kind."""
    norms = {}
    for decoupled in (True, False):
        settings = with_settings(steps=1, weight_decay=0.5, decoupled_decay=decoupled, warmup_steps=0, ema_decay=0)
        weights, _ = run(tmp_path / str(decoupled), None, settings)
        start = new_model().state_dict()
        norms[decoupled] = {
            name: (weights[name] - start[name]).abs() for name in weights if name.startswith("crysformer.blocks")
        }
    # L2: Adam's first step is the learning rate wherever a weight is large, decoupled: plus lr x decay x weight
    assert all(float(change.max()) <= 1.01e-3 for change in norms[False].values())
    assert max(float(change.max()) for change in norms[True].values()) > 1.02e-3


def test_bf16_learns_what_fp32_learns(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        settings = with_settings(steps=60, learning_rate=3e-3, precision=precision, batch_atoms=150)
        weights, state = run(tmp_path / precision, None, settings)
        assert {value.dtype for name, value in weights.items() if "crysformer" in name} == {torch.float32}
        losses[precision] = np.array([r["loss"] for r in state.records if r["split"] == "train"])
    assert losses["bf16"][-15:].mean() < 0.97 * losses["bf16"][:15].mean()
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert not np.array_equal(losses["bf16"], losses["fp32"])


class Worsening(Disturbed):
    """Validation gets worse after the first time."""

    validations = 0

    def sums(self, model: DaoModel, batch: object) -> dict[str, Tensor]:
        sums = super().sums(model, batch)
        if torch.is_grad_enabled():
            return sums
        self.validations += 1
        return {name: value * 0 + self.validations for name, value in sums.items()}


def test_best_and_last_weights(tmp_path: Path) -> None:
    """The best validation is that of step 5, for a run that was killed as for an undisturbed one."""
    last, _ = run(tmp_path / "last", Worsening(), with_settings(keep="last"))
    best, state = run(tmp_path / "best", Worsening(), with_settings(keep="best"))
    assert (state.best_step, state.kept_step, state.step) == (5, 5, 12)
    assert not torch.equal(best["crysformer.node.weight"], last["crysformer.node.weight"])
    interrupted = Worsening(9, fail)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", interrupted, with_settings(keep="best"))
    assert (tmp_path / "killed" / BEST).exists()
    resumed = Worsening()
    resumed.validations = 1
    again, state = run(tmp_path / "killed", resumed, with_settings(keep="best"))
    assert state.best_step == 5
    assert all(torch.equal(again[name], best[name]) for name in best)


def test_damaged_best_weights_leave_the_last(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last, _ = run(tmp_path / "last", Worsening())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", Worsening(12, fail), with_settings(keep="best", validate_every=4))
    best = tmp_path / "killed" / BEST
    best.write_bytes(best.read_bytes()[:50])
    assert (tmp_path / "killed" / NAME).exists()
    # no further validation but the last: it is the best that is known
    again, state = run(tmp_path / "killed", Worsening(), with_settings(keep="best", validate_every=4))
    assert "best.safetensors cannot be read" in caplog.text
    assert state.best_step == 12
    assert all(torch.equal(again[name], last[name]) for name in last)
