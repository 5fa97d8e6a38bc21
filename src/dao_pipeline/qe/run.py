"""One crystal through pw.x, over as many runs and jobs as it takes. A crash is a result, not an exception."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shlex
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from dao_pipeline.config import QE, expand_path
from dao_pipeline.crystals.crystal import Crystal, to_table, wrap
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import shortest_distances
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.interrupt import Interruptible
from dao_pipeline.qe.inputs import PREFIX, Method, Steering, input_data, kpoint_grid, method
from dao_pipeline.qe.output import BOHR, Output, read_output
from dao_pipeline.qe.process import ERRORS, INPUT, OUTPUT, Ended, run, write_input
from dao_pipeline.qe.protocols import protocol
from dao_pipeline.qe.pseudopotentials import Pseudopotential
from dao_pipeline.qe.recovery import Evidence, Later, Start, Stop, interrupted, next_action
from dao_pipeline.qe.state import FILE, State, load_state

log = logging.getLogger(__name__)

JOBS = 3
"""Jobs whose time or memory may run out over one calculation: the first, and the rule's two retries."""

MARGIN = 0.1
"""Of a job's time, kept for writing files and whatever comes before and after pw.x."""

LONGEST_MARGIN = 180.0
"""Seconds."""

SHORTEST_DISTANCE = 0.5
"""Angstrom, less than any bond. pw.x itself refuses only atoms that coincide."""

_STEERS_NOTHING = (
    *("enabled", "candidates", "top_k", "select", "budget_core_hours"),
    *("command", "launcher", "pools", "setup", "scratch", "pseudo_dir", "pseudo_table"),
)
"""Settings on which no calculation depends; pseudopotentials count by their contents."""


_AS_USUAL = Steering()


@dataclass(frozen=True)
class Outcome:
    """What a calculation gave, over all its runs.

    status: converged, failed or not_run; reason: '' where converged. output: of the last run; None if none.
    actions: of recovery, in words. seconds, cpu_seconds, steps, scf_steps: of all runs together.
    inputs, outputs: texts of the runs in order. settings: of the last run, for the record.
    """

    status: str
    reason: str = ""
    output: Output | None = None
    actions: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    steps: int = 0
    scf_steps: int = 0
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    method: Method | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def identity(crystal: Crystal, settings: QE, used: Method, pseudos: dict[str, Pseudopotential]) -> str:
    """Hash of a crystal and of all that its calculation depends on."""
    text = json.dumps(
        {
            "crystal": [
                *(crystal.id, crystal.atomic_numbers.tolist()),
                *(crystal.frac_coords.tolist(), crystal.lattice.tolist()),
            ],
            "settings": settings.model_dump(mode="json", exclude=set(_STEERS_NOTHING)),
            "protocol": asdict(protocol(settings)),
            "method": asdict(used),
            "pseudopotentials": {element: pseudo.checksum for element, pseudo in pseudos.items()},
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compute(
    crystal: Crystal,
    settings: QE,
    pseudos: dict[str, Pseudopotential],
    work: Path,
    *,
    seconds: float | None = None,
    used: Method | None = None,
    steering: Steering = _AS_USUAL,
) -> Outcome:
    """Compute a crystal in ``work``, going on from what an earlier job left there.

    pseudos: one for each element of the crystal. seconds: that this job may take; pw.x stops in order before.
    used: the method, where it is not that of the crystal's own elements (references of a larger system).
    steering: of the first run.

    Raises UserError where pw.x or its launcher cannot run at all, and ContinueLater, with the state saved, where
    the job's time is over or it was asked to stop. Whatever pw.x does is an outcome.
    """
    used = used or method(settings, pseudos.values())
    close = float(shortest_distances(flatten(to_table([crystal])))[0])
    if not close >= SHORTEST_DISTANCE:
        return Outcome("failed", f"atoms on top of each other: {close:.2f} angstrom apart", method=used)
    with Interruptible() as request:
        return _Job(crystal, settings, pseudos, used, work, seconds, steering).work(lambda: request.requested)


class _Job:
    """The work of one job on one calculation."""

    def __init__(
        self,
        crystal: Crystal,
        settings: QE,
        pseudos: dict[str, Pseudopotential],
        used: Method,
        work: Path,
        seconds: float | None,
        steering: Steering,
    ) -> None:
        self.candidate, self.settings, self.pseudos, self.used = crystal, settings, pseudos, used
        self.folder = work
        kept = 0.0 if seconds is None else min(MARGIN * seconds, LONGEST_MARGIN)
        self.deadline = None if seconds is None else time.monotonic() + seconds - kept
        own = identity(crystal, settings, used, pseudos)
        state = load_state(work, own)
        if state is None:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True)
        self.state = state or State(own, crystal, steering=steering)
        self.scratch = work.resolve() / "scratch"
        if settings.scratch is not None:
            self.scratch = expand_path(settings.scratch).resolve() / f"dao-{own}"
        self.described: dict[str, Any] = {}

    def work(self, stop: Callable[[], bool]) -> Outcome:
        """Run pw.x until there is a result, or nothing more to try."""
        if self.state.running:  # an earlier job was ended before it could look at what its pw.x did
            evidence = self._look(Ended(signal=0, seconds=0.0, errors=self._read(ERRORS), asked=True))
            if evidence.output.done or evidence.output.error:
                if (outcome := self._judge(evidence, asked=False)) is not None:
                    return outcome
            else:
                self._pause(interrupted(evidence))
        while True:
            if self.deadline is not None and time.monotonic() > self.deadline:
                return self._to_another_job(Later("out of time", self.state.start), None)
            ended = self._run(stop)
            if (outcome := self._judge(self._look(ended), ended.asked or stop())) is not None:
                return outcome

    def _run(self, stop: Callable[[], bool]) -> Ended:
        """One run of pw.x."""
        state = self.state
        if state.start != "restart":
            shutil.rmtree(self.scratch, ignore_errors=True)
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"qe.scratch: cannot make {self.scratch}: {error.strerror}. Name another.") from None
        # A restart takes its cell from QE's files, and must find the k-points and plane waves of its input.
        grid = self._grid(state.crystal)
        data = input_data(
            state.crystal,
            self.settings,
            self.used,
            state.steering,
            outdir=str(self.scratch),
            restart=state.start == "restart",
            max_seconds=None if self.deadline is None else max(1.0, self.deadline - time.monotonic()),
        )
        command = write_input(*(state.crystal, data, grid, self.settings, self.pseudos, self.folder))
        self.described = {"input": data, "kpoints": list(grid), "command": command}
        (self.folder / OUTPUT).unlink(missing_ok=True)
        state.running = True
        state.save(self.folder)
        try:
            return run(command, self.folder, self.scratch, stop)
        except UserError:  # nothing was started
            state.running = False
            state.save(self.folder)
            raise

    def _look(self, ended: Ended) -> Evidence:
        """What a run left behind; its texts are put beside those of the runs before."""
        state = self.state
        text = self._read(OUTPUT)
        state.running = False
        if "Program PWSCF" not in text and not ended.signal and not ended.asked:
            state.save(self.folder)
            raise _set_up_fails(self.described.get("command", []), text, ended.errors)
        output = read_output(text, (state.start == "restart" and state.last) or state.crystal)
        state.last = output.last or state.last
        number = state.runs
        for name in (INPUT, OUTPUT):
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).replace(self.folder / _numbered(name, number))
        state.runs += 1
        state.seconds += ended.seconds
        state.cpu_seconds += output.cpu_seconds or 0.0
        state.steps += output.steps
        state.scf_steps += output.scf_steps
        return Evidence(
            output=output,
            calculation=self.settings.calculation,
            errors=ended.errors,
            signal=ended.signal,
            restarted=state.start == "restart",
            sound=self.scratch.is_dir() and own_geometry(self.scratch, state.crystal) is not None,
            moved=state.last is not None,
            press_conv_thr=protocol(self.settings).press_conv_thr,
            grid=self._grid(state.crystal),
            grid_asked=self._grid(output.crystal or state.crystal),
        )

    def _grid(self, crystal: Crystal) -> tuple[int, int, int]:
        return kpoint_grid(crystal.lattice, self.used.kspacing)

    def _judge(self, evidence: Evidence, asked: bool) -> Outcome | None:
        """The outcome, if the run was the last; else what is done next is in the state."""
        state = self.state
        action = next_action(evidence, state.steering, state.used, state.rounds)
        if action is None:
            return self._finish("converged", "", evidence.output)
        if asked:
            self._pause(interrupted(evidence))
            raise ContinueLater(f"{state.crystal.id}: stopped on request; {state.actions[-1]}")
        if isinstance(action, Later):
            return self._to_another_job(action, evidence.output)
        if isinstance(action, Stop):
            return self._finish("failed", action.reason, evidence.output)
        log.info("%s: %s", state.crystal.id, action.words)
        state.rounds += 1
        state.used[action.symptom] = action.rungs
        state.steering = action.steering
        self._start(action.words, action.start)
        return None

    def _start(self, words: str, start: Start) -> None:
        """Begin the next run elsewhere."""
        state = self.state
        state.actions.append(words)
        state.start = start
        if start == "restart":
            state.last = own_geometry(self.scratch, state.crystal)
        elif start == "geometry" and state.last is not None:
            state.crystal = state.last
        elif start == "scratch":
            state.crystal, state.last = self.candidate, None
        state.save(self.folder)

    def _pause(self, later: Later) -> None:
        self._start(later.words, later.start)

    def _to_another_job(self, later: Later, output: Output | None) -> Outcome:
        """Leave the rest to another job, or give up where too many have left it."""
        state = self.state
        state.jobs += 1
        if output is not None:
            self._pause(later)
        if state.jobs < JOBS:
            state.save(self.folder)
            raise ContinueLater(f"{state.crystal.id}: {later.words}")
        state.jobs = 0  # the stage, run once more, goes on from here
        state.save(self.folder)
        return self._outcome("failed", f"{later.reason}, in {JOBS} jobs", output)

    def _finish(self, status: str, reason: str, output: Output) -> Outcome:
        outcome = self._outcome(status, reason, output)
        shutil.rmtree(self.scratch, ignore_errors=True)
        (self.folder / FILE).unlink(missing_ok=True)
        return outcome

    def _outcome(self, status: str, reason: str, output: Output | None) -> Outcome:
        state = self.state
        if output is not None and output.crystal is not None and self.settings.calculation == "single_point":
            output = replace(output, crystal=self.candidate)  # what pw.x writes is rounded
        return Outcome(
            status=status,
            reason=reason,
            output=output,
            actions=list(state.actions),
            seconds=state.seconds,
            cpu_seconds=state.cpu_seconds,
            steps=state.steps,
            scf_steps=state.scf_steps,
            inputs=[self._read(_numbered(INPUT, n)) for n in range(state.runs)],
            outputs=[self._read(_numbered(OUTPUT, n)) for n in range(state.runs)],
            method=self.used,
            settings={"method": asdict(self.used), "steering": asdict(state.steering), **self.described},
        )

    def _read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _numbered(name: str, number: int) -> str:
    stem, _, suffix = name.partition(".")
    return f"{stem}-{number:02d}.{suffix}"


def _set_up_fails(command: list[str], text: str, errors: str) -> UserError:
    said = " ".join((errors.strip() or text.strip() or "nothing").split())[-400:]
    return UserError(
        f"qe.command: {shlex.join(command)!r} ended before pw.x began, and said: {said}. Correct qe.command, "
        "qe.launcher, qe.pools or qe.setup; no calculation is to blame."
    )


def own_geometry(scratch: Path, like: Crystal) -> Crystal | None:
    """Where QE's own files in a scratch folder go on from; None where they are not whole.

    ``like``: a crystal of the same atoms.
    """
    folder = scratch / f"{PREFIX}.save"
    try:
        densities = [folder / f"charge-density.{suffix}" for suffix in ("dat", "hdf5")]
        if not any(path.is_file() and path.stat().st_size for path in densities):
            return None
        found = ElementTree.parse(folder / "data-file-schema.xml").getroot().find("output/atomic_structure")
        if found is None:
            return None
        lattice = np.array([found.findtext(f"cell/a{i}", "").split() for i in (1, 2, 3)], dtype=np.float64)
        positions = np.array([(a.text or "").split() for a in found.iter("atom")], dtype=np.float64)
    except (OSError, ElementTree.ParseError, ValueError):
        return None
    if lattice.shape != (3, 3) or positions.shape != (like.num_atoms, 3):
        return None
    return Crystal(
        id=like.id,
        source="quantum_espresso",
        atomic_numbers=like.atomic_numbers,
        frac_coords=wrap(np.linalg.solve(lattice.T, positions.T).T),
        lattice=lattice * BOHR,
    )
