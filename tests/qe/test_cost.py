import math
from pathlib import Path

import pytest

from dao_pipeline.config import QE
from dao_pipeline.errors import UserError
from dao_pipeline.qe.cost import (
    ITERATIONS,
    expected_core_hours,
    expected_core_seconds,
    expected_of,
    expected_of_composition,
)
from dao_pipeline.qe.pseudopotentials import find_pseudopotentials
from tests.qe.make import silicon

# atoms, electrons, volume, k-points computed, ecutwfc, iterations, core seconds: single points of pw.x 6.7
MEASURED = {
    "Si2": (2, 8, 40.9, 36, 40, 7, 6.46),
    "C2": (2, 8, 11.4, 112, 33, 14, 8.56),
    "SiC": (2, 8, 21.0, 63, 40, 11, 7.95),
    "Cu": (1, 11, 12.0, 16, 43, 12, 4.17),
    "Si8": (8, 32, 163.7, 8, 40, 8, 18.58),
    "B4N4": (8, 32, 47.8, 8, 40, 9, 8.0),
}


def cost(atoms=2, electrons=8, volume=40.0, kpoints=64, ecutwfc=40, spin=False, calculation="single_point"):
    return expected_core_seconds(
        atoms=atoms,
        electrons=electrons,
        volume=volume,
        kpoints=kpoints,
        ecutwfc=ecutwfc,
        spin=spin,
        calculation=calculation,
    )


@pytest.mark.parametrize("name", MEASURED)
def test_what_was_measured_comes_back(name, monkeypatch):
    atoms, electrons, volume, points, ecutwfc, iterations, seconds = MEASURED[name]
    monkeypatch.setitem(ITERATIONS, "single_point", iterations)
    expected = cost(atoms, electrons, volume, 2 * points, ecutwfc)
    assert 1 / 2 < expected / seconds < 2


def test_what_makes_a_calculation_dearer():
    base = cost()
    for more in ({"electrons": 16}, {"volume": 80.0}, {"kpoints": 128}, {"ecutwfc": 60}, {"atoms": 4}):
        assert cost(**more) > base
    assert cost(spin=True) == pytest.approx(2 * base, rel=0.1)
    assert cost(calculation="vc-relax") > cost(calculation="relax") > 5 * base


def test_the_stage_before_there_are_candidates(tmp_pseudos):
    cells = [{"Si": 2}, {"Si": 8}]
    one = expected_core_hours(QE(pseudo_dir=tmp_pseudos), cells)
    assert one > 0
    assert expected_core_hours(QE(pseudo_dir=tmp_pseudos, top_k=3), cells) == pytest.approx(3 * one)
    assert expected_core_hours(QE(pseudo_dir=tmp_pseudos, candidates=["a"]), cells) == pytest.approx(one / 2)
    assert expected_core_hours(QE(pseudo_dir=tmp_pseudos, budget_core_hours=1e-9), cells) == 1e-9
    with pytest.raises(UserError, match="no PBE pseudopotential for O"):
        expected_core_hours(QE(pseudo_dir=tmp_pseudos), [{"Si": 1, "O": 2}])


def test_a_cell_may_be_guessed_from_its_atoms(tmp_pseudos):
    pseudos = find_pseudopotentials(Path(tmp_pseudos), ["Si"])
    known = expected_of(silicon(), QE(), pseudos)
    guessed = expected_of_composition({"Si": 2}, QE(), pseudos)
    assert 1 / 3 < guessed / known < 3
    assert math.isfinite(expected_of_composition({"Si": 8}, QE(protocol="stringent"), pseudos))
