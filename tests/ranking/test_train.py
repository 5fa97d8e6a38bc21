"""The stage, on crystals of two types that their anions tell apart."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.config import Campaign, Matcher
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.ranking import examples as examples_module
from dao_pipeline.ranking.files import load_ranker
from dao_pipeline.ranking.train import train_ranker
from dao_pipeline.templates.build import index_templates
from tests.make import ANIONS, METALS, crystal

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2


def binary(metal: str, anion: str) -> Crystal:
    """Rock salt with oxygen and its like, caesium chloride with halogens."""
    halide = anion in ("F", "Cl", "Br")
    lattice = 4.0 * np.eye(3) if halide else 5.5 * FCC
    return crystal(f"{metal}{anion}", [metal, anion], [[0, 0, 0], [0.5, 0.5, 0.5]], lattice, e_above_hull=0.0)


@pytest.fixture
def crysdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three quarters of 128 binaries to learn from, with energies that say nothing."""
    made = [binary(metal, anion) for metal in METALS for anion in ANIONS]
    order = np.random.default_rng(0).permutation(len(made))
    for name, rows in {"train": order[:90], "val": order[90:118], "test": order[118:]}.items():
        write_table(to_table([made[i] for i in rows]), tmp_path / "crysdb" / f"{name}.parquet", {})
    (tmp_path / "dao_p").mkdir()
    (tmp_path / "dao_p" / "model.safetensors").write_bytes(b"")

    def predict(model: Path, table: pa.Table, batch_atoms: int = 6000) -> np.ndarray:
        return np.zeros(table.num_rows)

    monkeypatch.setattr("dao_pipeline.energy.predict.predict_energies", predict)
    monkeypatch.setattr("dao_pipeline.parallel.available_cpus", lambda: 1)
    return tmp_path / "crysdb"


def campaign(**ranking: object) -> Campaign:
    settings = {"enabled": True, "compositions": 40, "proposals": 3, "suggestions": 16, "epochs": 30, **ranking}
    return Campaign.model_validate({"name": "t", "ranking": settings, "templates": {"distance": "mendeleev"}})


def train(crysdb: Path, tmp_path: Path, asked: Campaign, out: str = "ranker", **more: object) -> Path:
    """Index the training split as its stage does, and train; the folder of the ranker."""
    index_templates(asked, crysdb, tmp_path / "index")
    folder = tmp_path / out
    train_ranker(asked, crysdb, tmp_path / "index", folder, tmp_path / "work", **more)  # type: ignore[arg-type]
    return folder


def test_a_network_learns_from_training_compositions(crysdb: Path, tmp_path: Path) -> None:
    out = train(crysdb, tmp_path, campaign(hidden=8, energy=True), energy_model=tmp_path / "dao_p")
    examples = read_table(out / "examples.parquet")
    assert set(examples["split"].to_pylist()) == {"train", "val"}
    assert not (tmp_path / "work").exists()
    own = [
        t.partition(":")[0] == template
        for t, template in zip(*(examples[n].to_pylist() for n in ("id", "template_id")), strict=True)
    ]
    assert not any(own)
    note = json.loads((out / "config.json").read_text())
    assert note["kind"] == "ranker"
    assert note["history"][0]["compositions"] == 40
    assert set(read_table(out / "metrics.parquet")["part"].to_pylist()) == {"votes", "ranker"}


def test_votes_alone_know_the_types_and_compare_only_validation_compositions(crysdb: Path, tmp_path: Path) -> None:
    out = train(crysdb, tmp_path, campaign())
    assert set(read_table(out / "examples.parquet")["split"].to_pylist()) == {"val"}
    history = json.loads((out / "config.json").read_text())["history"][0]
    assert (history["compositions"], history["calibrated_on"] >= 20) == (0, True)
    ranker = load_ranker(out)
    halide, oxide = binary("Na", "Cl"), binary("Na", "O")
    swapped = [
        crystal("a", ["Na", "Cl"], halide.frac_coords.tolist(), halide.lattice),
        crystal("b", ["Na", "Cl"], oxide.frac_coords.tolist(), oxide.lattice),
    ]
    found = ranker.probabilities(to_table(swapped), ["NaCl", "NaCl"])
    assert found[0] > 0.7
    assert found.sum() <= 1
    assert ranker.energy_model is None
    assert set(read_table(out / "metrics.parquet")["part"].to_pylist()) == {"votes"}


def test_nothing_is_calibrated_on_test_compositions(crysdb: Path, tmp_path: Path) -> None:
    """With splits given by crystal, a composition may be in both: its answer must not be known."""
    val = read_table(crysdb / "val.parquet")
    write_table(val.slice(0, 5), crysdb / "test.parquet", {})
    examples = read_table(train(crysdb, tmp_path, campaign()) / "examples.parquet")
    judged = set(examples["target_id"].to_pylist())
    assert len(judged) >= 20
    assert not judged & set(val["id"].to_pylist()[:5])


def test_an_interrupted_comparison_goes_on_where_it_was(
    crysdb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_table(train(crysdb, tmp_path, campaign()) / "examples.parquet")
    monkeypatch.setattr(examples_module, "PART", 5)
    compare, done = examples_module.compare, []

    def counted(task: examples_module.Task) -> np.ndarray:
        done.append(task.known.id)
        if len(done) == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return compare(task)

    monkeypatch.setattr(examples_module, "compare", counted)
    with pytest.raises(ContinueLater, match="labels before labels-00002"):
        train(crysdb, tmp_path, campaign(), "again")
    assert len(done) == 10
    again = read_table(train(crysdb, tmp_path, campaign(), "again") / "examples.parquet")
    assert len(done) == len(set(done)) == len(set(whole["target_id"].to_pylist()))
    assert again.equals(whole)


def test_labels_of_other_tolerances_are_of_no_use(
    crysdb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, other = binary("Na", "Cl"), binary("Na", "O")
    made = to_table([crystal("a", ["Na", "Cl"], other.frac_coords.tolist(), other.lattice, target_id="NaCl")])
    compared = []
    monkeypatch.setattr(
        examples_module,
        "compare",
        lambda task: compared.append(task.matcher.stol) or np.array([0.5 * task.matcher.stol]),
    )
    for stol in (0.5, 0.5, 0.2):
        table = examples_module.label(made, to_table([known]), Matcher(stol=stol), 1, tmp_path / "work")
        assert table["rmse"].to_pylist() == [0.5 * stol]
    assert compared == [0.5, 0.2]


def test_too_few_to_calibrate_on(crysdb: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By default such a campaign ranks by the votes as they are; who asks for a ranker is told."""
    few = read_table(crysdb / "val.parquet").slice(0, 5)
    write_table(few, crysdb / "val.parquet", {})
    out = train(crysdb, tmp_path, campaign(enabled=None))
    assert "not calibrated" in caplog.text
    assert json.loads((out / "config.json").read_text())["history"][0]["calibrated_on"] == 0
    assert load_ranker(out).ranker.log_temperature.item() == 0.0
    assert read_table(out / "examples.parquet").num_rows == 0
    with pytest.raises(UserError, match="fewer than 20 compositions have candidates to learn from"):
        train(crysdb, tmp_path, campaign())


def test_compositions_of_the_test_split_are_not_learned_from(crysdb: Path, tmp_path: Path) -> None:
    leaked = pa.concat_tables([read_table(crysdb / f"{name}.parquet") for name in ("train", "test")])
    write_table(leaked, crysdb / "train.parquet", {})
    known = read_table(train(crysdb, tmp_path, campaign()) / "known.parquet")
    assert known.num_rows == 90
    assert not set(known["id"].to_pylist()) & set(read_table(crysdb / "test.parquet")["id"].to_pylist())


def test_too_little_to_learn_from_is_said(crysdb: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ranking\.sources: no training crystal comes from them"):
        train(crysdb, tmp_path, campaign(sources=["nowhere"]))
