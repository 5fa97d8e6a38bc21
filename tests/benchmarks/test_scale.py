"""The benchmark of large campaigns: compositions are neutral, sums are checked, memory is told by time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dao_pipeline.crystals.formula import parse_formula

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import scale as bench


def test_compositions_are_neutral_small_and_different() -> None:
    elements = {"Na", "Ca", "Ti", "V", "O", "Cl", "N"}
    found = bench.neutral_formulas(elements, 60)
    assert found == bench.neutral_formulas(elements, 60)
    assert found[:10] == bench.neutral_formulas(elements, 10)  # a smaller campaign is part of it
    cells = {tuple(sorted(parse_formula(formula).items())) for formula in found}
    assert len(cells) == 60
    for formula in found:
        counts = parse_formula(formula)
        charges = [count * bench.CATIONS.get(s, -bench.ANIONS.get(s, 0)) for s, count in counts.items()]
        assert sum(charges) == 0, formula
        assert set(counts) <= elements
        assert sum(counts.values()) <= 20
    with pytest.raises(SystemExit, match="ask for more samples"):
        bench.neutral_formulas(elements, 10**6)


def test_memory_is_told_by_parts_of_a_stages_time() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        memory = bench.Memory(process)
        memory.samples = {"a": [(100.0, 5.0), (105.0, 9.0), (150.0, 7.0), (200.0, 11.0)], "b": [(0.0, 1.0)]}
        assert memory.peaks() == {"a": [9.0, 9.0, 11.0], "b": [1.0, 1.0, 1.0]}
    finally:
        process.communicate()


def test_candidates_that_are_lost_are_noticed() -> None:
    counts = {"rows": {"planned": 6}, "status": {"ok": 5, "flat_cell": 1}, "origin": {"generated": 6}}
    bench.check({"candidates": 6, "counts": counts})
    with pytest.raises(RuntimeError, match="6 candidates were asked for"):
        bench.check({"candidates": 6, "counts": counts | {"status": {"ok": 5}}})
