"""The stage, on crystals of two types that their anions tell apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.config import Campaign
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.ranking.files import load_ranker
from dao_pipeline.ranking.train import train_ranker
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
    return Campaign.model_validate({"name": "t", "ranking": settings})


def test_the_stage_writes_a_ranker_that_knows_the_types(crysdb: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranker"
    train_ranker(campaign(), crysdb, tmp_path / "dao_p", out)
    examples = read_table(out / "examples_train.parquet")
    own = [
        t.partition(":")[0] == template
        for t, template in zip(*(examples[n].to_pylist() for n in ("id", "template_id")), strict=True)
    ]
    assert not any(own)
    note = json.loads((out / "config.json").read_text())
    assert note["kind"] == "ranker"
    assert note["history"][0]["compositions"] == 40
    assert set(read_table(out / "metrics.parquet")["part"].to_pylist()) == {"votes", "ranker"}
    ranker = load_ranker(out)
    halide, oxide = binary("Na", "Cl"), binary("Na", "O")
    swapped = [
        crystal("a", ["Na", "Cl"], halide.frac_coords.tolist(), halide.lattice),
        crystal("b", ["Na", "Cl"], oxide.frac_coords.tolist(), oxide.lattice),
    ]
    found = ranker.probabilities(to_table(swapped), ["NaCl", "NaCl"])
    assert found[0] > 0.7
    assert found.sum() <= 1


def test_compositions_of_the_test_split_are_not_learned_from(crysdb: Path, tmp_path: Path) -> None:
    leaked = pa.concat_tables([read_table(crysdb / f"{name}.parquet") for name in ("train", "test")])
    write_table(leaked, crysdb / "train.parquet", {})
    with pytest.raises(UserError, match=r"10 compositions, e\.g\. .* are in .*test\.parquet as well"):
        train_ranker(campaign(), crysdb, tmp_path / "dao_p", tmp_path / "ranker")


def test_too_little_to_learn_from_is_said(crysdb: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ranking\.sources: no training crystal comes from them"):
        train_ranker(campaign(sources=["nowhere"]), crysdb, tmp_path / "dao_p", tmp_path / "ranker")
