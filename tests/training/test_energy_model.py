"""The stage that trains DAO-P, with members: what it writes, what they say, and resumption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dao_pipeline.config import Campaign
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.energy import predict
from dao_pipeline.energy.predict import ensemble_energies, fit_std_scale, load_ensemble, predict_with_std
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.model.dao import load_model
from dao_pipeline.training import energy_model
from dao_pipeline.training.energy_model import train_energy_model
from tests.make import binary


def campaign(**changes: Any) -> Campaign:
    backbone = {"preset": "tiny", "layers": 1, "width": 16, "heads": 2, "frequencies": 2}
    training = {"steps": 6, "batch_atoms": 40, "warmup_steps": 2, "learning_rate": 1e-3}
    section = {"backbone": backbone, "label": "formation_energy", "training": training, "member_steps": 4}
    return Campaign.model_validate({"name": "test", "energy_model": section | changes})


@pytest.fixture
def crysdb(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = [binary(i, formation_energy=float(random.normal(-1, 0.5))) for i in range(64)]
    write_table(to_table(rows[:50]), tmp_path / "crysdb" / "train.parquet", {"stage": "test"})
    write_table(to_table(rows[50:]), tmp_path / "crysdb" / "val.parquet", {"stage": "test"})
    return tmp_path / "crysdb"


def test_members_differ_and_are_calibrated(crysdb: Path, tmp_path: Path) -> None:
    out = tmp_path / "dao_p"
    train_energy_model(campaign(members=3), crysdb, out, tmp_path / "work")
    assert not (tmp_path / "work").exists()
    models = load_ensemble(out)
    assert len(models) == 4
    assert len(set(models[0].about.members)) == 3
    val = read_table(crysdb / "val.parquet")
    energies = ensemble_energies(models, val)
    assert np.ptp(energies, axis=0).min() > 0
    energy, std = predict_with_std(out, val)
    assert std is not None
    np.testing.assert_allclose(energy, energies.mean(0))
    wrong = np.abs(energy - val["formation_energy"].to_numpy())
    assert np.mean(wrong <= std) == pytest.approx(0.6827, abs=1 / len(wrong))
    assert [entry["steps"] for entry in models[1].about.history] == [6, 4]
    assert pq.read_table(out / "metrics.parquet").num_rows > 0


def test_without_members_there_is_no_uncertainty(crysdb: Path, tmp_path: Path) -> None:
    out = tmp_path / "dao_p"
    train_energy_model(campaign(), crysdb, out, tmp_path / "work")
    assert not (out / "members").exists()
    energy, std = predict_with_std(out, read_table(crysdb / "val.parquet"))
    assert std is None
    assert np.isfinite(energy).all()
    assert load_model(out).about.backbone["residual"] == "sum"


def test_the_first_model_does_not_depend_on_its_members(crysdb: Path, tmp_path: Path) -> None:
    for name, members in (("alone", 0), ("first", 1)):
        train_energy_model(campaign(members=members), crysdb, tmp_path / name, tmp_path / "work")
    alone, first = (load_model(tmp_path / name).state_dict() for name in ("alone", "first"))
    assert all((alone[key] == first[key]).all() for key in alone)


def test_an_interrupted_run_keeps_what_is_trained(
    crysdb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third of four trainings is interrupted, and the outputs are deleted, as Snakemake would do."""
    train_energy_model(campaign(members=3), crysdb, tmp_path / "whole", tmp_path / "work")
    trained, count = energy_model.train_to_directory, 0

    def interrupted(*args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise ContinueLater("enough")
        trained(*args, **options)

    monkeypatch.setattr(energy_model, "train_to_directory", interrupted)
    with pytest.raises(ContinueLater):
        train_energy_model(campaign(members=3), crysdb, tmp_path / "out", tmp_path / "work")
    assert not (tmp_path / "out").exists()
    train_energy_model(campaign(members=3), crysdb, tmp_path / "out", tmp_path / "work")
    assert count == 5  # two before, one that was interrupted, two after
    whole, resumed = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "out"))
    assert (whole["members"], whole["weights_hash"]) == (resumed["members"], resumed["weights_hash"])
    assert whole["std_scale"] == resumed["std_scale"]


def test_members_need_crystals_to_be_calibrated_on(crysdb: Path, tmp_path: Path) -> None:
    write_table(read_table(crysdb / "val.parquet").slice(0, 1), crysdb / "val.parquet", {"stage": "test"})
    with pytest.raises(UserError, match="val_fraction"):
        train_energy_model(campaign(members=2), crysdb, tmp_path / "out", tmp_path / "work")


def test_a_foreign_member_is_refused(crysdb: Path, tmp_path: Path) -> None:
    out = tmp_path / "dao_p"
    train_energy_model(campaign(members=2), crysdb, out, tmp_path / "work")
    (out / "members" / "1").rename(out / "members" / "0")
    (out / "members" / "2").rename(out / "members" / "1")
    with pytest.raises(UserError, match="whole directory"):
        predict.load_ensemble(out)


def test_the_scale_puts_two_thirds_within_one_deviation() -> None:
    random = np.random.default_rng(1)
    true_std = random.uniform(0.5, 2.0, 4000)
    labels = random.normal(size=4000)
    error = true_std * random.normal(size=4000)
    # models that agree too well: their spread is a third of the error
    energies = labels + error + true_std / 3 * random.normal(size=(20, 4000))
    scale = fit_std_scale(energies, labels)
    assert scale == pytest.approx(3, rel=0.06)
    shifted = np.abs(energies.mean(0) - labels) <= scale * energies.std(0, ddof=1)
    assert shifted.mean() == pytest.approx(0.683, abs=1e-3)
