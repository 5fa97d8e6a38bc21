"""The stage on real crystals, with DFT results that come from a table."""

import numpy as np
import pytest

from dao_pipeline.comparison.compare import compare_dft
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError

FCC = np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])


def crystal(name, lattice, at, numbers=(14, 6), **extra):
    return Crystal(
        id=name,
        source="dao_g",
        atomic_numbers=np.array(numbers),
        frac_coords=np.array([[0, 0, 0], [at, at, at]], dtype=float),
        lattice=lattice,
        extra=extra,
    )


def zincblende(name, edge=4.36, **extra):
    return crystal(name, edge / 2 * FCC, 0.25, **extra)


def rocksalt(name, edge=4.06, **extra):
    return crystal(name, edge / 2 * FCC, 0.5, **extra)


def caesium_chloride(name, edge=2.6, **extra):
    return crystal(name, edge * np.eye(3), 0.5, **extra)


@pytest.fixture
def folder(tmp_path):
    candidates = [
        zincblende("cand:0:0", rank=2, energy_pred=-0.25, composition="SiC", target_id="known"),
        rocksalt("cand:0:1", rank=1, energy_pred=-0.30, composition="SiC", target_id="known"),
        caesium_chloride("cand:0:2", rank=3, energy_pred=0.8, composition="SiC", target_id="known"),
        rocksalt("cand:0:3", edge=9.0, rank=None, energy_pred=3.0, composition="SiC", target_id="known"),
    ]
    theirs = [
        zincblende("mp-8062", edge=4.38, formation_energy=-0.2),
        rocksalt("theirs", edge=4.05, formation_energy=0.3),
        caesium_chloride("x", edge=2.58, formation_energy=1.1),
        zincblende("other", edge=4.61, numbers=(32, 6), formation_energy=0.5),
    ]
    write_table(to_table(candidates), tmp_path / "screened.parquet", {})
    write_table(to_table(theirs), tmp_path / "theirs.parquet", {})
    write_table(to_table([zincblende("known", edge=4.36)]), tmp_path / "test.parquet", {})
    return tmp_path


def campaign(folder, **baseline):
    baseline = {"name": "MP", "path": str(folder / "theirs.parquet"), **baseline}
    return parse_campaign(
        {
            "name": "c",
            "energy_model": {"label": "formation_energy"},
            "compare_dft": {"baselines": [baseline]},
            "evaluate": {"bootstrap": 50},
        },
        "test",
    )


def test_results_of_others_find_their_candidates(folder):
    compare_dft(campaign(folder), folder / "screened.parquet", folder / "out", known=folder / "test.parquet")
    rows = {row["id"]: row for row in read_table(folder / "out" / "candidates.parquet").to_pylist()}
    assert set(rows) == {"cand:0:0", "cand:0:1", "cand:0:2"}
    first = rows["cand:0:0"]
    assert first["formation_energy"] == pytest.approx(-0.2)
    assert first["energy_error"] == pytest.approx(-0.05)
    assert first["matched"]
    assert first["volume_change"] == pytest.approx((4.38 / 4.36) ** 3 - 1)
    assert first["known_rmse_before"] is not None
    assert rows["cand:0:1"]["known_rmse_after"] is None
    order = read_table(folder / "out" / "compositions.parquet").to_pylist()[0]
    assert (order["candidates"], order["pairs"], order["pairs_right"]) == (3, 3, 2)
    assert order["regret"] == pytest.approx(0.5)
    assert not order["top1"]
    about = read_about(folder / "out" / "candidates.parquet")
    assert about["baselines"]["MP"] == {"matched": 3, "rows_without_candidate": 1, "rows_rejected": 0}
    figures = {row["metric"]: row for row in read_table(folder / "out" / "summary.parquet").to_pylist()}
    assert figures["energy_mae"]["value"] == pytest.approx((0.05 + 0.6 + 0.3) / 3)
    assert figures["known_before"]["value"] == pytest.approx(1 / 3)
    assert figures["pairs_right"]["value"] == pytest.approx(2 / 3)
    assert figures["energy_mae"]["low"] <= figures["energy_mae"]["value"] <= figures["energy_mae"]["high"]


def test_known_crystals_by_composition(folder):
    rows = read_table(folder / "screened.parquet").drop_columns(["target_id"])
    write_table(rows, folder / "screened.parquet", {})
    known = [zincblende("3C", formation_energy=-0.2), rocksalt("high", formation_energy=0.9)]
    write_table(to_table(known), folder / "known.parquet", {})
    settings = campaign(folder)
    update = settings.compare_dft.model_copy(update={"known": str(folder / "known.parquet")})
    compare_dft(settings.model_copy(update={"compare_dft": update}), folder / "screened.parquet", folder / "out")
    rows = {row["id"]: row for row in read_table(folder / "out" / "candidates.parquet").to_pylist()}
    assert rows["cand:0:0"]["known_rmse_before"] == pytest.approx(0, abs=1e-6)
    assert rows["cand:0:1"]["known_rmse_before"] is None


def test_total_energies_order_and_say_nothing_else(folder):
    compare_dft(
        campaign(folder, quantity="total", column="formation_energy"), folder / "screened.parquet", folder / "out"
    )
    rows = read_table(folder / "out" / "candidates.parquet").to_pylist()
    assert all(row["energy_error"] is None and row["formation_energy"] is None for row in rows)
    metrics = read_table(folder / "out" / "summary.parquet")["metric"].to_pylist()
    assert "pairs_right" in metrics
    assert "energy_mae" not in metrics


def test_a_row_with_a_candidates_id_is_its_result(folder):
    moved = rocksalt("cand:0:0", edge=4.1, formation_energy=0.4)
    write_table(to_table([moved]), folder / "theirs.parquet", {})
    compare_dft(campaign(folder), folder / "screened.parquet", folder / "out")
    row = read_table(folder / "out" / "candidates.parquet").to_pylist()[0]
    assert row["id"] == "cand:0:0"
    assert not row["matched"]
    assert row["rmse"] is None


def test_nothing_to_compare_with_is_an_error(folder):
    write_table(to_table([zincblende("other", edge=4.61, numbers=(32, 6))]), folder / "theirs.parquet", {})
    with pytest.raises(UserError, match="no DFT result for any candidate"):
        compare_dft(campaign(folder), folder / "screened.parquet", folder / "out")
