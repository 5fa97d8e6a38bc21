from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pymatgen.io.cif import CifWriter

from dao_pipeline.config import Campaign, Data
from dao_pipeline.crystals.convert import to_structure
from dao_pipeline.crystals.crystal import from_table, to_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import cell_parameters, volumes
from dao_pipeline.crystals.schema import CRYSTAL_SCHEMA
from dao_pipeline.crystals.table import read_about, read_table
from dao_pipeline.errors import UserError
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
