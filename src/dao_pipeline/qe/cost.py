"""Core hours to expect of a calculation, before it is run.

The model: an iteration of self-consistency costs a part for each k-point, spin, plane wave and band, which grows
with the bands that each must be orthogonal to, and a part for each atom (charges inside the spheres). Its
constants were read off six single points of pw.x 6.7 with PAW and ultrasoft files on one core of a 2-core machine
(1 to 8 atoms, 8 to 32 electrons, 246 to 4,718 plane waves, 8 to 112 k-points), which it gives back within a factor
of 2 once iterations and k-points are known. Neither is known before: symmetry may save nine k-points in ten, and
relaxations differ by a factor of three. So it is an estimate to plan with, high for symmetric crystals; what a row
measured stands beside it in the table (``expected_core_seconds``, ``cpu_seconds``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from dao_pipeline.config import QE
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, COVALENT_RADIUS, SYMBOLS
from dao_pipeline.qe.inputs import kpoint_grid, method, polarised
from dao_pipeline.qe.output import BOHR
from dao_pipeline.qe.pseudopotentials import Pseudopotential, pseudopotentials_of
from dao_pipeline.qe.select import named_candidates

ITERATIONS: Mapping[str, int] = {"single_point": 10, "relax": 70, "vc-relax": 100}
"""Iterations of self-consistency in all: 8 for each of 9 and 12 geometries. Distorted silicon took 63 and 87."""

_START = 0.4
"""Seconds: reading of the pseudopotentials and their tables."""
_WAVE, _PAIR = 2.2e-6, 2.5e-8
"""Seconds per iteration, k-point, plane wave and band; and per such and further band."""
_ATOM = 0.03
"""Seconds per iteration and atom."""

_UNKNOWN_ELECTRONS = 8.0
"""Of an element whose pseudopotential does not say."""
_SPACE = 9.0
"""Volume of a cell per sum of its atoms' cubed covalent radii: 5 in copper, 8 in rock salt, 14 in silicon."""


def expected_core_seconds(
    *, atoms: int, electrons: float, volume: float, kpoints: int, ecutwfc: float, spin: bool, calculation: str
) -> float:
    """Core seconds of a calculation.

    electrons: of valence, in the cell. volume: angstrom^3. kpoints: of the whole grid, of which pw.x computes half
    where there is no symmetry but time reversal, as in most candidates. ecutwfc: Ry.
    """
    waves = volume / BOHR**3 * ecutwfc**1.5 / (6 * math.pi**2)
    occupied = electrons / 2
    bands = max(1.2 * occupied, occupied + 4)  # as pw.x has them where occupations are smeared
    points = (kpoints + 1) // 2 * (2 if spin else 1)
    iteration = points * waves * bands * (_WAVE + _PAIR * bands) + _ATOM * atoms
    return _START + ITERATIONS[calculation] * iteration


def expected_of(crystal: Crystal, settings: QE, pseudos: Mapping[str, Pseudopotential]) -> float:
    """Core seconds of a candidate with the settings of a campaign; ``pseudos``: of its elements at least."""
    numbers, counts = np.unique(crystal.atomic_numbers, return_counts=True)
    atoms = {SYMBOLS[int(z)]: int(n) for z, n in zip(numbers, counts, strict=True)}
    return _expected(atoms, crystal.lattice, settings, pseudos)


def expected_of_composition(
    counts: Mapping[str, int], settings: QE, pseudos: Mapping[str, Pseudopotential]
) -> float:
    """Core seconds of a cell of which only the atoms are known: a cube of the volume that they usually take."""
    volume = _SPACE * sum(n * COVALENT_RADIUS[ATOMIC_NUMBERS[e]] ** 3 for e, n in counts.items())
    return _expected(counts, volume ** (1 / 3) * np.eye(3), settings, pseudos)


def expected_core_hours(settings: QE, cells: Iterable[Mapping[str, int]]) -> float:
    """Core hours of the stage before there are candidates, its budget being the limit.

    cells: atoms by element of each composition. Of candidates that are named, only their number is known: each
    counts as the mean of the compositions. Raises UserError as ``pseudopotentials_of`` does.
    """
    atoms = list(cells)
    pseudos = pseudopotentials_of(settings, (element for counts in atoms for element in counts))
    costs = [expected_of_composition(counts, settings, pseudos) / 3_600 for counts in atoms]
    named = named_candidates(settings)
    each = settings.top_k if named is None else len(named) / max(1, len(costs))
    hours = each * sum(costs)
    return hours if settings.budget_core_hours is None else min(hours, settings.budget_core_hours)


def _expected(
    counts: Mapping[str, int], lattice: np.ndarray, settings: QE, pseudos: Mapping[str, Pseudopotential]
) -> float:
    used = method(settings, [pseudos[element] for element in counts])
    electrons = {e: p if (p := pseudos[e].electrons) > 0 else _UNKNOWN_ELECTRONS for e in counts}
    return expected_core_seconds(
        atoms=sum(counts.values()),
        electrons=sum(n * electrons[e] for e, n in counts.items()),
        volume=float(abs(np.linalg.det(lattice))),
        kpoints=math.prod(kpoint_grid(lattice, used.kspacing)),
        ecutwfc=used.ecutwfc,
        spin=polarised(settings, counts),
        calculation=settings.calculation,
    )
