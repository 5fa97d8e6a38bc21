"""One CIF text to arrays, with a reason instead of an exception; runs in worker processes."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from dataclasses import dataclass, field

from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.sources.plain_cif import parse_plain

MAX_CHARACTERS = 2_000_000
"""Longer texts are no crystal structure; reading them would hold up everything else."""

_CELL = re.compile(r"^(_cell_(length|angle)_\w+)\s+(\S+)", re.MULTILINE)
_FORMULA_SUM = re.compile(r"^_chemical_formula_sum\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+))", re.MULTILINE)


@dataclass
class Parsed:
    """A structure as plain lists, or the reason why there is none."""

    atomic_numbers: list[int] = field(default_factory=list)
    frac_coords: list[float] = field(default_factory=list)
    lattice: list[float] = field(default_factory=list)
    reason: str = ""
    detail: str = ""


def parse_cif(text: str | None) -> Parsed:
    """Parse the first structure of a CIF.

    Reasons: ``no_cif``, ``bad_cif`` (with what is wrong), ``disordered``, ``unknown_element``,
    ``formula_mismatch`` (the sites do not add up to ``_chemical_formula_sum``, as in a truncated text).
    """
    if not text or not text.strip():
        return Parsed(reason="no_cif", detail="the field is empty")
    if len(text) > MAX_CHARACTERS:
        return Parsed(reason="bad_cif", detail=f"{len(text)} characters; at most {MAX_CHARACTERS} are read")
    if problem := _cell_problem(text):
        return Parsed(reason="bad_cif", detail=problem)
    if plain := parse_plain(text):
        numbers, frac, lattice = plain
        counts = Counter(SYMBOLS[number] for number in numbers)
        if mismatch := _formula_mismatch(text, {symbol: float(count) for symbol, count in counts.items()}):
            return Parsed(reason="formula_mismatch", detail=mismatch)
        return Parsed(numbers, frac.ravel().tolist(), lattice.ravel().tolist())
    return parse_any_cif(text)


def parse_any_cif(text: str) -> Parsed:
    """Parse with pymatgen: symmetry, disorder, several blocks and so on."""
    from pymatgen.io.cif import CifParser

    from dao_pipeline.crystals.convert import NotACrystal, from_structure

    said: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser = CifParser.from_str(text)
            said = parser.warnings
            structure = parser.parse_structures(primitive=False, on_error="ignore")[0]
        crystal = from_structure(structure, id="")
    except NotACrystal as error:
        return Parsed(reason=error.reason, detail=error.detail)
    except Exception as error:  # the parser fails in many ways on damaged text; none may stop the others
        problem = said[-1] if said else f"{type(error).__name__}: {error}"
        return Parsed(reason="bad_cif", detail=" ".join(problem.split())[:200])
    if mismatch := _formula_mismatch(text, structure.composition.get_el_amt_dict()):
        return Parsed(reason="formula_mismatch", detail=mismatch)
    return Parsed(
        crystal.atomic_numbers.tolist(), crystal.frac_coords.ravel().tolist(), crystal.lattice.ravel().tolist()
    )


def _cell_problem(text: str) -> str:
    """What is wrong with the cell that the CIF states; the parser would make one of negative lengths too."""
    for key, kind, value in _CELL.findall(text):
        try:
            number = float(value.partition("(")[0])
        except ValueError:
            return f"{key} is {value[:30]}"
        limit = 180.0 if kind == "angle" else math.inf
        if not 0 < number < limit:
            return f"{key} is {value[:30]}"
    return ""


def _formula_mismatch(text: str, found: dict[str, float]) -> str:
    """Why the atoms found are no multiple of the formula that the CIF states; empty if they are."""
    match = _FORMULA_SUM.search(text)
    stated = _element_counts(next(g for g in match.groups() if g is not None)) if match else {}
    if not stated:
        return ""
    ratios = {found.get(symbol, 0.0) / count for symbol, count in stated.items()}
    if set(stated) == set(found) and all(math.isclose(r, min(ratios), rel_tol=1e-3) for r in ratios):
        return ""
    return f"the CIF states {_formula(stated)}, its sites are {_formula(found)}"


def _element_counts(formula: str) -> dict[str, float]:
    """Counts of a formula such as ``Sr1 Ti1 O3``; empty when it is not of that form."""
    counts: dict[str, float] = {}
    for word in formula.split():
        match = re.fullmatch(r"([A-Z][a-z]?)(\d*\.?\d*)", word)
        if not match:
            return {}
        amount = float(match.group(2) or 1)
        symbol = {"D": "H", "T": "H"}.get(match.group(1), match.group(1))
        if amount > 0:
            counts[symbol] = counts.get(symbol, 0.0) + amount
    return counts


def _formula(counts: dict[str, float]) -> str:
    return " ".join(f"{symbol}{count:g}" for symbol, count in sorted(counts.items()))
