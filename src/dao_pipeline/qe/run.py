"""One crystal through pw.x: input, run, and what its output says. A crash is a result, not an exception."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculatorError
from ase.calculators.espresso import Espresso, EspressoProfile
from ase.io import read

from dao_pipeline.config import QE
from dao_pipeline.crystals.crystal import Crystal, wrap
from dao_pipeline.qe.pseudopotentials import Pseudopotential

ELECTRON_STEPS = 100
"""Iterations of one self-consistency cycle."""

IONIC_STEPS = 100
"""Steps of a relaxation."""

DEGAUSS = 0.01
"""Ry; cold smearing (Marzari-Vanderbilt), small enough for insulators and right for metals."""


@dataclass(frozen=True)
class Outcome:
    """What a calculation gave; energies in eV, forces in eV/angstrom.

    reason: empty where ``converged``.
    stress: xx, yy, zz, yz, xz, xy in GPa; negative where the crystal is compressed (ASE's sign).
    crystal: the last geometry with an energy.
    steps: geometries computed.
    """

    converged: bool
    reason: str = ""
    energy: float | None = None
    force_max: float | None = None
    stress: list[float] | None = None
    crystal: Crystal | None = None
    steps: int | None = None
    version: str | None = None
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)


def kpoint_grid(lattice: np.ndarray, spacing: float) -> tuple[int, int, int]:
    """Gamma-centred grid whose points are at most ``spacing`` apart (1/angstrom, the factor 2 pi included)."""
    reciprocal = 2 * np.pi * np.linalg.inv(lattice).T
    counts = np.ceil(np.linalg.norm(reciprocal, axis=1) / spacing - 1e-9).astype(int)
    return tuple(max(1, int(n)) for n in counts)  # type: ignore[return-value]


def input_data(settings: QE, atoms: int) -> dict[str, dict[str, Any]]:
    """Namelists of pw.x. Thresholds on energies grow with the cell, so that they hold per atom."""
    return {
        "control": {
            "calculation": settings.calculation,
            "outdir": "./scratch",
            "prefix": "candidate",
            "tprnfor": True,
            "tstress": True,
            "nstep": IONIC_STEPS,
            "etot_conv_thr": 1e-5 * atoms,
            "forc_conv_thr": 1e-3,
            "disk_io": "low",
        },
        "system": {
            "ecutwfc": settings.ecutwfc,
            "ecutrho": settings.ecutrho,
            "occupations": "smearing",
            "smearing": "cold",
            "degauss": DEGAUSS,
        },
        "electrons": {"conv_thr": 1e-9 * atoms, "electron_maxstep": ELECTRON_STEPS, "mixing_beta": 0.4},
        "ions": {"ion_dynamics": "bfgs"},
        "cell": {"cell_dynamics": "bfgs", "cell_dofree": "all", "press_conv_thr": 0.5},
    }


def compute(crystal: Crystal, settings: QE, pseudos: dict[str, Pseudopotential], work: Path) -> Outcome:
    """Run pw.x on a crystal in ``work``, which is emptied first; input and output texts stay there.

    Never raises for what pw.x or its launcher does.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    atoms = Atoms(
        numbers=crystal.atomic_numbers, scaled_positions=crystal.frac_coords, cell=crystal.lattice, pbc=True
    )
    grid = kpoint_grid(crystal.lattice, settings.kspacing)
    data = input_data(settings, len(atoms))
    first = next(iter(pseudos.values()))
    calculator = Espresso(
        profile=EspressoProfile(command=settings.command, pseudo_dir=str(first.path.parent.resolve())),
        directory=work,
        input_data=data,
        pseudopotentials={element: pseudo.path.name for element, pseudo in pseudos.items()},
        kpts=grid,
        koffset=(0, 0, 0),
    )
    # Many small matrices: threads inside each MPI process only get into each other's way.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started, crash = time.monotonic(), ""
    try:
        calculator.calculate(atoms, ["energy"], [])
    except FileNotFoundError as error:
        crash = f"cannot start {settings.command!r}: {error.strerror} ({error.filename})"
    except (subprocess.CalledProcessError, CalculatorError, OSError) as error:
        crash = f"pw.x stopped: {error}"
    except Exception as error:  # ASE's parser, on output that ends anywhere
        crash = f"output not readable: {type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    shutil.rmtree(work / "scratch", ignore_errors=True)
    used = {"input": data, "kpoints": list(grid), "command": settings.command}
    return read_outcome(work, crystal, settings.calculation, crash, seconds, used)


def read_outcome(
    work: Path, crystal: Crystal, calculation: str, crash: str, seconds: float, settings: dict[str, Any]
) -> Outcome:
    """Judge a finished run by its output; ``crash`` is what went wrong outside of it."""
    output = work / "espresso.pwo"
    text = output.read_text(encoding="utf-8", errors="replace") if output.is_file() else ""
    version = re.search(r"Program PWSCF v\.(\S+)", text)
    reason = failure(text, calculation) or " ".join(crash.split())[:300]
    values = _last_geometry(output, crystal) if "!    total energy" in text else {}
    if values and calculation == "scf":
        values["crystal"] = crystal  # the output rounds it
    if not reason and "energy" not in values:
        reason = "no total energy in the output"
    return Outcome(
        converged=not reason,
        reason=reason,
        version=version.group(1) if version else None,
        seconds=seconds,
        settings=settings,
        steps=len(re.findall(r"^!    total energy", text, re.M)) or None,
        **values,
    )


def failure(text: str, calculation: str) -> str:
    """Why the run behind this output is no result; '' if it is one."""
    if error := re.search(r"Error in routine\s+(\S+).*?\n\s*(\S.*)", text):
        return f"{error.group(1)}: {error.group(2).strip()}"
    if "convergence NOT achieved" in text:
        return "self-consistency not reached"
    if "Maximum CPU time exceeded" in text:
        return "out of time"
    if "JOB DONE" not in text:
        return "" if not text else "output ends early"
    if calculation != "scf":
        if "The maximum number of steps has been reached" in text:
            return f"relaxation not converged in {IONIC_STEPS} steps"
        if "bfgs converged" not in text and "Begin final coordinates" not in text:
            return "relaxation stopped without converging"
    return ""


def _last_geometry(output: Path, start: Crystal) -> dict[str, Any]:
    """Energy, forces, stress and crystal of the last step; {} where ASE cannot read them."""
    try:
        atoms = read(output, index=-1, format="espresso-out")
        energy = float(atoms.get_potential_energy())
        results = atoms.calc.results
    except Exception:  # output of a crashed run can end anywhere; the row says so
        return {}
    forces, stress = results.get("forces"), results.get("stress")
    crystal = Crystal(
        id=start.id,
        source="quantum_espresso",
        atomic_numbers=atoms.numbers.astype(np.int64),
        frac_coords=wrap(atoms.get_scaled_positions(wrap=False)),
        lattice=np.array(atoms.cell.array, dtype=np.float64),
    )
    return {
        "energy": energy,
        "force_max": None if forces is None else float(np.linalg.norm(forces, axis=1).max()),
        "stress": None if stress is None else [float(s / units.GPa) for s in stress],
        "crystal": crystal,
    }
