"""Plan: what is asked for, in which shard, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.candidates.compositions import known_targets
from dao_pipeline.candidates.plan import plan_candidates, plan_table, planned_shards
from dao_pipeline.config import Campaign
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError


def crystal(name: str, symbols: str, **extra: Any) -> Crystal:
    numbers = np.asarray([ATOMIC_NUMBERS[s] for s in symbols.split()])
    coords = np.linspace(0, 0.9, 3 * len(numbers)).reshape(-1, 3)
    return Crystal(id=name, atomic_numbers=numbers, frac_coords=coords, lattice=5 * np.eye(3), extra=extra)


@pytest.fixture
def crysdb(tmp_path: Path) -> Path:
    folder = tmp_path / "crysdb"
    train = [crystal("t1", "Na Cl"), crystal("t2", "Sr Ti O O O"), crystal("t3", "Zn S")]
    test = [
        crystal("a", "Na Cl", e_above_hull=0.05),
        crystal("b", "Zn S", e_above_hull=0.01),
        crystal("c", "Na Cl", e_above_hull=0.0),
        crystal("d", "Zn Zn S S", e_above_hull=0.02),
        crystal("e", "Sr O", e_above_hull=0.3, precursor_of="t2"),
    ]
    for name, crystals in {"train": train, "val": train[:1], "test": test}.items():
        write_table(to_table(crystals), folder / f"{name}.parquet", {"stage": "build_crysdb"})
    return folder


def campaign(**generate: Any) -> Campaign:
    return Campaign.model_validate(
        {
            "name": "t",
            "data": {"source": "file", "path": "x"},
            "generate": {"samples": 4, "unit_atoms": 1, **generate},
        }
    )


def plan(campaign: Campaign, crysdb: Path) -> pa.Table:
    plan_candidates(campaign, crysdb, crysdb / "plan.parquet")
    return read_table(crysdb / "plan.parquet")


def test_explicit_compositions_are_planned_in_order(crysdb: Path) -> None:
    asked = [{"formula": "SrTiO3", "formula_units": 2}, {"formula": "NaCl"}]
    rows = plan(campaign(compositions=asked, shard_size=3), crysdb).to_pylist()
    assert [row["id"] for row in rows] == [f"cand:{c}:{s}" for c in range(2) for s in range(4)]
    assert [row["shard"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert rows[0]["composition"] == "Sr2Ti2O6"
    assert rows[0]["formula"] == "SrTiO3"
    assert rows[0]["num_atoms"] == 10
    assert rows[0]["atomic_numbers"] == [38, 38, 22, 22] + [8] * 6
    assert {row["target_id"] for row in rows} == {None}


def test_appended_compositions_append_rows(crysdb: Path) -> None:
    few = plan(campaign(compositions=[{"formula": "NaCl"}], shard_size=2), crysdb)
    more = plan(campaign(compositions=[{"formula": "NaCl"}, {"formula": "ZnS"}], shard_size=2), crysdb)
    assert more.slice(0, few.num_rows).equals(few)
    assert more.num_rows == 2 * few.num_rows


def test_repeated_compositions_are_merged(crysdb: Path) -> None:
    asked = [{"formula": "NaCl"}, {"formula": "ClNa"}, {"formula": "NaCl", "formula_units": 2}]
    table = plan(campaign(compositions=asked), crysdb)
    assert table["composition"].unique().to_pylist() == ["NaCl", "Na2Cl2"]


def test_test_split_takes_the_most_stable_crystal_of_each_cell(crysdb: Path) -> None:
    table = plan(campaign(), crysdb)
    assert table["target_id"].unique().to_pylist() == ["c", "b", "d"]
    assert table["composition"].unique().to_pylist() == ["NaCl", "ZnS", "Zn2S2"]
    assert plan(campaign(test_split={"limit": 2}), crysdb)["target_id"].unique().to_pylist() == ["c", "b"]


def test_preferred_targets_come_first(crysdb: Path) -> None:
    test = read_table(crysdb / "test.parquet")
    assert [t.target_id for t in known_targets(test, 10, ["d", "absent", "a"])] == ["d", "a", "b"]
    assert [t.target_id for t in known_targets(test, 2, ["d", "a", "c"])] == ["d", "a"]
    assert [t.target_id for t in known_targets(test, 10, ["absent"])] == ["c", "b", "d"]


def test_unseen_element_names_element_composition_and_remedy(crysdb: Path) -> None:
    asked = campaign(compositions=[{"formula": "NaCl"}, {"formula": "KXeF"}])
    with pytest.raises(UserError, match=r"KXeF: no training crystal contains K, Xe, F(.|\n)*Remove"):
        plan(asked, crysdb)
    assert not (crysdb / "plan.parquet").exists()


def test_infeasible_test_crystals_are_left_out_and_named(crysdb: Path) -> None:
    table = plan(campaign(max_atoms=2), crysdb)
    assert table["target_id"].unique().to_pylist() == ["c", "b"]
    assert "4 atoms" in read_about(crysdb / "plan.parquet")["not_planned"]["d"]


def test_nothing_to_predict_is_a_user_error(crysdb: Path) -> None:
    write_table(to_table([]), crysdb / "test.parquet", {})
    with pytest.raises(UserError, match="nothing to predict"):
        plan(campaign(), crysdb)
    (crysdb / "test.parquet").unlink()
    with pytest.raises(UserError, match="no such file"):
        plan(campaign(), crysdb)


@pytest.mark.parametrize(
    ("samples", "limit", "size", "shards"), [(20, 10, 1000, 1), (20, 10, 50, 4), (3, 7, 10, 3)]
)
def test_number_of_shards_follows_from_the_configuration(samples: int, limit: int, size: int, shards: int) -> None:
    asked = campaign(samples=samples, shard_size=size, test_split={"limit": limit})
    assert planned_shards(asked) == shards
    formulas = [{"formula": f"Na{n + 1}Cl"} for n in range(limit)]
    explicit = campaign(samples=samples, shard_size=size, compositions=formulas)
    assert planned_shards(explicit) == shards


def test_shards_of_the_plan_are_within_the_planned_number(crysdb: Path) -> None:
    asked = campaign(shard_size=5)
    shards = plan(asked, crysdb)["shard"].to_pylist()
    assert max(shards) < planned_shards(asked)
    assert plan_table([], 4, 5).num_rows == 0
