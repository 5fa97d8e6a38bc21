from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from dao_pipeline.config import Campaign, Data, Resources
from dao_pipeline.crystals.convert import to_structure
from dao_pipeline.crystals.crystal import from_table, to_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import cell_parameters, volumes
from dao_pipeline.crystals.schema import CRYSTAL_SCHEMA
from dao_pipeline.crystals.table import read_about, read_table
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.sources.cif import parse_cif
from dao_pipeline.sources.download import download
from dao_pipeline.sources.embedded import EMBEDDED_PATH
from dao_pipeline.sources.files import read_crystals
from tests.make import binary, raw_file, shared_data


def public_layout(count: int = 3) -> dict[str, Any]:
    """The layout in which public sets are passed around."""
    crystals = [binary(i) for i in range(count)]
    return {
        "material_id": [f"mp-{i}" for i in range(count)],
        "formula": [c.formula for c in crystals],
        "atomic_numbers": [c.atomic_numbers.tolist() for c in crystals],
        "frac_coords": [(c.frac_coords - 0.25).ravel().tolist() for c in crystals],
        "lattice": [c.lattice.ravel().tolist() for c in crystals],
        "spacegroup": [221.0, None, 999.0][:count],
        "formation_energy_per_atom": [-1.0, float("nan"), -2.0][:count],
        "e_above_hull": [0.0, None, 0.2][:count],
        "band_gap": [0.0] * count,
        "split": ["train", "", "test"][:count],
    }


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def csv_of(path: Path, count: int) -> Path:
    """A CSV as CDVAE and DiffCSP distribute."""
    crystals = [binary(i) for i in range(count)]
    rows = [
        {
            "": i,
            "material_id": f"mp-{i}",
            "formation_energy_per_atom": -1.5,
            "e_above_hull": 0.02,
            "spacegroup.number": 221,
            "cif": str(CifWriter(to_structure(c))),
        }
        for i, c in enumerate(crystals)
    ]
    return write_csv(path, rows)


def campaign(path: Path | str, **data: Any) -> Campaign:
    return Campaign(name="files", data=Data(source="file", path=str(path), **data))


def test_public_layout(tmp_path: Path) -> None:
    pq.write_table(pa.table(public_layout()), tmp_path / "set.parquet")
    imported = read_crystals(tmp_path / "set.parquet", energy_method="PBE")
    table = imported.table
    assert table.schema.equals(CRYSTAL_SCHEMA)
    assert table["id"].to_pylist() == ["mp-0", "mp-1", "mp-2"]
    assert table["source"].to_pylist() == ["set"] * 3
    assert table["formula"].to_pylist() == ["LiO", "NaO", "KO"]
    assert table["frac_coords"][0].as_py() == [0.75] * 3 + [0.25] * 3
    assert table["spacegroup"].to_pylist() == [221, None, None]
    assert table["formation_energy"].to_pylist() == [-1.0, None, -2.0]
    assert table["e_above_hull"].to_pylist() == [0.0, None, 0.2]
    assert table["energy_method"].to_pylist() == ["PBE", None, "PBE"]
    assert table["split"].to_pylist() == ["train", None, "test"]


def test_our_own_layout_keeps_precursors(tmp_path: Path) -> None:
    crystals = [binary(0), binary(1, precursor_of="t-0", energy_method=None)]
    imported = read_crystals(raw_file(tmp_path / "ours.parquet", crystals), energy_method="r2SCAN")
    expected = to_table([binary(0), binary(1, precursor_of="t-0", energy_method="r2SCAN")])
    assert imported.table.select(expected.column_names).to_pylist() == expected.to_pylist()


@pytest.mark.parametrize("kind", ["large", "nested", "fixed", "floats", "no ids"])
def test_other_arrow_types(tmp_path: Path, kind: str) -> None:
    values = public_layout()
    table = pa.table(values)
    if kind == "large":
        for name in ("atomic_numbers", "frac_coords", "lattice"):
            table = table.set_column(
                table.column_names.index(name), name, table[name].cast(pa.large_list(table[name].type.value_type))
            )
    elif kind == "nested":
        for name, width in (("frac_coords", 3), ("lattice", 3)):
            rows = [np.reshape(row, (-1, width)).tolist() for row in values[name]]
            table = table.set_column(table.column_names.index(name), name, pa.array(rows))
    elif kind == "fixed":
        rows = pa.array(values["lattice"], pa.list_(pa.float32(), 9))
        table = table.set_column(table.column_names.index("lattice"), "lattice", rows)
    elif kind == "floats":
        rows = pa.array([[float(z) for z in row] for row in values["atomic_numbers"]])
        table = table.set_column(table.column_names.index("atomic_numbers"), "atomic_numbers", rows)
    else:
        table = table.drop_columns(["material_id"])
    pq.write_table(table, tmp_path / "set.parquet")
    result = read_crystals(tmp_path / "set.parquet").table
    assert result["atomic_numbers"].to_pylist() == values["atomic_numbers"]
    assert result["frac_coords"][1].as_py() == [0.75] * 3 + [0.25] * 3
    np.testing.assert_allclose(result["lattice"].to_pylist(), values["lattice"], rtol=1e-6)
    assert result["id"].to_pylist() == (["row:0", "row:1", "row:2"] if kind == "no ids" else values["material_id"])


def test_csv_with_cifs(tmp_path: Path) -> None:
    imported = read_crystals(csv_of(tmp_path / "mp.csv", 6), energy_method="PBE")
    assert not imported.rejected
    table, expected = imported.table, to_table([binary(i) for i in range(6)])
    assert table["id"].to_pylist() == [f"mp-{i}" for i in range(6)]
    assert table["atomic_numbers"].to_pylist() == expected["atomic_numbers"].to_pylist()
    np.testing.assert_allclose(table["frac_coords"].to_pylist(), expected["frac_coords"].to_pylist(), atol=1e-6)
    np.testing.assert_allclose(
        cell_parameters(flatten(table).lattice), cell_parameters(flatten(expected).lattice), atol=1e-6
    )
    assert table["formation_energy"].to_pylist() == [-1.5] * 6
    assert table["spacegroup"].to_pylist() == [221] * 6
    assert table["energy_method"].to_pylist() == ["PBE"] * 6


def test_csv_in_several_processes_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = csv_of(tmp_path / "mp.csv", 12)
    alone = read_crystals(path).table
    monkeypatch.setattr("dao_pipeline.sources.files._IN_PROCESS", 1)
    assert read_crystals(path, processes=2).table.equals(alone)


def test_real_csv_equals_real_parquet(tmp_path: Path) -> None:
    table = read_crystals(shared_data("mp20/train_part.parquet")).table.slice(0, 60)
    rows = [{"material_id": c.id, "cif": str(CifWriter(to_structure(c)))} for c in from_table(table)]
    again = read_crystals(write_csv(tmp_path / "mp.csv", rows)).table
    assert again["id"].to_pylist() == table["id"].to_pylist()
    assert again["formula"].to_pylist() == table["formula"].to_pylist()
    np.testing.assert_allclose(volumes(flatten(again).lattice), volumes(flatten(table).lattice), rtol=1e-6)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_limit_counts_usable_crystals(tmp_path: Path, kind: str) -> None:
    if kind == "csv":
        path = csv_of(tmp_path / "set.csv", 8)
        path.write_text(path.read_text().replace("data_LiO", "broken\n").replace("_atom_site_label", "_x", 1))
    else:
        values = public_layout(3)
        values["atomic_numbers"][0] = [0, 8]
        path = tmp_path / "set.parquet"
        pq.write_table(pa.table(values), path)
    imported = read_crystals(path, limit=2)
    assert imported.table["id"].to_pylist() == ["mp-1", "mp-2"]
    assert [row["id"] for row in imported.rejected] == ["mp-0"]


def test_download_writes_table_rejected_and_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    values = public_layout()
    values["atomic_numbers"][1] = [8]
    pq.write_table(pa.table(values), tmp_path / "set.parquet")
    monkeypatch.setenv("CRYSTALS", str(tmp_path))
    download(campaign("$CRYSTALS/set.parquet"), tmp_path / "out" / "raw.parquet")
    assert read_table(tmp_path / "out" / "raw.parquet").num_rows == 2
    rejected = read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert rejected == [
        {"id": "mp-1", "stage": "download", "reason": "length_mismatch", "detail": "6 coordinates for 1 atoms"}
    ]
    about = read_about(tmp_path / "out" / "raw.parquet")
    assert about["settings"]["data"]["path"] == "$CRYSTALS/set.parquet"
    assert about["inputs"]["file"]["path"] == str(tmp_path / "set.parquet")
    assert (about["examined"], about["rejected"]) == (3, {"length_mismatch": 1})
    assert "2 energies have no known level of theory" in caplog.text
    json.dumps(about)


def test_unset_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRYSTALS", raising=False)
    with pytest.raises(UserError, match="CRYSTALS is not set"):
        download(campaign("$CRYSTALS/set.parquet"), tmp_path / "raw.parquet")


def test_embedded_crystals(tmp_path: Path) -> None:
    if not EMBEDDED_PATH.exists():
        pytest.skip("the embedded table is not built")
    download(Campaign(name="e"), tmp_path / "raw.parquet")
    table, embedded = read_table(tmp_path / "raw.parquet"), read_table(EMBEDDED_PATH)
    assert table["id"].equals(embedded["id"])
    assert table["energy_method"].equals(embedded["energy_method"])
    assert pc.all(pc.equal(table["formula"], embedded["formula"])).as_py()
    assert "precursor_of" in table.column_names
    np.testing.assert_array_equal(flatten(table).lattice, flatten(embedded).lattice)


# --- other kinds of files ------------------------------------------------------------------------------


def same_crystals(found: pa.Table, count: int, first: int = 0) -> None:
    """``found`` are binary crystals, up to the orientation of their (cubic) cells."""
    expected = to_table([binary(first + i) for i in range(count)])
    assert found["atomic_numbers"].to_pylist() == expected["atomic_numbers"].to_pylist()
    np.testing.assert_allclose(flatten(found).frac, flatten(expected).frac, atol=1e-6)
    np.testing.assert_allclose(
        cell_parameters(flatten(found).lattice), cell_parameters(flatten(expected).lattice), atol=1e-6
    )


def cif(index: int) -> str:
    return str(CifWriter(to_structure(binary(index))))


def test_folder_of_cifs(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for i in range(4):
        (folder / f"part{i // 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"part{i // 2}" / f"c{i}.cif").write_text(cif(i))
    (folder / "part1" / "c4.cif.gz").write_bytes(gzip.compress(cif(4).encode()))
    (folder / "part1" / "bad.cif").write_text("prose")
    (folder / ".hidden.cif").write_text(cif(9))
    (folder / "notes.md").write_text("not read")
    imported = read_crystals(folder)
    assert imported.table["id"].to_pylist() == ["part0/c0", "part0/c1", "part1/c2", "part1/c3", "part1/c4"]
    assert set(imported.table["source"].to_pylist()) == {"mine"}
    same_crystals(imported.table, 5)
    (row,) = imported.rejected
    assert (row["id"], row["reason"]) == ("part1/bad", "bad_cif")
    assert "(part1/bad.cif)" in row["detail"]


def test_zip_of_cifs_and_what_it_may_hide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(2):
            archive.writestr(f"cifs/c{i}.cif", cif(i))
        archive.writestr("../../escape.cif", cif(2))
        archive.writestr("/etc/absolute.CIF", cif(3))
        archive.writestr("bomb.cif", b"\0" * 300_000_000)
        archive.writestr("damaged.cif", cif(5))
        archive.writestr("readme.txt", "not read")
    data = bytearray(path.read_bytes())
    start = data.index(b"damaged.cif") + len("damaged.cif")
    data[start + 20 : start + 40] = bytes(20)
    path.write_bytes(data)
    before = set(tmp_path.parent.rglob("*"))
    tracemalloc.start()
    imported = read_crystals(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert imported.table["id"].to_pylist() == ["cifs/c0", "cifs/c1", "escape", "etc/absolute"]
    same_crystals(imported.table, 4)
    assert {row["id"]: row["reason"] for row in imported.rejected} == {"bomb": "bad_cif", "damaged": "unreadable"}
    assert set(tmp_path.parent.rglob("*")) == before, "nothing is unpacked"
    assert peak < 50_000_000


def test_extended_xyz(tmp_path: Path) -> None:
    from ase import Atoms
    from ase.io import write

    frames = []
    for i in range(3):
        c = binary(i)
        atoms = Atoms(c.atomic_numbers, scaled_positions=c.frac_coords, cell=c.lattice, pbc=True)
        atoms.info |= {"name": f"x{i}", "ef_per_atom": -1.5 - i, "e_above_hull": 0.1, "year": 1999}
        frames.append(atoms)
    frames.insert(1, Atoms("H2", [[0, 0, 0], [0, 0, 0.7]], info={"name": "molecule"}))
    for name in ("set.extxyz", "set.xyz.gz"):
        write(tmp_path / name, frames, format="extxyz")
        campaign_of = campaign(tmp_path / name, columns={"id": "name", "formation_energy": "ef_per_atom"})
        download(campaign_of, tmp_path / "raw.parquet")
        table = read_table(tmp_path / "raw.parquet")
        assert table["id"].to_pylist() == ["x0", "x1", "x2"]
        assert table["formation_energy"].to_pylist() == [-1.5, -2.5, -3.5]
        assert table["published"].to_pylist() == ["1999"] * 3
        same_crystals(table, 3)
        (row,) = read_table(tmp_path / "rejected.parquet").to_pylist()
        assert row["reason"] == "no_cell"
        assert f"({name}, frame 1)" in row["detail"]


def test_broken_extended_xyz(tmp_path: Path) -> None:
    good = '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nNa 0 0 0\n'
    bad = [
        ("too_large", "99999\nx\n" + "Na 0 0 0\n" * 99999),
        ("bad_xyz", good.replace("Na 0 0 0", "Na 0 zero 0")),
        ("unknown_element", good.replace("Na 0", "X 0")),
        ("truncated", "3\nLattice\nNa 0 0 0\n"),
    ]
    path = tmp_path / "set.xyz"
    path.write_text(good + "".join(text for _, text in bad))
    imported = read_crystals(path)
    assert imported.table["id"].to_pylist() == ["row:0"]
    assert [(row["id"], row["reason"]) for row in imported.rejected] == [
        (f"row:{i + 1}", reason) for i, (reason, _) in enumerate(bad)
    ]
    path.write_text(good + "what is this\n")
    with pytest.raises(UserError, match=r"frame 1 begins with 'what is this'"):
        read_crystals(path)


def entry(index: int) -> dict[str, Any]:
    """A ComputedStructureEntry as pymatgen writes it."""
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    facts = {"e_above_hull": 0.1 * index, "formation_energy_per_atom": -1.0}
    made = ComputedStructureEntry(to_structure(binary(index)), -5.0, data=facts, entry_id=f"e-{index}")
    return json.loads(json.dumps(made.as_dict(), default=str))  # type: ignore[no-any-return]


JSON_FILES: dict[str, tuple[str, list[str]]] = {
    "one.json": ("structure", ["row:0"]),
    "list.json": ("structures", ["row:0", "row:1", "row:2"]),
    "entries.json": ("entries", ["e-0", "e-1", "e-2"]),
    "wrapped.json.gz": ("wrapped", ["e-0", "e-1", "e-2"]),
    "lines.jsonl": ("lines", ["m-0", "m-1", "m-2"]),
    "mapping.json": ("mapping", ["a0", "a1", "a2"]),
    "frame.json": ("frame", ["mb-0", "mb-1", "mb-2"]),
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_pymatgen_json(tmp_path: Path, name: str) -> None:
    kind, ids = JSON_FILES[name]
    structures = [to_structure(binary(i)).as_dict() for i in range(3)]
    rows = [{"material_id": f"m-{i}", "structure": s, "e_above_hull": 0.1 * i} for i, s in enumerate(structures)]
    values: dict[str, Any] = {
        "structure": structures[0],
        "structures": structures,
        "entries": [entry(i) for i in range(3)],
        "wrapped": {"entries": [entry(i) for i in range(3)]},
        "mapping": {f"a{i}": s for i, s in enumerate(structures)},
        "frame": {
            "index": [f"mb-{i}" for i in range(3)],
            "columns": ["structure", "e_above_hull"],
            "data": [[s, 0.1 * i] for i, s in enumerate(structures)],
        },
    }
    text = "\n".join(map(json.dumps, rows)) if kind == "lines" else json.dumps(values[kind], indent=1)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    imported = read_crystals(path)
    assert not imported.rejected
    assert imported.table["id"].to_pylist() == ids
    same_crystals(imported.table, len(ids))
    if kind not in ("structure", "structures", "mapping"):
        np.testing.assert_allclose(imported.table["e_above_hull"].to_pylist(), [0, 0.1, 0.2])


def test_json_that_is_no_crystal(tmp_path: Path) -> None:
    disordered = Structure(Lattice.cubic(3), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]).as_dict()
    oxidised = Structure(Lattice.cubic(3), ["Na+", "Cl-"], [[0, 0, 0], [0.5] * 3]).as_dict()
    dummy = Structure(Lattice.cubic(3), ["X"], [[0, 0, 0]]).as_dict()
    evil = {"@module": "tests.sources.evil", "@class": "Evil", "lattice": {"@module": "os", "@class": "abort"}}
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    items = [
        oxidised,
        disordered,
        dummy,
        evil,
        17,
        None,
        {"lattice": deep},
        {"lattice": {"matrix": [[1]]}, "sites": []},
        {**oxidised, "sites": [{"abc": [10**400, 0, 0], "species": [{"element": "Na"}]}]},
        {**oxidised, "sites": [{"abc": [0, 0, 0], "species": [{"element": "Na", "occu": 10**400}]}]},
        {**oxidised, "sites": [{"abc": [0, 0, 0], "species": [{"element": "Na", "occu": float("nan")}]}]},
        {**oxidised, "sites": [{"abc": [i / 4e4, 0, 0], "species": [{"element": "Na"}]} for i in range(40_000)]},
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps(items))
    imported = read_crystals(path)
    assert imported.table["formula"].to_pylist() == ["NaCl"]
    reasons = {int(row["id"][4:]): row["reason"] for row in imported.rejected}
    expected = ["disordered", "unknown_element", *["bad_structure"] * 7, "disordered", "too_large"]
    assert [reasons[i] for i in range(1, 12)] == expected
    short = {"columns": ["structure"], "index": [0], "data": [[oxidised], [oxidised]]}
    damaged = [json.dumps(items)[:-5], "{", "[1, 2", '[{"a": }]', json.dumps([oxidised]) * 2]
    damaged += [json.dumps(short), json.dumps(short | {"data": [1]}), json.dumps(short | {"data": [[]]})]
    for damage in damaged:
        path.write_text(damage)
        with pytest.raises(UserError, match=r"not valid JSON"):
            read_crystals(path)


def test_ids_in_json(tmp_path: Path) -> None:
    """An item's own id comes before the number of its row; any text is an id, if UTF-8 can hold it."""
    made = to_structure(binary(0)).as_dict()
    path = tmp_path / "set.json"
    table = {"columns": ["structure", "material_id"], "index": [0, 1], "data": [[made, "mp-1"], [made, None]]}
    path.write_text(json.dumps(table))
    assert read_crystals(path).table["id"].to_pylist() == ["mp-1", "1"]
    odd = ["a/../b\n`; rm -rf ~`", "\ud800", "é|<b>"]
    path.write_text(json.dumps([{"material_id": one, "structure": made} for one in odd]))
    assert read_crystals(path).table["id"].to_pylist() == [odd[0], "?", odd[2]]


def test_a_long_json_list_is_read_item_by_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dao_pipeline.sources import records

    text = json.dumps([entry(i % 100) for i in range(40)], indent=2)
    path = tmp_path / "set.json"
    path.write_text(text)
    for piece in (1, 7, 4096):
        monkeypatch.setattr(records, "_PIECE", piece)
        assert len(list(records.read_records(path, "set.json", {}))) == 40


def test_folder_of_many_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "a.cif").write_text(cif(0))
    csv_of(folder / "b.csv", 1)
    (folder / "c.json").write_text(json.dumps(to_structure(binary(0)).as_dict()))
    raw_file(folder / "d.parquet", [binary(0)])
    (folder / "e.cif").write_text(cif(0))
    raw_file(folder / "rejected.parquet", [binary(5)])
    imported = read_crystals(folder)
    assert imported.table["id"].to_pylist() == ["a", "mp-0", "c.json:row:0", "t-0", "e"]
    assert imported.table["source"].to_pylist() == ["all", "b", "c", "test", "all"]
    for row in range(5):
        same_crystals(imported.table.slice(row, 1), 1)


def test_the_users_own_names_of_columns(tmp_path: Path) -> None:
    rows = [{"name": "a", "ehull": 0.3, "e_above_hull": 9.0, "first": "2011-02", "cif": cif(0)}]
    columns = {"id": "name", "e_above_hull": "ehull", "published": "first"}
    download(campaign(write_csv(tmp_path / "a.csv", rows), columns=columns), tmp_path / "raw.parquet")
    (row,) = read_table(tmp_path / "raw.parquet").to_pylist()
    assert (row["id"], row["e_above_hull"], row["published"]) == ("a", 0.3, "2011-02")
    values = public_layout()
    values["when"] = [1999, 2001, None]
    pq.write_table(pa.table(values), tmp_path / "set.parquet")
    download(campaign(tmp_path / "set.parquet", columns={"published": "when"}), tmp_path / "raw.parquet")
    assert read_table(tmp_path / "raw.parquet")["published"].to_pylist() == ["1999", "2001", None]


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "set.docx").touch()
    with pytest.raises(UserError, match=r"unknown kind of file; known are .parquet, .csv"):
        read_crystals(tmp_path / "set.docx")


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_member_of_a_zip_is_rejected_alone(tmp_path: Path, kind: int) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("damaged.cif", cif(0))
        archive.writestr("good.cif", cif(1))
    data = bytearray(path.read_bytes())
    data[50:70] = b"\xff" * 20
    path.write_bytes(data)
    imported = read_crystals(path)
    assert imported.table["id"].to_pylist() == ["good"]
    assert [row["reason"] for row in imported.rejected] == ["unreadable"]


@pytest.mark.parametrize("name", ["a.zip", "a.csv.gz", "a.json.gz", "a.xyz.gz"])
def test_damaged_archives(tmp_path: Path, name: str) -> None:
    text = gzip.compress(b"[1, 2]" * 1000)
    (tmp_path / name).write_bytes(b"PK\3\4 no zip" if name == "a.zip" else text[:-12])
    with pytest.raises(UserError, match=r"cannot be read|no column cif|not valid JSON|instead of its number"):
        read_crystals(tmp_path / name)


# --- many crystals -------------------------------------------------------------------------------------


def test_a_cif_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(text: str) -> Any:
        while "# endless" in text:
            try:
                sum(range(1000))
            except Exception:
                continue
        return parse_cif(text)

    monkeypatch.setattr("dao_pipeline.sources.parse.parse_cif", endless)
    rows = [{"material_id": f"m{i}", "cif": cif(i) + ("# endless" if i == 1 else "")} for i in range(3)]
    data = campaign(write_csv(tmp_path / "a.csv", rows), seconds_per_crystal=0.2)
    download(data, tmp_path / "raw.parquet")
    assert read_table(tmp_path / "raw.parquet")["id"].to_pylist() == ["m0", "m2"]
    (row,) = read_table(tmp_path / "rejected.parquet").to_pylist()
    assert (row["id"], row["reason"]) == ("m1", "timed_out")


def test_an_interrupted_import_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dao_pipeline.sources import files

    monkeypatch.setattr(files, "_GROUP", 4)
    monkeypatch.setattr(files, "_BATCH", 2)
    monkeypatch.setattr(files, "_IN_PROCESS", 1)
    data = campaign(csv_of(tmp_path / "mp.csv", 10))
    parsed: list[str] = []
    parse = files.parse_batch

    def stopped(batch: Any) -> Any:
        parsed.extend(record.id for record in batch.records)
        if parsed == [f"mp-{i}" for i in range(6)]:
            os.kill(os.getpid(), signal.SIGTERM)
        return parse(batch)

    monkeypatch.setattr(files, "parse_batch", stopped)
    campaign_of = data.model_copy(
        update={"compute": data.compute.model_copy(update={"cpu": Resources(threads=1)})}
    )
    with pytest.raises(ContinueLater):
        download(campaign_of, tmp_path / "raw.parquet", tmp_path / "work")
    assert not (tmp_path / "raw.parquet").exists()
    parsed.clear()
    download(campaign_of, tmp_path / "raw.parquet", tmp_path / "work")
    assert parsed == [f"mp-{i}" for i in range(4, 10)], "the first group is there"
    same_crystals(read_table(tmp_path / "raw.parquet"), 10)
    assert not list((tmp_path / "work").rglob("*.parquet")), "kept pieces go when all is done"


def test_a_worker_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    monkeypatch.setattr("dao_pipeline.sources.files._IN_PROCESS", 1)
    monkeypatch.setattr("dao_pipeline.sources.files.available_cpus", lambda: 2)

    def dead(*_: Any) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(ProcessPoolExecutor, "submit", dead)
    with pytest.raises(UserError, match=r"most likely of too little memory"):
        read_crystals(csv_of(tmp_path / "mp.csv", 2), processes=2)


def test_row_groups_are_bounded_and_independent_of_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dao_pipeline.crystals.table.ROW_GROUP", 4)
    pq.write_table(pa.table(public_layout()), tmp_path / "three.parquet")
    shards = tmp_path / "shards"
    shards.mkdir()
    for i in range(7):
        pq.write_table(pa.table(public_layout()), shards / f"{i}.parquet")
    download(campaign(shards), tmp_path / "raw.parquet")
    stored = pq.ParquetFile(tmp_path / "raw.parquet").metadata
    sizes = [stored.row_group(i).num_rows for i in range(stored.num_row_groups)]
    assert sizes == [4, 4, 4, 4, 4, 1]
    assert read_about(tmp_path / "raw.parquet")["rows"] == 21
    assert read_table(tmp_path / "raw.parquet").num_rows == 21
