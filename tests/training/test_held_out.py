"""What a model's history says about the crystals that it was not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dao_pipeline.crystals.held_out import held_out
from dao_pipeline.training.run import _held_out
from tests.crysdb.test_build import ALL, build
from tests.make import raw_file


@pytest.fixture
def crysdb(tmp_path: Path) -> Path:
    build(tmp_path, ALL)
    return tmp_path / "crysdb"


def test_training_on_crysdb_leaves_out_its_test_split(crysdb: Path) -> None:
    inputs = {"train": crysdb / "train.parquet", "val": crysdb / "val.parquet"}
    assert _held_out(inputs) == held_out(crysdb / "train.parquet")
    assert [entry["name"] for entry in _held_out(inputs) or []] == ["own test split"]


def test_leaky_tables_are_named_before_training(
    crysdb: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = raw_file(tmp_path / "own.parquet", ALL)
    assert _held_out({"train": own, "val": crysdb / "val.parquet", "init": tmp_path / "model"}) is None
    assert "own.parquet has compositions of" in caplog.text
    assert _held_out({"labels": own, "init": tmp_path / "model"}) is None
