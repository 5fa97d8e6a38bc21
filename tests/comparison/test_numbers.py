"""The comparison's arithmetic, on cases that can be worked out by hand."""

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from dao_pipeline.comparison import summary
from dao_pipeline.comparison.energies import Phase, formation_energy, hull_energies
from dao_pipeline.comparison.geometry import change, largest_strain
from dao_pipeline.comparison.level import Level
from dao_pipeline.comparison.order import order
from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.matching import structure_matcher

LEVEL = Level({"functional": "PBE", "ecutwfc": 40}, {"Si": "aa", "C": "bb"})


def phase(formula, total, level=LEVEL, name=None):
    return Phase(name or formula, formula, total, level)


def test_levels_differ_by_settings_and_by_shared_pseudopotentials_only():
    assert not LEVEL.differences(Level({"ecutwfc": 40, "functional": "PBE"}, {"Si": "aa", "Ge": "cc"}))
    assert LEVEL.differences(Level({"functional": "PBE", "ecutwfc": 60}, {})) == ["ecutwfc 40 and 60"]
    assert LEVEL.differences(Level({"functional": "PBE", "ecutwfc": 40, "nspin": 2}, {})) == ["nspin None and 2"]
    assert LEVEL.differences(Level(LEVEL.settings, {"C": "zz"})) == ["another pseudopotential of C"]


def test_formation_energy_takes_the_lowest_reference_of_the_same_level():
    other = Level({"functional": "PBE", "ecutwfc": 60})
    elements = {
        "Si": [phase("Si", -100.0), phase("Si", -100.5), phase("Si", -300.0, other)],
        "C": [phase("C", -150.0)],
    }
    found = formation_energy(phase("SiC", -125.6), elements)
    assert found.energy == pytest.approx(-125.6 + (100.5 + 150.0) / 2)
    assert formation_energy(phase("Si", -100.5), elements).energy == pytest.approx(0)
    uneven = formation_energy(phase("SiC3", -140.0), elements)
    assert uneven.energy == pytest.approx(-140.0 + 0.25 * 100.5 + 0.75 * 150.0)


def test_formation_energy_is_refused_with_the_reason():
    assert formation_energy(phase("SiC", -1), {"Si": [phase("Si", -1)]}).refused == "no reference energy of C"
    other = Level({"functional": "PBE", "ecutwfc": 60})
    refused = formation_energy(phase("SiC", -1), {"Si": [phase("Si", -1, other)], "C": [phase("C", -1)]})
    assert refused.energy is None
    assert refused.refused == "reference of Si is of another level: ecutwfc 40 and 60"


def test_hull_equals_pymatgens_and_is_refused_across_levels():
    elements = {"Si": [phase("Si", -10.0)], "C": [phase("C", -20.0)]}
    references = [phase("SiC", -15.5), phase("SiC3", -17.7)]
    asked = [phase("SiC", -15.3), phase("Si3C", -12.6), phase("SiC", -15.6, name="lower")]
    found = hull_energies(asked, references, elements)
    entries = [
        PDEntry(Composition(p.formula), p.total * Composition(p.formula).num_atoms)
        for p in [*elements["Si"], *elements["C"], *references, *asked]
    ]
    diagram = PhaseDiagram(entries)
    expected = [diagram.get_e_above_hull(entry) for entry in entries[-3:]]
    assert [v.energy for v in found] == pytest.approx(expected, abs=1e-9)
    assert found[2].energy == 0
    other = phase("SiC3", -17.7, Level({"functional": "PBEsol", "ecutwfc": 40}), "theirs")
    refused = hull_energies(asked[:1], [references[0], other], elements)[0]
    assert refused.energy is None
    assert refused.refused == "reference theirs is of another level: functional PBE and PBEsol"
    assert "no reference phases in the system C-Si" in hull_energies(asked[:1], [], elements)[0].refused


def test_a_hull_with_a_failed_reference_is_refused():
    elements = {"Si": [phase("Si", -10.0)], "C": [phase("C", -20.0)]}
    found = hull_energies([phase("SiC", -15.3)], [phase("Si2C", -12.0)], elements, {"mp-1": "SiC", "mp-2": "GeC"})
    assert found[0].refused == "reference mp-1 did not converge"
    again = hull_energies([phase("SiC", -15.3)], [phase("SiC", -15.5, name="mp-1")], elements, {"mp-1": "SiC"})
    assert again[0].energy == pytest.approx(0.2)  # it failed at another system's level only


def test_a_reference_at_two_levels_serves_both():
    elements = {"Si": [phase("Si", -10.0)], "C": [phase("C", -20.0)]}
    higher = Level({"functional": "PBE", "ecutwfc": 90})
    references = [phase("SiC", -15.9, higher, "mp-1"), phase("SiC", -15.5, name="mp-1")]
    assert hull_energies([phase("SiC", -15.3)], references, elements)[0].energy == pytest.approx(0.2)


def test_order_by_hand():
    found = order([0.0, 0.1, 0.3], [0.5, 0.4, 0.9])
    assert found["candidates"] == 3
    assert (found["pairs"], found["pairs_right"]) == (3, 2)
    assert not found["top1"]
    assert found["regret"] == pytest.approx(0.1)
    assert found["kendall"] == pytest.approx(1 / 3)
    assert found["spearman"] == pytest.approx(0.5)


def test_order_of_equal_crystals_is_no_test():
    found = order([0.0, 1.0], [2.0, 2.0005])
    assert (found["pairs"], found["pairs_right"], found["top1"]) == (0, 0, True)
    blind = order([1.0, 1.0, 1.0], [0.0, 1.0, 2.0])
    assert blind["pairs_right"] == 1.5
    assert blind["kendall"] is None
    assert order([1.0], [1.0]) is None


def test_order_knows_nothing_of_constants():
    rng = np.random.default_rng(0)
    model, dft = rng.normal(size=8), rng.normal(size=8)
    assert order(model, dft) == pytest.approx(order(model + 7, dft - 140))


def crystal(lattice, coords=((0, 0, 0), (0.5, 0.5, 0.5))):
    return Crystal(
        id="c", atomic_numbers=np.array([55, 17]), frac_coords=np.array(coords, float), lattice=np.array(lattice)
    )


def test_strain_is_of_the_cell_and_not_of_its_orientation():
    rng = np.random.default_rng(1)
    before = np.eye(3) * 4 + rng.normal(size=(3, 3)) * 0.3
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    assert largest_strain(before, before @ turn) == pytest.approx(0, abs=1e-12)
    assert largest_strain(before, before @ np.diag([1.0, 0.93, 1.02]) @ turn) == pytest.approx(-0.07)


def test_change_of_geometry():
    matcher = structure_matcher(Matcher())
    before = crystal(np.eye(3) * 4.1)
    shifted = crystal(np.eye(3) * 4.1 * 1.02, ((0.1, 0, 0), (0.6, 0.5, 0.5)))
    found = change(before, shifted, matcher)
    assert found["matched"]
    assert found["rmse"] == pytest.approx(0, abs=1e-6)
    assert found["volume_change"] == pytest.approx(1.02**3 - 1)
    assert found["strain"] == pytest.approx(0.02)
    assert found["displacement"] == pytest.approx(0, abs=1e-9)
    moved = change(before, crystal(np.eye(3) * 4.1, ((0, 0, 0), (0.5, 0.5, 0.6))), matcher)
    assert moved["displacement"] == pytest.approx(0.205)
    other_basis = crystal(np.array([[0, 4.1, 0], [4.1, 0, 0], [4.1, 0, 4.1]]) * 2.0)
    assert change(before, other_basis, matcher)["strain"] is None


def test_figures_have_intervals_and_their_statistics_are_those_named():
    assert summary.figure("a", "m", "", [], 100, 1, "x") is None
    one = summary.figure("a", "m", "", [3.0], 100, 1, "x")
    assert (one["value"], one["low"], one["n"]) == (3.0, None, 1)
    many = summary.figure("a", "m", "", np.arange(100.0), 500, 1, "x")
    assert many["low"] < 49.5 < many["high"]
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 * np.arange(100).std() / 10, rel=0.15)
    both = np.array([[1.0, 2.0], [5.0, 4.0], [3.0, 0.0]])
    assert summary.mean_absolute_error(both) == pytest.approx(5 / 3)
    assert summary.error_without_offset(both) == pytest.approx(np.abs(np.array([-1, 1, 3]) - 1).mean())
    assert summary.error_of_the_mean(both) == pytest.approx((0 + 2 + 2) / 3)
    assert summary.ratio_of_sums(both) == pytest.approx(9 / 6)
