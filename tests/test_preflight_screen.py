"""What screening needs from outside is checked before any job starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dao_pipeline import preflight_screen
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.errors import UserError
from dao_pipeline.preflight_screen import screen_problems


def problems(**sections: Any) -> list[str]:
    return list(screen_problems(parse_campaign({"name": "x", **sections}, "x")))


def test_defaults_need_nothing() -> None:
    assert problems() == []


def test_a_hull_needs_formation_energies_or_a_second_model(tmp_path: Path) -> None:
    hull = {"hull": {"entries": "crysdb"}}
    (found,) = problems(screen=hull)
    assert "DAO-P learns e_above_hull here" in found
    assert problems(screen=hull, energy_model={"label": "formation_energy"}) == []
    (tmp_path / "config.json").write_text(json.dumps({"energy_label": "formation_energy"}))
    assert problems(screen=hull, energy_model={"pretrained": str(tmp_path)}) == []
    second = {"second_model": {"model": "chgnet"}, "hull": {"entries": "crysdb", "model": "chgnet"}}
    assert problems(screen=second) == []
    with pytest.raises(UserError, match=r"second_model\.model is none"):
        problems(screen={"hull": {"entries": "crysdb", "model": "chgnet"}})


def test_files_and_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    label = {"label": "formation_energy"}
    (gone,) = problems(energy_model=label, screen={"hull": {"entries": str(tmp_path / "gone.json")}})
    assert "gone.json does not exist; correct the path." in gone
    (unset,) = problems(energy_model=label, screen={"hull": {"entries": "$NOT_SET/a.json"}})
    assert "NOT_SET is not set" in unset
    (given,) = problems(energy_model=label, screen={"hull": {"entries": "crysdb", "energies": "given"}})
    assert "set screen.hull.energies: model" in given
    monkeypatch.setattr(preflight_screen, "find_spec", lambda name: None)
    (chgnet,) = problems(screen={"second_model": {"model": "chgnet"}})
    assert "pip install" in chgnet
