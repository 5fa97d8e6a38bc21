"""Which crystals DAO-G is fine-tuned on, and that the campaign of the paper may be scored on its test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from dao_pipeline.campaign_files import load_campaign
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.held_out import require_held_out
from dao_pipeline.crystals.table import read_table
from dao_pipeline.errors import UserError
from dao_pipeline.training import generator
from dao_pipeline.training.run import _held_out
from tests.make import binary, raw_file

PAPER = Path(__file__).parents[2] / "config" / "campaigns" / "paper.yaml"


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CrysDB as the campaign of the paper makes it: MP-20 in three splits among other crystals."""
    benchmark = [
        replace(binary(i, split=side, e_above_hull=0.0, energy_method="PBE"), source="mp20")
        for i, side in ((0, "train"), (1, "train"), (2, "val"), (3, "test"), (4, "test"))
    ]
    # another polymorph of a test composition in MP-20's training set; copies and polymorphs elsewhere
    shared = replace(binary(3, split="train", e_above_hull=0.1, energy_method="PBE"), id="shared", source="mp20")
    shared = replace(shared, lattice=shared.lattice * 1.2)
    others = [
        replace(binary(i, e_above_hull=0.0, energy_method="PBE"), id=f"o-{i}", source="mp") for i in range(40)
    ]
    polymorph = replace(others[4], id="o-poly", lattice=others[4].lattice * 1.3)
    raw = raw_file(tmp_path / "raw.parquet", [*others, polymorph, *benchmark, shared])
    monkeypatch.setenv("DAO_CRYSDB", str(raw))
    build_crysdb(load_campaign(PAPER), raw, tmp_path / "crysdb")
    return tmp_path / "crysdb"


def ids(path: Path) -> set[str]:
    return set(read_table(path)["id"].to_pylist())


def test_the_paper_is_scored_on_mp20_alone(paper: Path) -> None:
    assert ids(paper / "test.parquet") == {"t-3", "t-4"}
    assert ids(paper / "val.parquet") == {"t-2"}
    assert ids(paper / "train.parquet") == {"t-0", "t-1", "shared", *(f"o-{i}" for i in range(5, 40))}
    run = {"stage": "finetune_generator", "campaign": "paper"}
    run |= {"held_out": _held_out({"train": paper / "train.parquet", "val": paper / "val.parquet"})}
    assert require_held_out(paper / "test.parquet", {"generator": [run]}, allow=False) == []


def test_the_paper_is_fine_tuned_on_mp20_alone(
    paper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[pa.Table] = []

    def record(model: Any, objective: Any, crystals: pa.Table, validation: pa.Table, *_: Any, **__: Any) -> None:
        given.extend((crystals, validation))

    monkeypatch.setattr(generator, "train_to_directory", record)
    campaign = load_campaign(PAPER)
    monkeypatch.setattr(generator, "_generator", lambda folder: SimpleNamespace(process=campaign.process))
    generator.finetune_generator(campaign, paper, tmp_path / "out", tmp_path / "work", init=tmp_path)
    assert [set(table["id"].to_pylist()) for table in given] == [{"t-0", "t-1", "shared"}, {"t-2"}]
    campaign = load_campaign(PAPER, {"finetune": {"sources": ["mp20", "mp"], "crystals": "stable"}})
    generator.finetune_generator(campaign, paper, tmp_path / "out", tmp_path / "work", init=tmp_path)
    assert given[2].num_rows == 37  # not the unstable one
    campaign = load_campaign(PAPER, {"finetune": {"sources": ["mp-20"]}})
    with pytest.raises(UserError, match=r"no crystal is of finetune.sources = mp-20; dao-pipeline coverage lists"):
        generator.finetune_generator(campaign, paper, tmp_path / "out", tmp_path / "work", init=tmp_path)
    with pytest.raises(UserError, match="give one of them"):
        load_campaign(PAPER, {"finetune": {"path": "x.parquet"}})
