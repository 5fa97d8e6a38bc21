"""Damaged input of many kinds: each damaged crystal gets its reason, the others go through.

Where nothing usable is left, there is one clear error.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pymatgen.io.cif import CifWriter

from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.convert import to_structure
from dao_pipeline.crystals.table import read_table
from dao_pipeline.errors import UserError
from dao_pipeline.preflight import check_campaigns
from dao_pipeline.sources.download import download
from tests.make import binary

GOOD = [0, 1, 2, 3, 4]
"""Numbers of the crystals that stand around the damaged one, whose id is ``bad``."""


def process(path: Path, out: Path) -> tuple[dict[str, str], set[str]]:
    """Download and clean a file: reasons of what is rejected, by id, and ids of what is left."""
    values = {
        "name": "bad",
        "data": {"source": "file", "path": str(path), "energy_method": "PBE"},
        "crysdb": {"min_atoms": 1, "val_fraction": 0, "test_fraction": 0},
    }
    campaign = parse_campaign(values, "test")
    download(campaign, out / "raw" / "raw.parquet")
    build_crysdb(campaign, out / "raw" / "raw.parquet", out / "crysdb")
    reasons: dict[str, str] = {}
    for folder, stage in (("raw", "download"), ("crysdb", "build_crysdb")):
        for row in read_table(out / folder / "rejected.parquet").to_pylist():
            assert row["stage"] == stage
            assert row["detail"], "a reason without detail helps nobody"
            reasons[row["id"]] = row["reason"]
    return reasons, set(read_table(out / "crysdb" / "train.parquet")["id"].to_pylist())


# --- CSV ---------------------------------------------------------------------------------------------


def cif(index: int) -> str:
    return str(CifWriter(to_structure(binary(index))))


def csv_row(index: int) -> dict[str, Any]:
    return {
        "material_id": f"t-{index}",
        "e_above_hull": "0.01",
        "formation_energy_per_atom": "-1",
        "cif": cif(index),
    }


def damaged_cif(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new)

    return change


LAST_SITE = "  0.50000000  0.50000000  0.50000000  1"
CIF_DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "no cif": (lambda text: "", "no_cif"),
    "blank cif": (lambda text: " \n ", "no_cif"),
    "truncated in the header": (lambda text: text[:200], "bad_cif"),
    "truncated after the first site": (lambda text: text[: text.rindex("  F ")], "formula_mismatch"),
    "binary garbage": (lambda text: "\x01\x02\ufffd" * 400, "bad_cif"),
    "huge field": (lambda text: "A" * 3_000_000, "bad_cif"),
    "prose": (lambda text: "see the supplementary information", "bad_cif"),
    "disordered site": (
        damaged_cif(LAST_SITE, "  0.5  0.5  0.5  0.5\n  Cl  Cl9  1  0.5  0.5  0.5  0.5"),
        "disordered",
    ),
    "partial occupancy": (damaged_cif(LAST_SITE, "  0.5  0.5  0.5  0.7"), "disordered"),
    "occupancy above one": (damaged_cif(LAST_SITE, "  0.5  0.5  0.5  1.8"), "bad_cif"),
    "unknown element": (damaged_cif("  F  F1", "  Xx  Xx1"), "unknown_element"),
    "no atoms": (lambda text: text[: text.index("loop_\n _atom_site_type")], "bad_cif"),
    "NaN coordinate": (damaged_cif(LAST_SITE, "  nan  0.5  0.5  1"), "bad_cif"),
    "missing coordinate": (damaged_cif(LAST_SITE, "  ?  0.5  0.5  1"), "bad_cif"),
    "word for a coordinate": (damaged_cif(LAST_SITE, "  half  0.5  0.5  1"), "bad_cif"),
    "zero volume": (damaged_cif("_cell_length_c ", "_cell_length_c   0.0 #"), "bad_cif"),
    "negative edge": (damaged_cif("_cell_length_a   ", "_cell_length_a   -"), "bad_cif"),
    "impossible angle": (damaged_cif("_cell_angle_alpha   90", "_cell_angle_alpha   190"), "bad_cif"),
    "angles that close no cell": (
        damaged_cif("_cell_angle_alpha   90", "_cell_angle_alpha   179.9999999"),
        "bad_cif",
    ),
    "endless edge": (damaged_cif("_cell_length_a   ", "_cell_length_a   1e30 #"), "volume"),
    "overlapping atoms": (damaged_cif(LAST_SITE, "  0.0  0.0  0.0  1"), "bad_cif"),
    "atoms too close": (damaged_cif(LAST_SITE, "  0.02  0.0  0.0  1"), "too_close"),
    "other formula": (damaged_cif("'Li1 F1'", "'Li2 F1'"), "formula_mismatch"),
}


@pytest.mark.parametrize("damage", CIF_DAMAGE)
def test_damaged_cif(tmp_path: Path, damage: str) -> None:
    change, reason = CIF_DAMAGE[damage]
    bad = csv_row(48) | {"material_id": "bad"}
    bad["cif"] = change(bad["cif"])
    rows = [csv_row(i) for i in GOOD]
    rows.insert(2, bad)
    with (tmp_path / "set.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(bad))
        writer.writeheader()
        writer.writerows(rows)
    reasons, left = process(tmp_path / "set.csv", tmp_path)
    assert reasons == {"bad": reason}
    assert left == {f"t-{i}" for i in GOOD}


def csv_text(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    quoted = [[str(row[name]).replace('"', '""') for name in names] for row in rows]
    return "\n".join([",".join(names), *(",".join(f'"{value}"' for value in row) for row in quoted)]) + "\n"


def several_blocks(text: str) -> bytes:
    return text.replace(cif(2), cif(2) + cif(3)).encode()


SOUND_CSV: dict[str, tuple[Callable[[str], bytes], dict[str, str]]] = {
    "byte order mark": (lambda text: b"\xef\xbb\xbf" + text.encode(), {}),
    "Latin-1 in a comment": (
        lambda text: text.replace("# generated", "# M\u00fcller, generated").encode("latin-1"),
        {},
    ),
    "Windows line ends": (lambda text: text.replace("\n", "\r\n").encode(), {}),
    "several blocks, the first counts": (several_blocks, {}),
    "short row at the end": (lambda text: text.encode() + b"lonely\n", {"lonely": "no_cif"}),
    "broken off inside the last cif": (
        lambda text: text[: text.rindex("  O  O1")].encode(),
        {"t-13": "formula_mismatch"},
    ),
    "energies that are no numbers": (
        lambda text: text.replace('"0.01"', '"n/a"', 1).encode(),
        {"t-0": "no_label"},
    ),
    "energy infinite": (lambda text: text.replace('"0.01"', '"inf"', 1).encode(), {"t-0": "no_label"}),
    "id missing": (lambda text: text.replace('"t-2"', '""').encode(), {}),
    "id twice": (lambda text: text.replace('"t-2"', '"t-1"').encode(), {"t-1": "duplicate_id"}),
}


@pytest.mark.parametrize("damage", SOUND_CSV)
def test_csv_that_is_read_all_the_same(tmp_path: Path, damage: str) -> None:
    change, expected = SOUND_CSV[damage]
    (tmp_path / "set.csv").write_bytes(change(csv_text([csv_row(i) for i in [*GOOD, 13]])))
    reasons, left = process(tmp_path / "set.csv", tmp_path)
    assert reasons == expected
    names = {"t-0", "t-1", "row:2" if damage == "id missing" else "t-2", "t-3", "t-4", "t-13"}
    if damage == "id twice":
        assert left == names - {"t-2"}
    else:
        assert left == names - set(expected)


HOPELESS_CSV: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "no column cif"),
    "header only": (b"material_id,cif\n", "no crystals in this file"),
    "no cif column": (b"material_id,formula\nmp-1,NaCl\n", r"no column cif .*found: material_id, formula"),
    "binary": (b"PK\x03\x04\x00\x00\x00\x00" * 300, "binary data"),
    "UTF-16": ("material_id,cif\nmp-1,x\n".encode("utf-16"), "binary data|no column cif"),
    "nothing usable": (b"material_id,cif\nmp-1,\nmp-2,\n", r"none of 2 crystals is usable \(2 no_cif\)"),
}


@pytest.mark.parametrize("damage", HOPELESS_CSV)
def test_csv_without_any_crystal(tmp_path: Path, damage: str) -> None:
    content, message = HOPELESS_CSV[damage]
    (tmp_path / "set.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        process(tmp_path / "set.csv", tmp_path)


# --- Parquet -----------------------------------------------------------------------------------------


def parquet_row(index: int) -> dict[str, Any]:
    crystal = binary(index)
    return {
        "material_id": f"t-{index}",
        "atomic_numbers": crystal.atomic_numbers.tolist(),
        "frac_coords": crystal.frac_coords.ravel().tolist(),
        "lattice": crystal.lattice.ravel().tolist(),
        "e_above_hull": 0.01,
        "formation_energy_per_atom": -1.0,
    }


NAN, INF = float("nan"), float("inf")
FLAT = [3.0, 0, 0, 0, 3.0, 0, 3.0, 3.0, 0]
PARQUET_DAMAGE: dict[str, tuple[dict[str, Any], str]] = {
    "NaN coordinate": ({"frac_coords": [NAN, 0, 0, 0.5, 0.5, 0.5]}, "not_finite"),
    "infinite coordinate": ({"frac_coords": [0, 0, 0, 0.5, INF, 0.5]}, "not_finite"),
    "NaN lattice": ({"lattice": [NAN] * 9}, "not_finite"),
    "infinite lattice": ({"lattice": [INF, 0, 0, 0, 3.0, 0, 0, 0, 3.0]}, "not_finite"),
    "flat lattice": ({"lattice": FLAT}, "zero_volume"),
    "zero lattice": ({"lattice": [0.0] * 9}, "zero_volume"),
    "lattice too small": ({"lattice": [1.2, 0, 0, 0, 1.2, 0, 0, 0, 1.2]}, "volume"),
    "lattice too short": ({"lattice": [3.0, 0, 0]}, "length_mismatch"),
    "coordinate missing": ({"frac_coords": [0, 0, 0, 0.5, 0.5]}, "length_mismatch"),
    "atom missing": ({"atomic_numbers": [8]}, "length_mismatch"),
    "no atoms": ({"atomic_numbers": [], "frac_coords": []}, "no_atoms"),
    "null structure": ({"atomic_numbers": None}, "missing_value"),
    "null coordinate": ({"frac_coords": [None, 0, 0, 0.5, 0.5, 0.5]}, "not_finite"),
    "null lattice": ({"lattice": None}, "missing_value"),
    "null atomic number": ({"atomic_numbers": [None, 8]}, "unknown_element"),
    "Z = 0": ({"atomic_numbers": [0, 8]}, "unknown_element"),
    "Z = 119": ({"atomic_numbers": [3, 119]}, "unknown_element"),
    "Z = 40000": ({"atomic_numbers": [3, 40_000]}, "unknown_element"),
    "Z = -1": ({"atomic_numbers": [-1, 8]}, "unknown_element"),
    "Z = 104, an element but not for the models": ({"atomic_numbers": [104, 8]}, "unknown_element"),
    "atoms on one place": ({"frac_coords": [0.5] * 6}, "too_close"),
    "atoms on one place across the border": ({"frac_coords": [0, 0, 0, 0.999999, 0, 1.0]}, "too_close"),
    "label null": ({"e_above_hull": None}, "no_label"),
    "label NaN": ({"e_above_hull": NAN}, "no_label"),
    "far above the hull": ({"e_above_hull": 7.0}, "e_above_hull"),
    "id twice": ({"material_id": "t-0"}, "duplicate_id"),
}


@pytest.mark.parametrize("damage", PARQUET_DAMAGE)
def test_damaged_parquet_row(tmp_path: Path, damage: str) -> None:
    changes, reason = PARQUET_DAMAGE[damage]
    rows = [parquet_row(i) for i in GOOD]
    rows.insert(2, parquet_row(100) | {"material_id": "bad"} | changes)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    reasons, left = process(tmp_path / "set.parquet", tmp_path)
    assert reasons == {changes.get("material_id", "bad"): reason}
    assert left == {f"t-{i}" for i in GOOD}


ACCEPTED: dict[str, dict[str, Any]] = {
    "left-handed lattice": {"lattice": (-binary(100).lattice).ravel().tolist()},
    "coordinates outside the cell": {"frac_coords": [5.0, -3.0, 0.0, 1.5, 0.5, -0.5]},
    "coordinate a hair below one": {"frac_coords": [-1e-18, 0, 0, 0.5, 0.5, 0.5]},
    "null id": {"material_id": None},
    "needle of a cell": {
        "lattice": (np.array([[1, 0, 0], [40, 1, 0], [-30, 7, 1]]) @ binary(100).lattice).ravel().tolist(),
        "frac_coords": (
            np.array([[0, 0, 0], [0.5, 0.5, 0.5]]) @ np.linalg.inv([[1, 0, 0], [40, 1, 0], [-30, 7, 1]])
        )
        .ravel()
        .tolist(),
    },
}


@pytest.mark.parametrize("oddity", ACCEPTED)
def test_odd_but_sound_parquet_row(tmp_path: Path, oddity: str) -> None:
    """A left-handed or skewed cell describes a crystal as well: it is reduced to its Niggli cell, unmirrored."""
    rows = [*(parquet_row(i) for i in GOOD), parquet_row(100) | ACCEPTED[oddity]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    reasons, left = process(tmp_path / "set.parquet", tmp_path)
    assert reasons == {}
    odd = "row:5" if oddity == "null id" else "t-100"
    assert left == {f"t-{i}" for i in GOOD} | {odd}
    row = next(r for r in read_table(tmp_path / "crysdb" / "train.parquet").to_pylist() if r["id"] == odd)
    assert all(0 <= x < 1 for x in row["frac_coords"])
    lattice = np.reshape(row["lattice"], (3, 3))
    np.testing.assert_allclose(np.linalg.det(lattice), np.linalg.det(binary(100).lattice))
    np.testing.assert_allclose(np.abs(lattice - binary(100).lattice), 0, atol=1e-9)


def whole_file(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([parquet_row(i) for i in GOOD]), path)


def truncated(path: Path) -> None:
    whole_file(path)
    path.write_bytes(path.read_bytes()[:-200])


def damaged_inside(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([parquet_row(i) for i in range(128)]), path, compression="zstd")
    content = bytearray(path.read_bytes())
    content[4:3000] = b"\xff" * 2996
    path.write_bytes(content)


def newer(path: Path) -> None:
    table = pa.Table.from_pylist([parquet_row(0)])
    note = json.dumps({"schema_version": 99, "rows": 1}).encode()
    pq.write_table(table.replace_schema_metadata({b"dao_pipeline": note}), path)


def rows_missing(path: Path) -> None:
    note = json.dumps({"schema_version": 1, "rows": 2}).encode()
    pq.write_table(pa.Table.from_pylist([parquet_row(0)]).replace_schema_metadata({b"dao_pipeline": note}), path)


def column_of(name: str, values: list[Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pq.write_table(pa.Table.from_pylist([parquet_row(0) | {name: value} for value in values]), path)

    return write


HOPELESS_PARQUET: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "not a readable Parquet file"),
    "damaged inside": (damaged_inside, "damaged Parquet file|not a readable Parquet file"),
    "no Parquet at all": (lambda path: path.write_text("id,cif\n"), "not a readable Parquet file"),
    "empty file": (lambda path: path.touch(), "not a readable Parquet file"),
    "empty table": (lambda path: pq.write_table(pa.Table.from_pylist([parquet_row(0)])[:0], path), "no crystals"),
    "newer schema": (newer, "schema version 99 is newer"),
    "fewer rows than it says": (rows_missing, "1 rows, its metadata says 2"),
    "columns missing": (
        lambda path: pq.write_table(pa.table({"id": ["a"]}), path),
        "columns atomic_numbers, frac_coords, lattice are missing",
    ),
    "symbols for numbers": (column_of("atomic_numbers", [["Li", "O"]]), r"column atomic_numbers is list<"),
    "text for a lattice": (column_of("lattice", ["cubic"]), "column lattice is string"),
    "lists for an energy": (column_of("e_above_hull", [[0.1]]), "column e_above_hull is list"),
    "lists for ids": (column_of("material_id", [["a"]]), "column material_id is list"),
    "all rows damaged": (column_of("atomic_numbers", [[0, 8], [0]]), r"none of 2 crystals is usable \(1 .*, 1 "),
    "no labels at all": (column_of("e_above_hull", [None]), "no crystal is left to train on .* 1 no_label"),
    "missing file": (lambda path: None, "no such file"),
}


@pytest.mark.parametrize("damage", HOPELESS_PARQUET)
def test_parquet_without_any_crystal(tmp_path: Path, damage: str) -> None:
    write, message = HOPELESS_PARQUET[damage]
    write(tmp_path / "set.parquet")
    with pytest.raises(UserError, match=message):
        process(tmp_path / "set.parquet", tmp_path)


# --- campaign files ----------------------------------------------------------------------------------

BAD_YAML: dict[str, tuple[str, str]] = {
    "unknown key": ("name: a\ntraning: {}\n", r"traning: unknown key; see config/default.yaml"),
    "unknown nested key": ("name: a\ngenerate: {sample: 3}\n", r"generate.sample: unknown key"),
    "wrong type": ("name: a\ngenerate: {samples: many}\n", r"generate.samples = 'many': .*integer"),
    "out of range": ("name: a\ncrysdb: {val_fraction: 0.7}\n", r"crysdb.val_fraction = 0.7: .*less than 0.5"),
    "unknown choice": ("name: a\ndata: {source: oqmd}\n", r"data.source = 'oqmd': .*'embedded', 'file'"),
    "unknown element": ("name: a\ngenerate: {compositions: [{formula: Xx2O3}]}\n", r"there is no element 'Xx'"),
    "no formula": ("name: a\ngenerate: {compositions: [{formula: 'Ca(OH)2'}]}\n", r"not a plain formula"),
    "too many atoms": (
        "name: a\ngenerate: {compositions: [{formula: SrTiO3, formula_units: 20}]}\n",
        r"SrTiO3 x 20 has 100 atoms, more than generate.max_atoms",
    ),
    "name missing": ("seed: 1\n", r"name: required, but not given"),
    "name with a slash": ("name: a/b\n", r"name = 'a/b'"),
    "not a mapping": ("- a\n- b\n", r"expected keys and values, found list"),
    "empty": ("", r"expected keys and values, found NoneType"),
    "no YAML": ("name: [a\n", r"not valid YAML"),
    "binary": ("\x00\x01", r"not valid YAML"),
    "min above max": ("name: a\ncrysdb: {min_atoms: 9, max_atoms: 3}\n", r"min_atoms \(9\) exceeds max_atoms"),
    "error in a list": (
        "name: a\ndata: {sources: [{source: file}]}\n",
        r"data.sources\[0\]: path: source is file",
    ),
    "one source and several": (
        "name: a\ndata: {path: x.csv, limit: 3, sources: [{source: embedded}]}\n",
        r"data: path, limit: sources is given, so write this into its entries",
    ),
    "no sources": ("name: a\ndata: {sources: []}\n", r"data.sources = \[\]: .*at least 1 item"),
    "name of two sources": (
        "name: a\ndata: {sources: [{name: x}, {name: x}]}\n",
        r"data: sources: x is the name of several; rename one",
    ),
    "levels of theory of a server": (
        "name: a\ndata: {source: optimade, optimade: {url: oqmd}, energy_method: {a: PBE}}\n",
        r"energy_method: source is optimade, which needs a single level of theory",
    ),
    "file without path": ("name: a\ndata: {source: file}\n", r"source is file, so name the file"),
}


@pytest.mark.parametrize("damage", BAD_YAML)
def test_bad_campaign(tmp_path: Path, damage: str) -> None:
    text, message = BAD_YAML[damage]
    path = tmp_path / "campaign.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        check_campaigns([path])
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


def test_missing_campaign(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        check_campaigns([tmp_path / "nowhere.yaml"])
