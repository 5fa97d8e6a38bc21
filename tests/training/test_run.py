"""From a stage to the loop: what a checkpoint belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.table import write_table
from dao_pipeline.training import run
from dao_pipeline.training.energy_model import train_energy_model
from tests.training.common import crystals


class StartedError(Exception):
    """The loop was reached."""


def test_a_checkpoint_belongs_to_all_settings_of_its_stage_and_to_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*args: object, identity: str, **more: object) -> None:
        raise StartedError(identity)

    monkeypatch.setattr(run, "train", started)
    for name, seed in (("train", 0), ("val", 1)):
        write_table(crystals(10, seed), tmp_path / f"{name}.parquet", {"stage": "test"})

    def identity(**sections: Any) -> str:
        with pytest.raises(StartedError) as caught:
            train_energy_model(parse_campaign({"name": "a"} | sections, "test"), tmp_path, tmp_path, tmp_path)
        return str(caught.value)

    first = identity(energy_model={"backbone": {"preset": "tiny"}})
    for change in (
        {"clean_fraction": 0.4},
        {"clip_label": 3.0},
        {"training": {"learning_rate": 1e-5}},
        {"backbone": {"preset": "tiny", "heads": 2}},
    ):
        assert identity(energy_model={"backbone": {"preset": "tiny"}} | change) != first, change
    assert identity(energy_model={"backbone": {"preset": "tiny"}}, seed=7) != first
    others = {"compute": {"training": {"chunk_atoms": 7}}, "generate": {"samples": 3}, "name": "b"}
    assert identity(energy_model={"backbone": {"preset": "tiny"}}, **others) == first
