"""The recovery ladder: what a run of pw.x that gave no result shows, and what is done about it.

``next_action`` is a pure function of the evidence of one run and of what was done before. Each symptom has its own
rungs, taken one after the other; ``MAX_ROUNDS`` actions are taken in all. No action changes what an energy means:
cut-offs, k-points, smearing, spin and functional stay. What is changed is told in words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dao_pipeline.qe.inputs import Steering
from dao_pipeline.qe.output import Output

MAX_ROUNDS = 5
"""Actions after which a calculation is given up."""

FALLING = -0.1
"""Decades per iteration: self-consistency that falls faster than this arrives if it is given time."""

FINAL_PRESSURE = 4.0
"""Times the pressure's threshold: what the final scf of a vc-relax, in the final cell's plane waves, may show."""

_KILLED = (9, 15)
"""Signals by which schedulers and systems short of memory end programs."""

_TIME = re.compile(r"Maximum CPU time exceeded|Program stopped by user request")
"""pw.x stopped in order, before it had its answer."""

Start = Literal["restart", "geometry", "scratch"]
"""From QE's own files; from the last geometry of the output; from the candidate."""


@dataclass(frozen=True)
class Evidence:
    """What a run left behind.

    errors: what it wrote beside its output. signal: that ended it, 0 if none. restarted: it was to start from QE's
    own files. sound: there are such files, whole. moved: this run or one before wrote a geometry after the
    candidate's. press_conv_thr: kbar. grid, grid_asked: k-points that it had, and those of the cell that it came
    to.
    """

    output: Output
    calculation: str
    errors: str = ""
    signal: int = 0
    restarted: bool = False
    sound: bool = False
    moved: bool = False
    press_conv_thr: float = 0.5
    grid: tuple[int, int, int] = (1, 1, 1)
    grid_asked: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True)
class Action:
    """What to do: where to start from, and how to steer.

    rungs: of the symptom's ladder that are used up with it. words: for the record beside the energy.
    """

    symptom: str
    rungs: int
    words: str
    start: Start
    steering: Steering


@dataclass(frozen=True)
class Stop:
    """Why there is nothing more to do."""

    reason: str


@dataclass(frozen=True)
class Later:
    """The time of this job is over, or its memory too small: another one goes on. ``reason``: where none does."""

    words: str
    start: Start
    reason: str = "out of time"


Rung = Callable[[Evidence, Steering], tuple[str, Start, Mapping[str, Any]] | None]
"""One rung of a ladder: words, where from, changed steering; None where there is nothing to change any more."""


@dataclass(frozen=True)
class Symptom:
    """How a failure shows, and the rungs of its ladder; none: it is hopeless. ``reason``: for the user."""

    name: str
    shows: Callable[[Evidence], bool]
    reason: str
    rungs: tuple[Rung, ...] = ()


def _says(pattern: str) -> Callable[[Evidence], bool]:
    """Whether output or errors hold a text."""
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda evidence: bool(compiled.search(evidence.output.text) or compiled.search(evidence.errors))


def _fails_in(routines: str) -> Callable[[Evidence], bool]:
    """Whether pw.x stopped in one of these routines."""
    compiled = re.compile(routines, re.IGNORECASE)
    return lambda evidence: compiled.match(evidence.output.error) is not None


def _any(*ways: Callable[[Evidence], bool]) -> Callable[[Evidence], bool]:
    return lambda evidence: any(way(evidence) for way in ways)


def _onwards(evidence: Evidence) -> Start:
    """The last geometry if there is one, else the candidate."""
    return "geometry" if evidence.moved else "scratch"


def _place(start: Start) -> str:
    return {
        "restart": "from Quantum ESPRESSO's own files",
        "geometry": "from the last geometry",
        "scratch": "from the candidate",
    }[start]


# Rungs


def _again(why: str, **changes: Any) -> Rung:
    def rung(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]]:
        start = _onwards(evidence)
        told = "".join(f", {name} {value}" for name, value in changes.items())
        return f"{why}: again {_place(start)}{told}", start, changes

    return rung


def _from_own_files(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]]:
    helped = not evidence.restarted or evidence.output.steps > 0
    start: Start = "restart" if evidence.sound and helped else _onwards(evidence)
    how = f"by signal {evidence.signal}" if evidence.signal else "without a word"
    return f"pw.x ended {how}: again {_place(start)}", start, {}


def slope(accuracies: list[float]) -> float:
    """Decades per iteration by which the estimated accuracy changes, over the later half of the last cycle."""
    logs = [math.log10(a) for a in accuracies if a > 0]
    later = logs[-max(4, len(logs) // 2) :]
    if len(later) < 3:
        return 0.0
    middle = (len(later) - 1) / 2
    level = sum(later) / len(later)
    above = sum((i - middle) * (y - level) for i, y in enumerate(later))
    return above / sum((i - middle) ** 2 for i in range(len(later)))


def _more_iterations(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]] | None:
    falls = slope(evidence.output.accuracies)
    if falls >= FALLING:
        return None
    start, more = _onwards(evidence), max(2 * steering.electron_maxstep, 100)
    words = (
        f"self-consistency falls by {-falls:.1f} decades per iteration but is not there: up to {more} iterations"
    )
    return f"{words}, {_place(start)}", start, {"electron_maxstep": more}


def _mixing_down(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]]:
    start, beta = _onwards(evidence), round(steering.mixing_beta / 2, 3)
    more = max(steering.electron_maxstep, 200)
    words = f"self-consistency not reached: mixing_beta {beta}, up to {more} iterations, {_place(start)}"
    return words, start, {"mixing_beta": beta, "electron_maxstep": more}


_DIAGONALIZATIONS = ("david", "paro", "cg")


def _diagonalise_otherwise(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]] | None:
    place = _DIAGONALIZATIONS.index(steering.diagonalization) + 1
    if place == len(_DIAGONALIZATIONS):
        return None
    start, other = _onwards(evidence), _DIAGONALIZATIONS[place]
    return f"the bands were not found: diagonalization {other}, {_place(start)}", start, {"diagonalization": other}


def _larger_tables(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]]:
    start, factor = _onwards(evidence), round(1.5 * steering.cell_factor, 2)
    words = (
        f"the cell shrank past its plane waves: again {_place(start)} in those of its cell, cell_factor {factor}"
    )
    return words, start, {"cell_factor": factor}


def _symmetry_anew(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]] | None:
    if not evidence.moved:
        return None  # it would be found as before
    return "trouble with the symmetry, which is looked for anew: again from the last geometry", "geometry", {}


def _no_symmetry(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]]:
    start = _onwards(evidence)
    return f"trouble with the symmetry: again {_place(start)} without symmetry", start, {"nosym": True}


def _relax_on(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]]:
    pressure = _pressure(evidence)
    return (
        f"the final scf, in the plane waves of the final cell, has a pressure of {pressure:.1f} kbar: relaxed on "
        "from that cell",
        "geometry",
        {},
    )


def _relax_on_with_kpoints(evidence: Evidence, steering: Steering) -> tuple[str, Start, Mapping[str, Any]]:
    had, asked = ("x".join(map(str, grid)) for grid in (evidence.grid, evidence.grid_asked))
    return f"the final cell asks for {asked} k-points instead of {had}: relaxed on with these", "geometry", {}


# Symptoms, in the order in which they are looked for


def _died(evidence: Evidence) -> bool:
    """Killed, or ended without an error of its own and before its last word."""
    return bool(evidence.signal) or not (evidence.output.done or evidence.output.error)


def _pressure(evidence: Evidence) -> float:
    """kbar."""
    stress = evidence.output.stress
    return 0.0 if stress is None else -10 * sum(stress[:3]) / 3


def _final_differs(evidence: Evidence) -> bool:
    return (
        evidence.calculation == "vc-relax"
        and "Final scf calculation at the relaxed structure" in evidence.output.text
        and abs(_pressure(evidence)) > FINAL_PRESSURE * evidence.press_conv_thr
    )


def _other_kpoints(evidence: Evidence) -> bool:
    """One crystal, reached from different cells, would have different energies."""
    return evidence.calculation == "vc-relax" and evidence.grid != evidence.grid_asked


def _no_restart(evidence: Evidence) -> bool:
    """A restart that failed before anything was computed: the files were not so sound."""
    return evidence.restarted and evidence.output.scf_steps == 0 and not evidence.output.done


_OUT_OF_MEMORY = _says(r"insufficient memory|cannot allocate|allocation would exceed|out.of.memory|oom.kill")

SYMPTOMS: tuple[Symptom, ...] = (
    # hopeless
    Symptom("overlap", _says(r"atoms #\s*\d+ and #\s*\d+ (overlap|coincide)"), "atoms on top of each other"),
    Symptom(
        "pseudopotential",
        _any(
            _fails_in(r"readpp|read_?upf|upf_|read_ps|read_pseudo|set_dft_from_name"),
            _says(r"conflicting values for i(corr|exch|gcx|gcc|meta|nonlocc)"),
        ),
        "a pseudopotential that pw.x does not take",
    ),
    Symptom(
        "input", _fails_in(r"read_namelists|read_cards|card_|input$|iosys|check_"), "an input that pw.x refuses"
    ),
    # of this run
    Symptom(
        "restart",
        _no_restart,
        "Quantum ESPRESSO's own files could not be read",
        (_again("Quantum ESPRESSO's own files could not be read"),),
    ),
    Symptom(
        "bfgs",
        _says(r"bfgs_module|history already reset at previous step|bfgs failed after"),
        "the history of BFGS is of no use",
        (
            _again("the history of BFGS was of no use"),
            _again("the history of BFGS was of no use again, so forces may be noisy", conv_factor=0.01),
        ),
    ),
    Symptom(
        "cell",
        _says(r"larger cell_factor|not enough space allocated for radial FFT"),
        "the cell shrank past its plane waves",
        (_larger_tables, _larger_tables),
    ),
    Symptom(
        "symmetry",
        _any(
            _fails_in(r"checkallsym|sym_rho|symmetrize|set_sym|sgam|irrek|inverse_s|s_axis|ruotaijk|divide_class"),
            _says(r"some of the original symmetry operations not satisfied|lone vector|not a group"),
        ),
        "trouble with the symmetry",
        (_symmetry_anew, _no_symmetry),
    ),
    Symptom(
        "bands",
        _any(
            _says(r"too many bands are not converged|S matrix not positive definite|problems computing cholesky"),
            _fails_in(r"c?_?bands|[cr]diag|[cr]egterg|paro|ppcg|zpotrf|laxlib"),
        ),
        "the bands were not found",
        (_diagonalise_otherwise, _diagonalise_otherwise),
    ),
    Symptom(
        "scf",
        _says(r"convergence NOT achieved"),
        "self-consistency not reached",
        (_more_iterations, _mixing_down, _mixing_down, _diagonalise_otherwise, _diagonalise_otherwise),
    ),
    Symptom(
        "steps",
        _says(r"The maximum number of steps has been reached"),
        "relaxation not converged",
        (_again("the steps were used up"), _again("the steps were used up again", conv_factor=0.1)),
    ),
    Symptom("memory", _OUT_OF_MEMORY, "too little memory"),
    Symptom("died", _died, "pw.x was ended from outside", (_from_own_files, _from_own_files)),
)
"""Of runs that failed."""

UNFINISHED: tuple[Symptom, ...] = (
    Symptom("final", _final_differs, "", (_relax_on, _relax_on)),
    Symptom("kpoints", _other_kpoints, "", (_relax_on_with_kpoints, _relax_on_with_kpoints)),
)
"""Of runs that did not fail; a result that differs for good stands as it is, with its forces and its pressure."""


def failure(evidence: Evidence) -> str:
    """Why a run is no result; '' if it is one."""
    output = evidence.output
    if output.error:
        return output.error
    if "convergence NOT achieved" in output.text:
        return "self-consistency not reached"
    if _TIME.search(output.text):
        return "out of time"
    if _died(evidence):
        return f"ended by signal {evidence.signal}" if evidence.signal else "output ends early"
    if evidence.calculation != "single_point":
        if "The maximum number of steps has been reached" in output.text:
            return "relaxation not converged"
        if "bfgs converged" not in output.text and "Begin final coordinates" not in output.text:
            return "relaxation stopped without converging"
    return "" if output.energy is not None else "no total energy in the output"


def interrupted(evidence: Evidence) -> Later:
    """How to go on after a job that ended before pw.x did, which is nobody's failure."""
    start: Start = "restart" if evidence.sound else _onwards(evidence)
    return Later(f"interrupted: goes on {_place(start)}", start)


def next_action(
    evidence: Evidence, steering: Steering, used: Mapping[str, int], rounds: int
) -> Action | Later | Stop | None:
    """What to do after a run; None: it is a result.

    used: rungs of each symptom's ladder that are used up. rounds: actions taken so far.
    """
    reason = failure(evidence)
    if _TIME.search(evidence.output.text):
        start: Start = "restart" if evidence.sound else _onwards(evidence)
        return Later(f"out of time: goes on {_place(start)}", start)
    symptom = next((s for s in (SYMPTOMS if reason else UNFINISHED) if s.shows(evidence)), None)
    if symptom is None and not reason:
        return None
    symptom = symptom or _unknown(reason)
    killed = symptom.name == "died" and evidence.signal in _KILLED and used.get("died")
    if killed or symptom.name == "memory":
        told, start, _ = _from_own_files(evidence, steering)
        return Later(f"{told}, in another job, which may have more memory", start, symptom.reason)
    if rounds >= MAX_ROUNDS:
        return Stop(f"{reason}; given up after {MAX_ROUNDS} rounds of recovery") if reason else None
    first = used.get(symptom.name, 0)
    for number, rung in enumerate(symptom.rungs[first:], first + 1):
        if (step := rung(evidence, steering)) is not None:
            words, start, changes = step
            return Action(symptom.name, number, words, start, replace(steering, **changes))
    if not reason:
        return None
    told = f"{reason}; no remedy is left" if symptom.rungs else reason
    return Stop(told if symptom.reason in told else f"{symptom.reason} ({told})")


def _unknown(reason: str) -> Symptom:
    """What nobody has seen yet is tried once more."""
    return Symptom("other", lambda _: True, reason, (_again(f"pw.x stopped ({reason})"),))
