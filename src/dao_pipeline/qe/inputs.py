"""What pw.x is asked: the method, on which energies depend, and what only steers how it converges."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dao_pipeline.config import QE
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.qe.protocols import Protocol, protocol, starting_moments
from dao_pipeline.qe.pseudopotentials import Pseudopotential, cutoffs

PREFIX = "candidate"
"""Of QE's own files."""

IONIC_STEPS = 100
"""Steps of one relaxation; one that needs more goes on from its last geometry."""


@dataclass(frozen=True)
class Method:
    """What two total energies must have in common to be compared, beside pseudopotentials and version.

    ecutwfc, ecutrho, degauss: Ry. kspacing: 1/angstrom. spin: the rule, not what it gave for one crystal: one
    without magnetic elements has the same energy either way.
    """

    functional: str
    ecutwfc: float
    ecutrho: float
    kspacing: float
    smearing: str
    degauss: float
    spin: str


def method(settings: QE, pseudos: Iterable[Pseudopotential]) -> Method:
    """The method for crystals of these pseudopotentials' elements, of which the hungriest decides the cut-offs.

    For energies that are to be compared between compositions, give the pseudopotentials of all of them.
    """
    chosen, files = protocol(settings), list(pseudos)
    waves, density = cutoffs(files, chosen.cutoff_factor, (chosen.ecutwfc, chosen.ecutrho))
    ratio = density / waves
    waves = settings.ecutwfc or waves
    density = settings.ecutrho or max(density if settings.ecutwfc is None else ratio * waves, 4 * waves)
    spin = {None: "where elements ask for it", True: "polarised", False: "none"}[settings.spin]
    return Method(settings.functional, waves, density, chosen.kspacing, chosen.smearing, chosen.degauss, spin)


def method_hash(used: Method, version: str | None) -> str:
    """Hash of a method and the version of QE: what crystals of different elements must share."""
    return _hash({**asdict(used), "version": version})


def settings_hash(used: Method, version: str | None, checksums: Mapping[str, str]) -> str:
    """Hash of everything that decides whether two energies of one composition may be compared.

    ``checksums``: of the pseudopotentials by element. What steers convergence (mixing, diagonalisation,
    thresholds, restarts) is not in it.
    """
    return _hash({**asdict(used), "version": version, "pseudopotentials": dict(checksums)})


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Steering:
    """How pw.x gets to its answer, which recovery may change (recovery.py); the answer is the same.

    electron_maxstep: iterations of one self-consistency cycle. conv_factor: times the protocol's threshold of
    self-consistency, smaller for less noise in forces. cell_factor: how far the cell may change before the tables
    of the pseudopotentials end.
    """

    mixing_beta: float = 0.4
    electron_maxstep: int = 100
    diagonalization: str = "david"
    conv_factor: float = 1.0
    cell_factor: float = 2.0
    nosym: bool = False


def kpoint_grid(lattice: np.ndarray, spacing: float) -> tuple[int, int, int]:
    """Gamma-centred grid whose points are at most ``spacing`` apart (1/angstrom, the factor 2 pi included)."""
    reciprocal = 2 * np.pi * np.linalg.inv(lattice).T
    counts = np.ceil(np.linalg.norm(reciprocal, axis=1) / spacing - 1e-9).astype(int)
    return tuple(max(1, int(n)) for n in counts)  # type: ignore[return-value]


def elements_of(crystal: Crystal) -> list[str]:
    """Symbols in order of their first atom, which is the order of ASE's species."""
    return [SYMBOLS[z] for z in dict.fromkeys(int(z) for z in crystal.atomic_numbers)]


def polarised(settings: QE, elements: Iterable[str]) -> bool:
    """Whether a crystal of these elements is computed with spin."""
    return settings.spin if settings.spin is not None else any(e in starting_moments() for e in elements)


def input_data(
    crystal: Crystal,
    settings: QE,
    used: Method,
    steering: Steering,
    *,
    outdir: str,
    restart: bool = False,
    max_seconds: float | None = None,
) -> dict[str, dict[str, Any]]:
    """Namelists of pw.x. Thresholds on energies grow with the cell, so that they hold per atom."""
    thresholds, atoms = protocol(settings), crystal.num_atoms
    control: dict[str, Any] = {
        "calculation": "scf" if settings.calculation == "single_point" else settings.calculation,
        "restart_mode": "restart" if restart else "from_scratch",
        "outdir": outdir,
        "prefix": PREFIX,
        "tprnfor": True,
        "tstress": True,
        "nstep": IONIC_STEPS,
        "etot_conv_thr": thresholds.etot_conv_thr * atoms,
        "forc_conv_thr": thresholds.forc_conv_thr,
        "disk_io": "low",
    }
    if max_seconds is not None:
        control["max_seconds"] = round(max_seconds, 1)
    system = {
        "ecutwfc": used.ecutwfc,
        "ecutrho": used.ecutrho,
        "occupations": "smearing",
        "smearing": used.smearing,
        "degauss": used.degauss,
        **({"nspin": 2} if polarised(settings, elements_of(crystal)) else {}),
    }
    if steering.nosym:
        system |= {"nosym": True, "noinv": True}
    data: dict[str, dict[str, Any]] = {
        "control": control,
        "system": system,
        "electrons": _electrons(thresholds, atoms, steering),
    }
    if settings.calculation != "single_point":
        data["ions"] = {"ion_dynamics": "bfgs"}
    if settings.calculation == "vc-relax":
        data["cell"] = {
            "cell_dynamics": "bfgs",
            "cell_dofree": "all",
            "cell_factor": steering.cell_factor,
            "press_conv_thr": thresholds.press_conv_thr,
        }
    return data


def _electrons(thresholds: Protocol, atoms: int, steering: Steering) -> dict[str, Any]:
    return {
        "conv_thr": thresholds.conv_thr * steering.conv_factor * atoms,
        "electron_maxstep": steering.electron_maxstep,
        "mixing_beta": steering.mixing_beta,
        "diagonalization": steering.diagonalization,
    }


def starting_magnetization(
    crystal: Crystal, settings: QE, pseudos: Mapping[str, Pseudopotential]
) -> list[float] | None:
    """Starting magnetisation of each atom as pw.x takes it, a share of its valence electrons; None without spin.

    Elements without a moment of their own start at a tenth of an electron, so that symmetry does not hold the
    solution at zero.
    """
    elements = elements_of(crystal)
    if not polarised(settings, elements):
        return None
    shares = {}
    for element in elements:
        electrons = pseudos[element].electrons
        moment = starting_moments().get(element, 0.1)
        shares[element] = round(min(moment / electrons, 1.0), 4) if electrons > 0 else 0.5  # NaN: not stated
    return [shares[SYMBOLS[int(z)]] for z in crystal.atomic_numbers]
