from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crysdb.coverage import coverage
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.held_out import crystals_digest, held_out, require_held_out
from dao_pipeline.crystals.table import file_hash, read_about, read_table, write_table
from dao_pipeline.errors import UserError
from tests.crysdb.test_build import ALL, build, campaign, reasons
from tests.make import binary, crystal, raw_file, shared_data


def excluding(path: Path, crystals: list[Crystal], **settings: Any) -> dict[str, Any]:
    return {"exclude": [str(raw_file(path, crystals))], **settings}


def recut(original: Crystal, name: str) -> Crystal:
    """The same crystal, a little strained and displaced, in another cell."""
    change = np.array([[1, 1, 0], [0, 1, 0], [2, 0, 1]])
    frac = (original.frac_coords + np.array([0.1, 0.2, 0.3])) @ np.linalg.inv(change)
    return replace(original, id=name, lattice=change @ original.lattice * 1.01, frac_coords=frac % 1)


@pytest.mark.parametrize("mode", ["structure", "exact", "off"])
def test_by_structure_only_the_same_crystals_go(tmp_path: Path, mode: str) -> None:
    """The matcher finds them whatever is done about duplicates inside CrysDB, precursors included."""
    polymorph = replace(binary(2), id="polymorph", frac_coords=np.array([[0, 0, 0], [0.5, 0.5, 0.0]]))
    precursor = replace(recut(binary(1), "precursor"), extra=binary(1).extra | {"precursor_of": "t-1"})
    test = [recut(binary(1), "mp-1"), recut(binary(2), "mp-2"), crystal("Xe", ["Xe"], [[0, 0, 0]], 4.0)]
    settings = excluding(tmp_path / "test.parquet", test, exclude_by="structure", dedup={"mode": mode})
    rows = build(tmp_path, [*ALL, polymorph, precursor], crysdb=settings)
    assert reasons(rows) == dict.fromkeys(("t-1", "t-2", "precursor"), "excluded")
    assert "test.parquet of crysdb.exclude" in rows["rejected"][0]["detail"]
    (_, about) = read_about(tmp_path / "crysdb" / "val.parquet")["held_out"]
    assert (about["removed"], about["crystals"], about["by"]) == (3, 3, "structure")
    assert about["hash"] == file_hash(tmp_path / "test.parquet")


def test_an_id_excludes_with_its_composition_alone(tmp_path: Path) -> None:
    """JARVIS and perov-5 count their crystals 1, 2, 3: the same number means nothing."""
    same = replace(binary(3), lattice=binary(3).lattice * 1.3)
    other = replace(binary(90), id="t-4", lattice=binary(90).lattice * 1.3)
    settings = excluding(tmp_path / "test.parquet", [same, other], exclude_by="structure")
    assert reasons(build(tmp_path, ALL, crysdb=settings)) == {"t-3": "excluded"}


def test_precursors_of_excluded_crystals_go_with_them(tmp_path: Path) -> None:
    """Relaxed by DAO-P they would be the benchmark's crystals, though they match none of them yet."""

    def precursor(index: int, name: str, of: str) -> Crystal:
        far = binary(index, e_above_hull=0.3, precursor_of=of)
        return replace(far, id=name, lattice=far.lattice * 1.2)

    more = [precursor(1, "u-1", "t-1"), precursor(2, "u-2", "mp-2"), precursor(3, "u-3", "t-3")]
    more += [replace(binary(4), id="y-4", lattice=binary(4).lattice * 1.01), precursor(4, "u-4", "y-4")]
    test = [recut(binary(1), "mp-1"), replace(recut(binary(2), "mp-2"), lattice=5 * np.eye(3)), binary(4)]
    settings = excluding(tmp_path / "test.parquet", test, exclude_by="structure")
    rows = build(tmp_path, [*ALL, *more], crysdb=settings)
    assert reasons(rows) == dict.fromkeys(("t-1", "u-1", "u-2", "t-4", "y-4", "u-4"), "excluded")
    (_, about) = read_about(tmp_path / "crysdb" / "val.parquet")["held_out"]
    assert about["removed"] == 6


@pytest.mark.parametrize("split", [{"split": "given"}, {"split": "time", "val_from": "2015", "test_from": "2018"}])
def test_precursors_are_on_the_side_of_their_crystals(tmp_path: Path, split: dict[str, Any]) -> None:
    crystals, precursors = [], []
    for i, (side, year) in enumerate((("train", "2010"), ("val", "2016"), ("test", "2020"))):
        known = {"split": side} if split["split"] == "given" else {"published": year}
        copies = [replace(binary(i, **known), id=f"s-{i}")] if i else []  # links follow to what is kept
        crystals += [binary(i, **known), *copies]
        far = binary(i, precursor_of=f"t-{i}")
        precursors.append(replace(far, id=f"u-{i}", lattice=far.lattice * 1.2))
    rows = build(tmp_path, [*precursors, *crystals], crysdb=split)
    for i, side in enumerate(("train", "val", "test")):
        assert {row["id"][2:]: row["precursor_of"] for row in rows[side]}.keys() == {str(i)}, side
        assert len(rows[side]) == 2
    assert reasons(rows).keys() == {"t-1", "t-2"}


def test_by_composition_everything_goes(tmp_path: Path) -> None:
    other = replace(binary(3), id="x", lattice=binary(3).lattice * 1.3)
    rows = build(tmp_path, ALL, crysdb=excluding(tmp_path / "test.parquet", [other]))
    assert reasons(rows) == {"t-3": "excluded"}


def test_unusable_excluded_crystals_do_no_harm(tmp_path: Path) -> None:
    flat = replace(binary(5), lattice=np.zeros((3, 3)))
    nan = replace(binary(6), frac_coords=np.full((2, 3), np.nan))
    settings = excluding(tmp_path / "test.parquet", [flat, nan, recut(binary(7), "y")], exclude_by="structure")
    found = reasons(build(tmp_path, ALL, crysdb=settings))
    assert found == dict.fromkeys(("t-5", "t-6", "t-7"), "excluded")  # 5 and 6 by id


def test_excluding_all_is_a_user_error(tmp_path: Path) -> None:
    for by in ("composition", "structure"):
        with pytest.raises(UserError, match="rejected: 128 excluded"):
            build(tmp_path, ALL, crysdb=excluding(tmp_path / "all.parquet", ALL, exclude_by=by))


def test_digests_do_not_depend_on_order_or_file(tmp_path: Path) -> None:
    build(tmp_path, ALL)
    test = read_table(tmp_path / "crysdb" / "test.parquet")
    (own,) = held_out(tmp_path / "crysdb" / "train.parquet") or []
    shuffled = test.take(pa.array(np.random.default_rng(0).permutation(test.num_rows)))
    assert own["digest"] == crystals_digest(shuffled["id"], shuffled["formula"])
    assert own["digest"] != crystals_digest(test["id"].slice(1), test["formula"].slice(1))
    assert own["crystals"] == test.num_rows


def history(table: Path) -> list[dict[str, Any]]:
    return [{"stage": "pretrain_generator_stage1", "campaign": "big", "held_out": held_out(table)}]


def test_own_test_split_may_be_scored(tmp_path: Path) -> None:
    build(tmp_path, ALL)
    models = {"generator": history(tmp_path / "crysdb" / "train.parquet"), "untrained": []}
    assert require_held_out(tmp_path / "crysdb" / "test.parquet", models, allow=False) == []


def test_another_test_split_may_not(tmp_path: Path) -> None:
    build(tmp_path / "a", ALL)
    build(tmp_path / "b", ALL, seed=1)
    models = {"generator": history(tmp_path / "a" / "crysdb" / "train.parquet")}
    test = tmp_path / "b" / "crysdb" / "test.parquet"
    with pytest.raises(UserError, match=r"generator: .*stage1 \(big\) left out own test split, but not these"):
        require_held_out(test, models, allow=False)
    assert len(require_held_out(test, models, allow=True)) == 1


def entry(name: str, crystals: int, digest: str) -> dict[str, Any]:
    """What a raw table says of one of its sources."""
    return {"name": name, "hash": digest, "crystals": crystals}


def test_a_model_from_elsewhere_that_excluded_the_test_file(tmp_path: Path) -> None:
    """Trained with crysdb.exclude: [benchmark]; scored in a campaign whose crystals come from that file."""
    source = raw_file(tmp_path / "benchmark.parquet", ALL[:30])
    build(tmp_path / "big", ALL, crysdb={"exclude": [str(source)]})
    write_table(to_table(ALL[:30]), tmp_path / "raw.parquet", {"sources": [entry("file", 30, file_hash(source))]})
    build_crysdb(campaign(crysdb={"test_fraction": 0.4}), tmp_path / "raw.parquet", tmp_path / "small")
    test = tmp_path / "small" / "test.parquet"
    excluded = history(tmp_path / "big" / "crysdb" / "train.parquet")
    assert read_table(test).num_rows > 3
    assert require_held_out(test, {"generator": excluded}, allow=False) == []
    # each of its training runs counts
    careless = {"stage": "finetune_generator", "campaign": "big", "held_out": None}
    with pytest.raises(UserError, match=r"finetune_generator \(big\) does not say what it left out"):
        require_held_out(test, {"generator": [*excluded, careless]}, allow=False)


def test_a_file_beside_the_excluded_one_is_not_excluded(tmp_path: Path) -> None:
    source = raw_file(tmp_path / "benchmark.parquet", ALL[:30])
    build(tmp_path / "big", ALL, crysdb={"exclude": [str(source)]})
    sources = [entry("one", 30, file_hash(source)), entry("two", 10, "another")]
    write_table(to_table(ALL[:40]), tmp_path / "raw.parquet", {"sources": sources})
    build_crysdb(campaign(crysdb={"test_fraction": 0.4}), tmp_path / "raw.parquet", tmp_path / "small")
    models = {"generator": history(tmp_path / "big" / "crysdb" / "train.parquet")}
    with pytest.raises(UserError, match="but not these crystals"):
        require_held_out(tmp_path / "small" / "test.parquet", models, allow=False)


def test_real_benchmark_is_kept_out_of_another_database(tmp_path: Path) -> None:
    """MP-20's and MPTS-52's validation sets share entries: by id, and by structure under other ids."""
    from dao_pipeline.sources.files import read_crystals

    table = read_crystals(shared_data("mp20/val.parquet"), energy_method="PBE").table
    test = read_crystals(shared_data("mpts52/val.parquet")).table
    shared = set(table["id"].to_pylist()) & set(test["id"].to_pylist())
    table = table.filter(pa.compute.is_in(table["id"], value_set=pa.array(sorted(shared)[:60])))
    anonymous = pa.array([f"row:{i}" for i in range(table.num_rows)])
    write_table(table.set_column(0, "id", anonymous), tmp_path / "raw.parquet", {})
    settings = {"exclude": [str(shared_data("mpts52/val.parquet"))], "exclude_by": "structure"}
    with pytest.raises(UserError, match=r"\(60 in, rejected: 60 excluded"):
        build_crysdb(campaign(crysdb=settings), tmp_path / "raw.parquet", tmp_path / "db")


def test_a_foreign_table_is_compared_with_the_test_split(tmp_path: Path) -> None:
    rows = build(tmp_path, ALL)
    test = tmp_path / "crysdb" / "test.parquet"
    formulas = {row["formula"] for row in rows["test"]}
    clean = raw_file(tmp_path / "clean.parquet", [c for c in ALL if c.formula not in formulas])
    leaky = raw_file(tmp_path / "leaky.parquet", ALL[:100])
    # a table from elsewhere may write formulas in its own way
    otherwise = read_table(leaky)
    written = pa.array([f"{name} 1" for name in otherwise["formula"].to_pylist()])
    renamed = tmp_path / "renamed.parquet"
    write_table(otherwise.set_column(otherwise.column_names.index("formula"), "formula", written), renamed, {})
    for table, sound in ((clean, True), (leaky, False), (renamed, False)):
        run = {"stage": "finetune_generator", "campaign": "c", "held_out": held_out(table, test)}
        assert (require_held_out(test, {"generator": [run]}, allow=True) == []) == sound
    assert held_out(clean) is None


def test_coverage_table_adds_up(tmp_path: Path) -> None:
    more = [
        replace(binary(i), id=f"z-{i}", source="other", lattice=np.eye(3) * (40 if i > 3 else 1)) for i in range(6)
    ]
    copies = [replace(binary(i), id=f"y-{i}", source="other") for i in range(7)]
    build(tmp_path, [*ALL, *more, *copies])
    head, _, *lines = coverage(tmp_path / "crysdb").splitlines()
    names = [word.strip() for word in head.split("|")[1:-1]]
    table = {
        cells[0]: dict(zip(names[1:], map(int, cells[1:]), strict=True))
        for line in lines
        for cells in [line.strip("| ").split(" | ")]
    }
    assert set(table) == {"test", "other", "all"}
    assert table["other"] == dict.fromkeys(names[1:], 0) | {"in": 13, "volume": 6, "duplicate across": 7}
    for row in table.values():
        assert row["in"] == sum(row.values()) - row["in"]
    assert table["all"]["in"] == 141
