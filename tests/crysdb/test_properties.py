"""What must hold for any crystals: nothing is lost, order does not matter, building twice changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals import table as tables
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.sources.files import read_crystals
from tests.crysdb.test_build import ALL, broken, build, campaign, ids, reasons
from tests.make import binary, shared_data

NAMES = ("train", "val", "test")


def mixture(seed: int = 0) -> list[Crystal]:
    """Sound, broken, repeated and strained crystals, with and without a split, in random order."""
    rng = np.random.default_rng(seed)
    crystals = [*ALL, *(crystal for crystal, _ in broken().values())]
    crystals += [replace(binary(i), id=f"strained-{i}", lattice=binary(i).lattice * 1.01) for i in range(0, 40, 3)]
    crystals += [replace(binary(i, split="test"), id=f"test-{i}") for i in range(0, 20, 4)]
    return [crystals[i] for i in rng.permutation(len(crystals))]


def content(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What was decided about each crystal, by id."""
    sides = {row["id"]: name for name in NAMES for row in rows[name]}
    return sides | {row["id"]: (row["reason"], row["detail"]) for row in rows["rejected"]}


@pytest.mark.parametrize("pieces", [7, 10_000])
def test_order_and_pieces_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    expected = content(build(tmp_path / "a", mixture(0)))
    monkeypatch.setattr("dao_pipeline.crysdb.build.ROW_GROUP", pieces)
    monkeypatch.setattr(tables, "ROW_GROUP", pieces)
    assert content(build(tmp_path / "b", mixture(1))) == expected


def test_nothing_is_lost(tmp_path: Path) -> None:
    crystals = mixture()
    rows = build(tmp_path, crystals)
    found = sorted(row["id"] for part in rows.values() for row in part)
    assert found == sorted(crystal.id for crystal in crystals)
    about = read_about(tmp_path / "crysdb" / "train.parquet")
    coverage = about["coverage"]["test"]
    assert coverage["raw"] == len(crystals) == sum(coverage["rejected"].values()) + sum(coverage[n] for n in NAMES)
    assert coverage["duplicates_within"] == coverage["rejected"]["duplicate"] > 10


def test_building_twice_changes_nothing(tmp_path: Path) -> None:
    build(tmp_path / "once", mixture())
    parts = [read_table(tmp_path / "once" / "crysdb" / f"{name}.parquet") for name in NAMES]
    write_table(pa.concat_tables(parts), tmp_path / "again.parquet", {})
    build_crysdb(campaign(), tmp_path / "again.parquet", tmp_path / "twice")
    assert read_table(tmp_path / "twice" / "rejected.parquet").num_rows == 0
    for part, name in zip(parts, NAMES, strict=True):
        again = read_table(tmp_path / "twice" / f"{name}.parquet")
        assert again.drop_columns(["frac_coords", "lattice"]).equals(part.drop_columns(["frac_coords", "lattice"]))
        for column in ("frac_coords", "lattice"):
            one, two = (np.asarray(pc.list_flatten(t[column])) for t in (part, again))
            wrapped = one - two - np.rint(one - two) if column == "frac_coords" else one - two
            np.testing.assert_allclose(wrapped, 0, atol=1e-9)


def test_growth_moves_nobody_whatever_the_split(tmp_path: Path) -> None:
    dated = [replace(c, extra=c.extra | {"published": str(1950 + i % 70)}) for i, c in enumerate(mixture())]
    for number, settings in enumerate(
        (
            {"split": "composition"},
            {"split": "chemical_system"},
            {"split": "time", "val_from": "2000", "test_from": "2010-06"},
            {"split": "given"},
        )
    ):
        settings |= {"dedup": {"mode": "off"}, "use_given_split": number == 3}
        half = content(build(tmp_path / f"{number}-half", dated[: len(dated) // 2], crysdb=settings))
        whole = content(build(tmp_path / f"{number}-whole", dated, crysdb=settings))
        assert {name: whole[name] for name in half} == half


def test_no_chemical_system_on_two_sides(tmp_path: Path) -> None:
    second = [replace(c, id=f"{c.id}-2", atomic_numbers=np.repeat(c.atomic_numbers, [1, 2])[:3]) for c in ALL]
    place = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.7, 0.1]])
    second = [replace(c, frac_coords=place, lattice=c.lattice * 1.5) for c in second]
    rows = build(tmp_path, [*ALL, *second], crysdb={"split": "chemical_system"})
    sides: dict[frozenset[int], set[str]] = {}
    for name in NAMES:
        for row in rows[name]:
            sides.setdefault(frozenset(row["atomic_numbers"]), set()).add(name)
    assert len(sides) == 128
    assert all(len(names) == 1 for names in sides.values())


def test_split_by_time(tmp_path: Path) -> None:
    when = ["1997", "2004-12-31", "2005", "2009-02", "2010-01-01", None, "soon", "2018-02-31"]
    crystals = [binary(i, published=when[i % 8]) for i in range(128)]
    rows = build(tmp_path, crystals, crysdb={"split": "time", "val_from": "2005", "test_from": "2010"})
    assert {row["published"] for row in rows["train"]} == {"1997", "2004-12-31", None, "soon", "2018-02-31"}
    assert {row["published"] for row in rows["val"]} == {"2005", "2009-02"}
    assert {row["published"] for row in rows["test"]} == {"2010-01-01"}


def test_what_was_known_before_is_no_discovery(tmp_path: Path) -> None:
    later = replace(binary(3, published="2019", e_above_hull=0.0), id="a-later")
    earlier = binary(3, published="1960", e_above_hull=0.05)
    dates = {"split": "time", "val_from": "2005", "test_from": "2010"}
    rows = build(tmp_path, [later, earlier, *ALL[4:]], crysdb=dates)
    assert reasons(rows) == {"a-later": "duplicate"}
    assert "t-3" in ids(rows["train"])


def test_dates_are_proposed_and_never_guessed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no crystal has a date"):
        build(tmp_path, ALL, crysdb={"split": "time"})
    crystals = [binary(i, published=str(1900 + i)) for i in range(101)]
    with pytest.raises(UserError, match="val_from: '1990-01-01' and test_from: '1995-01-01'"):
        build(tmp_path, crystals, crysdb={"split": "time"})
    rows = build(tmp_path, crystals, crysdb={"split": "time", "val_from": "1990", "test_from": "1995"})
    assert [len(rows[name]) for name in NAMES] == [90, 5, 6]


def test_files_have_bounded_row_groups_and_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP", 20)
    build(tmp_path, ALL)
    file = pq.ParquetFile(tmp_path / "crysdb" / "train.parquet")
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert max(groups) == 20
    assert sum(groups[:-1]) == 20 * (len(groups) - 1)
    assert {path.name for path in tmp_path.iterdir()} == {"raw.parquet", "crysdb"}


def test_a_failure_leaves_neither_files_nor_a_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_disk(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("dao_pipeline.crysdb.build.structure_columns", broken_disk)
    with pytest.raises(OSError, match="disk full"):
        build(tmp_path, ALL)
    assert not list(tmp_path.glob("crysdb/*"))
    assert not list(tmp_path.glob(".crysdb*"))


def test_an_earlier_interrupted_run_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / ".crysdb.building" / "structures").mkdir(parents=True)
    (tmp_path / ".crysdb.building" / "structures" / "counts").write_bytes(b"xx")
    assert len(build(tmp_path, ALL)["train"]) > 100


def test_real_crystals_in_any_order(tmp_path: Path) -> None:
    table = read_crystals(shared_data("mpts52/val.parquet"), energy_method="PBE").table.slice(0, 1500)
    more = read_crystals(shared_data("mp20/val.parquet"), energy_method="PBE").table.slice(0, 3000)
    both = pa.concat_tables([table, more], promote_options="default")
    limits = {"dedup": {"mode": "exact"}}
    shuffled = both.take(pa.array(np.random.default_rng(0).permutation(both.num_rows)))
    decided = []
    for name, part in (("a", both), ("b", shuffled)):
        write_table(part, tmp_path / f"{name}.parquet", {})
        build_crysdb(campaign(crysdb=limits), tmp_path / f"{name}.parquet", tmp_path / name)
        rows = {part: read_table(tmp_path / name / f"{part}.parquet").to_pylist() for part in (*NAMES, "rejected")}
        decided.append({key: value for key, value in content(rows).items() if value[0] != "duplicate_id"})
    assert decided[0] == decided[1]
