"""Formation and hull energies from total energies, and only where all of them are of one level."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from dao_pipeline.comparison.level import Level
from dao_pipeline.crysdb.hull import Phases, energies_above_hull
from dao_pipeline.crystals.formula import parse_formula


@dataclass(frozen=True)
class Phase:
    """A computed crystal: reduced formula, total energy in eV/atom, level, and its id."""

    id: str
    formula: str
    total: float
    level: Level


@dataclass(frozen=True)
class Value:
    """An energy in eV/atom, or why there is none."""

    energy: float | None
    refused: str | None = None


def formation_energy(phase: Phase, elements: Mapping[str, Sequence[Phase]]) -> Value:
    """Formation energy, eV/atom: total energy less that of the elements, ``elements`` by symbol.

    Of an element's phases the lowest counts that is of the level of ``phase``; refused where there is none.
    """
    counts = parse_formula(phase.formula)
    atoms = sum(counts.values())
    energy = phase.total
    for symbol, count in counts.items():
        known = elements.get(symbol, ())
        if not known:
            return Value(None, f"no reference energy of {symbol}")
        usable = [p.total for p in known if not phase.level.differences(p.level)]
        if not usable:
            return Value(None, f"reference of {symbol} is of another level: {_named(phase, known[0])}")
        energy -= count / atoms * min(usable)
    return Value(energy)


def hull_energies(
    phases: Sequence[Phase],
    references: Sequence[Phase],
    elements: Mapping[str, Sequence[Phase]],
    failed: Mapping[str, str] = MappingProxyType({}),
) -> list[Value]:
    """Energy above the hull of ``references`` and the phases themselves, eV/atom, of each phase.

    failed: formulas of references, by id, that did not converge. Refused without references in the phase's
    chemical system beside the elements, and where any of them failed or is there at other levels only: a hull with
    phases left out is higher than it should be, and what lies above it seems more stable.
    """
    formed = [formation_energy(p, elements) for p in phases]
    values = []
    for phase, own in zip(phases, formed, strict=True):
        if own.energy is None:
            values.append(own)
            continue
        system = set(parse_formula(phase.formula))
        by_id: dict[str, list[Phase]] = defaultdict(list)
        for reference in references:
            if _compound_of(reference.formula, system):
                by_id[reference.id].append(reference)
        lost = [name for name, formula in failed.items() if _compound_of(formula, system)]
        if len(system) > 1 and not by_id and not lost:
            values.append(Value(None, f"no reference phases in the system {'-'.join(sorted(system))}"))
            continue
        # a reference of several systems is computed at the level of each
        usable = {name: [r for r in rows if not phase.level.differences(r.level)] for name, rows in by_id.items()}
        if absent := next((name for name in lost if not usable.get(name)), None):
            values.append(Value(None, f"reference {absent} did not converge"))
            continue
        if wrong := next((rows[0] for name, rows in by_id.items() if not usable[name]), None):
            values.append(Value(None, f"reference {wrong.id} is of another level: {_named(phase, wrong)}"))
            continue
        inside = [row for rows in usable.values() for row in rows]
        # candidates of the same system and level are phases too: one of them may be the ground state
        siblings = [
            p for p in phases if set(parse_formula(p.formula)) <= system and not phase.level.differences(p.level)
        ]
        values.append(_above(phase, [*inside, *siblings], elements))
    return values


def _compound_of(formula: str, system: set[str]) -> bool:
    elements = set(parse_formula(formula))
    return len(elements) > 1 and elements <= system


def _above(phase: Phase, around: Sequence[Phase], elements: Mapping[str, Sequence[Phase]]) -> Value:
    known = [(p.formula, formation_energy(p, elements)) for p in [phase, *around]]
    if missing := next((value for _, value in known if value.energy is None), None):
        return missing
    names = list(dict.fromkeys(name for name, _ in known))
    place = np.array([names.index(name) for name, _ in known])
    energy = np.array([value.energy for _, value in known], dtype=np.float64)
    found = energies_above_hull(names, place[:1], energy[:1], [Phases("dft", names, place, energy)])
    return Value(float(found[0]))


def _named(phase: Phase, other: Phase) -> str:
    return "; ".join(phase.level.differences(other.level)[:3])
