"""Energies above the convex hull of a set of crystals, from their formation energies.

One hull per chemical system in which something is asked for, made of the lowest phase of each composition in the
system and all its subsystems, and of the elements, whose formation energy is zero by definition.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, SYMBOLS
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.parallel import parallel_map

MAX_DIMENSION = 5
"""Elements up to which the whole hull is built. Its facets multiply with each element; with more, each composition
is decomposed by itself (linear programming), which finds the same energy."""

_SYSTEMS_AT_ONCE = 200
_WORTH_PROCESSES = 2_000


@dataclass(frozen=True)
class Phases:
    """Phases at one level of theory: distinct formulas, and the formula and formation energy (eV/atom) of each."""

    method: str
    names: Sequence[str]
    formula: np.ndarray
    energy: np.ndarray


@dataclass(frozen=True)
class System:
    """A chemical system: phases (k, elements) as mole fractions with energies (k,), and compositions (t,
    elements)."""

    elements: tuple[int, ...]
    phases: np.ndarray
    energies: np.ndarray
    asked: np.ndarray


def energies_above_hull(
    names: Sequence[str], formula: np.ndarray, energy: np.ndarray, phases: Sequence[Phases], workers: int = 1
) -> np.ndarray:
    """(m,) eV/atom: how far crystals of formulas ``names[formula]`` (m,) with energies (m,) lie above the hull.

    A crystal that is itself among the phases lies at zero or above.
    """
    ground = hull_energies(names, np.unique(formula), phases, workers)
    return np.maximum(energy - ground[formula], 0.0)  # rounding puts phases on the hull at -1e-16


def hull_energies(
    names: Sequence[str], wanted: np.ndarray, phases: Sequence[Phases], workers: int = 1
) -> np.ndarray:
    """Energy of the hull, (len(names),) eV/atom, at the compositions of ``names[wanted]``; NaN at others."""
    lowest = _lowest(phases)
    by_system: dict[tuple[int, ...], list[tuple[dict[int, float], float]]] = defaultdict(list)
    for name, value in lowest.items():
        shares = _shares(name)
        by_system[tuple(sorted(shares))].append((shares, value))
    asked: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for k in wanted.tolist():
        asked[tuple(sorted(_shares(names[k])))].append(k)
    ground = np.full(len(names), np.nan)
    order = sorted(asked)
    for start in range(0, len(order), 50 * _SYSTEMS_AT_ONCE):
        systems = order[start : start + 50 * _SYSTEMS_AT_ONCE]
        chunks = [systems[i : i + _SYSTEMS_AT_ONCE] for i in range(0, len(systems), _SYSTEMS_AT_ONCE)]
        items = [[_system(s, by_system, [names[k] for k in asked[s]]) for s in chunk] for chunk in chunks]
        found = parallel_map(ground_energies, items, workers if len(order) >= _WORTH_PROCESSES else 1)
        for chunk, results in zip(chunks, found, strict=True):
            for system, values in zip(chunk, results, strict=True):
                ground[asked[system]] = values
    return ground


def _lowest(phases: Sequence[Phases]) -> dict[str, float]:
    """Lowest energy of each formula."""
    lowest: dict[str, float] = {}
    for part in phases:
        best = np.full(len(part.names), np.inf)
        np.fmin.at(best, part.formula, part.energy)
        for k in np.flatnonzero(np.isfinite(best)).tolist():
            lowest[part.names[k]] = min(best[k], lowest.get(part.names[k], np.inf))
    return lowest


def _shares(formula: str) -> dict[int, float]:
    counts = parse_formula(formula)
    total = sum(counts.values())
    return {ATOMIC_NUMBERS[symbol]: count / total for symbol, count in counts.items()}


def _system(
    elements: tuple[int, ...],
    by_system: dict[tuple[int, ...], list[tuple[dict[int, float], float]]],
    asked: Sequence[str],
) -> System:
    subsystems = (part for size in range(1, len(elements) + 1) for part in combinations(elements, size))
    found = [entry for part in subsystems for entry in by_system.get(part, ())]
    found += [({z: 1.0}, 0.0) for z in elements]
    place = {z: i for i, z in enumerate(elements)}

    def matrix(rows: Sequence[dict[int, float]]) -> np.ndarray:
        result = np.zeros((len(rows), len(elements)))
        for i, shares in enumerate(rows):
            for z, share in shares.items():
                result[i, place[z]] = share
        return result

    energies = np.array([value for _, value in found])
    return System(elements, matrix([s for s, _ in found]), energies, matrix([_shares(name) for name in asked]))


def ground_energies(systems: Sequence[System]) -> list[np.ndarray]:
    """Energy of the hull, eV/atom, at the compositions that each system asks for."""
    return [_by_facets(s) if len(s.elements) <= MAX_DIMENSION else _by_decomposition(s) for s in systems]


def _by_facets(system: System) -> np.ndarray:
    """The hull is convex: at any composition it is the highest of the planes through its facets."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    if len(system.elements) == 1:
        return np.full(len(system.asked), system.energies.min())
    symbols = [SYMBOLS[z] for z in system.elements]
    entries = [
        PDEntry(Composition(dict(zip(symbols, shares, strict=True))), energy)
        for shares, energy in zip(system.phases.tolist(), system.energies.tolist(), strict=True)
    ]
    diagram = PhaseDiagram(entries)
    place = {id(entry): i for i, entry in enumerate(entries)}
    corners = np.array([place[id(entry)] for entry in diagram.qhull_entries])[np.array(diagram.facets)]
    planes = np.linalg.solve(system.phases[corners], system.energies[corners][:, :, None])[:, :, 0]
    return (system.asked @ planes.T).max(1)


def _by_decomposition(system: System) -> np.ndarray:
    """The mixture of phases of lowest energy, for each composition."""
    from scipy.optimize import linprog

    lowest = [
        linprog(system.energies, A_eq=system.phases.T, b_eq=shares, method="highs") for shares in system.asked
    ]
    return np.array([result.fun if result.success else np.nan for result in lowest])
