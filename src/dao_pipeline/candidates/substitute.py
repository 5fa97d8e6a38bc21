"""Known compounds with elements replaced by others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import prod
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet as pq

from dao_pipeline.candidates.chemistry import neutral
from dao_pipeline.candidates.formula_files import Line, read_formulas
from dao_pipeline.config import Substitutions, expand_path
from dao_pipeline.crystals.element_groups import elements_of
from dao_pipeline.crystals.formula import formula_text, parse_formula
from dao_pipeline.errors import UserError

_FORMULAS = (".txt", ".tsv")
"""Files of formulas whatever is in them; CSV and Parquet may hold either."""


_MOST_COMBINATIONS = 1_000_000


class Substituted(NamedTuple):
    """One compound after replacement.

    units: formula units in the cell, if the compound says them. how: ``SrTiO3 (Ti -> Zr)``. reason: why it is left
    out, or None.
    """

    counts: dict[str, int]
    units: int | None
    how: str
    reason: str | None


def substituted(settings: Substitutions) -> Iterator[Substituted]:
    """All combinations of replacements in all compounds, those that change nothing left out.

    Raises UserError for files that cannot be read.
    """
    candidates: dict[str, tuple[str, ...]] = {}
    for names, others in settings.replace.items():
        new = [symbol for name in others for symbol in elements_of(name)]
        for symbol in elements_of(names):
            candidates[symbol] = tuple(dict.fromkeys((*candidates.get(symbol, ()), *new)))
    combinations = 0
    for line in _compounds(settings):
        known = formula_text(line.counts)
        options = [tuple(dict.fromkeys((s, *candidates.get(s, ())))) for s in line.counts]
        combinations += prod(map(len, options))
        if combinations > _MOST_COMBINATIONS:
            raise UserError(
                f"generate.substitutions.replace: {known} brings them above {_MOST_COMBINATIONS:,} combinations; "
                "replace fewer elements, or by fewer."
            )
        for choice in product(*options):
            changed = [f"{old} -> {new}" for old, new in zip(line.counts, choice, strict=True) if old != new]
            if not changed:
                continue
            counts: dict[str, int] = {}
            for symbol, number in zip(choice, line.counts.values(), strict=True):
                counts[symbol] = counts.get(symbol, 0) + number
            reason = None
            if len(counts) < len(line.counts):
                reason = "elements_become_one"
            elif settings.charge_neutral and not neutral(counts, settings.oxidation_states):
                reason = "not_neutral"
            yield Substituted(counts, line.units, f"{known} ({', '.join(changed)})", reason)


def _compounds(settings: Substitutions) -> Iterator[Line]:
    for i, formula in enumerate(settings.of):
        yield Line(parse_formula(formula), None, f"of[{i}]")
    if settings.path is None:
        return
    path = expand_path(settings.path)
    if path.suffix.lower() in _FORMULAS or not path.exists() or _has_formulas(path):
        yield from read_formulas(path)
        return
    from dao_pipeline.sources.files import read_crystals

    table = read_crystals(path).table
    for formula, atoms in zip(table["formula"].to_pylist(), table["num_atoms"].to_pylist(), strict=True):
        counts = parse_formula(formula)
        yield Line(counts, atoms // sum(counts.values()), path.name)


def _has_formulas(path: Path) -> bool:
    """Whether a table has a column of formulas, so that no crystal need be parsed."""
    if path.suffix.lower() == ".parquet" and path.is_file():
        return "formula" in pq.read_schema(path).names
    if path.suffix.lower() == ".csv" and path.is_file():
        with path.open(encoding="utf-8-sig", errors="replace") as stream:
            names = [name.strip() for name in stream.readline(10_000).split(",")]
        return "formula" in names and "cif" not in names
    return False
