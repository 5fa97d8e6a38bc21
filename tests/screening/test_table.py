"""All of screening at once, on a table with everything that can happen to a candidate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.config import Backbone, Campaign, Process
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.model.dao import About, DaoModel, save_model
from dao_pipeline.screening import second_model
from dao_pipeline.screening.hull import passport_of
from dao_pipeline.screening.table import screen_table
from tests.make import crystal

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
ROCKSALT = crystal("known", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 5.6 * FCC)


def candidates() -> pa.Table:
    """Rock salt twice, caesium chloride, a needle, nothing, another composition of one atom, and one by itself."""
    cesium = crystal("", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 3.5)
    needle = replace(ROCKSALT, lattice=np.diag([0.2, 5.0, 5.0]))
    copper = crystal("", ["Cu"], [[0, 0, 0]], 3.6 * FCC)
    unlike = crystal("", ["Na", "Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0]], 5.0)
    made = [ROCKSALT, replace(ROCKSALT, lattice=5.7 * FCC), cesium, needle, ROCKSALT, copper, unlike]
    names = ["NaCl"] * 5 + ["Cu", "Na2Cl"]
    rows = [
        replace(c, id=f"cand:0:{i}", extra={"composition": name, "sample": i, "status": "ok"})
        for i, (c, name) in enumerate(zip(made, names, strict=True))
    ]
    table = to_table(rows)
    for name, value in {"lattice": None, "frac_coords": None, "status": "flat_cell"}.items():
        values = table[name].to_pylist()
        values[4] = value
        table = table.set_column(table.column_names.index(name), name, pa.array(values, COLUMNS[name].type))
    return table


@pytest.fixture
def model(tmp_path: Path) -> Path:
    backbone = Backbone(preset="tiny", layers=1, width=16, heads=2, frequencies=4)
    about = About(
        kind="dao_p",
        backbone=backbone.model_dump(),
        process=Process(timesteps=10).model_dump(),
        energy_label="formation_energy",
    )
    save_model(DaoModel(about, np.full(101, 20.0)), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def crysdb(tmp_path: Path) -> Path:
    for name, crystals in {"train": [ROCKSALT], "val": [crystal("Cu", ["Cu"], [[0, 0, 0]], 3.5 * FCC)]}.items():
        write_table(to_table(crystals), tmp_path / "crysdb" / f"{name}.parquet", {})
    return tmp_path / "crysdb"


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch) -> Campaign:
    def judge(crystals: list[Crystal], relax_steps: int) -> list[dict[str, Any]]:
        empty = dict.fromkeys(second_model._FOUND)
        return [empty | {"energy_second": -c.volume, "second_status": "ok"} for c in crystals]

    monkeypatch.setattr(second_model, "_judge", judge)
    monkeypatch.setattr("dao_pipeline.parallel.available_cpus", lambda: 1)
    screen = {
        "second_model": {"model": "chgnet"},
        "hull": {"entries": "crysdb"},
        "require_charge_neutral": True,
        "symprecs": [0.01, 0.1],
    }
    return parse_campaign({"name": "x", "screen": screen}, "x")


def test_every_row_stays_with_its_reasons(campaign: Campaign, model: Path, crysdb: Path, tmp_path: Path) -> None:
    pytest.importorskip("chgnet")
    table = candidates()
    before = table.to_pylist()
    screened = screen_table(table, {"NaCl": [ROCKSALT]}, campaign, model, None, crysdb, tmp_path / "work")
    assert table.to_pylist() == before
    assert screened["id"].to_pylist() == table["id"].to_pylist()
    assert set(screened.column_names) <= set(COLUMNS)
    rows = screened.to_pylist()
    assert [row["status"] for row in rows] == [
        *("ok", "ok", "ok", "atoms_too_close", "flat_cell", "ok", "not_charge_neutral")
    ]
    assert [row["valid"] for row in rows] == [True, True, True, False, False, True, False]
    assert [row["charge_neutral"] for row in rows] == [True] * 5 + [None, False]
    assert rows[0]["group"] == rows[1]["group"] != rows[2]["group"]
    assert [row["novel"] for row in rows] == [False, False, True, None, None, True, None]
    assert [row["spacegroups"] for row in rows] == [[225] * 2, [225] * 2, [221] * 2, None, None, [225] * 2, None]
    for row in rows:
        best = bool(row["unique"])
        assert (row["rank"] is not None) == best == (row["energy_second"] is not None)
        assert (row["refined_lattice"] is not None) == best
    # by one model, the known crystal and its copy have the same energy
    assert rows[0]["e_above_hull_pred"] == pytest.approx(max(0.0, rows[0]["energy_pred"]), abs=1e-6)
    assert rows[4]["hull_status"] == "no_energy"
    assert rows[5]["energy_disagreement"] is None  # it has no sibling
    assert sum(row["energy_disagreement"] or 0.0 for row in rows) == pytest.approx(0.0)
    passport = passport_of(screened)
    assert passport is not None
    assert passport["judged_by"].startswith("DAO-P ")
    write_table(screened, tmp_path / "screened.parquet", {"hull": passport})
    assert read_about(tmp_path / "screened.parquet")["hull"] == passport
    assert read_table(tmp_path / "screened.parquet").num_rows == len(rows)


def test_the_order_and_company_of_compositions_do_not_matter(
    campaign: Campaign, model: Path, crysdb: Path
) -> None:
    pytest.importorskip("chgnet")
    table = candidates()
    together = screen_table(table, {"NaCl": [ROCKSALT]}, campaign, model, None, crysdb)
    alone = screen_table(table.slice(0, 5), {"NaCl": [ROCKSALT]}, campaign, model, None, crysdb)
    for name in ("group", "rank", "unique", "novel", "known_id", "e_above_hull_pred", "energy_disagreement"):
        for one, other in zip(together[name].to_pylist()[:5], alone[name].to_pylist(), strict=True):
            assert one == (pytest.approx(other, abs=1e-6) if isinstance(other, float) else other), name


def test_an_empty_table_stays_empty(campaign: Campaign, model: Path, crysdb: Path) -> None:
    screened = screen_table(candidates().slice(0, 0), {}, campaign, model, None, crysdb)
    assert screened.num_rows == 0
    assert {"rank", "charge_neutral", "hull_status", "energy_disagreement"} <= set(screened.column_names)
