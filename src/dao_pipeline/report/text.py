"""Numbers, formulas and reasons as people read them. Everything here is escaped where it becomes markup."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

from markupsafe import Markup, escape

NONE = "–"
"""Shown where there is no value."""


def present(value: Any) -> bool:
    """Whether a cell of a frame holds a value (neither None nor NaN)."""
    return value is not None and value == value


def number(value: Any, digits: int = 3) -> str:
    """A fixed number of decimals, with a true minus sign; a dash for no value."""
    if not present(value):
        return NONE
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    shown = f"{value:,.{digits}f}"
    if float(shown.replace(",", "")) == 0:
        shown = shown.lstrip("-")
    return shown.replace("-", "−")


def short(value: Any) -> str:
    """Three significant digits, for axes and small values; whole numbers in full."""
    if not present(value):
        return NONE
    if value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−").replace("e+0", "e").replace("e−0", "e−")


def count(value: Any) -> str:
    """A whole number with thousands separated."""
    return f"{int(value):,}" if present(value) else NONE


def percent(value: Any, digits: int = 0) -> str:
    """A fraction as a percentage."""
    return f"{number(100 * value, digits)} %" if present(value) else NONE


def duration(seconds: Any) -> str:
    """Seconds as people say them: 4.2 s, 3 min 20 s, 5 h 2 min."""
    if not present(seconds):
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def megabytes(value: Any) -> str:
    """Memory in MB or GB (powers of ten, as Snakemake's benchmark files count)."""
    if not present(value):
        return NONE
    return f"{value:,.0f} MB" if value < 1000 else f"{value / 1000:.1f} GB"


def plural(n: int, noun: str, many: str | None = None) -> str:
    """``1 crystal``, ``2 crystals``, ``2,000 crystals``."""
    return f"{n:,} {noun if n == 1 else many or noun + 's'}"


def formula(text: Any) -> Markup:
    """A formula with its digits as subscripts; anything else is shown as the text it is."""
    if not present(text):
        return Markup(NONE)
    if not re.fullmatch(r"(?:[A-Z][a-z]?\d*)+", str(text)):
        return escape(str(text))
    return Markup("").join(
        Markup("<sub>{}</sub>").format(part) if part.isdigit() else escape(part)
        for part in re.split(r"(\d+)", str(text))
        if part
    )


_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@cache
def _symbol(group: int) -> str:
    import moyopy

    symbol = moyopy.SpaceGroupType(group).hm_short.replace(" ", "")
    return re.sub(r"_(\d)", lambda match: match.group(1).translate(_SUBSCRIPTS), symbol)


def spacegroup(group: Any) -> str:
    """Hermann-Mauguin symbol and number, such as ``Pm-3m (221)``."""
    if not present(group) or not 1 <= int(group) <= 230:
        return NONE
    return f"{_symbol(int(group))} ({int(group)})"


def reason(text: Any) -> str:
    """A reason as the tables write it (``too_close``) in words."""
    return str(text).replace("_", " ") if present(text) and str(text) else "no reason given"
