"""What the benchmark of relaxation calls far and strained is what was done to the crystals."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.sources import embedded

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "relaxation.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_relaxation", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def crystals() -> pa.Table:
    table = embedded.load()
    return table.filter(pa.compute.greater(table["num_atoms"], 5)).slice(0, 300)


def test_distances_and_strains_are_those_put_in(benchmark: ModuleType, crystals: pa.Table) -> None:
    for level, (length, strain) in benchmark.LEVELS.items():
        task = benchmark.perturbed(crystals, level, 0)
        counts = flatten(crystals).counts
        square = (task.distances(task.table) ** 2 * counts).sum() / (3 * (counts - 1)).sum()  # less the shift
        assert np.sqrt(square) == pytest.approx(length, rel=0.05)
        # entries of variance strain^2, half of it off the diagonal: three principal strains from 6 of them
        expected = strain * np.sqrt((3 + 6 / 2) / 3)
        assert np.sqrt((task.strains(task.table) ** 2).mean()) == pytest.approx(expected, rel=0.05)
        assert task.distances(crystals).max() < 1e-9
        assert task.strains(crystals).max() < 1e-9


def test_shifts_images_and_turns_do_not_count(benchmark: ModuleType, crystals: pa.Table) -> None:
    flat = flatten(crystals)
    random = np.random.default_rng(0)
    shifts = random.random((len(flat), 3))[flat.crystal_of_atom] + random.integers(-2, 3, flat.frac.shape)
    turn = np.linalg.qr(random.standard_normal((3, 3)))[0]
    moved = replace(flat, frac=(flat.frac + shifts) % 1.0, lattice=flat.lattice @ turn)
    assert np.quantile(benchmark.displacements(moved, flat), 0.98) < 1e-9
    assert benchmark.strains(moved.lattice, flat.lattice).max() < 1e-9


def test_precursors_are_of_compositions_that_no_model_saw(benchmark: ModuleType) -> None:
    table = embedded.load()
    seen = table.slice(0, 1500)
    task = benchmark.precursors(seen, 50, 0)
    assert task.table.num_rows == 50
    assert not set(task.table["formula"].to_pylist()) & set(seen["formula"].to_pylist())
    assert task.table["precursor_of"].to_pylist() == task.known["id"].to_pylist()


def test_intervals_hold_the_mean_and_narrow(benchmark: ModuleType) -> None:
    values = np.random.default_rng(0).normal(3, 1, 400)
    mean, low, high = benchmark.interval(np.append(values, np.nan))
    assert mean == pytest.approx(values.mean())
    assert low < mean < high
    assert high - low == pytest.approx(4 * 1.96 / np.sqrt(400) / 2, rel=0.15)


def test_one_crystal_relaxed_with_every_method(benchmark: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("chgnet")
    from dao_pipeline.crystals.table import provenance, write_table
    from dao_pipeline.model.dao import save_model
    from tests.energy.test_relax import dao_p

    save_model(dao_p(), tmp_path / "model")
    salt = Crystal(
        id="salt",
        source="test",
        atomic_numbers=np.array([11, 17]),
        frac_coords=np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]),
        lattice=2.8 * np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]]),
    )
    write_table(to_table([salt]), tmp_path / "known.parquet", provenance("test"))
    benchmark.main(
        [tmp_path / "model"],
        tmp_path / "known.parquet",
        tmp_path / "known.parquet",
        count=1,
        ceiling=1,
        ceiling_steps=12,
        levels="large",
        setting=["steps=3"],
        denoising=True,
        seed=0,
        out=tmp_path / "out.json",
    )
    import json

    rows = [row for row in json.loads((tmp_path / "out.json").read_text())["rows"] if "perturbed" in row["task"]]
    by_method = {row["method"]: row for row in rows}
    assert list(by_method) == [
        *("none", "paper (model)", "DAO-P (model)", "denoising (model)", "none, of these", "CHGNet"),
    ]
    assert by_method["CHGNet"]["energy"][0] < by_method["none"]["energy"][0]
    assert by_method["CHGNet"]["distance"][0] < by_method["none"]["distance"][0]
