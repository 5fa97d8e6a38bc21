"""Known crystals by formula: sorted once, and read by row groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dao_pipeline.candidates import references as module
from dao_pipeline.candidates.references import read_references, sort_references
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.screening.entries import read_entries

SYMBOLS = [symbol for symbol in ATOMIC_NUMBERS if symbol != "O"][:60]


def oxide(number: int, symbol: str, split: str) -> Crystal:
    return Crystal(
        id=f"{split}-{number}",
        source="t",
        atomic_numbers=np.array([ATOMIC_NUMBERS[symbol], 8]),
        frac_coords=np.array([[0, 0, 0], [0.5, 0.5, 0.5]]),
        lattice=(3 + 0.001 * number) * np.eye(3),
    )


@pytest.fixture
def crysdb(tmp_path: Path) -> Path:
    """Oxides with one to ten crystals per formula, in no order."""
    rng = np.random.default_rng(0)
    for split, size in (("train", 300), ("val", 50)):
        chosen = rng.choice(len(SYMBOLS) - 1, size)  # one is never there
        table = to_table([oxide(i, SYMBOLS[k], split) for i, k in enumerate(chosen)])
        if split == "val":  # a table may do without energies
            place = table.column_names.index("formation_energy")
            table = table.set_column(place, "formation_energy", pa.array([-1.0] * size))
        else:
            table = table.drop_columns(["formation_energy"])
        write_table(table, tmp_path / f"{split}.parquet", {})
    return tmp_path


@pytest.mark.parametrize("bucket", [1, 7, 100, 10_000])
def test_references_are_those_of_both_splits_in_their_order(
    crysdb: Path, bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUCKET", bucket)
    monkeypatch.setattr(module, "GROUP", 16)
    path = crysdb / "references.parquet"
    sort_references(crysdb, path)
    both = [row for split in ("train", "val") for row in read_table(crysdb / f"{split}.parquet").to_pylist()]
    stored = read_table(path).to_pylist()
    assert [row["id"] for row in stored] == [row["id"] for row in sorted(both, key=lambda row: row["formula"])]
    wanted = {row["formula"] for row in both[::40]} | {f"{SYMBOLS[-1]}O", "AaO", "Zzz"}
    found = read_references(path, wanted)
    expected: dict[str, list[str]] = {}
    for row in both:
        if row["formula"] in wanted:
            expected.setdefault(row["formula"], []).append(row["id"])
    assert {formula: [c.id for c in crystals] for formula, crystals in found.items()} == expected
    assert {row["formation_energy"] for row in stored if row["id"].startswith("val")} == {-1.0}
    cells = {row["id"]: row["lattice"] for row in both}
    assert all(c.lattice.ravel().tolist() == cells[c.id] for crystals in found.values() for c in crystals)


def test_sources_that_differ_are_listed(tmp_path: Path) -> None:
    """Where energies come from goes from the raw table to the references; of several answers none is picked."""
    one, two = ({"database_version": version, "thermo_type": "R2SCAN"} for version in ("2026.1", "2026.2"))
    sources = [
        {"name": "old", "hash": "a", "crystals": 20, "source": "materials_project", "materials_project": one},
        {"name": "new", "hash": "b", "crystals": 20, "source": "materials_project", "materials_project": two},
        {"name": "mine", "hash": "c", "crystals": 20, "source": "file"},
    ]
    energies = {"e_above_hull": 0.0, "formation_energy": -1.0, "energy_method": "R2SCAN"}
    crystals = to_table([replace(oxide(i, symbol, "raw"), extra=energies) for i, symbol in enumerate(SYMBOLS)])
    campaign = parse_campaign({"name": "t", "crysdb": {"min_atoms": 1}}, "t")
    versions = {"old": "2026.1", "new": "2026.2"}
    types = {"old": "R2SCAN", "new": "R2SCAN"}
    for number, passport in (
        (1, {"database_version": "2026.1", "thermo_type": "R2SCAN"}),
        (2, {"database_version": versions, "thermo_type": "R2SCAN"}),
        (3, {"database_version": versions | {"mine": None}, "thermo_type": types | {"mine": None}}),
    ):
        write_table(crystals, tmp_path / "raw.parquet", {"sources": sources[:number]})
        build_crysdb(campaign, tmp_path / "raw.parquet", tmp_path)
        sort_references(tmp_path, tmp_path / "references.parquet")
        found = read_entries(tmp_path / "references.parquet", {frozenset({"Li", "O"})}).passport
        assert {name: found[name] for name in passport} == passport


def test_few_row_groups_are_read_for_few_formulas(crysdb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP", 16)
    path = crysdb / "references.parquet"
    sort_references(crysdb, path)
    formulas = read_table(path)["formula"].to_pylist()
    read = []
    group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, columns: read.append(i) or group(self, i, columns)
    )
    found = read_references(path, {formulas[0], formulas[-1]})
    assert len(found[formulas[0]]) == formulas.count(formulas[0])
    assert len(read) <= 4 < pq.read_metadata(path).num_row_groups


def test_no_crystals_are_no_references(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_table(to_table([]), tmp_path / f"{split}.parquet", {})
    sort_references(tmp_path, tmp_path / "references.parquet")
    assert read_references(tmp_path / "references.parquet", {"NaCl"}) == {}
