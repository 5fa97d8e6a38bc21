"""Official checkpoints: what they compute is kept, what they lack or have too much is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from dao_pipeline.candidates.compositions import requested
from dao_pipeline.candidates.generate import candidates_of, generate_rows
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.cli import app
from dao_pipeline.config import Generate
from dao_pipeline.energy.predict import load_energy_model
from dao_pipeline.energy.property import Target
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import DaoModel, load_model
from dao_pipeline.model.layout import Layout
from dao_pipeline.model.official import import_checkpoint, read_official, read_scaler
from dao_pipeline.process.sampler import sample
from tests.model import reference
from tests.model.official_files import BASE, TINY, shapes, state_dict, weights_of, write_run
from tests.model.test_crysformer import random_batch

GENERATOR = {"only_diffusion": True}


def test_shapes_are_those_of_the_reference_module() -> None:
    sizes = {k: v for k, v in BASE.items() if k != "steps"}
    assert sum(torch.Size(shape).numel() for shape in shapes(**sizes).values()) == 25_593_609


def agree(model: DaoModel, weights: reference.Weights, sizes: list[int], rtol: float = 1e-10) -> None:
    numbers, coords, lattice, ptr, t = random_batch(sizes)
    t = t % (model.schedule.timesteps + 1)
    with torch.no_grad():
        out = model.double()(numbers, coords, lattice, ptr, t)
        for i in range(len(sizes)):
            atoms = slice(int(ptr[i]), int(ptr[i + 1]))
            eps_f, eps_l, energy = reference.crysformer(
                weights, numbers[atoms], coords[atoms], lattice[i], int(t[i])
            )
            torch.testing.assert_close(out.coords[atoms], eps_f, rtol=rtol, atol=rtol)
            torch.testing.assert_close(out.lattice[i], eps_l, rtol=rtol, atol=rtol)
            if out.energy is not None:
                torch.testing.assert_close(out.energy[i], energy, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (GENERATOR, "dao_g"),
        ({"only_diffusion": False}, "dao_p"),
        ({"finetune_energy": False}, "dao_g"),
        ({"finetune_energy": True}, "dao_p"),
    ],
)
def test_import_keeps_what_the_file_computes(tmp_path: Path, settings: dict[str, bool], kind: str) -> None:
    state = state_dict(**TINY)
    folder = write_run(tmp_path / "run", state, model=settings)
    done = CliRunner().invoke(app, ["import-checkpoint", str(folder), "--out", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert kind in done.output
    assert "node_embedding, " in done.output
    assert ("scalar_out" in done.output) == (kind == "dao_g")
    model = load_model(tmp_path / "model")
    assert model.about.kind == kind
    lam = state["sigma_scheduler.sigmas_norm"]
    assert torch.equal(dict(model.named_buffers())["schedule.score_norm"], lam.double())
    if kind == "dao_p":
        about = model.about
        assert (about.energy_label, about.energy_mean, about.energy_std) == ("e_above_hull", 0.25, 0.5)
    agree(model, weights_of(state), [5, 1, 3])


def test_base_size(tmp_path: Path) -> None:
    state = state_dict(**BASE)
    folder = write_run(tmp_path, state)
    for kind, count in (("dao_g", 25_211_352), ("dao_p", 25_359_577)):
        model = read_official(folder / "last.ckpt", kind).model  # type: ignore[arg-type]
        assert model.parameter_count() == count
    agree(model, weights_of(state), [4])


def test_energies_come_back_in_electronvolts(tmp_path: Path) -> None:
    state = state_dict(**TINY)
    import_checkpoint(write_run(tmp_path / "run", state, normaliser=(0.75, 0.125)), tmp_path / "model")
    model = load_energy_model(tmp_path / "model").double()
    numbers, coords, lattice, ptr, t = random_batch([3])

    with torch.no_grad():
        found = model.energy(numbers, coords, lattice, t * 0, Layout.from_ptr(ptr))
    raw = reference.crysformer(weights_of(state), numbers, coords, lattice[0], 0)[2]
    assert float(found[0]) == pytest.approx(0.75 + 0.125 * float(raw), rel=1e-10)


def test_provenance(tmp_path: Path) -> None:
    import_checkpoint(write_run(tmp_path / "run", state_dict(**TINY)) / "last.ckpt", tmp_path / "model")
    note = json.loads((tmp_path / "model" / "config.json").read_text())
    (entry,) = note["history"]
    assert entry["stage"] == "import_checkpoint"
    assert (entry["epoch"], entry["global_step"]) == (799, 12345)
    assert set(entry["inputs"]) == {"last.ckpt", "hparams.yaml", "prop_scaler.pt"}
    assert entry["dropped"] == ["node_embedding", "type_out"]
    assert note["elements"] == list(range(1, 101))


def test_property_model(tmp_path: Path) -> None:
    state = state_dict(**TINY)
    state = {name: value for name, value in state.items() if "scheduler" not in name}
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        state[f"predictor.{name}"] = 2 * state[f"decoder.scalar_out.{name}"] + 0.1
    folder = write_run(tmp_path / "run", state, model={"finetune_energy": False}, prop="logtc")
    notes = import_checkpoint(folder, tmp_path / "model")
    assert any("computed by quadrature" in note for note in notes)
    model = load_energy_model(tmp_path / "model")
    assert Target.of(model.about) == Target(name="logtc", unit="", log=False)
    agree(model, weights_of(state, head="predictor"), [2, 6])


def test_generation_runs_with_an_imported_model(tmp_path: Path) -> None:
    """In paper mode the sampler is the published one: lattices in angstrom, not bounded."""
    import_checkpoint(write_run(tmp_path / "run", state_dict(**TINY), model=GENERATOR), tmp_path / "model")
    model = load_model(tmp_path / "model")
    rows = plan_table([requested("NaCl", 2)], samples=3)
    steps = TINY["steps"]
    out = generate_rows(rows, model, None, Generate(steps=steps, guidance_scale=0), seed=4)
    assert out["status"].to_pylist() == ["ok"] * 3

    numbers = torch.tensor([11, 11, 17, 17]).repeat(3)
    ptr = torch.arange(0, 13, 4)

    def denoise(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        said = model(numbers, coords, lattice, ptr, t)
        return said.coords, said.lattice

    with torch.no_grad():
        layout = Layout.from_ptr(ptr)
        noise = candidates_of(rows, 4).noise(layout)
        made = sample(denoise, layout, model.schedule, steps=steps, noise=noise, bound=False)
    volumes = torch.tensor(out["lattice"].to_pylist()).view(3, 3, 3).det().abs()
    torch.testing.assert_close(volumes, made.lattice.det().abs(), rtol=1e-3, atol=0)


def break_state(state: dict[str, Tensor], change: str) -> None:
    if change == "missing":
        del state["decoder.block_1.ffn.norm.weight"], state["decoder.lattice_out.weight"]
    elif change == "unknown":
        state["decoder.final_layer_norm.weight"] = torch.ones(32)
    elif change == "shape":
        state["decoder.coord_out.weight"] = torch.ones(4, 32)
    elif change == "not finite":
        state["decoder.coord_out.weight"][0, 0] = float("nan")
    elif change == "integer":
        state["decoder.coord_out.weight"] = torch.ones(3, 32, dtype=torch.int64)
    elif change == "schedule":
        beta = torch.cat([torch.zeros(1), torch.linspace(1e-4, 0.02, 20)])
        state["beta_scheduler.alphas_cumprod"] = torch.cumprod(1 - beta, 0)
    elif change == "sigma":
        state["sigma_scheduler.sigmas"][5] *= 1.01
    elif change == "lambda":
        state["sigma_scheduler.sigmas_norm"][5] = 0
    elif change == "half a schedule":
        del state["sigma_scheduler.sigmas_norm"]
    elif change == "width":
        state["decoder.embedding_in.1.bias"] = torch.ones(1_000_000)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", r"missing: decoder.block_1.ffn.norm.weight, decoder.lattice_out.weight"),
        ("unknown", r"unknown: decoder.final_layer_norm.weight"),
        ("shape", r"decoder.coord_out.weight \(4, 32\) in place of \(3, 32\)"),
        ("not finite", r"decoder.coord_out.weight holds numbers that are not finite"),
        ("integer", r"decoder.coord_out.weight holds torch.int64"),
        ("schedule", r"alphas_cumprod differs by .* from the published schedule"),
        ("sigma", r"sigmas differs by 1.0e-02 at t = 5"),
        ("lambda", r"sigmas_norm must be positive"),
        ("half a schedule", r"noise schedule is incomplete"),
        ("width", r"no Crysformer of a size"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, change: str, said: str) -> None:
    state = state_dict(**TINY)
    break_state(state, change)
    with pytest.raises(UserError, match=said):
        read_official(write_run(tmp_path, state) / "last.ckpt")


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        (
            {"decoder": {"ip": False, "ln": True}},
            r"decoder.ip = False \(published: True\); model.decoder.ln",
        ),
        ({"model": {}}, r"say --kind dao_p or dao_g"),
        ({"normaliser": None}, r"prop_scaler.pt: not found"),
        ({"normaliser": (0.0, 0.0)}, r"standard deviation is 0.0"),
        ({"normaliser": ([0.0, 1.0], [1.0, 1.0])}, r"no scaler of one label"),
        ({"decoder": {"head_num": 7}}, r"not divisible"),
        ({"decoder": {"head_num": "many"}}, r"no Crysformer of a size"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, keywords: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_official(write_run(tmp_path, state_dict(**TINY), **keywords) / "last.ckpt")


@pytest.mark.parametrize("text", ["", "[1]", "model: 3", "a: [", "a: !!python/object/apply:os.system [x]"])
def test_wrong_hyperparameters(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path, state_dict(**TINY))
    (folder / "hparams.yaml").write_text(text)
    with pytest.raises(UserError, match=r"hparams\.yaml"):
        read_official(folder / "last.ckpt")


def test_aliases_cannot_multiply(tmp_path: Path) -> None:
    """Thirty lists, each of the one before ten times: harmless until somebody prints them."""
    folder = write_run(tmp_path, state_dict(**TINY))
    lines = ["a0: &a0 x", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30))]
    for key in ("_target_", "only_diffusion"):
        (folder / "hparams.yaml").write_text("\n".join([*lines, f"model: {{{key}: *a29}}"]))
        with pytest.raises(UserError, match=f"model.{key} is no plain value"):
            read_official(folder / "last.ckpt")


def test_command_explains_what_is_wrong(tmp_path: Path) -> None:
    runner = CliRunner()
    folder = write_run(tmp_path, state_dict(**TINY))
    done = runner.invoke(app, ["import-checkpoint", str(folder), "--out", str(tmp_path / "m"), "--kind", "dao"])
    assert done.exit_code == 2
    assert "say dao_p or dao_g" in done.output
    (folder / "last.ckpt").unlink()
    done = runner.invoke(app, ["import-checkpoint", str(folder), "--out", str(tmp_path / "m")])
    assert done.exit_code == 2
    assert "last.ckpt: not found" in done.output
    assert not (tmp_path / "m").exists()


def test_scaler(tmp_path: Path) -> None:
    write_run(tmp_path, state_dict(**TINY), normaliser=(-1.5, 0.25))
    assert read_scaler(tmp_path / "prop_scaler.pt") == (-1.5, 0.25)
    torch.save({"means": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no scaler"):
        read_scaler(tmp_path / "other.pt")
