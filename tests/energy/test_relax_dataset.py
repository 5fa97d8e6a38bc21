"""The stage that relaxes the training set: it keeps what is unsound as it was, and goes on after any end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from dao_pipeline.config import Campaign, Relax
from dao_pipeline.crystals.table import provenance, read_about, read_table, write_table
from dao_pipeline.energy.relax_base import Relaxation
from dao_pipeline.energy.relax_dataset import relax_dataset, relax_table
from dao_pipeline.energy.relax_lbfgs import Lbfgs
from dao_pipeline.energy.relax_table import ADDED, verdicts
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.model.dao import save_model
from tests.energy.test_relax import SETTINGS, crystals, dao_p


@pytest.mark.parametrize(
    ("change", "displacement", "volume", "distance", "verdict"),
    [
        (-0.1, 0.2, 0.05, 2.0, "accepted"),
        (0.0, 0.0, 0.0, 2.0, "energy_did_not_fall"),
        (-0.1, 9.0, 0.05, 2.0, "moved_too_far"),
        (-0.1, 0.2, -0.6, 2.0, "volume_changed_too_much"),
        (-0.1, 0.2, 0.05, 0.3, "atoms_too_close"),
        (-0.1, float("nan"), 0.05, 2.0, "not_finite"),
    ],
)
def test_verdicts(change: float, displacement: float, volume: float, distance: float, verdict: str) -> None:
    measured = [np.array([x]) for x in (change, displacement, volume, distance)]
    assert verdicts(*measured, settings=Relax()).tolist() == [verdict]
    paper = "not_finite" if verdict == "not_finite" else "accepted"
    assert verdicts(*measured, settings=Relax(method="paper")).tolist() == [paper]


def test_window_decides_and_rejected_originals_are_kept() -> None:
    table = crystals()
    settings = SETTINGS.model_copy(update={"max_displacement": 1e-9, "max_volume_change": 1e-9})
    kept = relax_table(dao_p(), table, settings)
    assert kept["frac_coords"].equals(table["frac_coords"])
    assert kept["lattice"].equals(table["lattice"])
    status = kept["relax_status"].to_pylist()
    inside = [0.08 < e <= 0.5 for e in table["e_above_hull"].to_pylist()]
    assert [s != "not_selected" for s in status] == inside
    for name in ("energy_before", "energy_after", "relax_steps", "relax_converged"):
        assert [e is not None for e in kept[name].to_pylist()] == inside, name
    assert not any(kept["relax_accepted"].to_pylist())
    assert set(relax_table(dao_p(), crystals(energies=False), SETTINGS)["relax_status"].to_pylist()) == {
        "not_selected"
    }
    assert relax_table(dao_p(), table.slice(0, 0), SETTINGS).schema == kept.schema


@pytest.mark.parametrize("method", ["lbfgs", "paper"])
def test_rows_say_what_happened_to_them(method: str) -> None:
    table = crystals(20)
    result = relax_table(dao_p(), table, SETTINGS.model_copy(update={"method": method})).to_pandas()
    accepted = result["relax_status"] == "accepted"
    assert (result["relax_accepted"] == accepted).all()
    assert accepted.any()
    for i, row in result.iterrows():
        before = np.stack(table["lattice"].to_pylist()[i])
        change = abs(np.linalg.det(np.stack(row["lattice"]).reshape(3, 3)) / np.linalg.det(before.reshape(3, 3)))
        if accepted[i]:
            assert change - 1 == pytest.approx(row["volume_change"], abs=1e-9)
            assert row["energy_after"] < row["energy_before"] or method == "paper"
        else:
            assert np.array_equal(row["lattice"], before)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValidationError, match="raise the latter"):
        Relax(min_e_above_hull=0.5, max_e_above_hull=0.2)


def campaign(**settings: float | str) -> Campaign:
    relax = {"steps": 5, "shard_size": 2, "force_tolerance": 1e-3, "max_step": 0.2, **settings}
    return Campaign(name="test", relax=Relax.model_validate(relax))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with training crystals and a model."""
    write_table(crystals(), tmp_path / "crysdb" / "train.parquet", provenance("test"))
    save_model(dao_p(), tmp_path / "model")
    return tmp_path


def run(place: Path, campaign: Campaign, out: str, job: int = 0) -> pa.Table:
    relax_dataset(campaign, place / "crysdb", place / "model", place / out, place / f"work-{out}", job)
    return read_table(place / out)


def test_stage_covers_every_crystal_in_any_number_of_jobs(place: Path) -> None:
    whole = run(place, campaign(), "one.parquet")
    assert whole["id"].to_pylist() == crystals()["id"].to_pylist()
    statuses = whole["relax_status"].to_pylist()
    assert "accepted" in statuses
    assert read_about(place / "one.parquet")["statuses"] == {s: statuses.count(s) for s in set(statuses)}
    for job in range(2):
        run(place, campaign(jobs=2), f"two/shard-{job:03d}.parquet", job)
    split = read_table(place / "two").sort_by("id")
    assert split["id"].to_pylist() == whole["id"].to_pylist()
    assert split["lattice"].to_pylist() == whole.sort_by("id")["lattice"].to_pylist()
    with pytest.raises(UserError, match=r"relax\.jobs is 1"):
        run(place, campaign(), "x", 1)


def test_a_job_without_shards_writes_an_empty_table(place: Path) -> None:
    table = run(place, campaign(jobs=6), "last.parquet", 5)
    assert table.num_rows == 0
    assert set(ADDED) <= set(table.column_names)


class Calls:
    """Steps taken; at the ``last`` one something happens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.last, self.signal = 0, 10**9, 0
        real = Lbfgs.advance

        def advance(relaxation: Relaxation) -> None:
            if self.count == self.last:
                if not self.signal:
                    raise KeyboardInterrupt
                os.kill(os.getpid(), self.signal)
            self.count += 1
            real(relaxation)  # type: ignore[arg-type]

        monkeypatch.setattr(Lbfgs, "advance", advance)


def test_a_kill_inside_a_shard_loses_at_most_one_flush(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard, two crystals at a time: killed at every step in turn, it never begins anew."""
    settings = campaign(shard_size=100, batch_atoms=6, flush=1, steps=8)
    calls = Calls(monkeypatch)
    whole = run(place, settings, "whole.parquet")
    total, between = calls.count, 10  # a crystal finishes after at most 9 looks at it
    assert total > 30
    calls.count, kills = 0, 0
    while not (place / "killed.parquet").exists():
        calls.last = calls.count + between + 2
        try:
            table = run(place, settings, "killed.parquet")
        except KeyboardInterrupt:
            kills += 1
    assert kills >= 3
    assert calls.count <= total + kills * between
    for name in whole.column_names:
        assert table[name].to_pylist() == whole[name].to_pylist(), name
    assert not (place / "work-killed.parquet").exists()


def test_sigterm_inside_a_shard_saves_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = campaign(shard_size=100, batch_atoms=6)
    calls = Calls(monkeypatch)
    whole = run(place, settings, "whole.parquet")
    total = calls.count
    calls.count, calls.last, calls.signal = 0, total // 2, signal.SIGTERM
    with pytest.raises(ContinueLater, match="inside a shard"):
        run(place, settings, "out.parquet")
    calls.last = 10**9
    assert run(place, settings, "out.parquet").equals(whole)
    assert calls.count == total


@pytest.mark.parametrize("harm", ["other settings", "damaged"])
def test_foreign_and_damaged_states_are_not_used(place: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    settings = campaign(shard_size=100, batch_atoms=6, flush=1, steps=7)
    calls = Calls(monkeypatch)
    whole = run(place, settings, "whole.parquet")
    total = calls.count
    calls.count, calls.last = 0, total // 2
    with pytest.raises(KeyboardInterrupt):
        run(place, campaign(**vars(settings.relax) | ({"steps": 6} if "other" in harm else {})), "out.parquet")
    [state] = (place / "work-out.parquet").glob("*.safetensors")
    if harm == "damaged":
        state.write_bytes(state.read_bytes()[:100])
    calls.count, calls.last = 0, 10**9
    assert run(place, settings, "out.parquet").equals(whole)
    assert calls.count == total


def test_finished_shards_are_reused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    whole = run(place, campaign(), "whole.parquet")
    total = calls.count
    calls.count, calls.last = 0, total - 1
    with pytest.raises(KeyboardInterrupt):
        run(place, campaign(), "out.parquet")
    assert not (place / "out.parquet").exists()
    calls.last = 10**9
    assert run(place, campaign(), "out.parquet").equals(whole)
    assert calls.count < 1.5 * total
