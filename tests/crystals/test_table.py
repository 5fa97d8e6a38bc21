"""Tables written in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dao_pipeline.crystals import table as module
from dao_pipeline.crystals.crystal import reduced_formula
from dao_pipeline.crystals.flat import formulas
from dao_pipeline.crystals.table import read_about, read_table, write_table, writing
from tests.make import random_flat

TABLE = pa.table({"id": [f"c{i}" for i in range(257)], "source": ["s"] * 257})


@pytest.mark.parametrize("pieces", [1, 7, 50, 257, 300])
def test_pieces_become_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr(module, "ROW_GROUP", 50)
    with writing(tmp_path / "t.parquet", TABLE.schema, {"stage": "x"}, 257) as out:
        for start in range(0, 257, pieces):
            out.write(TABLE.slice(start, pieces))
    assert read_table(tmp_path / "t.parquet").equals(TABLE)
    assert read_about(tmp_path / "t.parquet")["rows"] == 257
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [50] * 5 + [7]


def test_pieces_or_at_once_is_the_same(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "one.parquet", {})
    with writing(tmp_path / "two.parquet", TABLE.schema, {}, 257) as out:
        for start in range(0, 257, 10):
            out.write(TABLE.slice(start, 10))
    assert read_table(tmp_path / "one.parquet").equals(read_table(tmp_path / "two.parquet"))


def test_any_cut_gives_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROW_GROUP", 50)
    for size in (3, 50, 257):
        with writing(tmp_path / f"{size}.parquet", TABLE.schema) as out:
            for start in range(0, 257, size):
                out.write(TABLE.slice(start, size))
    assert len({(tmp_path / f"{size}.parquet").read_bytes() for size in (3, 50, 257)}) == 1


def test_rows_and_description_may_be_known_only_at_the_end(tmp_path: Path) -> None:
    schema = TABLE.schema.with_metadata({"dao_pipeline": "of the file that was read"})
    with writing(tmp_path / "t.parquet", schema, {"stage": "x"}) as out:
        out.write(TABLE)
        out.write(TABLE.slice(0, 3))
        out.about["examined"] = out.rows + 1
    about = read_about(tmp_path / "t.parquet")
    assert (about["stage"], about["rows"], about["examined"]) == ("x", 260, 261)
    assert read_table(tmp_path / "t.parquet").num_rows == 260


def test_no_rows_are_a_table_too(tmp_path: Path) -> None:
    with writing(tmp_path / "t.parquet", TABLE.schema, {}, 0):
        pass
    assert read_table(tmp_path / "t.parquet").equals(TABLE.slice(0, 0))


@pytest.mark.parametrize("announced", [0, 256, 258])
def test_other_rows_than_announced_leave_no_file(tmp_path: Path, announced: int) -> None:
    with (
        pytest.raises(RuntimeError, match=f"257 rows written, {announced} announced"),
        writing(tmp_path / "t.parquet", TABLE.schema, {}, announced) as out,
    ):
        out.write(TABLE)
    assert not list(tmp_path.iterdir())


def test_a_failure_half_way_leaves_no_file(tmp_path: Path) -> None:
    def pieces() -> None:
        with writing(tmp_path / "t.parquet", TABLE.schema, {}, 257) as out:
            out.write(TABLE.slice(0, 100))
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        pieces()
    assert not list(tmp_path.iterdir())


def test_wrong_types_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int64())])
    with pytest.raises(ValueError, match="column id is int64"), writing(tmp_path / "t", schema, {}, 0):
        pass
    assert not list(tmp_path.iterdir())


def test_formulas_of_many_crystals_are_those_of_each() -> None:
    flat = random_flat(300, seed=5, skew=0.3)
    expected = [reduced_formula(flat.numbers[a:b]) for a, b in zip(flat.ptr[:-1], flat.ptr[1:], strict=True)]
    assert formulas(flat) == expected
    assert formulas(flat.select(np.zeros(len(flat), dtype=bool))) == []
    simple = flat.select(np.array([True, *[False] * (len(flat) - 1)]))
    assert formulas(simple) == expected[:1]
