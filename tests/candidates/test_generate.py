"""Candidates from trained models of both processes: crystals, provenance, and models that do not fit together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from dao_pipeline.candidates.compositions import Requested
from dao_pipeline.candidates.generate import generate_candidates, generate_rows
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.config import Backbone, Generate, Process, Training
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.dataset import CrystalDataset
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import cell_parameters, shortest_distances, volumes
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.model.crysformer import Crysformer, Output
from dao_pipeline.model.dao import About, DaoModel, load_model, save_model
from dao_pipeline.process.objective import GeneratorObjective
from dao_pipeline.sources.embedded import load
from dao_pipeline.training.generator import finetune_generator
from dao_pipeline.training.loop import train

BACKBONE = Backbone(preset="tiny", layers=2, width=32, heads=4, frequencies=8)
TRAINING = Training(
    steps=150, batch_atoms=128, learning_rate=4e-3, warmup_steps=10, ema_decay=0.9, checkpoint_every=1000
)
KINDS = ("diffusion", "flow")
ROCK_SALT = 8


def rock_salts() -> pa.Table:
    """Some embedded crystals of two atoms and the structure of NaCl."""
    table = load()
    chosen = pc.and_(
        pc.and_(pc.equal(table["spacegroup"], 225), pc.equal(table["num_atoms"], 2)),
        pc.is_null(table["precursor_of"]),
    )
    return table.filter(chosen).slice(0, ROCK_SALT)


def new_model(kind: str, process: str, table: pa.Table, **more: Any) -> DaoModel:
    torch.manual_seed(0)
    settings = Process(kind=process, **more)  # type: ignore[arg-type]
    about = About(
        kind=kind,
        backbone=BACKBONE.model_dump(),
        process=settings.model_dump(),
        energy_label="e_above_hull",
        energy_mean=0.05,
        energy_std=0.05,
    )
    return DaoModel.fitted(about, table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of both processes and a plan; the generator of the flow is trained for a moment."""
    folder = tmp_path_factory.mktemp("models")
    table = rock_salts()
    for process in KINDS:
        save_model(new_model("dao_p", process, table), folder / f"p-{process}")
    save_model(new_model("dao_g", "diffusion", table), folder / "g-diffusion")
    flow = new_model("dao_g", "flow", table)
    trained = train(
        flow,
        GeneratorObjective(),
        CrystalDataset(pa.concat_tables([table] * (64 // len(table)))),
        None,
        TRAINING,
        work=folder / "training",
        identity="x",
        seed=0,
        label="test",
    )
    save_model(flow, folder / "g-flow")
    np.save(folder / "loss.npy", np.array([record["loss"] for record in trained.records], dtype=float))
    asked = [Requested(r["formula"], r["formula"], r["atomic_numbers"], r["id"]) for r in table.to_pylist()]
    write_table(plan_table(asked, 4), folder / "plan.parquet", {})
    return folder


def test_training_lowers_the_loss(folder: Path) -> None:
    losses = np.load(folder / "loss.npy")
    assert losses[-20:].mean() < 0.7 * losses[:5].mean()


def generate(folder: Path, process: str, energy: str | None = None, out: str = "out", **settings: Any) -> pa.Table:
    values = {"name": "test", "process": {"kind": process}, "generate": {"guidance_scale": 0} | settings}
    generate_candidates(
        parse_campaign(values, "test"),
        folder / "plan.parquet",
        folder / f"g-{process}",
        folder / f"p-{energy or process}",
        folder / f"{out}.parquet",
        folder / "work",
    )
    return read_table(folder / f"{out}.parquet")


@pytest.mark.parametrize("settings", [{"steps": 50}, {"steps": 25, "method": "midpoint", "annealing": 3.0}])
def test_a_flow_finds_what_it_was_trained_on(folder: Path, settings: dict[str, Any]) -> None:
    found = generate(folder, "flow", **settings)
    assert set(found["status"].to_pylist()) == {"ok"}
    known = dict(zip(rock_salts()["formula"].to_pylist(), volumes(flatten(rock_salts()).lattice), strict=True))
    flat = flatten(found)
    ratio = volumes(flat.lattice) / np.array([known[formula] for formula in found["formula"].to_pylist()])
    assert ((ratio > 0.5) & (ratio < 2)).mean() > 0.9
    assert 0.8 < np.median(ratio) < 1.25
    assert (shortest_distances(flat) > 1.0).mean() > 0.9
    # rhombohedral cells of 60 degrees, and atoms half a cell apart
    assert np.median(np.abs(cell_parameters(flat.lattice)[:, 3:] - 60)) < 12
    apart = (flat.frac[1::2] - flat.frac[::2]) % 1.0
    assert np.median(np.abs(apart - 0.5)) < 0.1


@pytest.mark.parametrize(
    ("process", "settings", "method", "calls"),
    [
        ("diffusion", {"steps": 10}, "predictor-corrector", 20),
        ("diffusion", {"steps": 10, "corrector": False}, "predictor", 10),
        ("flow", {"steps": 10}, "euler", 10),
        ("flow", {"steps": 10, "method": "midpoint"}, "midpoint", 20),
        ("flow", {}, "euler", 50),
    ],
)
def test_provenance_counts_network_calls(
    folder: Path,
    process: str,
    settings: dict[str, Any],
    method: str,
    calls: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[int] = []
    forward = Crysformer.forward

    def counting(*arguments: Any) -> Output:
        counted.append(1)
        return forward(*arguments)

    monkeypatch.setattr(Crysformer, "forward", counting)
    generate(folder, process, **settings)
    about = read_about(folder / "out.parquet")
    assert len(counted) == about["sampling"]["network_calls"] == calls
    assert about["sampling"] | {"process": process, "method": method} == about["sampling"]


@pytest.mark.parametrize("process", KINDS)
def test_guidance_by_dao_p(folder: Path, process: str) -> None:
    """At scale 0 DAO-P is not even asked; above, crystals change and stay crystals."""
    rows = read_table(folder / "plan.parquet")
    dao_g, dao_p = load_model(folder / f"g-{process}"), load_model(folder / f"p-{process}")

    def lattices(energy: DaoModel | None, scale: float) -> np.ndarray:
        settings = Generate(steps=20, guidance_scale=scale)
        return flatten(generate_rows(rows, dao_g, energy, settings, seed=1)).lattice

    plain = lattices(None, 0.0)
    assert np.array_equal(lattices(dao_p, 0.0), plain)
    guided = lattices(dao_p, 2.0)
    assert np.isfinite(guided).all()
    assert not np.allclose(guided, plain)


@pytest.mark.parametrize("process", KINDS)
def test_of_several_draws_the_lower_energy_is_kept(folder: Path, process: str) -> None:
    """The first draw is that of a single one; what is kept is one of the draws; batches do not matter."""
    rows = read_table(folder / "plan.parquet")
    dao_g, dao_p = load_model(folder / f"g-{process}"), load_model(folder / f"p-{process}")

    def drawn(scale: float, **guidance: Any) -> np.ndarray:
        shape = {"coords": 0.0, "lattice": 0.0} | guidance
        settings = Generate.model_validate({"steps": 5, "guidance_scale": scale, "guidance": shape})
        return flatten(generate_rows(rows, dao_g, dao_p, settings, seed=1)).lattice

    plain = drawn(0.0, draws=5)
    assert np.array_equal(drawn(1.0), plain)
    kept = drawn(1e4, draws=5)
    same = (kept == plain).all((1, 2))
    assert 0 < same.sum() < len(same)  # about a fifth of the candidates
    assert np.array_equal(drawn(1e4, draws=5), kept)
    assert not np.array_equal(drawn(1e4, draws=5, draws_weight=0.0), kept)


def test_models_of_two_processes_do_not_guide_each_other(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"p-diffusion cannot guide .*g-flow: .*process.kind = diffusion, DAO-G with flow"
    ):
        generate(folder, "flow", energy="diffusion", guidance_scale=1.0)
    generate(folder, "flow", energy="diffusion", steps=10)  # unguided: DAO-P does not matter


def test_noise_in_another_unit_does_not_guide(folder: Path) -> None:
    """Noise of one angstrom is not noise of one expected edge, which is some 4 angstrom."""
    backbone = BACKBONE.model_copy(update={"distances": "none"})
    about = load_model(folder / "p-diffusion").about
    process = Process(kind="diffusion", lattice_scale="none").model_dump()
    other = DaoModel(replace(about, backbone=backbone.model_dump(), process=process), np.full(101, 15.0))
    save_model(other, folder / "p-angstrom")
    with pytest.raises(UserError, match=r"process.lattice_scale = none, DAO-G with composition"):
        generate(folder, "diffusion", energy="angstrom", guidance_scale=1.0)


def test_fine_tuning_refuses_what_the_campaign_could_not_use(folder: Path, tmp_path: Path) -> None:
    """At once, not when its result is to be sampled."""
    values = {"name": "test", "process": {"kind": "diffusion"}, "generate": {"guidance_scale": 1}}
    with pytest.raises(UserError, match=r"g-flow: it was trained with process.kind = flow; this campaign"):
        finetune_generator(parse_campaign(values, "test"), tmp_path, tmp_path, tmp_path, init=folder / "g-flow")


def test_settings_of_the_other_process_are_refused(folder: Path) -> None:
    """The campaign agrees with itself, but names models of the other process."""
    values = {"process": {"kind": "diffusion"}, "generate": {"corrector": True, "guidance_scale": 0}}
    campaign = parse_campaign({"name": "test"} | values, "test")
    with pytest.raises(
        UserError, match=r"g-flow: generate.corrector \(True\) has no meaning for process.kind: flow"
    ):
        generate_candidates(
            campaign, folder / "plan.parquet", folder / "g-flow", folder / "p-flow", folder / "x", folder / "w"
        )
