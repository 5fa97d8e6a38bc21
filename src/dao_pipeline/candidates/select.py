"""Which crystals of a table are meant: by id, composition, chemical system, rank or any condition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from dao_pipeline.config import roles
from dao_pipeline.crystals.formula import parse_formula, reduced
from dao_pipeline.crystals.table import iter_tables, read_about, require_crystals, table_files
from dao_pipeline.crystals.where import where
from dao_pipeline.errors import UserError

_MOST = 200_000
"""Crystals of a selection, which is held in memory."""


@dataclass(frozen=True)
class Selection:
    """Crystals that fulfil every condition that is given.

    ids: names of crystals. compositions: as they were asked for, or reduced formulas with all cells of theirs.
    systems: elements, groups or ``*``, as in ``generate.systems.of``. top: the best so many of each composition.
    condition: of the columns, see ``where``.
    """

    ids: tuple[str, ...] = ()
    compositions: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    top: int | None = None
    condition: str | None = None


def candidates_of(path: Path) -> Path:
    """The screened candidates of a campaign's folder; any other path is a table itself.

    Raises UserError for a folder whose campaign has not been screened.
    """
    if path.is_dir() and (path / "config.yaml").is_file():
        screened = path / "candidates" / "screened.parquet"
        if not screened.is_file():
            raise UserError(f"{path}: its candidates have not been screened yet. Run screen_candidates first.")
        return screened
    return path


def select(path: Path, chosen: Selection) -> pa.Table:
    """The rows of a table of crystals that are meant, without those that are no crystals.

    In order of the compositions in the table, then of rank. Row groups without any such row are not read, if their
    statistics say so.

    Raises UserError where nothing is selected, or more than 200,000 crystals, and for unknown ids.
    """
    read_about(path)
    require_crystals(path)
    files = ds.dataset([str(file) for file in table_files(path)], format="parquet")
    schema = files.schema
    expression = _expression(path, chosen, schema)
    if (number := files.count_rows(filter=expression)) > _MOST:
        raise UserError(f"{path}: {number:,} crystals are selected, more than {_MOST:,}; narrow it down.")
    table = files.to_table(filter=expression)
    if lost := set(chosen.ids) - set(table["id"].to_pylist()):
        some = ", ".join(sorted(lost)[:5])
        raise UserError(f"{path}: no crystal with the id {some} that fulfils all conditions; correct them.")
    if not table.num_rows:
        raise UserError(f"{path}: no crystal is selected; widen the conditions.")
    if not {"composition", "rank"} <= set(schema.names):
        return table
    names = table["composition"].to_pylist()
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    ranks = pc.fill_null(table["rank"], 2**31 - 1).to_pylist()
    order = sorted(range(len(names)), key=lambda i: (first[names[i]], ranks[i]))
    return table.take(pa.array(order))


def _expression(path: Path, chosen: Selection, schema: pa.Schema) -> pc.Expression:
    found = pc.field("lattice").is_valid()
    if chosen.ids:
        found &= pc.field("id").isin(list(chosen.ids))
    if chosen.compositions:
        found &= _any(_composition(name) for name in chosen.compositions)
    if chosen.systems:
        found &= pc.field("formula").isin(_of_systems(path, chosen.systems))
    if chosen.top is not None:
        if "rank" not in schema.names:
            raise UserError(f"{path}: --top {chosen.top}: these crystals have no rank; leave it out.")
        found &= pc.field("rank") <= chosen.top
    if chosen.condition is not None:
        found &= where(chosen.condition, schema)
    return found


def _any(parts: Iterable[pc.Expression]) -> pc.Expression:
    first, *others = parts
    for other in others:
        first = first | other
    return first


def _composition(name: str) -> pc.Expression:
    try:
        formula = reduced(counts := parse_formula(name))
    except ValueError as error:
        raise UserError(f"--composition {name[:60]}: {error}.") from None
    same = pc.field("formula") == formula
    if sum(parse_formula(formula).values()) < sum(counts.values()):
        same &= pc.field("num_atoms") == sum(counts.values())
    return same


def _of_systems(path: Path, systems: Iterable[str]) -> pa.Array:
    """Reduced formulas in the table that are of one of the chemical systems."""
    try:
        wanted = [[set(place) for place in roles(system)] for system in systems]
    except ValueError as error:
        raise UserError(f"--system: {error}.") from None
    formulas: set[str] = set()
    for piece in iter_tables(path, rows=100_000, columns=["formula"]):
        formulas.update(pc.unique(piece["formula"]).to_pylist())
    return pa.array(sorted(f for f in formulas if any(_is_of(f, places) for places in wanted)), pa.string())


def _is_of(formula: str, places: list[set[str]]) -> bool:
    try:
        elements = list(parse_formula(formula))
    except ValueError:  # a foreign table's
        return False
    return len(elements) == len(places) and any(
        all(symbol in place for symbol, place in zip(order, places, strict=True))
        for order in permutations(elements)
    )
