"""Can the oxidation states of a composition add up to zero?

Each element has one of its common oxidation states (those of the ICSD as pymatgen lists them, else its common
ones), except that one metal may have two neighbouring ones, as iron in Fe3O4. Only sums are looked at, not which
atom has which state. Alloys have no oxidation states to speak of: there is no answer for compositions of metals
alone, nor with elements that have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.screening.columns import set_column


def add_charge(table: pa.Table, require: bool) -> pa.Table:
    """Add charge_neutral, which depends on the composition alone; with ``require`` those with False are not valid.

    ``check_geometry`` must have been before.
    """
    neutral = [None if atoms is None else _of(atoms) for atoms in table["atomic_numbers"].to_pylist()]
    table = set_column(table, "charge_neutral", neutral)
    if not require:
        return table
    refused = np.asarray(table["valid"]) & np.array([answer is False for answer in neutral], dtype=bool)
    table = set_column(
        table, "status", pc.if_else(pa.array(refused), "not_charge_neutral", table["status"]).to_pylist()
    )
    return set_column(table, "valid", np.asarray(table["valid"]) & ~refused)


def _of(atoms: Sequence[int]) -> bool | None:
    elements, counts = np.unique(np.asarray(atoms), return_counts=True)
    if not len(elements):
        return None
    # twice the formula, so that two neighbouring states fit where it has one atom of a metal: BaBiO3
    counts = 2 * (counts // np.gcd.reduce(counts))
    return charge_neutral(tuple(elements.tolist()), tuple(counts.tolist()))


@lru_cache(maxsize=100_000)
def charge_neutral(elements: tuple[int, ...], counts: tuple[int, ...]) -> bool | None:
    """Whether ``counts`` atoms of the ``elements`` (atomic numbers) can be neutral together; None: no answer."""
    known = [_states(z) for z in elements]
    if all(metal for _, metal in known) or not all(states for states, _ in known):
        return None
    plain = {0}
    mixed: set[int] = set()  # sums in which a metal has two states already
    for (states, metal), count in zip(known, counts, strict=True):
        one = {count * state for state in states}
        two = {k * low + (count - k) * high for low, high in pairwise(states) for k in range(1, count) if metal}
        mixed = {a + b for a in mixed for b in one} | {a + b for a in plain for b in two}
        plain = {a + b for a in plain for b in one}
    return 0 in plain or 0 in mixed


@lru_cache(maxsize=200)
def _states(number: int) -> tuple[tuple[int, ...], bool]:
    """Oxidation states of an element, sorted, without zero, and whether it is a metal."""
    from pymatgen.core import Element

    element = Element.from_Z(number)
    states = element.icsd_oxidation_states or element.common_oxidation_states
    return tuple(sorted({int(state) for state in states} - {0})), bool(element.is_metal)
