"""Batches by size, memory that runs out, and what is finished when a shard is taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from dao_pipeline.candidates.batches import BatchSize, Parts, in_batches
from dao_pipeline.candidates.compositions import requested
from dao_pipeline.candidates.made import as_candidates, set_columns, without_crystals
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.config import Generate

DEVICE = {"device": "cpu", "generator": "abc"}
SETTINGS = Generate()
CPU_ERROR = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried to allocate"


def planned(*formulas: str, samples: int = 3) -> pa.Table:
    return plan_table([requested(formula, 1) for formula in formulas], samples, 10**9)


ROWS = planned("Sr2Ti2O6", "NaCl", "Fe", "Fe2O3", "Zn5S4")


def crystals(rows: pa.Table) -> pa.Table:
    """Rows with crystals that tell composition and sample."""
    atoms, number = int(rows["num_atoms"].to_numpy().sum()), rows.num_rows
    cells = (1.0 + rows["sample"].to_numpy() + rows["num_atoms"].to_numpy())[:, None, None] * np.eye(3)
    return as_candidates(rows, np.full((atoms, 3), 0.25), cells.reshape(number, 3, 3), SETTINGS)


class Memory:
    """A device with memory for so many atoms."""

    def __init__(self, atoms: int, error: Exception | None = None) -> None:
        self.atoms, self.error = atoms, error or torch.OutOfMemoryError("injected")
        self.asked: list[int] = []

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.asked.append(int(rows["num_atoms"].to_numpy().sum()))
        if self.asked[-1] > self.atoms:
            raise self.error
        return crystals(rows)


def run(rows: pa.Table, size: BatchSize, make: Any) -> tuple[pa.Table, list[pa.Table]]:
    made = list(in_batches(rows, size, make, lambda lost: without_crystals(lost, SETTINGS, "out_of_memory")))
    return pa.concat_tables(made), made


def test_batches_are_by_size_across_compositions(tmp_path: Path) -> None:
    found, batches = run(ROWS, BatchSize(20, tmp_path, DEVICE), crystals)
    atoms = [batch["num_atoms"].to_numpy() for batch in batches]
    assert np.array_equal(np.concatenate(atoms), np.sort(ROWS["num_atoms"].to_numpy()))
    assert [int(a.sum()) for a in atoms] == [19, 14, 18, 20, 10]
    assert sorted(found["id"].to_pylist()) == sorted(ROWS["id"].to_pylist())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_ERROR)])
def test_memory_that_runs_out_halves_the_batches_for_good(tmp_path: Path, error: Exception) -> None:
    memory = Memory(12, error)
    size = BatchSize(40, tmp_path, DEVICE)
    found, batches = run(ROWS, size, memory)
    assert memory.asked[:3] == [33, 14, 7]  # halved until it fits
    assert all(batch.num_rows == 1 or batch["num_atoms"].to_numpy().sum() <= 7 for batch in batches)
    assert set(found["status"].to_pylist()) == {"ok"}
    assert sorted(found["id"].to_pylist()) == sorted(ROWS["id"].to_pylist())
    assert memory.asked[-1] == 10  # more than seven, but it fits alone
    assert size.atoms == 7


def test_the_size_is_remembered_for_the_shards_that_follow(tmp_path: Path) -> None:
    run(ROWS, BatchSize(40, tmp_path, DEVICE), Memory(12))
    memory = Memory(12)
    run(ROWS, BatchSize(40, tmp_path, DEVICE), memory)
    assert max(memory.asked) <= 12
    assert BatchSize(5, tmp_path, DEVICE).atoms == 5  # asked for less
    assert BatchSize(40, tmp_path, DEVICE | {"device": "larger"}).atoms == 40
    assert BatchSize(40, tmp_path, DEVICE | {"energy_model": "guides"}).atoms == 40
    one, other = BatchSize(40, tmp_path, DEVICE), BatchSize(40, tmp_path, DEVICE)
    one.lower(4)
    other.lower(6)  # a shard beside it has found less
    assert other.atoms == 4
    (file,) = tmp_path.glob("fits-*.json")
    for damaged in ("{", "[]", '{"batch_atoms": "many"}', '{"batch_atoms": -1}'):
        file.write_text(damaged)
        assert BatchSize(40, tmp_path, DEVICE).atoms == 40


def test_a_crystal_that_does_not_fit_alone_is_left_out(tmp_path: Path) -> None:
    found, _ = run(ROWS, BatchSize(1000, tmp_path, DEVICE), Memory(9))
    lost = [status == "out_of_memory" for status in found["status"].to_pylist()]
    assert [c for c, is_lost in zip(found["composition"].to_pylist(), lost, strict=True) if is_lost] == (
        ["Sr2Ti2O6"] * 3
    )
    assert set(found["status"].to_pylist()) == {"ok", "out_of_memory"}
    assert [value is None for value in found["lattice"].to_pylist()] == lost
    assert [value is None for value in found["frac_coords"].to_pylist()] == lost


def test_other_errors_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(ROWS, BatchSize(40, tmp_path, DEVICE), Memory(0, RuntimeError("shapes cannot be multiplied")))


def test_finished_candidates_are_known_by_composition_and_sample(tmp_path: Path) -> None:
    """Whatever batches they were made in, and whatever numbers the plan gives them now."""
    identity = {"settings": "x"}
    parts = Parts(tmp_path, identity)
    parts.add("batch", crystals(ROWS.slice(0, 4)), {})
    parts.add("template", crystals(ROWS.slice(7, 2)), {})
    again = Parts(tmp_path, identity)
    assert again.have(ROWS).nonzero()[0].tolist() == [0, 1, 2, 3, 7, 8]
    with pytest.raises(RuntimeError, match="9 of 15 candidates were not made"):
        again.of(ROWS)
    grown = planned("KCl", "Fe", "NaCl", "Sr2Ti2O6", samples=2)
    have = again.have(grown)
    assert have.tolist() == [False, False, False, True, True, False, True, True]
    rows = grown.filter(pa.array(have))
    found = again.of(rows)
    assert found["id"].to_pylist() == rows["id"].to_pylist() == ["cand:1:1", "cand:2:0", "cand:3:0", "cand:3:1"]
    assert found["lattice"].to_pylist() == crystals(rows)["lattice"].to_pylist()
    again.add("batch", crystals(grown.filter(pa.array(~have))), {})
    assert len(list(tmp_path.iterdir())) == 3
    assert Parts(tmp_path, identity).have(grown).all()


def test_work_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    Parts(tmp_path, {"settings": "x"}).add("batch", crystals(ROWS), {})
    assert not Parts(tmp_path, {"settings": "y"}).have(ROWS).any()
    assert not list(tmp_path.iterdir())


def test_every_row_has_a_status() -> None:
    """Not finite, overflowing and flat: no crystal, and the neighbours are as they were."""
    rows = planned("NaCl", samples=7)
    coords = np.arange(42.0).reshape(14, 3) / 20
    cells = 4.0 * np.tile(np.eye(3), (7, 1, 1))
    plain = as_candidates(rows, coords, cells, SETTINGS)
    coords[3, 1] = np.nan
    cells[2, 0, 0], cells[3, 0, 0], cells[4] = np.inf, np.nan, 1e200 * np.eye(3)
    cells[5, 2] = cells[5, 1]
    found = as_candidates(rows, coords, cells, SETTINGS)
    assert found["status"].to_pylist() == ["ok", *["not_finite"] * 4, "flat_cell", "ok"]
    for name in ("frac_coords", "lattice"):
        assert found[name].null_count == 5
        for i in (0, 6):
            assert found[name][i] == plain[name][i]
    assert plain["frac_coords"][6].as_py() == pytest.approx((coords[12:] % 1.0).ravel())
    assert set_columns(found, {"status": ["x"] * 7})["status"].to_pylist() == ["x"] * 7
    empty = without_crystals(rows.slice(0, 0), SETTINGS, "ok")
    assert empty.schema == found.schema
