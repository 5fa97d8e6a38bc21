"""The candidates of a shard against its plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from dao_pipeline.candidates.compositions import requested
from dao_pipeline.candidates.gather import gather_shard, read_plan
from dao_pipeline.candidates.plan import plan_table, shard_file, shard_files
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.errors import UserError
from tests.candidates.test_screen import shards


@pytest.fixture
def plan() -> pa.Table:
    """One shard of two rounds."""
    return plan_table([requested("NaCl", 1), requested("ZnS", 1)], 4, 2, 3)


@pytest.fixture
def generated(tmp_path: Path, plan: pa.Table) -> Path:
    shards(plan, tmp_path)
    return tmp_path / "generated"


def gathered(plan: pa.Table, generated: Path) -> pa.Table:
    return gather_shard(plan, shard_files(generated, 0))


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    write_table(change(read_table(file)), file, {})


def test_rounds_are_put_into_the_order_of_the_plan(plan: pa.Table, generated: Path) -> None:
    planned = read_plan(shard_files(generated.parent / "planned", 0))
    assert planned.equals(plan)
    for file in shard_files(generated, 0):
        rewrite(file, lambda t: t.take(list(range(t.num_rows))[::-1]))
    assert gathered(plan, generated)["id"].equals(plan["id"])


def test_missing_candidates_are_refused(plan: pa.Table, generated: Path) -> None:
    (generated / shard_file(0, 1)).unlink()
    with pytest.raises(UserError, match=r"2 of 8 candidates are missing, e.g. cand:0:3.*shard-00000-001\.parquet"):
        gathered(plan, generated)


def test_repeated_candidates_are_refused(plan: pa.Table, generated: Path) -> None:
    first = generated / shard_file(0, 0)
    write_table(read_table(first), generated / shard_file(0, 9), {})
    with pytest.raises(UserError, match=r"shard-00000-009.parquet: cand:0:0 is also in shard-00000-000.parquet"):
        gathered(plan, generated)
    rewrite(first, lambda t: pa.concat_tables([t, t]))
    with pytest.raises(UserError, match="twice in this file"):
        gathered(plan, generated)


def test_foreign_candidates_are_refused(plan: pa.Table, generated: Path) -> None:
    with pytest.raises(UserError, match=r"shard-00000-000.parquet: cand:1:2 is not in the plan. Delete"):
        gathered(plan.slice(0, 6), generated)


def test_candidates_of_another_plan_are_refused(generated: Path) -> None:
    other = plan_table([requested("NaCl", 1), requested("MgO", 1)], 4, 2, 3)
    with pytest.raises(UserError, match=r"cand:1:0 was generated for another plan \(ZnS; this one says MgO"):
        gathered(other, generated)


def test_no_shards_and_damaged_shards_are_refused(plan: pa.Table, generated: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no files of shard 0"):
        shard_files(tmp_path / "empty", 0)
    first = generated / shard_file(0, 0)
    rewrite(first, lambda t: t.drop_columns(["status"]))
    with pytest.raises(UserError, match="status are missing"):
        gathered(plan, generated)
    first.write_bytes(b"PAR1 half a file")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        gathered(plan, generated)


def test_an_empty_round_is_welcome(plan: pa.Table, generated: Path) -> None:
    write_table(read_table(generated / shard_file(0, 0)).slice(0, 0), generated / shard_file(0, 7), {})
    assert gathered(plan, generated).num_rows == 8
    nothing = gather_shard(plan.slice(0, 0), [generated / shard_file(0, 7)])
    assert nothing.num_rows == 0
