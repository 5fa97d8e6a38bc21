"""Files of formulas: text with one per line, or a table with a column ``formula``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dao_pipeline.config import MAX_UNITS
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.errors import UserError

_MOST_PROBLEMS = 20
_MOST_CHARACTERS = 1_000
"""Of a line; a longer one is no formula, and is not read on."""


class Line(NamedTuple):
    """One formula of a file: element counts, formula units if given, and where it stands (``row 3``)."""

    counts: dict[str, int]
    units: int | None
    place: str


def read_formulas(path: Path) -> list[Line]:
    """All formulas of a file, in order.

    ``.parquet``: columns formula and, if wanted, formula_units; a table of crystals says the units by the size of
    its cells. ``.csv`` and ``.tsv``: the same columns. Anything else is text: a formula per line, what follows
    ``#`` does not count.

    Raises UserError for files that are missing, unreadable or without any formula, and with up to 20 problems
    (file, row, value, remedy) for formulas that are none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; correct the path.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            rows = _parquet(path)
        elif suffix in (".csv", ".tsv"):
            rows = _csv(path, "\t" if suffix == ".tsv" else ",")
        else:
            rows = _text(path)
        found, problems = _parsed(path, rows)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as formulas ({str(error)[:200]}); correct the file.") from error
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        listed = problems[:_MOST_PROBLEMS] + ([f"{path}: and {more} more."] if more > 0 else [])
        raise UserError("\n".join(listed))
    if not found:
        raise UserError(f"{path}: no formula in it; write one per line.")
    return found


def _parsed(path: Path, rows: Iterable[tuple[str, Any, Any]]) -> tuple[list[Line], list[str]]:
    found: list[Line] = []
    problems: list[str] = []
    for place, formula, units in rows:
        try:
            counts = parse_formula(_text_of(formula))
            found.append(Line(counts, _units(units, counts), place))
        except ValueError as error:
            problems.append(f"{path}: {place}: {error}.")
    return found, problems


def _text_of(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("no formula; write one, or remove the row")
    return value.strip()


class _CellAtoms(int):
    """Atoms of a crystal's cell, which say how many formula units it has."""


def _units(value: Any, counts: dict[str, int]) -> int | None:
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:
        return None
    if isinstance(value, _CellAtoms):
        whole, rest = divmod(value, sum(counts.values()))
        if rest:
            raise ValueError(
                f"num_atoms = {int(value)} is no multiple of the formula's {sum(counts.values())} atoms"
            )
        return max(1, whole)
    try:
        number = float(value)
        if number == int(number) and 1 <= number <= MAX_UNITS:
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"formula_units = {str(value)[:40]!r}: give a whole number from 1 to {MAX_UNITS}")


def _text(path: Path) -> Iterator[tuple[str, str, None]]:
    with path.open(encoding="utf-8-sig", newline=None) as stream:
        number = 0
        while line := stream.readline(_MOST_CHARACTERS):
            number += 1
            formula = line.partition("#")[0].strip()
            if formula:
                yield f"line {number}", formula, None
            while line and not line.endswith("\n") and len(line) == _MOST_CHARACTERS:
                line = stream.readline(_MOST_CHARACTERS)


def _csv(path: Path, delimiter: str) -> Iterator[tuple[str, str | None, str | None]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter)
        _require_formula(path, reader.fieldnames or [])
        for row in reader:
            yield f"row {reader.line_num}", row["formula"], row.get("formula_units")


def _parquet(path: Path) -> Iterator[tuple[str, Any, Any]]:
    stored = pq.ParquetFile(path)
    names = stored.schema_arrow.names
    _require_formula(path, names)
    units = "formula_units" if "formula_units" in names else None
    cells = "num_atoms" if units is None and {"num_atoms", "lattice"} <= set(names) else None
    wanted = [name for name in ("formula", units, cells) if name]
    number = 0
    for batch in stored.iter_batches(columns=wanted):
        values = [column.to_pylist() for column in batch.select(wanted).columns]
        for i, formula in enumerate(values[0]):
            number += 1
            given = values[1][i] if len(values) > 1 else None
            yield f"row {number}", formula, _CellAtoms(given) if cells and given is not None else given


def _require_formula(path: Path, names: Iterable[str]) -> None:
    if "formula" not in (listed := list(names)):
        shown = ", ".join(name[:40] for name in listed[:10] if name) or "none"
        raise UserError(f"{path}: no column formula (columns: {shown}); name one so.")
