"""One run of pw.x as a process: its command, its end, and how it is asked to stop in order."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.calculators.espresso import Espresso, EspressoProfile

from dao_pipeline.config import QE
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.errors import UserError
from dao_pipeline.qe.inputs import PREFIX, starting_magnetization
from dao_pipeline.qe.pseudopotentials import Pseudopotential

INPUT, OUTPUT, ERRORS = "espresso.pwi", "espresso.pwo", "espresso.err"
GRACE = 20.0
"""Seconds that pw.x has to write its files once it is asked to stop; schedulers kill after about 30."""

_POLL = 0.05


@dataclass(frozen=True)
class Ended:
    """How a run ended. signal: that killed it, 0 if none. asked: it was asked to stop."""

    signal: int
    seconds: float
    errors: str
    asked: bool


def command_line(settings: QE) -> str:
    """What is started, input file left out; with ``qe.setup`` in a shell that has run it."""
    words = [*shlex.split(settings.launcher), *shlex.split(settings.command)]
    if settings.pools > 1:
        words += ["-nk", str(settings.pools)]
    if settings.setup:
        words = ["bash", "-lc", f'{settings.setup} && exec "$0" "$@"', *words]
    return shlex.join(words)


def write_input(
    crystal: Crystal,
    data: dict[str, dict[str, Any]],
    grid: tuple[int, int, int],
    settings: QE,
    pseudos: dict[str, Pseudopotential],
    folder: Path,
) -> list[str]:
    """Write the input of a run into ``folder``, and return the command that runs it there."""
    first = next(iter(pseudos.values()))
    profile = EspressoProfile(command=command_line(settings), pseudo_dir=str(first.path.parent.resolve()))
    calculator = Espresso(
        profile=profile,
        directory=folder,
        input_data=data,
        pseudopotentials={element: pseudo.path.name for element, pseudo in pseudos.items()},
        kpts=grid,
        koffset=(0, 0, 0),
    )
    atoms = Atoms(
        numbers=crystal.atomic_numbers,
        scaled_positions=crystal.frac_coords,
        cell=crystal.lattice,
        pbc=True,
        magmoms=starting_magnetization(crystal, settings, pseudos),  # ASE writes them as they are
    )
    calculator.write_inputfiles(atoms, ["energy"])
    return [str(word) for word in profile.get_command(INPUT)]


def run(command: list[str], folder: Path, scratch: Path, stop: Callable[[], bool]) -> Ended:
    """Run ``command`` in ``folder`` until it ends, or until ``stop`` says so: then it may end in order.

    Raises UserError where the program cannot be started at all, which no other candidate could either.
    """
    started = time.monotonic()
    # Many small matrices: threads inside each MPI process only get into each other's way.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    exit_file = scratch / f"{PREFIX}.EXIT"
    exit_file.unlink(missing_ok=True)
    with (folder / OUTPUT).open("wb") as out, (folder / ERRORS).open("wb") as err:
        try:
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                start_new_session=True,  # a signal to this stage must not reach it before it was asked to stop
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            raise UserError(
                f"qe.command: cannot start {shlex.join(command[:3])!r}: {error.strerror} ({error.filename}). "
                "Correct qe.command and qe.launcher, or load pw.x with qe.setup."
            ) from None
        try:
            asked = _wait(process, exit_file, stop)
        finally:
            if process.poll() is None:  # an exception, such as an interrupt from the keyboard
                _signal(process, signal.SIGKILL)
    code = process.returncode
    # A launcher or shell tells the signal of its child as 128 + number.
    number = -code if code < 0 else code - 128 if code in (128 + signal.SIGKILL, 128 + signal.SIGTERM) else 0
    errors = (folder / ERRORS).read_text(encoding="utf-8", errors="replace")
    if not number and (found := re.search(r"exited on signal (\d+)", errors)):
        number = int(found.group(1))
    return Ended(number, time.monotonic() - started, errors, asked)


def _wait(process: subprocess.Popen[bytes], exit_file: Path, stop: Callable[[], bool]) -> bool:
    """Wait for the end; whether it was asked for."""
    asked = 0.0
    while process.poll() is None:
        now = time.monotonic()
        if not asked and stop():
            asked = now
            with contextlib.suppress(OSError):
                exit_file.touch()  # pw.x looks for it after each iteration, and writes what a restart needs
        elif asked and now > asked + GRACE:
            _signal(process, signal.SIGTERM if now < asked + GRACE + 3 else signal.SIGKILL)
        time.sleep(_POLL)
    exit_file.unlink(missing_ok=True)
    return bool(asked)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _die_with_parent() -> None:
    """On Linux: end when this stage is killed, so that no pw.x writes into files that the next job reads."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
