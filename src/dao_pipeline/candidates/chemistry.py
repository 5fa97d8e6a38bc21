"""Which formulas are plausible: charge neutrality and the order of electronegativities, by SMACT.

Davies et al., Chem 1, 617 (2016). Oxidation states are those that SMACT counts in the ICSD of 2024. Each element
has one oxidation state in a formula, so mixed valences (Fe3O4) and intermetallics are not found: they must be
asked for by formula.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from math import gcd, prod
from typing import Literal

from dao_pipeline.config import Systems, roles
from dao_pipeline.crystals.element_groups import elements_of
from dao_pipeline.crystals.formula import by_electronegativity
from dao_pipeline.errors import UserError

Commonality = Literal["main", "high", "medium", "low"]
_CONSENSUS = 3
"""Reports of an oxidation state in the ICSD that make it count (SMACT's default)."""

_MOST_SYSTEMS = 1_000_000
"""Chemical systems of one entry at most: minutes of work."""


@cache
def oxidation_states(commonality: Commonality) -> dict[str, tuple[int, ...]]:
    """Oxidation states of each element, 0 left out; an element without any is missing."""
    from smact.utils.oxidation import ICSD24OxStatesFilter

    found = ICSD24OxStatesFilter().filter(consensus=_CONSENSUS, commonality=commonality)
    return {
        element: tuple(int(state) for state in str(states).split())
        for element, states in zip(found["element"], found["oxidation_state"], strict=True)
    }


@cache
def _electronegativity(symbol: str) -> float | None:
    from smact import Element

    value: float | None = Element(symbol).pauling_eneg
    return value


def _choices(elements: Sequence[str], commonality: Commonality, ordered: bool) -> Iterator[tuple[int, ...]]:
    """Oxidation states of elements together; with ``ordered`` those that pass the Pauling test."""
    from smact.screening import pauling_test

    known = oxidation_states(commonality)
    scale = [_electronegativity(symbol) for symbol in elements]
    for states in product(*(known.get(symbol, ()) for symbol in elements)):
        if min(states) < 0 < max(states) and (not ordered or pauling_test(states, scale)):
            yield states


def neutral(counts: Mapping[str, int], commonality: Commonality) -> bool:
    """Whether a formula is neutral in some choice of oxidation states, one per element."""
    return any(
        sum(n * state for n, state in zip(counts.values(), states, strict=True)) == 0
        for states in _choices(list(counts), commonality, ordered=False)
    )


@cache
def _neutral_ratios(states: tuple[int, ...], largest: int, atoms: int) -> tuple[tuple[int, ...], ...]:
    from smact import neutral_ratios

    return tuple(r for r in neutral_ratios(states, threshold=largest) if sum(r) <= atoms)


@cache
def _ratios(places: int, largest: int, atoms: int) -> tuple[tuple[int, ...], ...]:
    """All ratios in lowest terms."""
    every = product(range(1, largest + 1), repeat=places)
    return tuple(ratio for ratio in every if sum(ratio) <= atoms and gcd(*ratio) == 1)


def enumerate_formulas(settings: Systems, tally: Counter[str]) -> Iterator[tuple[dict[str, int], str]]:
    """Every plausible formula of the chemical systems: element counts, and the entry that asks for it.

    Formulas are reduced, with elements by rising electronegativity; systems are in order of the entries and of
    their elements, and one that several entries name is taken once. ``tally`` counts systems, and those without
    any plausible formula.

    Raises UserError for an entry of more than a million systems.
    """
    excluded = {symbol for name in settings.exclude for symbol in elements_of(name)}
    seen: set[frozenset[str]] = set()
    for entry in settings.of:
        places = [[s for s in place if s not in excluded] for place in roles(entry)]
        number = prod(len(place) for place in places)
        if number > _MOST_SYSTEMS:
            raise UserError(
                f"generate.systems.of: {entry} stands for {number:,} chemical systems, more than "
                f"{_MOST_SYSTEMS:,}; name fewer elements."
            )
        name = entry if isinstance(entry, str) else str(entry)
        for chosen in product(*places):
            system = frozenset(chosen)
            if len(system) < len(chosen) or system in seen:
                continue
            seen.add(system)
            tally["systems"] += 1
            elements = sorted(system, key=by_electronegativity)
            for ratio in _plausible(elements, settings, tally):
                yield dict(zip(elements, ratio, strict=True)), f"generate.systems: {name}"


def _plausible(elements: list[str], settings: Systems, tally: Counter[str]) -> Iterable[tuple[int, ...]]:
    limits = (settings.max_coefficient, settings.max_atoms)
    if not settings.charge_neutral:
        return _ratios(len(elements), *limits)
    known = oxidation_states(settings.oxidation_states)
    if any(symbol not in known for symbol in elements):
        tally["systems without oxidation states"] += 1
        return ()
    choices = _choices(elements, settings.oxidation_states, settings.electronegativity_order)
    found = {ratio for states in choices for ratio in _neutral_ratios(states, *limits)}
    tally["systems without plausible formula"] += not found
    return sorted(found, key=lambda ratio: (sum(ratio), ratio))
