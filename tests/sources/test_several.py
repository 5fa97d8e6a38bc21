"""Several sources in one campaign, from files and servers to CrysDB."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dao_pipeline.config import Campaign
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.held_out import held_out, require_held_out
from dao_pipeline.crystals.table import file_hash, read_about, read_table, write_table
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.sources import files
from dao_pipeline.sources.download import download
from dao_pipeline.sources.embedded import EMBEDDED_PATH
from dao_pipeline.sources.files import read_crystals
from tests.make import binary, raw_file
from tests.sources.mp_server import KEY, Materials, running
from tests.sources.test_files import cif, csv_of, write_csv

SIDES = ("train", "val", "test")


def campaign(sources: list[dict[str, Any]], **crysdb: Any) -> Campaign:
    sections = {"data": {"sources": sources}, "crysdb": {"min_atoms": 1} | crysdb}
    return parse_campaign({"name": "several"} | sections, "test")


def csv_file(path: Path, ids: dict[str, int], **facts: Any) -> dict[str, Any]:
    """A source of crystals, the index of ``binary`` by id."""
    rows = [{"material_id": name, "cif": cif(i)} | facts for name, i in ids.items()]
    return {"source": "file", "path": str(write_csv(path, rows))}


def crysdb_rows(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for side in SIDES for row in read_table(folder / f"{side}.parquet").to_pylist()}


def test_clashing_ids_and_levels_of_theory(tmp_path: Path) -> None:
    """Files with ids 0, 1, ...; crystals 2 and 3 are in both, with energies that must not be compared."""
    one = csv_file(tmp_path / "one.csv", {str(i): i for i in range(4)}, e_above_hull=0.01)
    two = csv_file(tmp_path / "two.csv", {str(i): i + 2 for i in range(4)}, e_above_hull=0.5)
    broken = Path(two["path"])
    broken.write_text(broken.read_text() + "9,no cif,0.5\n")
    one |= {"name": "one", "energy_method": "PBE"}
    two |= {"name": "two", "energy_method": "r2SCAN"}
    raw, out = tmp_path / "raw" / "crystals.parquet", tmp_path / "crysdb"

    download(campaign([one, two]), raw)
    table = read_table(raw)
    assert table["id"].to_pylist() == [f"{name}:{i}" for name in ("one", "two") for i in range(4)]
    assert table["source"].to_pylist() == ["one"] * 4 + ["two"] * 4
    assert table["energy_method"].to_pylist() == ["PBE"] * 4 + ["r2SCAN"] * 4
    (lost,) = read_table(raw.with_name("rejected.parquet")).to_pylist()
    assert (lost["id"], lost["reason"]) == ("two:9", "bad_cif")

    about = read_about(raw)
    assert (about["examined"], about["rejected"]) == (9, {"bad_cif": 1})
    counts = [(s["name"], s["source"], s["examined"], s["crystals"], s["rejected"]) for s in about["sources"]]
    assert counts == [("one", "file", 4, 4, {}), ("two", "file", 5, 4, {"bad_cif": 1})]
    assert [s["hash"] for s in about["sources"]] == [file_hash(tmp_path / f"{n}.csv") for n in ("one", "two")]
    assert {name: entry["path"] for name, entry in about["inputs"].items()} == {
        name: str(tmp_path / f"{name}.csv") for name in ("one", "two")
    }

    with pytest.raises(UserError, match=r"(?s)PBE.*r2SCAN"):
        build_crysdb(campaign([one, two]), raw, out)
    build_crysdb(campaign([one, two], energy_methods=["PBE"], require_label=False), raw, out)
    rows = crysdb_rows(out)
    assert {name: row["e_above_hull"] for name, row in rows.items()} == {
        **{f"one:{i}": 0.01 for i in range(4)},
        **{f"two:{i}": None for i in (2, 3)},
    }


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_equal_crystals_the_earlier_source_wins(tmp_path: Path, order: tuple[int, int]) -> None:
    """Although the other has a lower energy, and the ids sort the other way in one of the two cases."""
    sources = [
        csv_file(tmp_path / f"{name}.csv", {"x": 0, f"{name}-own": i}, e_above_hull=energy, energy_method="PBE")
        for i, (name, energy) in enumerate((("a", 0.2), ("b", 0.1)), 1)
    ]
    data = [sources[i] | {"name": "ab"[i]} for i in order]
    download(campaign(data), tmp_path / "raw.parquet")
    build_crysdb(campaign(data), tmp_path / "raw.parquet", tmp_path / "crysdb")
    assert set(crysdb_rows(tmp_path / "crysdb")) == {"ab"[order[0]] + ":x", "a:a-own", "b:b-own"}
    # what the user prefers by name comes first
    last = "ab"[order[1]]
    preferred = campaign(data, dedup={"prefer": [last]})
    build_crysdb(preferred, tmp_path / "raw.parquet", tmp_path / "crysdb")
    assert set(crysdb_rows(tmp_path / "crysdb")) == {last + ":x", "a:a-own", "b:b-own"}


def test_one_id_for_two_crystals_needs_a_name(tmp_path: Path) -> None:
    first = csv_file(tmp_path / "a.csv", {"0": 0, "1": 1, "2": 2})
    second = csv_file(tmp_path / "b.csv", {"2": 2, "1": 3, "0": 0})
    third = csv_file(tmp_path / "c.csv", {"7": 7, "2": 8})
    with pytest.raises(UserError) as caught:
        download(campaign([first, second]), tmp_path / "raw.parquet")
    assert str(caught.value) == (
        "data.sources[1]: the id 1 is MgO here and NaO in sources[0] (such ids: 1). Give data.sources[1].name, "
        "which then stands before the ids."
    )
    assert not list(tmp_path.glob("*.parquet"))
    with pytest.raises(UserError, match=r"data.sources\[2\]: the id 2 is FeO here and KO in sources\[0\]"):
        download(campaign([first, second | {"name": "b"}, third]), tmp_path / "raw.parquet")
    download(campaign([first, second | {"name": "b"}]), tmp_path / "raw.parquet")
    assert read_table(tmp_path / "raw.parquet")["id"].to_pylist() == ["0", "1", "2", "b:2", "b:1", "b:0"]


def test_one_id_for_one_crystal_is_kept_once(tmp_path: Path) -> None:
    """mp-1 in two tables of the same database."""
    sources = [
        csv_file(tmp_path / f"{name}.csv", {"mp-1": 1, f"mp-{i}": i}, e_above_hull=0.0, energy_method="PBE")
        for name, i in (("a", 2), ("b", 3))
    ]
    download(campaign(sources), tmp_path / "raw.parquet")
    build_crysdb(campaign(sources), tmp_path / "raw.parquet", tmp_path / "crysdb")
    kept = crysdb_rows(tmp_path / "crysdb")
    assert {name: row["source"] for name, row in kept.items()} == {"mp-1": "a", "mp-2": "a", "mp-3": "b"}
    (lost,) = read_table(tmp_path / "crysdb" / "rejected.parquet").to_pylist()
    assert (lost["id"], lost["reason"]) == ("mp-1", "duplicate_id")


def test_names_of_precursors_and_limits_and_the_embedded_crystals(tmp_path: Path) -> None:
    crystals = [binary(0), replace(binary(1), id="p", extra=binary(1).extra | {"precursor_of": "t-0"}), binary(2)]
    own = {"name": "own", "source": "file", "path": str(raw_file(tmp_path / "own.parquet", crystals)), "limit": 2}
    data = campaign([{"source": "embedded", "limit": 3}, own])
    download(data, tmp_path / "raw.parquet")
    rows = read_table(tmp_path / "raw.parquet").to_pylist()
    embedded = read_table(EMBEDDED_PATH, ["id", "source"]).slice(0, 3).to_pylist()
    assert [{"id": row["id"], "source": row["source"]} for row in rows[:3]] == embedded
    named = [(row["id"], row["source"], row["precursor_of"]) for row in rows[3:]]
    assert named == [("own:t-0", "test", None), ("own:p", "test", "own:t-0")], "the file has a source column"
    assert [s["crystals"] for s in read_about(tmp_path / "raw.parquet")["sources"]] == [3, 2]


def test_a_level_of_theory_for_each_source_of_a_file(tmp_path: Path) -> None:
    for kind in ("csv", "parquet"):
        rows = [{"material_id": s, "source": s, "e_above_hull": 0.1, "cif": cif(0)} for s in ("mp", "oqmd", "new")]
        rows.append(rows[0] | {"material_id": "given", "energy_method": "SCAN"})
        rows = [{"energy_method": ""} | row for row in rows]
        path = write_csv(tmp_path / "set.csv", rows)
        if kind == "parquet":
            table = read_crystals(path).table
            path = tmp_path / "set.parquet"
            write_table(table, path, {})
        methods = read_crystals(path, energy_method={"mp": "PBE", "oqmd": "PBE, OQMD"}).table["energy_method"]
        assert methods.to_pylist() == ["PBE", "PBE, OQMD", None, "SCAN"]


@pytest.mark.parametrize("change", ["", "order"])
def test_an_interrupted_download_continues_in_every_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The first source is complete, the second half: neither is parsed twice, even in another order."""
    monkeypatch.setattr(files, "_GROUP", 4)
    monkeypatch.setattr(files, "_BATCH", 2)
    monkeypatch.setattr(files, "_IN_PROCESS", 1)
    sources = [
        {"name": name, "source": "file", "path": str(csv_of(tmp_path / f"{name}.csv", 8))} for name in ("a", "b")
    ]
    parsed: list[str] = []
    parse = files.parse_batch

    def stopped(batch: Any) -> Any:
        parsed.extend(f"{batch.source}:{record.id}" for record in batch.records)
        if len(parsed) == 8 + 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return parse(batch)

    monkeypatch.setattr(files, "parse_batch", stopped)

    def one_process(sources: list[dict[str, Any]]) -> Campaign:
        data = {"sources": sources}
        return parse_campaign({"name": "x", "data": data, "compute": {"cpu": {"threads": 1}}}, "test")

    work = tmp_path / "work"
    with pytest.raises(ContinueLater):
        download(one_process(sources), tmp_path / "raw.parquet", work)
    assert not (tmp_path / "raw.parquet").exists()
    parsed.clear()
    again = sources[::-1] if change else sources
    download(one_process(again), tmp_path / "raw.parquet", work)
    assert parsed == [f"b:mp-{i}" for i in range(4, 8)]
    expected = [f"{source['name']}:mp-{i}" for source in again for i in range(8)]
    assert read_table(tmp_path / "raw.parquet")["id"].to_pylist() == expected
    assert not list(work.rglob("*.parquet")), "kept pieces go when all is done"


def test_errors_name_the_source(tmp_path: Path) -> None:
    good = csv_file(tmp_path / "a.csv", {"0": 0})
    (tmp_path / "b.parquet").write_text("no table")
    for source, message in (
        ({"source": "file", "path": str(tmp_path / "b.parquet")}, r"^data.sources\[1\]: .*not a readable Parquet"),
        ({"source": "file", "path": str(tmp_path / "no.csv")}, r"^data.sources\[1\]: .*no such file. Correct the"),
        (
            {
                "source": "file",
                "path": str(write_csv(tmp_path / "c.csv", [{"material_id": "x", "cif": "no cif"}])),
            },
            r"^data.sources\[1\].source file: none of 1 crystals is usable \(1 bad_cif\)",
        ),
    ):
        with pytest.raises(UserError, match=message):
            download(campaign([good, source]), tmp_path / "raw.parquet")
        assert not (tmp_path / "raw.parquet").exists()


def test_servers_and_files_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two queries of the Materials Project and a file: phases of both, one snapshot each, all of it held out."""
    monkeypatch.setenv("MP_API_KEY", KEY)
    own = csv_file(tmp_path / "own.csv", {f"own-{i}": i for i in range(40, 90)})
    with running(Materials()) as server:
        server.materials.add("mp-1", chemsys="Na")
        server.materials.add("mp-2", chemsys="K")
        query = {"endpoint": server.endpoint, "chunk": 5}
        asked = [
            {"source": "materials_project", "materials_project": query | {"chemical_systems": [system]}}
            for system in ("Na", "K")
        ]
        asked[1]["name"] = "potassium"
        data = campaign([asked[0], own, asked[1]], require_label=False, test_fraction=0.4)
        download(data, tmp_path / "raw.parquet", tmp_path / "work")
        asked_before = len(server.asked)
        download(data, tmp_path / "raw.parquet", tmp_path / "work")
        assert len(server.asked) == asked_before, "the snapshots are complete"
    table = read_table(tmp_path / "raw.parquet")
    first, last = table.slice(0, 1).to_pylist()[0], table.slice(51, 1).to_pylist()[0]
    assert (first["id"], first["source"]) == ("mp-1", "materials_project")
    assert (last["id"], last["source"]) == ("potassium:mp-2", "potassium")
    assert read_table(tmp_path / "phases.parquet")["id"].to_pylist() == ["mp-1", "mp-2"]
    about = read_about(tmp_path / "raw.parquet")["sources"]
    assert [s["name"] for s in about] == ["sources[0]", "sources[1]", "potassium"]
    assert about[2]["materials_project"]["chemical_systems"] == ["K"]
    assert about[2]["hash"] == about[2]["materials_project"]["checksum"]

    build_crysdb(data, tmp_path / "raw.parquet", tmp_path / "crysdb")
    elsewhere = raw_file(tmp_path / "others.parquet", [binary(i) for i in range(40)])
    other = parse_campaign({"name": "o", "crysdb": {"min_atoms": 1, "exclude": [own["path"]]}}, "test")
    build_crysdb(other, elsewhere, tmp_path / "other")
    trained = [{"stage": "x", "held_out": held_out(tmp_path / "other" / "train.parquet")}]
    with pytest.raises(UserError, match="may have been trained on these crystals"):
        require_held_out(tmp_path / "crysdb" / "test.parquet", {"generator": trained}, allow=False)
