from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dao_pipeline.config import Campaign
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import cell_parameters, lattices_from_parameters, shortest_distances, volumes
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError
from tests.make import binary, crystal, raw_file, shared_data

ALL = [binary(i) for i in range(128)]
EXACT, OFF = {"dedup": {"mode": "exact"}}, {"dedup": {"mode": "off"}}


def campaign(**sections: Any) -> Campaign:
    sections["crysdb"] = {"min_atoms": 1} | sections.get("crysdb", {})
    return parse_campaign({"name": "test"} | sections, "test")


def build(tmp_path: Path, crystals: list[Crystal], **sections: Any) -> dict[str, list[dict[str, Any]]]:
    """Rows of the four tables that building writes."""
    build_crysdb(campaign(**sections), raw_file(tmp_path / "raw.parquet", crystals), tmp_path / "crysdb")
    names = ("train", "val", "test", "rejected")
    return {name: read_table(tmp_path / "crysdb" / f"{name}.parquet").to_pylist() for name in names}


def ids(rows: list[dict[str, Any]]) -> set[str]:
    return {row["id"] for row in rows}


def reasons(tables: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in tables["rejected"]}


def test_split_by_composition(tmp_path: Path) -> None:
    second = [replace(c, id=f"{c.id}-b", lattice=c.lattice * 1.05) for c in ALL]
    tables = build(tmp_path, [*ALL, *second])
    assert not tables["rejected"]
    sides = {name: {row["formula"] for row in tables[name]} for name in ("train", "val", "test")}
    assert not sides["train"] & sides["val"] | sides["train"] & sides["test"] | sides["val"] & sides["test"]
    assert sum(map(len, sides.values())) == 128
    assert all(1 <= len(sides[name]) <= 16 for name in ("val", "test"))
    assert all(row["split"] == name for name in sides for row in tables[name])


def test_growth_moves_nobody(tmp_path: Path) -> None:
    small, large = build(tmp_path / "small", ALL[:60]), build(tmp_path / "large", ALL)
    for name in ("train", "val", "test"):
        assert ids(small[name]) == ids(large[name]) & {c.id for c in ALL[:60]}


def test_seed_decides_the_split(tmp_path: Path) -> None:
    one, two = build(tmp_path / "1", ALL, seed=1), build(tmp_path / "2", ALL, seed=2)
    assert ids(one["test"]) != ids(two["test"])


def with_splits(**by_row: str) -> list[Crystal]:
    return [binary(i, split=by_row.get(f"r{i}")) for i in range(128)]


def test_given_split_is_respected(tmp_path: Path) -> None:
    given = {f"r{i}": ("train", "validation", "TEST")[i % 3] for i in range(128)}
    tables = build(tmp_path, with_splits(**given))
    assert ids(tables["test"]) == {f"t-{i}" for i in range(128) if i % 3 == 2}
    assert ids(tables["val"]) == {f"t-{i}" for i in range(128) if i % 3 == 1}


def test_given_split_can_be_ignored(tmp_path: Path) -> None:
    given = {f"r{i}": "test" for i in range(127)}
    tables = build(tmp_path, with_splits(**given), crysdb={"use_given_split": False})
    assert len(tables["train"]) > 100


def test_rows_without_split_never_join_a_given_test(tmp_path: Path) -> None:
    tables = build(tmp_path, with_splits(r0="test", r1="test"))
    assert ids(tables["test"]) == {"t-0", "t-1"}
    assert len(tables["val"]) >= 1
    assert len(tables["train"]) + len(tables["val"]) == 126


def test_composition_of_the_given_test_is_not_trained_on(tmp_path: Path) -> None:
    other = replace(binary(0), id="polymorph", lattice=binary(0).lattice * 1.1)
    tables = build(tmp_path, [other, *with_splits(r0="test")])
    assert reasons(tables) == {"polymorph": "composition_in_test"}


def named(count: int, source: str) -> list[Crystal]:
    """Binaries of one source, each twice: the second a polymorph of the first."""
    first = [binary(i, split="train") for i in range(count)]
    first = [replace(c, id=f"{source}:{c.id}", source=source) for c in first]
    return first + [replace(c, id=f"{c.id}-b", lattice=c.lattice * 1.08) for c in first]


def test_crystals_are_held_out_with_all_of_their_compositions(tmp_path: Path) -> None:
    crystals = named(60, "wanted") + [replace(binary(i), id=f"more:{i}", source="more") for i in range(128)]
    tables = build(tmp_path, crystals, crysdb={"held_out": {"wanted": 20}} | OFF)
    test = tables["test"]
    assert len(test) == 20
    assert {row["source"] for row in test} == {"wanted"}
    asked = {row["formula"] for row in test}
    assert not asked & {row["formula"] for name in ("train", "val") for row in tables[name]}
    lost = {row["id"] for row in tables["rejected"] if row["reason"] == "composition_in_test"}
    assert lost == {c.id for c in crystals if c.formula in asked} - ids(test)
    again = build(tmp_path / "again", crystals[::-1], crysdb={"held_out": {"wanted": 20}} | OFF)
    assert ids(again["test"]) == ids(test)
    other = build(tmp_path / "other", crystals, crysdb={"held_out": {"wanted": 20}} | OFF, seed=7)
    assert ids(other["test"]) != ids(test)


def test_more_crystals_than_there_are_cannot_be_held_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"held_out\.elsewhere = 5: there are 0 .* sources are .*wanted"):
        build(tmp_path, named(40, "wanted"), crysdb={"held_out": {"elsewhere": 5}} | OFF)
    with pytest.raises(UserError, match="held_out needs split: composition"):
        campaign(crysdb={"held_out": {"wanted": 5}, "split": "given"})


def test_unknown_split_is_rejected(tmp_path: Path) -> None:
    copy = replace(binary(5), id="copy")
    tables = build(tmp_path, [*with_splits(r5="holdout"), copy])
    assert reasons(tables) == {"t-5": "unknown_split"}  # and so its copy is no duplicate of anything


def test_cells_are_niggli_cells_in_pymatgens_orientation(tmp_path: Path) -> None:
    face_centred = np.array([[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]])
    sheared = np.array([[1, 0, 0], [3, 1, 0], [-2, 5, 1]]) @ face_centred
    frac = np.array([[0, 0, 0], [0.5, 0.5, 0.5]]) @ face_centred @ np.linalg.inv(sheared)
    salts = [crystal("nacl", ["Na", "Cl"], frac, sheared), crystal("left", ["K", "Cl"], frac, -sheared)]
    build(tmp_path, salts, crysdb={"val_fraction": 0, "test_fraction": 0})
    flat = flatten(read_table(tmp_path / "crysdb" / "train.parquet"))
    np.testing.assert_allclose(cell_parameters(flat.lattice), [[2.8 * 2**0.5] * 3 + [60] * 3] * 2, rtol=1e-9)
    np.testing.assert_allclose(flat.lattice, lattices_from_parameters(cell_parameters(flat.lattice)), atol=1e-9)
    np.testing.assert_allclose(shortest_distances(flat), 2.8, rtol=1e-9)
    assert ((flat.frac >= 0) & (flat.frac < 1)).all()


def broken() -> dict[str, tuple[Crystal, str]]:
    """One crystal for each reason."""
    good = binary(100)

    def made(name: str, reason: str, **changes: Any) -> tuple[str, tuple[Crystal, str]]:
        return name, (replace(good, id=name, **changes), reason)

    flat_cell = np.array([[3.0, 0, 0], [0, 3.0, 0], [3.0, 3.0, 0]])
    return dict(
        [
            made("nan-coordinate", "not_finite", frac_coords=np.array([[0, 0, np.nan], [0.5, 0.5, 0.5]])),
            made("inf-coordinate", "not_finite", frac_coords=np.array([[0, 0, np.inf], [0.5, 0.5, 0.5]])),
            made("nan-lattice", "not_finite", lattice=np.diag([3.0, 3.0, np.nan])),
            made("inf-lattice", "not_finite", lattice=np.diag([3.0, 3.0, np.inf])),
            made("flat", "zero_volume", lattice=flat_cell),
            made("null-lattice", "zero_volume", lattice=np.zeros((3, 3))),
            made("dense", "volume", lattice=np.eye(3) * 1.0),
            made("gas", "volume", lattice=np.eye(3) * 40.0),
            made("overlap", "too_close", frac_coords=np.array([[0, 0, 0], [0.99, 0, 0.01]])),
            made("fermium", "too_many_atoms", frac_coords=np.zeros((31, 3)), atomic_numbers=np.full(31, 100)),
            made("mendelevium", "unknown_element", atomic_numbers=np.array([101, 8])),
            made("unstable", "e_above_hull", extra={"e_above_hull": 1.5}),
            made("unlabelled", "no_label", extra={"formation_energy": -1.0}),
            made("nan-label", "no_label", extra={"e_above_hull": float("nan")}),
            made("inf-label", "no_label", extra={"e_above_hull": float("inf")}),
        ]
    )


def test_every_rejected_crystal_has_its_reason(tmp_path: Path) -> None:
    bad = broken()
    tables = build(tmp_path, [*ALL[:50], *(c for c, _ in bad.values()), *ALL[50:]])
    assert reasons(tables) == {name: reason for name, (_, reason) in bad.items()}
    assert ids(tables["train"]) | ids(tables["val"]) | ids(tables["test"]) == {c.id for c in ALL}
    assert all(row["stage"] == "build_crysdb" and row["detail"] for row in tables["rejected"])
    counts = read_about(tmp_path / "crysdb" / "train.parquet")["counts"]
    assert counts["raw"] == len(ALL) + len(bad) == sum(map(len, tables.values()))
    assert counts["rejected"]["no_label"] == 3


@pytest.mark.parametrize(
    ("limits", "rejected"),
    [
        ({"max_atoms": 1}, "too_many_atoms"),
        ({"min_atoms": 3}, "too_few_atoms"),
        ({"min_distance": 4.5}, "too_close"),
    ],
)
def test_limits_come_from_the_campaign(tmp_path: Path, limits: dict[str, float], rejected: str) -> None:
    with pytest.raises(UserError, match=rf"no crystal is left to train on .* {rejected}"):
        build(tmp_path, ALL, crysdb=limits)


def test_repeated_ids(tmp_path: Path) -> None:
    unusable = replace(binary(3), extra={})
    tables = build(tmp_path, [unusable, *ALL, replace(binary(9, e_above_hull=0.05), id="t-8")])
    rows = sorted((row["id"], row["reason"]) for row in tables["rejected"])
    assert rows == [("t-3", "no_label"), ("t-8", "duplicate_id")]
    assert "t-3" in ids(tables["train"]) | ids(tables["val"]) | ids(tables["test"])


def test_the_same_crystal_in_other_words_is_a_duplicate(tmp_path: Path) -> None:
    rutile = crystal(
        "rutile",
        ["Ti", "Ti", "O", "O", "O", "O"],
        [
            [0, 0, 0],
            [0.5, 0.5, 0.5],
            [0.305, 0.305, 0],
            [0.695, 0.695, 0],
            [0.195, 0.805, 0.5],
            [0.805, 0.195, 0.5],
        ],
        np.diag([4.6, 4.6, 2.96]),
    )
    change = np.array([[1, 1, 0], [0, 1, 0], [2, 0, 1]])
    order = [3, 0, 5, 1, 2, 4]
    other_words = replace(
        rutile,
        id="same",
        lattice=change @ rutile.lattice,
        frac_coords=((rutile.frac_coords + np.array([0.1, 0.2, 0.3])) @ np.linalg.inv(change))[order],
        atomic_numbers=rutile.atomic_numbers[order],
    )
    strained = replace(rutile, id="strained", lattice=rutile.lattice * 1.01)
    moved = replace(rutile, id="shifted", frac_coords=rutile.frac_coords + np.eye(6, 3) * 0.02)
    larger = replace(rutile, id="another-volume", lattice=rutile.lattice * 1.05)
    tables = build(tmp_path, [rutile, other_words, strained, moved, larger, *ALL], crysdb=EXACT)
    assert reasons(tables) == {"same": "duplicate"}
    assert tables["rejected"][0]["detail"] == "same crystal as rutile"
    tables = build(tmp_path, [rutile, other_words, strained, moved, larger, *ALL])
    assert reasons(tables) == dict.fromkeys(("same", "strained", "shifted"), "duplicate")
    tables = build(tmp_path, [rutile, other_words, strained, moved, larger, *ALL], crysdb=OFF)
    assert not tables["rejected"]


def test_many_copies_keep_one(tmp_path: Path) -> None:
    copies = [replace(binary(7), id=f"z-{i}", lattice=binary(7).lattice * (1 + 1e-6 * i)) for i in range(40)]
    tables = build(tmp_path, [*ALL, *copies])
    assert set(reasons(tables)) == {c.id for c in copies}
    assert {row["detail"] for row in tables["rejected"]} == {"same crystal as t-7"}


def test_a_copy_in_the_given_test_is_the_one_that_stays(tmp_path: Path) -> None:
    crystals = with_splits(r4="train")
    copy = replace(binary(4, split="test"), id="in-test")
    tables = build(tmp_path, [*crystals, copy])
    assert reasons(tables) == {"t-4": "duplicate"}
    assert ids(tables["test"]) == {"in-test"}


def test_precursor_links_follow_the_crystals(tmp_path: Path) -> None:
    def far(index: int, **extra: Any) -> Crystal:
        base = binary(index, e_above_hull=0.3, **extra)
        return replace(base, id=f"u-{index}", lattice=base.lattice * 1.1)

    lost = replace(binary(20), extra={"e_above_hull": 2.0})
    equal = replace(binary(30, precursor_of="t-30"), id="u-30")
    crystals = [
        equal,
        *[c for c in ALL if c.id != "t-20"],
        lost,
        far(10, precursor_of="t-10"),
        far(20, precursor_of="t-20"),
    ]
    tables = build(tmp_path, crystals, crysdb={"val_fraction": 0, "test_fraction": 0})
    links = {row["id"]: row["precursor_of"] for row in tables["train"]}
    assert links["u-10"] == "t-10"
    assert links["u-20"] is None  # its relaxed crystal was rejected
    assert reasons(tables) == {"t-20": "e_above_hull", "u-30": "duplicate"}


def test_excluded_compositions(tmp_path: Path) -> None:
    polymorph = replace(binary(0), id="mp-0", lattice=binary(0).lattice * 1.2)
    ours = raw_file(tmp_path / "ours.parquet", [polymorph])
    lists = [binary(1).atomic_numbers.tolist() * 2]
    public = {
        "atomic_numbers": lists,
        "frac_coords": [[0.1 * i for i in range(12)]],
        "lattice": [[5.0, 0, 0, 0, 5, 0, 0, 0, 5]],
    }
    pq.write_table(pa.table(public), tmp_path / "public.parquet")
    paths = [str(ours), str(tmp_path / "public.parquet")]
    tables = build(tmp_path, ALL, crysdb={"exclude": paths})
    assert reasons(tables) == {"t-0": "excluded", "t-1": "excluded"}
    inputs = read_about(tmp_path / "crysdb" / "test.parquet")["inputs"]
    assert set(inputs) == {"raw", "exclude[0]", "exclude[1]"}


def test_other_label(tmp_path: Path) -> None:
    crystals = [replace(c, extra={"formation_energy": -0.5}) for c in ALL]
    tables = build(tmp_path, crystals, energy_model={"label": "formation_energy"})
    assert not tables["rejected"]
    with pytest.raises(UserError, match="128 no_label"):
        build(tmp_path, crystals)


def test_requested_elements_must_be_trained_on(tmp_path: Path) -> None:
    wanted = {"compositions": [{"formula": "LiF"}, {"formula": "UO2"}]}
    with pytest.raises(UserError, match=r"compositions\[1\] = UO2: no training crystal contains U"):
        build(tmp_path, ALL, generate=wanted)
    assert not (tmp_path / "crysdb").exists()


def test_levels_of_theory_are_mixed_only_on_demand(tmp_path: Path) -> None:
    crystals = [binary(i, energy_method=("PBE", "PBE", "r2SCAN", None)[i % 4]) for i in range(128)]
    with pytest.raises(UserError, match=r"PBE \(64 crystals\), r2SCAN \(32 crystals\), unknown \(32 crystals\)"):
        build(tmp_path, crystals)
    everything = {"energy_methods": ["PBE", "r2SCAN", "unknown"]}
    assert not build(tmp_path, crystals, crysdb=everything)["rejected"]
    found = read_about(tmp_path / "crysdb" / "val.parquet")["energy_methods"]
    assert found == {"PBE": 64, "r2SCAN": 32, "unknown": 32}
    lost = reasons(build(tmp_path, crystals, crysdb={"energy_methods": ["PBE"]}))
    assert lost == {f"t-{i}": "no_label" for i in range(128) if i % 4 > 1}
    kept = build(tmp_path, crystals, crysdb={"energy_methods": ["PBE"], "require_label": False})
    assert not kept["rejected"]
    rows = [row for name in ("train", "val", "test") for row in kept[name]]
    assert {row["energy_method"] for row in rows} == {"PBE", None}
    assert all((row["e_above_hull"] is None) == (row["energy_method"] is None) for row in rows)
    about = read_about(tmp_path / "crysdb" / "val.parquet")
    assert about["energies_left_out"] == {"r2SCAN": 32, "unknown": 32}


def test_empty_and_foreign_tables(tmp_path: Path) -> None:
    write_table(to_table([]), tmp_path / "raw.parquet", {})
    with pytest.raises(UserError, match="no crystals"):
        build_crysdb(campaign(), tmp_path / "raw.parquet", tmp_path / "out")
    write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet", {})
    with pytest.raises(UserError, match=r"columns id, source, .* are missing"):
        build_crysdb(campaign(), tmp_path / "foreign.parquet", tmp_path / "out")


def test_twenty_thousand_real_crystals_in_seconds(tmp_path: Path) -> None:
    from dao_pipeline.sources.files import read_crystals

    imported = read_crystals(shared_data("corpus/structures.parquet"))
    table = imported.table
    write_table(table, tmp_path / "raw.parquet", {})
    start = time.process_time()
    labels = campaign(energy_model={"label": "formation_energy"}, crysdb=EXACT)
    build_crysdb(labels, tmp_path / "raw.parquet", tmp_path / "db")
    assert time.process_time() - start < 20
    parts = {
        name: read_table(tmp_path / "db" / f"{name}.parquet") for name in ("train", "val", "test", "rejected")
    }
    assert sum(part.num_rows for part in parts.values()) == table.num_rows
    flat, raw = (
        flatten(parts["test"]),
        {row["id"]: row["lattice"] for row in table.select(["id", "lattice"]).to_pylist()},
    )
    before = volumes(np.array([raw[name] for name in parts["test"]["id"].to_pylist()]).reshape(-1, 3, 3))
    np.testing.assert_allclose(volumes(flat.lattice), before, rtol=1e-9)
