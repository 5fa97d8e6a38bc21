"""Which crystals DAO-G is fine-tuned on, and that the campaign of the paper may be scored on its test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from dao_pipeline.config import Campaign
from dao_pipeline.config.read import deep_merge, load_campaign, parse_campaign
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.held_out import require_held_out
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import load_model
from dao_pipeline.training import generator
from dao_pipeline.training.run import _held_out
from tests.make import binary, raw_file
from tests.training.common import crystals

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


def written(folder: Path, count: int = 40) -> Path:
    """A CrysDB of random crystals, half of them more than 0.5 eV/atom above the hull."""
    write_table(crystals(count), folder / "train.parquet", {"held_out": []})
    write_table(crystals(8, seed=1), folder / "val.parquet", {"held_out": []})
    return folder


def short(**values: Any) -> Campaign:
    training = {"steps": 2, "batch_atoms": 40, "warmup_steps": 1}
    backbone = {"preset": "tiny", "layers": 1, "width": 16, "heads": 2, "frequencies": 4}
    base = {
        "name": "short",
        "crysdb": {"stable_threshold": 0.5},
        "process": {"timesteps": 10},
        "generator": {"backbone": backbone},
        "generate": {"steps": 5},
        "pretrain": {"stage1": training},
        "finetune": {"training": training},
    }
    return parse_campaign(deep_merge(base, values), "short.yaml")


@pytest.mark.parametrize("which", ["all", "stable"])
def test_stage_one_sees_all_crystals_or_the_stable_ones(tmp_path: Path, which: str) -> None:
    crysdb = written(tmp_path)
    campaign = short(pretrain={"crystals": which})
    generator.pretrain_generator(campaign, crysdb, tmp_path / "out", tmp_path / "work", stage=1)
    energies = read_table(crysdb / "train.parquet")["e_above_hull"].to_numpy()
    expected = len(energies) if which == "all" else (energies <= 0.5).sum()
    assert load_model(tmp_path / "out").about.history[0]["crystals"] == expected


def test_without_pretraining_fine_tuning_starts_from_random_weights(tmp_path: Path) -> None:
    """Its volumes and prior are those of the crystals that it sees, and another seed is another start."""
    crysdb = written(tmp_path)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        campaign = short(seed=seed, pretrain={"stages": 0})
        generator.finetune_generator(campaign, crysdb, tmp_path / name, tmp_path / "work", init=None)
    models = [load_model(tmp_path / name) for name in "abc"]
    [run] = models[0].about.history
    assert (run["stage"], run["steps"], "init" in run["inputs"]) == ("finetune_generator", 2, False)
    weights = [model.crysformer.node.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    seen = generator.stable(read_table(crysdb / "train.parquet"), 0.5)
    torch.testing.assert_close(models[0].element_volumes.double(), torch.as_tensor(fit_element_volumes(seen)))


def test_without_stable_crystals_stage_one_says_what_to_change(tmp_path: Path) -> None:
    campaign = short(crysdb={"stable_threshold": 0}, pretrain={"crystals": "stable"})
    with pytest.raises(UserError, match=r"crysdb.stable_threshold = 0.0 .*set pretrain.crystals: all"):
        generator.pretrain_generator(campaign, written(tmp_path), tmp_path / "out", tmp_path / "work", stage=1)
