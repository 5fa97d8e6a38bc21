"""Plain chemical formulas, such as SrTiO3."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import gcd

from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, ELECTRONEGATIVITY

MAX_ATOMIC_NUMBER = 100
"""Crysformer's element table ends here (paper: 100 elements)."""

_FORMULA = re.compile(r"([A-Z][a-z]?)(\d*)")


def parse_formula(formula: str) -> dict[str, int]:
    """Element counts of a plain formula such as ``SrTiO3`` or ``Zr4Rh2O``, in order of appearance.

    Raises ValueError for brackets, fractions, unknown symbols, zero counts and elements beyond Z = 100.
    """
    if len(formula) > 200 or not re.fullmatch(r"(?:[A-Z][a-z]?[0-9]{0,3})+", formula):
        raise ValueError(
            f"{formula[:60]!r} is not a plain formula; write element symbols and whole numbers, e.g. SrTiO3"
        )
    counts: dict[str, int] = {}
    for symbol, digits in _FORMULA.findall(formula):
        number = int(digits or 1)
        if symbol not in ATOMIC_NUMBERS:
            raise ValueError(f"{formula!r}: there is no element {symbol!r}; correct the symbol")
        if ATOMIC_NUMBERS[symbol] > MAX_ATOMIC_NUMBER:
            raise ValueError(f"{formula!r}: {symbol} is beyond Z = {MAX_ATOMIC_NUMBER}, the models' last element")
        if number == 0:
            raise ValueError(f"{formula!r}: {symbol}0 has no atoms; remove the element")
        counts[symbol] = counts.get(symbol, 0) + number
    return counts


def by_electronegativity(symbol: str) -> tuple[float, str]:
    """Sorts symbols as formulas are printed: by rising electronegativity, then by name."""
    return ELECTRONEGATIVITY[ATOMIC_NUMBERS[symbol]], symbol


def formula_text(counts: Mapping[str, int]) -> str:
    """Formula of element counts, in their order: ``Sr2Ti2O6``."""
    return "".join(symbol + (str(count) if count > 1 else "") for symbol, count in counts.items())


def reduced(counts: Mapping[str, int]) -> str:
    """Reduced formula, elements by rising electronegativity as pymatgen prints them.

    Two compositions have the same string exactly when they agree after reduction.
    """
    divisor = gcd(*counts.values())
    return formula_text({symbol: counts[symbol] // divisor for symbol in sorted(counts, key=by_electronegativity)})
