"""A property beside the energy: learned from labelled crystals, predicted for candidates, in its own unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dao_pipeline.config import Backbone, Campaign, Process
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.energy.predict_property import PREDICTIONS, predict_property
from dao_pipeline.energy.property import Target
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import About, DaoModel, load_model, save_model
from dao_pipeline.training.property_model import finetune_property, reset_energy_head
from tests.make import binary

TRAINING = {"steps": 150, "batch_atoms": 80, "learning_rate": 3e-3, "warmup_steps": 10, "ema_decay": 0.9}
COUNT = 96


def mean_numbers(count: int = COUNT) -> np.ndarray:
    return np.array([binary(i).atomic_numbers.mean() for i in range(count)])


def labelled(path: Path, labels: Sequence[float | None], **extra: Any) -> Path:
    table = to_table([binary(i, **extra) for i in range(len(labels))])
    write_table(table.append_column("modulus", pa.array(labels, pa.float64())), path, {"stage": "test"})
    return path


def campaign(table: Path, steps: int | None = None, **settings: Any) -> Campaign:
    training = TRAINING | ({"steps": steps} if steps else {})
    section = {"enabled": True, "path": str(table), "column": "modulus", "unit": "GPa", "training": training}
    return parse_campaign({"name": "test", "property": section | settings}, "test")


@pytest.fixture
def dao_p(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    about = About(
        kind="dao_p",
        backbone=Backbone(preset="tiny", layers=1, width=32, heads=2, frequencies=4).model_dump(),
        process=Process(timesteps=20).model_dump(),
        energy_label="e_above_hull",
        history=[{"stage": "train_energy_model"}],
    )
    save_model(DaoModel(about, fit_element_volumes(to_table([binary(i) for i in range(COUNT)]))), tmp_path / "p")
    return tmp_path / "p"


def screened(path: Path, count: int, statuses: dict[int, str]) -> Path:
    table = to_table([binary(i, status=statuses.get(i, "ok"), composition=f"c{i}") for i in range(count)])
    missing = pa.array([statuses.get(i) != "no_crystal" for i in range(count)])
    for name in ("atomic_numbers", "frac_coords", "lattice"):
        column = pa.array(
            [v if ok else None for v, ok in zip(table[name].to_pylist(), missing.to_pylist(), strict=True)]
        )
        table = table.set_column(table.column_names.index(name), name, column.cast(table[name].type))
    write_table(table, path, {"stage": "test"})
    return path


@pytest.mark.parametrize("log", [False, True])
def test_a_label_of_the_composition_is_learned_and_predicted(tmp_path: Path, dao_p: Path, log: bool) -> None:
    """Better than the mean on compositions that were held out; in the label's unit, logarithm or not."""
    truth = 10 * mean_numbers()
    shown: list[float | None] = [float(v) if i % 5 else None for i, v in enumerate(truth)]
    settings = campaign(labelled(tmp_path / "labels.parquet", shown), log=log)
    out = tmp_path / "property"
    finetune_property(settings, dao_p, out, tmp_path / "work")
    model = load_model(out)
    assert (model.about.kind, model.about.energy_label) == ("dao_p", "modulus")
    assert Target.of(model.about) == Target("modulus", "GPa", log)
    assert [entry.get("stage") for entry in model.about.history][::2] == [
        "train_energy_model",
        "finetune_property",
    ]
    assert {"train", "val"} == set(read_table(out / "metrics.parquet")["split"].to_pylist())
    statuses = {1: "atoms_too_close", 2: "no_crystal"}
    predict_property(settings, out, screened(tmp_path / "s.parquet", COUNT, statuses), tmp_path / "x.parquet")
    rows = read_table(tmp_path / "x.parquet")
    assert rows.schema.equals(PREDICTIONS)
    assert rows["id"].to_pylist() == [f"t-{i}" for i in range(COUNT)]
    assert set(rows["property"].to_pylist()) == {"modulus"}
    assert set(rows["unit"].to_pylist()) == {"GPa"}
    values, status = rows["value"].to_pylist(), rows["status"].to_pylist()
    assert status == [statuses.get(i, "ok") for i in range(COUNT)]
    assert [i for i, value in enumerate(values) if value is None] == [1, 2]
    unseen = list(range(0, COUNT, 5))
    error = np.abs(np.array([values[i] for i in unseen], dtype=float) - truth[unseen]).mean()
    assert error < 0.5 * np.abs(truth[unseen] - truth.mean()).mean()


def test_rows_without_a_usable_label_are_recorded(tmp_path: Path, dao_p: Path) -> None:
    labels: list[float | None] = [5.0] * 30
    labels[3], labels[4], labels[5], labels[6] = None, np.inf, -1.0, 0.0
    table = read_table(labelled(tmp_path / "labels.parquet", labels))
    sides = ["test" if i == 7 else "val" if i == 8 else None for i in range(30)]
    place = table.column_names.index("split")
    write_table(table.set_column(place, "split", pa.array(sides, pa.string())), tmp_path / "labels.parquet", {})
    finetune_property(
        campaign(tmp_path / "labels.parquet", steps=1, log=True), dao_p, tmp_path / "m", tmp_path / "work"
    )
    rejected = {row["id"]: row["reason"] for row in read_table(tmp_path / "m" / "rejected.parquet").to_pylist()}
    assert rejected == {
        "t-3": "no_label",
        "t-4": "no_label",
        "t-5": "label_not_positive",
        "t-6": "label_not_positive",
        "t-7": "held_out",
    }


def test_only_the_head_is_new(dao_p: Path) -> None:
    before, after = load_model(dao_p), load_model(dao_p)
    reset_energy_head(after)
    changed = {
        name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])
    }
    assert {name.split(".")[1] for name in changed} == {"energy_head"}


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([1.0] * 4, {"column": "bulk"}, "no column bulk; set property.column"),
        ([1.0] * 4, {"column": "formula"}, "labels must be numbers"),
        ([-1.0] * 4, {"log": True}, "4 rows rejected"),
        ([None] * 4, {}, "no crystal to learn property.column = modulus"),
    ],
)
def test_labels_that_cannot_be_learned(
    tmp_path: Path, dao_p: Path, labels: list[float | None], settings: dict[str, Any], message: str
) -> None:
    wanted = campaign(labelled(tmp_path / "labels.parquet", labels), **settings)
    with pytest.raises(UserError, match=message):
        finetune_property(wanted, dao_p, tmp_path / "m", tmp_path / "work")


def test_a_model_of_energies_predicts_no_property(tmp_path: Path, dao_p: Path) -> None:
    with pytest.raises(UserError, match="name a model written by finetune-property"):
        predict_property(campaign(tmp_path / "x"), dao_p, tmp_path / "s.parquet", tmp_path / "o.parquet")


def test_logarithm_and_back() -> None:
    values = np.array([1e-3, 1.0, 250.0])
    target = Target("x", "", True)
    assert target.decode(target.encode(values)) == pytest.approx(values)
    assert not np.isfinite(target.encode(np.array([0.0, -1.0]))).any()
    assert np.isinf(target.decode(np.array([1e4]))).all()
    assert Target("x", "", False).encode(values) is values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"enabled": True, "column": "x"}, "property: path is not given, but enabled is true: name the labelled"),
        ({"enabled": True, "path": "x"}, "property: column is not given, but enabled is true: name the column"),
        ({"enabled": True, "path": "x", "column": "y", "unti": "K"}, "property.unti: unknown key"),
    ],
)
def test_a_property_needs_a_table_and_a_column(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_campaign({"name": "a", "property": values}, "a.yaml")
