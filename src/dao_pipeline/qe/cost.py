"""Core hours to expect of a calculation, before it is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from dao_pipeline.config import QE
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.qe.inputs import Method, elements_of, kpoint_grid, polarised
from dao_pipeline.qe.output import BOHR
from dao_pipeline.qe.pseudopotentials import Pseudopotential

Calculation = Literal["single_point", "relax", "vc-relax"]

ITERATIONS: Mapping[str, int] = {"single_point": 10, "relax": 90, "vc-relax": 130}
"""Iterations of self-consistency in all: about 10 for the first geometry and 7 for each further one."""

_START = 0.3
"""Seconds: start of pw.x and its tables."""
_WAVES, _PAIRS = 5e-8, 1e-10
"""Seconds per k-point and iteration and (plane wave x band), and (plane wave x band^2)."""


def expected_core_seconds(
    *, electrons: float, volume: float, kpoints: int, ecutwfc: float, spin: bool, calculation: Calculation
) -> float:
    """Core seconds of a calculation.

    electrons: of valence, in the cell. volume: angstrom^3. kpoints: of the whole grid, of which pw.x computes half
    where there is no symmetry but time reversal, as in most candidates. ecutwfc: Ry.
    """
    waves = volume / BOHR**3 * ecutwfc**1.5 / (6 * math.pi**2)
    bands = 1.2 * electrons / 2 + 4  # pw.x adds a fifth for smeared occupations, at least four
    points = math.ceil((kpoints + 1) / 2) * (2 if spin else 1)
    return _START + ITERATIONS[calculation] * points * waves * bands * (_WAVES + _PAIRS * bands)


def expected_of(crystal: Crystal, settings: QE, used: Method, pseudos: Mapping[str, Pseudopotential]) -> float:
    """Core seconds of a candidate with the settings of a campaign."""
    elements = elements_of(crystal)
    per_atom = np.array([pseudos[e].electrons for e in elements])
    numbers = list(dict.fromkeys(int(z) for z in crystal.atomic_numbers))
    counts = np.array([(crystal.atomic_numbers == z).sum() for z in numbers])
    return expected_core_seconds(
        electrons=float((np.where(np.isfinite(per_atom), per_atom, 8.0) * counts).sum()),
        volume=crystal.volume,
        kpoints=math.prod(kpoint_grid(crystal.lattice, used.kspacing)),
        ecutwfc=used.ecutwfc,
        spin=polarised(settings, elements),
        calculation=settings.calculation,
    )
