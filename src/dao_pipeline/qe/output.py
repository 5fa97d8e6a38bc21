"""What the output of pw.x says, however early it ends: every value from its own block, absent where it is not."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from dao_pipeline.crystals.crystal import Crystal, wrap
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS

# CODATA 2006, as in pw.x itself
RYDBERG = 13.60569193
"""eV."""
BOHR = 0.52917720859
"""angstrom."""
_STRESS = RYDBERG / BOHR**3 * 160.2176487
"""GPa per Ry/bohr^3."""

_FLOAT = r"[-+]?\d+\.\d*(?:[EeDd][-+]?\d+)?"
_ENERGY = re.compile(rf"^!\s+total energy\s+=\s+({_FLOAT}) Ry", re.M)
_FORCE = re.compile(rf"^\s+atom\s+\d+ type\s+\d+\s+force =\s*({_FLOAT})\s*({_FLOAT})\s*({_FLOAT})", re.M)
_PRESSURE = re.compile(r"total\s+stress\s+\(Ry/bohr\*\*3\)\s+\(kbar\)\s+P=\s*\S+\n((?:.*\n){3})")
_ACCURACY = re.compile(r"estimated scf accuracy\s+<\s+(\S+) Ry")
_ERROR = re.compile(r"Error in routine\s+(\S+)\s*\(\s*-?\d+\):\s*\n\s*(\S.*)")


@dataclass(frozen=True)
class Output:
    """One run of pw.x. Energies in eV, forces in eV/angstrom, stress in GPa, moments in Bohr magnetons.

    done: it ended in order, which says nothing about convergence. error: routine and message, '' if none.
    energy, forces, stress, magnetization: of the last geometry with an energy, which ``crystal`` is; None before
    the first. stress: xx, yy, zz, yz, xz, xy, negative where the crystal is compressed.
    last: the last geometry that was written, with or without an energy; None where the first was the last.
    steps: geometries with an energy. scf_steps: iterations of self-consistency. accuracies: estimated accuracies
    (Ry) of the last cycle's iterations.
    cpu_seconds: of all processes. cores: MPI processes times threads.
    """

    text: str
    version: str | None
    done: bool
    error: str
    energy: float | None
    forces: np.ndarray | None
    stress: list[float] | None
    magnetization: float | None
    absolute_magnetization: float | None
    crystal: Crystal | None
    last: Crystal | None
    steps: int
    scf_steps: int
    accuracies: list[float]
    kpoints: int | None
    cpu_seconds: float | None
    cores: int


def read_output(text: str, start: Crystal) -> Output:
    """Read an output; ``start`` is the geometry of its input."""
    energies = list(_ENERGY.finditer(text))
    geometries = list(_geometries(text, start))
    place = energies[-1].start() if energies else 0
    tail = text[place:]
    forces = _forces(tail, start.num_atoms) if energies else None
    done = [crystal for where, crystal in geometries if where < place]
    # the block before an energy's forces belongs to it: pw.x writes the next geometry after them
    moments = _moments(tail) or _moments(text[:place]) if energies else None
    cores, processes = _cores(text)
    cpu = _cpu_seconds(text)
    version = re.search(r"Program PWSCF v\.(\S+)", text)
    error = _ERROR.search(text)
    kpoints = re.search(r"number of k points=\s*(\d+)", text)
    return Output(
        text=text,
        version=version.group(1) if version else None,
        done="JOB DONE" in text,
        error=f"{error.group(1)}: {error.group(2).strip()}" if error else "",
        energy=float(energies[-1].group(1)) * RYDBERG if energies else None,
        forces=forces,
        stress=_stress(tail) if energies else None,
        magnetization=moments[0] if moments else None,
        absolute_magnetization=moments[1] if moments else None,
        crystal=(done[-1] if done else start) if energies else None,
        last=geometries[-1][1] if geometries else None,
        steps=len(energies),
        scf_steps=len(re.findall(r"^\s+iteration #", text, re.M)),
        accuracies=_accuracies(text),
        kpoints=int(kpoints.group(1)) if kpoints else None,
        cpu_seconds=None if cpu is None else cpu * processes,
        cores=cores,
    )


def _geometries(text: str, start: Crystal) -> list[tuple[int, Crystal]]:
    """Geometries that pw.x wrote after its steps, with their places in the text."""
    found = []
    lattice = start.lattice
    block = re.compile(
        r"CELL_PARAMETERS \(angstrom\)\n((?:\s*\S+\s+\S+\s+\S+\n){3})"
        r"|ATOMIC_POSITIONS \(angstrom\)\n((?:[A-Z].*\n)+)"
    )
    for match in block.finditer(text):
        if match.group(1):
            lattice = np.array(match.group(1).split(), dtype=np.float64).reshape(3, 3)
            continue
        rows = [line.split() for line in match.group(2).splitlines()]
        rows = [row for row in rows if len(row) in (4, 7)]
        if len(rows) != start.num_atoms:
            continue  # the text ends here
        symbols = [re.sub(r"\d.*$", "", row[0]) for row in rows]
        positions = np.array([row[1:4] for row in rows], dtype=np.float64)
        crystal = Crystal(
            id=start.id,
            source="quantum_espresso",
            atomic_numbers=np.array([ATOMIC_NUMBERS[s] for s in symbols], dtype=np.int64),
            frac_coords=wrap(np.linalg.solve(lattice.T, positions.T).T),
            lattice=lattice.copy(),
        )
        found.append((match.start(), crystal))
    return found


def _forces(text: str, atoms: int) -> np.ndarray | None:
    """(n, 3) total forces: of the first n lines of their kind, since single contributions may follow."""
    rows = _FORCE.findall(text)[:atoms]
    return np.array(rows, dtype=np.float64) * (RYDBERG / BOHR) if len(rows) == atoms else None


def _stress(text: str) -> list[float] | None:
    found = _PRESSURE.search(text)
    if found is None:
        return None
    rows = [line.split()[:3] for line in found.group(1).splitlines()]
    if [len(row) for row in rows] != [3, 3, 3]:
        return None
    # pw.x counts compression as positive
    s = -np.array(rows, dtype=np.float64) * _STRESS
    return [float(s[i, j]) for i, j in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))]


def _moments(text: str) -> tuple[float, float] | None:
    total = re.findall(rf"total magnetization\s+=\s+({_FLOAT}) Bohr", text)
    absolute = re.findall(rf"absolute magnetization\s+=\s+({_FLOAT}) Bohr", text)
    return (float(total[-1]), float(absolute[-1])) if total and absolute else None


def _accuracies(text: str) -> list[float]:
    """Of the last cycle: since the last energy, or of the last one that ended."""
    cycles = re.split(r"^!\s+total energy|Self-consistent Calculation", text, flags=re.M)
    for cycle in reversed(cycles):
        if values := _ACCURACY.findall(cycle):
            return [float(v.replace("D", "E")) for v in values if re.fullmatch(r"[\d.]+(?:[ED][-+]?\d+)?", v)]
    return []


def _cores(text: str) -> tuple[int, int]:
    """Cores, and MPI processes, which count their threads' time as their own."""
    found = re.search(r"running on\s+(\d+)\s+processor", text)
    cores = int(found.group(1)) if found else 1
    processes = re.search(r"Number of MPI processes:\s+(\d+)", text)
    if processes is not None:
        return cores, int(processes.group(1))
    return cores, 1 if "Serial multi-threaded" in text else cores


def _cpu_seconds(text: str) -> float | None:
    """Of the first process: its closing line, or else what it last said."""
    if found := re.search(r"^\s+PWSCF\s+:\s+(.*?)\s*CPU", text, re.M):
        units = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
        return sum(float(n) * units[u] for n, u in re.findall(r"([\d.]+)\s*([dhms])", found.group(1)))
    spent = re.findall(r"total cpu time spent up to now is\s+([\d.]+) secs", text)
    return float(spent[-1]) if spent else None
