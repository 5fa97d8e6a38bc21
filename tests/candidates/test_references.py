"""Known crystals by formula: sorted once, and read by row groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dao_pipeline.candidates import references as module
from dao_pipeline.candidates.references import read_references, sort_references
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.table import read_table, write_table

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
    cells = {row["id"]: row["lattice"] for row in both}
    assert all(c.lattice.ravel().tolist() == cells[c.id] for crystals in found.values() for c in crystals)


def test_few_row_groups_are_read_for_few_formulas(crysdb: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP", 16)
    path = crysdb / "references.parquet"
    sort_references(crysdb, path)
    formulas = read_table(path)["formula"].to_pylist()
    read = []
    group = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i: read.append(i) or group(self, i))
    found = read_references(path, {formulas[0], formulas[-1]})
    assert len(found[formulas[0]]) == formulas.count(formulas[0])
    assert len(read) <= 4 < pq.read_metadata(path).num_row_groups


def test_no_crystals_are_no_references(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_table(to_table([]), tmp_path / f"{split}.parquet", {})
    sort_references(tmp_path, tmp_path / "references.parquet")
    assert read_references(tmp_path / "references.parquet", {"NaCl"}) == {}
