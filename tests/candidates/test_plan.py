"""Plan: what is asked for, in which shard, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.candidates.compositions import known_targets, requested
from dao_pipeline.candidates.plan import (
    plan_candidates,
    plan_table,
    planned_shards,
    shard_file,
    template_ranks,
)
from dao_pipeline.config import Campaign, Generate
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
        {"name": "t", "data": {"source": "file", "path": "x"}, "generate": {"samples": 4, **generate}}
    )


def plan(campaign: Campaign, crysdb: Path) -> pa.Table:
    plan_candidates(campaign, crysdb, crysdb / "plan.parquet")
    return read_table(crysdb / "plan.parquet")


def test_explicit_compositions_are_planned_in_order(crysdb: Path) -> None:
    asked = [{"formula": "SrTiO3", "formula_units": 2}, {"formula": "NaCl"}]
    rows = plan(campaign(compositions=asked, shard_compositions=1, round_samples=3), crysdb).to_pylist()
    assert [row["id"] for row in rows] == [f"cand:{c}:{s}" for c in range(2) for s in range(4)]
    assert [row["shard"] for row in rows] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [row["round"] for row in rows] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert rows[0]["composition"] == "Sr2Ti2O6"
    assert rows[0]["formula"] == "SrTiO3"
    assert rows[0]["num_atoms"] == 10
    assert rows[0]["atomic_numbers"] == [38, 38, 22, 22] + [8] * 6
    assert {row["target_id"] for row in rows} == {None}


def test_appended_compositions_append_rows(crysdb: Path) -> None:
    few = plan(campaign(compositions=[{"formula": "NaCl"}]), crysdb)
    more = plan(campaign(compositions=[{"formula": "NaCl"}, {"formula": "ZnS"}]), crysdb)
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


def test_infeasible_test_crystals_leave_the_numbers_of_others(crysdb: Path) -> None:
    """So what else a campaign can make does not depend on them."""
    test = read_table(crysdb / "test.parquet")
    write_table(pa.concat_tables([test.slice(3, 1), test.slice(0, 3)]), crysdb / "test.parquet", {})
    table = plan(campaign(max_atoms=2), crysdb)
    assert table["id"].to_pylist()[0] == "cand:1:0"
    assert read_about(crysdb / "plan.parquet")["not_planned"].keys() == {"d"}


def test_elements_are_taken_from_the_metadata_where_it_has_them(crysdb: Path) -> None:
    train = read_table(crysdb / "train.parquet")
    write_table(train.slice(0, 0), crysdb / "train.parquet", {"elements": [11, 17]})
    asked = campaign(compositions=[{"formula": "NaCl"}])
    assert plan(asked, crysdb).num_rows == 4
    with pytest.raises(UserError, match="ZnS: no training crystal contains Zn, S"):
        plan(campaign(compositions=[{"formula": "ZnS"}]), crysdb)


@pytest.mark.parametrize(("limit", "size", "shards"), [(10, 50, 1), (10, 3, 4), (9, 3, 3)])
def test_number_of_shards_follows_from_the_configuration(limit: int, size: int, shards: int) -> None:
    asked = campaign(shard_compositions=size, test_split={"limit": limit})
    assert planned_shards(asked) == shards
    formulas = [{"formula": f"NaCl{n}"} for n in range(1, limit + 1)]
    assert planned_shards(campaign(shard_compositions=size, compositions=formulas)) == shards
    assert planned_shards(campaign(shard_compositions=size, compositions=formulas + formulas)) == shards


@pytest.mark.parametrize("explicit", [True, False])
def test_rounds_of_shards_are_the_plan_in_pieces(
    crysdb: Path, explicit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is in one piece, whatever is planned at once; ids, shards and rounds agree."""
    values: dict[str, Any] = {"shard_compositions": 2, "round_samples": 3, "template_share": 0.5}
    if explicit:
        values["compositions"] = [{"formula": formula} for formula in ("NaCl", "ZnS", "SrO", "TiO2", "SrTiO3")]
    asked = campaign(**values)
    whole = plan(asked, crysdb)
    monkeypatch.setattr("dao_pipeline.candidates.plan.AT_ONCE", 4)
    assert plan(asked, crysdb).equals(whole)
    pieces = []
    for shard in range(planned_shards(asked)):
        for number in range(asked.generate.rounds):
            path = crysdb / shard_file(shard, number)
            plan_candidates(asked, crysdb, path, shard=shard, round_number=number)
            pieces.append(read_table(path))
            assert set(pieces[-1]["shard"].to_pylist()) <= {shard}
            assert set(pieces[-1]["round"].to_pylist()) <= {number}
    rows = sorted(pa.concat_tables(pieces).to_pylist(), key=lambda row: [int(n) for n in row["id"].split(":")[1:]])
    assert rows == whole.to_pylist()


@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.5, 0.55, 0.7, 1.0])
def test_more_samples_leave_templates_as_they_are(share: float) -> None:
    ranks = template_ranks(np.arange(1000), share)
    own = ranks[ranks >= 0]
    assert own.tolist() == list(range(len(own)))  # each template once, the best first
    for samples in (1, 7, 10, 20, 999):
        assert (ranks[:samples] >= 0).sum() == Generate(samples=samples, template_share=share).templates
        assert abs((ranks[:samples] >= 0).sum() - share * samples) < 1
    few, more = (plan_table([requested("NaCl", 1)], samples, 50, 20, share) for samples in (7, 50))
    assert more.slice(0, 7).equals(few)


def test_an_empty_plan_has_all_columns() -> None:
    assert plan_table([], 4).schema.equals(plan_table([requested("NaCl", 1)], 4).schema)
