"""Each failure is provoked in pw.x itself, where that is possible."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.qe.inputs import Steering
from dao_pipeline.qe.pseudopotentials import find_pseudopotentials
from dao_pipeline.qe.run import compute, identity, method, own_geometry
from dao_pipeline.qe.state import load_state
from tests.qe.make import PSEUDOS, needs_pw, quick, silicon


def pseudos():
    """Norm-conserving: a tenth of the time."""
    return {"Si": find_pseudopotentials(PSEUDOS, ["Si"])["Si"].__class__(**NORM_CONSERVING)}


NORM_CONSERVING = {
    "path": PSEUDOS / "Si.pbe-rrkj.UPF",
    "element": "Si",
    "functional": "SLA PW PBX PBC",
    "kind": "NC",
    "full_relativistic": False,
    "electrons": 4.0,
}


def run(folder, crystal=None, seconds=None, steering=None, **values):
    return compute(
        crystal or silicon(), quick(**values), pseudos(), folder, seconds=seconds, steering=steering or Steering()
    )


@pytest.fixture(scope="module")
def relaxed(tmp_path_factory):
    """A distorted crystal, relaxed without a disturbance."""
    if not needs_pw.args[0]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
            patch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
            return run(tmp_path_factory.mktemp("relaxed"), SLOW, calculation="vc-relax")
    return None


SLOW = silicon(edge=5.5, shift=0.02)


def same(outcome, relaxed):
    assert outcome.status == "converged", outcome.reason
    assert outcome.output.energy == pytest.approx(relaxed.output.energy, abs=2e-3)
    assert outcome.output.crystal.volume == pytest.approx(relaxed.output.crystal.volume, rel=0.01)
    return True


def during(folder, what, after="!    total energy"):
    """Do something to pw.x once its output holds a text."""

    def watch():
        for _ in range(2000):
            path = folder / "espresso.pwo"
            if path.is_file() and after in path.read_text():
                what()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def kill_pw(number):
    own = os.getpid()
    for status in Path("/proc").glob("[0-9]*/stat"):
        fields = status.read_text().rpartition(")")
        if fields[0].endswith("(pw.x") and int(fields[2].split()[1]) == own:
            os.kill(int(status.parent.name), number)


@needs_pw
def test_self_consistency_that_was_cut_short_is_given_time(tmp_path):
    undisturbed = run(tmp_path / "a")
    short = run(tmp_path / "b", steering=Steering(electron_maxstep=3))
    assert undisturbed.actions == []
    assert (short.status, len(short.outputs)) == ("converged", 2)
    assert "up to 100 iterations" in short.actions[0]
    assert short.output.energy == pytest.approx(undisturbed.output.energy, abs=1e-6)
    assert short.scf_steps == 3 + undisturbed.scf_steps
    assert not (tmp_path / "b" / "scratch").exists()


@needs_pw
def test_self_consistency_of_which_nothing_is_known_is_mixed_less(tmp_path):
    outcome = run(tmp_path, steering=Steering(electron_maxstep=2))
    assert outcome.status == "converged"
    assert "mixing_beta 0.2" in outcome.actions[0]
    assert "beta= 0.20" in outcome.outputs[1]


@needs_pw
def test_a_relaxation_that_uses_up_its_steps_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("dao_pipeline.qe.inputs.IONIC_STEPS", 3)
    outcome = run(tmp_path, silicon(shift=0.02), calculation="relax")
    assert outcome.status == "converged", outcome.reason
    assert "the steps were used up" in outcome.actions[0]
    assert np.abs(outcome.output.forces).max() < 0.03
    assert np.array_equal(outcome.output.crystal.lattice, silicon().lattice)


@needs_pw
def test_trouble_with_the_symmetry_goes_without(tmp_path):
    slightly = silicon()
    lattice = slightly.lattice.copy()
    lattice[0, 1] += 3e-7
    shell = 79.487380  # Ry: in the middle of a shell of the ideal crystal, whose members this splits
    outcome = run(tmp_path, replace(slightly, lattice=lattice), ecutrho=shell)
    assert outcome.status == "converged"
    assert "without symmetry" in outcome.actions[0]
    assert "lone vector" in outcome.outputs[0]


@needs_pw
def test_a_cell_that_shrinks_past_its_plane_waves(tmp_path):
    long = silicon(edge=6.6)
    outcome = run(tmp_path, long, steering=Steering(cell_factor=1.01), calculation="vc-relax")
    assert outcome.status == "converged"
    assert "cell_factor 1.52" in outcome.actions[0]
    assert outcome.output.crystal.volume < 0.7 * long.volume
    assert outcome.steps == sum(o.count("!    total energy") for o in outcome.outputs)


@needs_pw
def test_a_final_scf_with_pressure_is_relaxed_on(tmp_path):
    outcome = run(tmp_path, silicon(edge=5.0), calculation="vc-relax")
    assert outcome.status == "converged"
    assert "final scf" in outcome.actions[0]
    assert abs(sum(outcome.output.stress[:3])) / 3 < 0.2


@needs_pw
def test_one_crystal_has_one_energy_wherever_it_came_from(tmp_path):
    """Far from converged k-points: 3 in each direction for the one cell, 2 for the other."""
    near, far = (run(tmp_path / str(e), silicon(edge=e), calculation="vc-relax") for e in (5.40, 5.55))
    assert any("k-points instead of" in words for words in near.actions + far.actions)
    assert near.settings["kpoints"] == far.settings["kpoints"]
    assert near.output.energy == pytest.approx(far.output.energy, abs=1e-3)


@needs_pw
def test_out_of_time_goes_on_in_another_job(tmp_path, relaxed):
    with pytest.raises(ContinueLater, match="goes on from Quantum ESPRESSO's own files"):
        run(tmp_path, SLOW, seconds=1.2, calculation="vc-relax")
    outcome = run(tmp_path, SLOW, seconds=600, calculation="vc-relax")
    assert same(outcome, relaxed)
    assert "'restart'" in outcome.inputs[1]
    assert "Maximum CPU time exceeded" in outcome.outputs[0]


@needs_pw
def test_too_many_jobs_out_of_time_are_a_failed_row(tmp_path):
    for _ in range(2):
        with pytest.raises(ContinueLater):
            run(tmp_path, SLOW, seconds=1.0, calculation="vc-relax", kspacing=0.5)
    outcome = run(tmp_path, SLOW, seconds=1.0, calculation="vc-relax", kspacing=0.5)
    assert (outcome.status, outcome.reason) == ("failed", "out of time, in 3 jobs")
    assert len(outcome.outputs) == 3
    again = run(tmp_path, SLOW, seconds=600, calculation="vc-relax", kspacing=0.5)
    assert again.status == "converged"
    assert again.outputs[:3] == outcome.outputs


@needs_pw
def test_a_killed_pw_goes_on_from_its_own_files(tmp_path, relaxed):
    thread = during(tmp_path, lambda: kill_pw(signal.SIGKILL), "number of bfgs steps    =   2")
    outcome = run(tmp_path, SLOW, calculation="vc-relax")
    thread.join()
    assert outcome.actions[0] == "pw.x ended by signal 9: again from Quantum ESPRESSO's own files"
    assert same(outcome, relaxed)


@needs_pw
def test_a_stage_that_is_asked_to_stop_goes_on_even_with_a_broken_history(tmp_path, relaxed):
    thread = during(tmp_path, lambda: os.kill(os.getpid(), signal.SIGTERM), "number of bfgs steps    =   1")
    with pytest.raises(ContinueLater, match="stopped on request"):
        run(tmp_path, SLOW, calculation="vc-relax")
    thread.join()
    assert own_geometry(tmp_path / "scratch", SLOW) is not None
    (tmp_path / "scratch" / "candidate.bfgs").write_text("broken")
    outcome = run(tmp_path, SLOW, calculation="vc-relax")
    assert any("history of BFGS" in words for words in outcome.actions)
    assert same(outcome, relaxed)


@needs_pw
def test_a_stage_that_is_killed_takes_pw_with_it_and_is_gone_on_with(tmp_path, relaxed):
    code = (
        "from tests.qe.test_run import *; from pathlib import Path\n"
        f"run(Path({str(tmp_path)!r}), SLOW, calculation='vc-relax')"
    )
    stage = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    during(tmp_path, stage.kill, "number of bfgs steps    =   1").join()
    stage.wait()
    time.sleep(0.5)
    size = (tmp_path / "espresso.pwo").stat().st_size
    time.sleep(0.5)
    assert (tmp_path / "espresso.pwo").stat().st_size == size
    outcome = run(tmp_path, SLOW, calculation="vc-relax")
    assert outcome.actions[0].startswith("interrupted: goes on from")
    assert same(outcome, relaxed)


@needs_pw
def test_damaged_files_of_its_own_are_not_used(tmp_path, relaxed):
    with pytest.raises(ContinueLater):
        run(tmp_path, SLOW, seconds=1.5, calculation="vc-relax")
    density = tmp_path / "scratch" / "candidate.save" / "charge-density.dat"
    density.write_bytes(density.read_bytes()[:100])
    outcome = run(tmp_path, SLOW, calculation="vc-relax")
    assert len(outcome.actions) > 1
    assert same(outcome, relaxed)


@needs_pw
def test_two_processes(tmp_path):
    outcome = run(tmp_path, launcher="mpirun --oversubscribe -np 2", pools=2, scratch=str(tmp_path / "fast"))
    assert outcome.status == "converged", outcome.reason
    assert outcome.output.cores == 2
    assert "-nk 2" in " ".join(outcome.settings["command"])
    assert "K-points division:     npool     =       2" in outcome.outputs[0]
    assert list((tmp_path / "fast").iterdir()) == []


@needs_pw
def test_commands_before_pw(tmp_path):
    """As a module puts a program into the path."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "another-pw.x").symlink_to(shutil.which("pw.x"))
    setup = f"export PATH={tmp_path}/bin:$PATH"
    outcome = run(tmp_path / "a", setup=setup, command="another-pw.x")
    assert outcome.status == "converged"
    assert outcome.settings["command"][:3] == ["bash", "-lc", f'{setup} && exec "$0" "$@"']


def test_atoms_on_top_of_each_other_are_not_even_tried(tmp_path):
    outcome = run(tmp_path / "a", silicon(edge=0.9))
    assert (outcome.status, outcome.outputs) == ("failed", [])
    assert "atoms on top of each other: 0.39 angstrom" in outcome.reason


def program(folder, text):
    path = folder / "pw.x"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_program_that_never_converges_is_given_up(tmp_path):
    words = "Program PWSCF v.6.7\\n     convergence NOT achieved after 100 iterations\\n  JOB DONE."
    outcome = run(tmp_path / "a", command=program(tmp_path, f"printf '{words}\\n'"))
    assert outcome.status == "failed"
    assert outcome.reason == "self-consistency not reached; no remedy is left"
    assert len(outcome.actions) == 4
    assert len(outcome.outputs) == 5


def test_a_program_that_is_killed_each_time_is_left_to_jobs_with_more_memory_and_then_given_up(tmp_path):
    killed = program(tmp_path, "echo Program PWSCF v.6.7; kill -9 $$")
    for _ in range(2):
        with pytest.raises(ContinueLater, match="more memory"):
            run(tmp_path / "a", command=killed)
    outcome = run(tmp_path / "a", command=killed)
    assert (outcome.status, outcome.reason) == ("failed", "pw.x was ended from outside, in 3 jobs")
    assert outcome.actions[0] == "pw.x ended by signal 9: again from the candidate"
    assert len(outcome.outputs) == 4


def test_a_program_that_crashes_each_time_is_given_up(tmp_path):
    outcome = run(tmp_path / "a", command=program(tmp_path, "echo Program PWSCF v.6.7; kill -11 $$"))
    assert (outcome.status, outcome.reason) == (
        "failed",
        "pw.x was ended from outside (ended by signal 11; no remedy is left)",
    )
    assert outcome.actions == ["pw.x ended by signal 11: again from the candidate"] * 2


@pytest.mark.parametrize("values", [{"command": "no-such-pw.x"}, {"command": "false"}, {"launcher": "echo"}])
def test_a_wrong_set_up_is_no_result(tmp_path, values):
    with pytest.raises(UserError, match=r"qe\.command"):
        run(tmp_path / "a", **values)
    state = load_state(
        tmp_path / "a", identity(silicon(), quick(), method(quick(), pseudos().values()), pseudos())
    )
    assert not state.running
    assert state.actions == []


def test_a_scratch_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"qe\.scratch"):
        run(tmp_path / "a", scratch=str(tmp_path / "file"))


def test_how_it_is_started_does_not_make_another_calculation():
    used = method(quick(), pseudos().values())
    one = identity(silicon(), quick(), used, pseudos())
    assert identity(silicon(), quick(launcher="srun", pools=4, top_k=3), used, pseudos()) == one
    assert identity(silicon(), quick(pseudo_dir="/elsewhere"), used, pseudos()) == one
    assert identity(silicon(edge=5.44), quick(), used, pseudos()) != one
    assert identity(silicon(), quick(protocol="fast"), used, pseudos()) != one
    assert identity(silicon(), quick(calculation="relax"), used, pseudos()) != one
