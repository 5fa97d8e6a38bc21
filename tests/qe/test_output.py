import re

import numpy as np
import pytest
from ase.io import read

from dao_pipeline.qe.output import read_output
from tests.qe.make import recorded, silicon


def test_a_relaxation_is_read_as_ase_reads_it(tmp_path):
    text = recorded("vc-relax")
    (tmp_path / "espresso.pwo").write_text(text)
    reference = read(tmp_path / "espresso.pwo", index=-1, format="espresso-out")
    found = read_output(text, silicon())
    assert found.done
    assert not found.error
    assert found.energy == pytest.approx(reference.get_potential_energy(), abs=1e-5)
    assert np.allclose(found.forces, reference.get_forces(), atol=1e-5)
    # ASE counts in eV/angstrom^3
    assert np.allclose(np.array(found.stress) / 160.21766, reference.get_stress(), atol=1e-5)
    assert np.allclose(found.crystal.lattice, reference.cell.array, atol=1e-7)
    assert np.allclose(
        found.crystal.frac_coords @ found.crystal.lattice % 1, found.last.frac_coords @ found.last.lattice % 1
    )
    assert (found.steps, found.version, found.cores, found.kpoints) == (12, "6.7MaX", 1, 14)
    assert found.scf_steps == len(re.findall("iteration #", text))
    assert found.cpu_seconds == pytest.approx(5.52)
    assert found.magnetization is None


def test_an_energy_goes_with_the_geometry_that_was_computed():
    text = recorded("vc-relax")
    second = [m.end() for m in re.finditer(r"^!.*\n", text, re.M)][1]
    found = read_output(text[:second], silicon())
    assert found.steps == 2
    assert found.energy == pytest.approx(-15.68750384 * 13.60569193)
    assert found.forces is None
    third = re.search(r"CELL_PARAMETERS.*\n(.*)", text[second:])
    later = read_output(text[: second + third.end() + 2000], silicon())
    assert not np.allclose(later.last.lattice, later.crystal.lattice)
    assert np.allclose(later.crystal.lattice, found.crystal.lattice)


@pytest.mark.parametrize("name", ["vc-relax", "cell", "time", "bfgs", "scf"])
def test_an_output_may_end_anywhere(name):
    text = recorded(name)
    for end in range(0, len(text), max(1, len(text) // 150)):
        found = read_output(text[:end], silicon())
        assert (found.energy is None) == (found.crystal is None)
        assert found.forces is None or found.forces.shape == (2, 3)
    assert read_output("", silicon()).steps == 0


def test_spin_and_processes_are_read():
    text = """
     Program PWSCF v.7.2 starts
     Parallel version (MPI & OpenMP), running on       8 processor cores
     Number of MPI processes:                 4
     Threads/MPI process:                     2
!    total energy              =     -10.0 Ry
     total magnetization       =     2.21 Bohr mag/cell
     absolute magnetization    =     2.49 Bohr mag/cell
     PWSCF        :   1h 2m CPU   1h 5m WALL
"""
    found = read_output(text, silicon())
    assert (found.magnetization, found.absolute_magnetization) == (2.21, 2.49)
    assert found.cores == 8
    assert found.cpu_seconds == pytest.approx(4 * 3720)
