import pytest

from dao_pipeline.qe.inputs import Steering
from dao_pipeline.qe.output import read_output
from dao_pipeline.qe.recovery import MAX_ROUNDS, Action, Evidence, Later, Stop, failure, next_action, slope
from tests.qe.make import OUTPUTS, recorded, silicon


def evidence(text, calculation="vc-relax", **values):
    output = read_output(text, silicon())
    return Evidence(output=output, calculation=calculation, **{"moved": output.last is not None, **values})


def act(text, steering=None, used=None, rounds=0, **values):
    return next_action(evidence(text, **values), steering or Steering(), used or {}, rounds)


def test_a_finished_relaxation_is_a_result():
    assert act(recorded("vc-relax"), press_conv_thr=1.0) is None


@pytest.mark.parametrize(
    ("name", "calculation", "reason"),
    [
        ("scf", "single_point", "self-consistency not reached"),
        ("cell", "vc-relax", "scale_h: Not enough space allocated for radial FFT"),
        ("time", "vc-relax", "out of time"),
        ("symmetry", "single_point", "sym_rho_init_shell: lone vector"),
        ("overlap", "single_point", "check_atoms: atoms #   1 and #   2 overlap!"),
        ("steps", "relax", "relaxation not converged"),
        ("bfgs", "vc-relax", "output ends early"),
    ],
)
def test_failures_have_their_names(name, calculation, reason):
    assert failure(evidence(recorded(name), calculation)).startswith(reason)


@pytest.mark.parametrize("name", ["overlap", "functional"])
def test_what_is_hopeless_stops_at_once(name):
    found = act(recorded(name))
    assert isinstance(found, Stop)
    assert "no remedy" not in found.reason


def test_atoms_in_one_place_are_named():
    assert (
        act(recorded("overlap")).reason
        == "atoms on top of each other (check_atoms: atoms #   1 and #   2 overlap!)"
    )


def test_a_cell_that_shrank_past_its_plane_waves_gets_larger_tables_and_starts_from_the_new_cell():
    found = act(recorded("cell"), Steering(cell_factor=1.01))
    assert (found.start, found.steering) == ("geometry", Steering(cell_factor=1.52))
    assert "cell_factor 1.52" in found.words
    again = act(recorded("cell"), found.steering, {"cell": found.rungs}, 1)
    assert again.steering.cell_factor > 2
    assert isinstance(act(recorded("cell"), again.steering, {"cell": again.rungs}, 2), Stop)


def test_a_broken_history_of_bfgs_is_told_by_what_stands_beside_the_output():
    errors = (OUTPUTS / "bfgs.err").read_text()
    first = act(recorded("bfgs"), errors=errors, restarted=True, sound=True, moved=True)
    assert (first.symptom, first.start) == ("bfgs", "geometry")
    second = act(recorded("bfgs"), errors=errors, used={"bfgs": 1}, rounds=1)
    assert second.steering.conv_factor < 1


def test_symmetry_is_looked_for_anew_where_atoms_have_moved_and_given_up_where_not():
    still = act(recorded("symmetry"), calculation="single_point")
    assert still.steering.nosym
    moved = act(recorded("symmetry"), calculation="relax", moved=True)
    assert not moved.steering.nosym
    assert moved.start == "geometry"
    assert act(recorded("symmetry"), used={"symmetry": moved.rungs}, rounds=1, moved=True).steering.nosym


def cycle(*accuracies):
    lines = "".join(f"     iteration #\n     estimated scf accuracy    <   {a} Ry\n" for a in accuracies)
    return (
        f"Program PWSCF v.6.7\n{lines}     convergence NOT achieved after {len(accuracies)} iterations\nJOB DONE"
    )


def test_self_consistency_that_falls_gets_time():
    found = act(cycle(*(10**-n for n in range(8))), Steering(electron_maxstep=8))
    assert found.steering == Steering(electron_maxstep=100)
    assert "1.0 decades per iteration" in found.words


def test_self_consistency_that_stays_is_mixed_less_and_then_diagonalised_otherwise():
    steering, used, words = Steering(), {}, []
    for rounds in range(MAX_ROUNDS + 1):
        found = act(cycle(*[0.1, 0.2] * 5), steering, used, rounds)
        if isinstance(found, Stop):
            break
        steering, used = found.steering, {found.symptom: found.rungs}
        words.append(found.words)
    assert [steering.mixing_beta, steering.diagonalization] == [0.1, "cg"]
    assert [w.split(",")[0].split(": ")[1].split()[0] for w in words] == [
        *("mixing_beta", "mixing_beta", "diagonalization", "diagonalization")
    ]
    assert "no remedy is left" in found.reason


def test_bands_that_are_not_found_are_looked_for_otherwise():
    text = "Program PWSCF v.6.7\n Error in routine c_bands (1):\n   too many bands are not converged\n"
    first = act(text)
    assert first.steering.diagonalization == "paro"
    second = act(text, first.steering, {"bands": first.rungs}, 1)
    assert second.steering.diagonalization == "cg"
    assert isinstance(act(text, second.steering, {"bands": second.rungs}, 2), Stop)


def test_a_final_scf_that_differs_is_relaxed_on_and_stands_in_the_end():
    text = recorded("vc-relax")  # 2.2 kbar
    found = act(text, press_conv_thr=0.5)
    assert (found.symptom, found.start) == ("final", "geometry")
    assert "2.2 kbar" in found.words
    assert act(text, used={"final": 2}, rounds=2, press_conv_thr=0.5) is None
    assert act(text, rounds=MAX_ROUNDS, press_conv_thr=0.5) is None


def test_a_cell_that_asks_for_other_kpoints_gets_them():
    text = recorded("vc-relax")
    grids = {"grid": (2, 2, 2), "grid_asked": (3, 3, 2), "press_conv_thr": 1.0}
    found = act(text, **grids)
    assert (found.symptom, found.start) == ("kpoints", "geometry")
    assert "asks for 3x3x2 k-points instead of 2x2x2" in found.words
    assert act(text, used={"kpoints": 2}, rounds=2, **grids) is None
    assert act(text, calculation="relax", **grids) is None


def test_out_of_time_is_for_another_job_and_goes_on_where_it_can():
    assert act(recorded("time"), sound=True) == Later(
        "out of time: goes on from Quantum ESPRESSO's own files", "restart"
    )
    assert act(recorded("time"), sound=False).start == "geometry"
    assert act(
        recorded("scf").replace("convergence NOT", "Maximum CPU time exceeded"), calculation="relax"
    ).start == ("scratch")
    assert isinstance(act(recorded("asked")), Later)


def test_the_killed_go_on_from_what_is_sound():
    text = recorded("vc-relax")
    half = text[: len(text) // 2]
    assert act(half, signal=9, sound=True).start == "restart"
    assert (
        act(half, signal=9, sound=True).words == "pw.x ended by signal 9: again from Quantum ESPRESSO's own files"
    )
    # the files were no help, or are not there
    begun = text[: text.index("!    total energy")]
    assert act(begun, signal=11, sound=True, restarted=True, moved=True).start == "geometry"
    assert act(half, signal=11, sound=True, restarted=True).start == "restart"
    assert act(half, signal=9).start == "geometry"
    assert act("", signal=9).start == "scratch"
    assert isinstance(act(half, signal=11, used={"died": 2}, rounds=2), Stop)
    later = act(half, signal=9, sound=True, used={"died": 1}, rounds=1)
    assert isinstance(later, Later)
    assert "more memory" in later.words


def test_too_little_memory_is_for_another_job():
    text = "Program PWSCF v.6.7\n Error in routine allocate_fft (1):\n  cannot allocate psic\n"
    found = act(text)
    assert isinstance(found, Later)
    assert (found.start, found.reason) == ("scratch", "too little memory")


def test_files_that_cannot_be_read_are_left_alone():
    text = "Program PWSCF v.6.7\n Error in routine read_xml (1):\n  damaged\n"
    assert act(text, restarted=True, sound=True, moved=True).start == "geometry"
    assert act(text, restarted=True, sound=True).start == "scratch"


def test_what_nobody_knows_is_tried_once_more():
    text = "Program PWSCF v.6.7\n Error in routine electrons (1):\n  charge is wrong\n"
    found = act(text)
    assert isinstance(found, Action)
    assert "charge is wrong" in found.words
    stop = act(text, used={"other": 1}, rounds=1)
    assert stop == Stop("electrons: charge is wrong; no remedy is left")


def test_no_more_than_five_rounds():
    assert MAX_ROUNDS == 5
    assert "given up after 5 rounds" in act(recorded("scf"), rounds=5).reason


def test_slope():
    assert slope([10.0**-n for n in range(10)]) == pytest.approx(-1)
    assert slope([1.0, 1.0, 1.0, 1.0]) == 0
    assert slope([1.0]) == 0
