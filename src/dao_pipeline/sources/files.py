"""Crystals from files: Parquet (ours, or the public layout) and CSV with a ``cif`` column.

Whatever cannot be written as a row of the crystal table is rejected here, with a reason; whether a crystal
is plausible is judged by ``crysdb.build``.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.crystals.flat import FlatCrystals, formulas, list_lengths, list_values, structure_columns
from dao_pipeline.crystals.schema import COLUMNS, CRYSTAL
from dao_pipeline.crystals.table import read_table
from dao_pipeline.errors import UserError
from dao_pipeline.parallel import parallel_map
from dao_pipeline.sources.cif import Parsed, parse_cif

ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "material_id"),
    "source": ("source",),
    "spacegroup": ("spacegroup", "spacegroup.number", "spacegroup_number"),
    "formation_energy": ("formation_energy", "formation_energy_per_atom"),
    "e_above_hull": ("e_above_hull", "energy_above_hull"),
    "energy_method": ("energy_method",),
    "split": ("split",),
    "precursor_of": ("precursor_of",),
}
"""Names under which files carry a column of the crystal table; the first one present is taken."""

STRUCTURE = ("atomic_numbers", "frac_coords", "lattice")
"""Columns without which a Parquet file holds no crystals."""

CSV_SUFFIXES = {".csv", ".tsv", ".txt"}
_ROWS_AT_ONCE = 20_000
_IN_PROCESS = 1_500
"""Fewer CIFs than this are parsed here: starting processes costs seconds, a CIF some milliseconds."""


@dataclass
class Imported:
    """A crystal table, the rows that did not become one, and how many rows were looked at."""

    table: pa.Table
    rejected: list[dict[str, str]] = field(default_factory=list)
    examined: int = 0


def read_crystals(
    path: Path, *, energy_method: str | None = None, limit: int | None = None, processes: int = 1
) -> Imported:
    """Read a file of crystals; ``limit`` stops after the first so many usable ones.

    Raises UserError for files that are missing, unreadable, empty or of another kind.
    """
    if path.suffix.lower() in CSV_SUFFIXES:
        imported = _read_csv(path, energy_method, limit, processes)
    else:
        imported = _cut(from_columns(read_table(path), path.stem, energy_method, str(path)), limit)
    if imported.examined == 0:
        raise UserError(f"{path}: no crystals in this file. Name a file with at least one row.")
    return imported


def from_columns(
    table: pa.Table, source: str, energy_method: str | None, origin: str, first_row: int = 0
) -> Imported:
    """A table in any of the known layouts as a crystal table.

    ``source`` and ``energy_method`` fill rows that do not name their own. Ids that are missing become
    ``row:<number in the file>``. Energies that are not finite become null.

    Raises UserError when a structure column is missing or of a type that cannot hold it.
    """
    missing = [name for name in STRUCTURE if name not in table.column_names]
    if missing:
        raise UserError(
            f"{origin}: columns {', '.join(missing)} are missing. A Parquet file of crystals has "
            "atomic_numbers, frac_coords and lattice; a CSV file has cif."
        )
    n = table.num_rows
    ids = _ids(table, first_row, origin)
    lists = {name: _numbers(table[name], name, origin) for name in STRUCTURE}
    counts, coords, nine = (list_lengths(lists[name]) for name in STRUCTURE)
    numbers = list_values(lists["atomic_numbers"])
    strange = ~((numbers >= 1) & (numbers <= len(SYMBOLS) - 1) & (numbers == np.rint(numbers)))  # NaN too
    row_of_atom = np.repeat(np.arange(n), counts)

    reason, detail = np.full(n, "", dtype=object), np.full(n, "", dtype=object)

    def reject(rows: np.ndarray, why: str, what: Any) -> None:
        for row in rows[reason[rows] == ""]:
            reason[row], detail[row] = why, what(row)

    null = np.zeros(n, dtype=bool)
    for column in lists.values():
        null |= column.is_null().to_numpy()
    reject(np.flatnonzero(null), "missing_value", lambda i: "structure columns are null")
    reject(np.flatnonzero(counts == 0), "no_atoms", lambda i: "the cell is empty")
    reject(
        np.flatnonzero(coords != 3 * counts),
        "length_mismatch",
        lambda i: f"{coords[i]} coordinates for {counts[i]} atoms",
    )
    reject(np.flatnonzero(nine != 9), "length_mismatch", lambda i: f"lattice has {nine[i]} numbers, not 9")
    first_strange = dict(zip(row_of_atom[strange][::-1], numbers[strange][::-1], strict=True))
    reject(
        np.unique(row_of_atom[strange]),
        "unknown_element",
        lambda i: f"atomic number {first_strange[i]:g} is no element",
    )

    keep = reason == ""
    flat = FlatCrystals(
        numbers=numbers[np.repeat(keep, counts)].astype(np.int64),
        frac=list_values(lists["frac_coords"])[np.repeat(keep, coords)].astype(np.float64).reshape(-1, 3),
        lattice=list_values(lists["lattice"])[np.repeat(keep, nine)].astype(np.float64).reshape(-1, 3, 3),
        counts=counts[keep],
    )
    columns = _facts(table, ids, source, energy_method, origin)
    kept = pa.table(columns).filter(pa.array(keep))
    structure = structure_columns(flat, formulas(flat))
    names = [*CRYSTAL, *(name for name in columns if name not in CRYSTAL)]
    return Imported(
        pa.table({name: structure.get(name, kept[name] if name in columns else None) for name in names}),
        [
            {"id": ids[i], "stage": "download", "reason": reason[i], "detail": detail[i]}
            for i in np.flatnonzero(~keep)
        ],
        n,
    )


def _ids(table: pa.Table, first_row: int, origin: str) -> list[str]:
    name = next((n for n in ALIASES["id"] if n in table.column_names), None)
    given = _text(table[name], name, origin).to_pylist() if name else [None] * table.num_rows
    return [value or f"row:{first_row + i}" for i, value in enumerate(given)]


def _numbers(column: pa.ChunkedArray, name: str, origin: str) -> pa.ChunkedArray:
    """A structure column as list<float64>; a list of triples is flattened."""
    kind = column.type
    if _is_list(kind) and _is_list(kind.value_type):
        column = pa.chunked_array([_flatten_once(chunk) for chunk in column.chunks], pa.list_(pa.float64()))
    try:
        if not _is_list(column.type):
            raise pa.ArrowInvalid("no list")
        return column.cast(pa.list_(pa.float64()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise UserError(f"{origin}: column {name} is {kind}; it must hold lists of numbers.") from None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _flatten_once(array: pa.Array) -> pa.Array:
    """list<list<x>> as list<x>, keeping nulls."""
    outer = array.cast(pa.list_(pa.list_(pa.float64())))
    inner_ends = np.concatenate([[0], np.cumsum(list_lengths(pa.chunked_array([outer.flatten()])))])
    starts = np.concatenate([[0], np.cumsum(list_lengths(pa.chunked_array([outer])))])
    offsets = pa.array(inner_ends[starts], pa.int32())
    return pa.ListArray.from_arrays(offsets, outer.flatten().flatten(), mask=outer.is_null())


def _facts(
    table: pa.Table, ids: list[str], source: str, energy_method: str | None, origin: str
) -> dict[str, pa.Array]:
    """Everything but the structure, with the types of the schema."""
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    for name, aliases in ALIASES.items():
        present = next((alias for alias in aliases if alias in table.column_names), None)
        if name == "id" or (present is None and name == "precursor_of"):
            continue
        wanted = COLUMNS[name].type
        if present is None:
            columns[name] = pa.nulls(table.num_rows, wanted)
        elif pa.types.is_string(wanted):
            columns[name] = _text(table[present], present, origin)
        else:
            columns[name] = _finite(table[present], present, origin).cast(wanted)
    columns["source"] = pc.fill_null(columns["source"], source)
    has_energy = pc.or_(pc.is_valid(columns["formation_energy"]), pc.is_valid(columns["e_above_hull"]))
    method = pc.fill_null(columns["energy_method"], energy_method) if energy_method else columns["energy_method"]
    columns["energy_method"] = pc.if_else(has_energy, method, pa.scalar(None, pa.string()))
    return columns


def _text(column: pa.ChunkedArray, name: str, origin: str) -> pa.ChunkedArray:
    """Strings, with empty ones as null."""
    try:
        text = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"{origin}: column {name} is {column.type}; it must hold text.") from None
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _finite(column: pa.ChunkedArray, name: str, origin: str) -> pa.ChunkedArray:
    """Numbers, null where not finite; a space group outside 1 to 230 is null as well."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = pa.chunked_array([pa.array([_number(text) for text in column.to_pylist()], pa.float64())])
    else:
        try:
            values = column.cast(pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(f"{origin}: column {name} is {column.type}; it must hold numbers.") from None
    usable = pc.fill_null(pc.is_finite(values), False)
    if name in ALIASES["spacegroup"]:
        in_range = pc.and_(pc.greater_equal(values, 1), pc.less_equal(values, 230))
        usable = pc.and_(usable, pc.fill_null(pc.and_(in_range, pc.equal(values, pc.floor(values))), False))
    return pc.if_else(usable, values, pa.scalar(None, pa.float64()))


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _cut(imported: Imported, limit: int | None) -> Imported:
    if limit is None or imported.table.num_rows <= limit:
        return imported
    return Imported(imported.table.slice(0, limit), imported.rejected, imported.examined)


# --- CSV ---------------------------------------------------------------------------------------------


def csv_rows(path: Path) -> Iterator[dict[str, str | None]]:
    """Rows of a CSV file as written, wrong bytes replaced; ragged rows have None in what they lack.

    Raises UserError when the file is no CSV text or has no ``cif`` column.
    """
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        if "\0" in stream.read(4096):
            raise UserError(f"{path}: binary data, no CSV text. Save it as CSV in UTF-8.")
        stream.seek(0)
        rows = csv.DictReader(stream, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            names = rows.fieldnames or []
            if "cif" not in names:
                shown = ", ".join(str(name)[:30] for name in names[:10]) or "nothing"
                raise UserError(f"{path}: no column cif in the CSV header (found: {shown}). Add it.")
            yield from rows
        except csv.Error as error:
            raise UserError(f"{path}: line {rows.line_num}: not valid CSV ({error}). Mend the file.") from None


def _read_csv(path: Path, energy_method: str | None, limit: int | None, processes: int) -> Imported:
    if not path.exists():
        raise UserError(f"{path}: no such file. Correct data.path.")
    tables: list[pa.Table] = []
    result = Imported(pa.table({}))
    rows = csv_rows(path)
    usable = 0
    while limit is None or usable < limit:
        # with a limit, look at little more than what is still wanted
        size = _ROWS_AT_ONCE if limit is None else min(_ROWS_AT_ONCE, max(100, limit - usable))
        batch = list(islice(rows, size))
        if not batch and tables:
            break
        workers = processes if len(batch) >= _IN_PROCESS else 1
        parsed = parallel_map(parse_cif, [row.get("cif") for row in batch], workers)
        part = _from_parsed(batch, parsed, path, energy_method, result.examined)
        tables.append(part.table)
        result.rejected += part.rejected
        result.examined += len(batch)
        usable += part.table.num_rows
    result.table = pa.concat_tables(tables)
    return _cut(result, limit)


def _from_parsed(
    rows: Sequence[dict[str, str | None]],
    parsed: Sequence[Parsed],
    path: Path,
    energy_method: str | None,
    first_row: int,
) -> Imported:
    """Rows whose CIF was parsed as a crystal table, in order; the others with the parser's reason."""
    good = [i for i, result in enumerate(parsed) if not result.reason]
    names = [alias for aliases in ALIASES.values() for alias in aliases if rows and alias in rows[0]]
    columns: dict[str, Any] = {name: pa.array([rows[i].get(name) for i in good], pa.string()) for name in names}
    for name in STRUCTURE:
        columns[name] = pa.array([getattr(parsed[i], name) for i in good], pa.list_(pa.float64()))
    # ids first: a missing one is named after its row in the file, whatever was rejected before it
    id_name = next((n for n in ALIASES["id"] if n in names), "id")
    ids = [row.get(id_name) or f"row:{first_row + i}" for i, row in enumerate(rows)]
    columns["id"] = pa.array([ids[i] for i in good], pa.string())
    imported = from_columns(pa.table(columns), path.stem, energy_method, str(path))
    imported.rejected += [
        {"id": ids[i], "stage": "download", "reason": result.reason, "detail": result.detail}
        for i, result in enumerate(parsed)
        if result.reason
    ]
    return imported
