"""The table of an ablation: means, paired changes and their intervals, and variants that do not compare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.evaluation.ablation import Variant, ablate, mean_and_interval, resampled
from dao_pipeline.evaluation.evaluate import TARGETS_SCHEMA

CAMPAIGN = parse_campaign(
    {"name": "x", "evaluate": {"bootstrap": 500}, "ablation": {"variants": {"plain": {}, "better": {}}}}, "x"
)


def variant(
    folder: Path,
    rmse: list[list[float | None]],
    steps: list[int],
    ids: list[str] | None = None,
    formulas: list[str] | None = None,
) -> Variant:
    """An evaluation with these RMSE by target and candidate (None: no match), and a generator trained so long."""
    rows = []
    ids, formulas = (given or [f"t{i:04d}" for i in range(len(rmse))] for given in (ids, formulas))
    for name, formula, candidates in zip(ids, formulas, rmse, strict=True):
        hits = [value for value in candidates if value is not None]
        own = {
            "formula": formula,
            "candidates": len(candidates),
            "matches": len(hits),
            "found": bool(hits),
            "rmse": min(hits, default=None),
        }
        rows.append({"target_id": name, "method": "dao", **own})
        rows.append({"target_id": name, "method": "random", **own, "matches": 0, "found": False, "rmse": None})
    table = pa.Table.from_pylist(rows[::-1], schema=TARGETS_SCHEMA)  # in another order: rows are found by target
    write_table(table, folder / "evaluation/targets.parquet", {})
    runs = [{"stage": "pretrain_generator_stage1", "crystals": 10, "steps": n} for n in steps]
    (folder / "generator").mkdir()
    (folder / "generator/config.json").write_text(json.dumps({"history": [{"made": "elsewhere"}, *runs]}))
    return Variant(folder / "evaluation", folder / "generator")


def test_rates_changes_and_intervals(tmp_path: Path) -> None:
    plain = variant(tmp_path / "a", [[0.1, 0.3], [None, None], [None, 0.2], [None, None]] * 50, [100, 20])
    better = variant(tmp_path / "b", [[0.2, 0.4], [None, 0.5], [None, 0.1], [None, None]] * 50, [120])
    ablate(CAMPAIGN, {"plain": plain, "better": better}, tmp_path / "out")
    first, second = read_table(tmp_path / "out/summary.parquet").to_pylist()
    assert (first["variant"], first["n"], first["k"], first["steps"]) == ("plain", 200, 2, 120)
    assert first["training"] == "I: 100 on 10, I: 20 on 10"
    assert first["match_rate"] == pytest.approx(3 / 8)
    assert first["found_rate"] == pytest.approx(1 / 2)
    assert first["rmse"] == pytest.approx(0.15)
    for name in ("match_rate_change", "found_rate_change", "rmse_change"):
        assert first[name] == first[f"{name}_low"] == first[f"{name}_high"] == 0
    assert second["match_rate_change"] == pytest.approx(1 / 8)
    assert second["found_rate_change"] == pytest.approx(1 / 4)
    assert second["rmse"] == pytest.approx((0.2 + 0.5 + 0.1) / 3)
    assert second["rmse_change"] == pytest.approx(0, abs=1e-9)  # +0.1 and -0.1 where both match
    assert second["both_found"] == 100
    for row in (first, second):
        for name in ("match_rate", "found_rate", "rmse"):
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert second["found_rate_change_low"] > 0.15
    lines = (tmp_path / "out/table.md").read_text().splitlines()
    assert lines[2].startswith("| plain | I: 100 on 10, I: 20 on 10 | 37.5 [")
    assert "| +12.5 [" in lines[3]
    assert "200 targets, 2 candidates each" in lines[-1]


def test_paired_changes_are_surer_than_rates() -> None:
    """Two variants that find nearly the same targets differ by little, however uncertain the rates are."""
    rng = np.random.default_rng(0)
    found = rng.random(400) < 0.3
    other = np.where(rng.random(400) < 0.02, ~found, found)
    drawn = resampled([None] * 400, 1000, seed=0)
    _, low, high = mean_and_interval(found.astype(float), drawn)
    _, change_low, change_high = mean_and_interval(other.astype(float) - found, drawn)
    assert change_high - change_low < 0.5 * (high - low)  # type: ignore[operator]


def test_targets_of_one_composition_are_resampled_together(tmp_path: Path) -> None:
    """Three targets that share their candidates, and so their outcome, say no more than one."""
    outcomes: dict[str, list[list[float | None]]] = {
        "plain": [[0.1], [None], [None]],
        "better": [[0.2], [0.3], [None]],
    }
    summaries = []
    for copies in (1, 3):
        variants = {}
        for name, rmse in outcomes.items():
            folder = tmp_path / f"{name}{copies}"
            folder.mkdir()
            formulas = [f"f{i // copies}" for i in range(60 * copies)]
            ids = [f"t{i:04d}" for i in range(60 * copies)]
            each = [value for value in rmse * 20 for _ in range(copies)]
            variants[name] = variant(folder, each, [5], ids, formulas)
        ablate(CAMPAIGN, variants, tmp_path / f"out{copies}")
        summaries.append(read_table(tmp_path / f"out{copies}/summary.parquet").to_pylist())
    for single, several in zip(*summaries, strict=True):
        assert (single["n"], several["n"]) == (60, 180)
        for name in ("match_rate", "match_rate_change", "rmse", "rmse_change"):
            for end in (f"{name}_low", f"{name}_high"):
                assert several[end] == pytest.approx(single[end], abs=1e-12)


def test_resamples_draw_whole_compositions() -> None:
    drawn = resampled(["AB", None, "AB", "C", None], 200, seed=1)
    assert (drawn[:, 0] == drawn[:, 2]).all()
    assert (drawn[:, [0, 1, 3, 4]].sum(1) == 4).all()
    assert drawn.std(0).min() > 0.5


def test_nothing_found_has_no_rmse(tmp_path: Path) -> None:
    plain = variant(tmp_path / "a", [[None], [0.1]], [5])
    blind = variant(tmp_path / "b", [[None], [None]], [5])
    ablate(CAMPAIGN, {"plain": plain, "blind": blind}, tmp_path / "out")
    row = read_table(tmp_path / "out/summary.parquet").to_pylist()[1]
    assert row["rmse"] is None
    assert row["rmse_change"] is None
    assert row["match_rate"] == 0
    assert (tmp_path / "out/table.md").read_text().count("| - |") == 1


def test_variants_with_other_targets_do_not_compare(tmp_path: Path) -> None:
    plain = variant(tmp_path / "a", [[0.1]], [5])
    other = variant(tmp_path / "b", [[0.1]], [5], ["u0"])
    with pytest.raises(UserError, match=r"b/evaluation/targets.parquet: other targets than in variant plain"):
        ablate(CAMPAIGN, {"plain": plain, "other": other}, tmp_path / "out")
