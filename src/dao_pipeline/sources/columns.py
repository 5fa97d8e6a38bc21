"""Tables in any of the known layouts as crystal tables.

Whatever cannot be written as a row of the crystal table is rejected here, with a reason; whether a crystal
is plausible is judged by ``crysdb.build``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.crystals.flat import FlatCrystals, formulas, list_lengths, list_values, structure_columns
from dao_pipeline.crystals.schema import COLUMNS, CRYSTAL
from dao_pipeline.errors import UserError
from dao_pipeline.sources.imported import OPTIONAL, Imported, rejected_row

ALIASES: dict[str, tuple[str, ...]] = {
    "id": ("id", "material_id"),
    "source": ("source",),
    "spacegroup": ("spacegroup", "spacegroup.number", "spacegroup_number"),
    "formation_energy": ("formation_energy", "formation_energy_per_atom"),
    "e_above_hull": ("e_above_hull", "energy_above_hull"),
    "energy_method": ("energy_method",),
    "split": ("split",),
    "published": ("published", "publication_date", "year"),
    "precursor_of": ("precursor_of",),
}
"""Names under which files carry a column of the crystal table; the first one present is taken."""

STRUCTURE = ("atomic_numbers", "frac_coords", "lattice")
"""Columns without which a Parquet file holds no crystals."""

_MOST_ATOMS = 32_767
"""What ``num_atoms`` of the crystal table can count to."""


def names_of(columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """``ALIASES`` with the user's own names in place of the usual ones."""
    return {name: (columns[name],) if name in columns else aliases for name, aliases in ALIASES.items()}


def present(names: Mapping[str, tuple[str, ...]], available: Iterable[str]) -> dict[str, str]:
    """For each column that is available, the name under which it is."""
    there = set(available)
    return {
        name: next(alias for alias in aliases if alias in there)
        for name, aliases in names.items()
        if any(alias in there for alias in aliases)
    }


def from_columns(
    table: pa.Table,
    source: str,
    energy_method: str | Mapping[str, str] | None,
    origin: str,
    first_row: int = 0,
    columns: Mapping[str, str] | None = None,
    id_prefix: str = "",
) -> Imported:
    """A table in any of the known layouts as a crystal table.

    ``source`` and ``energy_method`` (one, or one for each source) fill rows that do not name their own. Ids that
    are missing become ``<id_prefix>row:<number in the file>``. Energies that are not finite become null.
    ``columns`` names those that the table carries under names of its own.

    Raises UserError when a structure column is missing or of a type that cannot hold it.
    """
    missing = [name for name in STRUCTURE if name not in table.column_names]
    if missing:
        raise UserError(
            f"{origin}: columns {', '.join(missing)} are missing. A Parquet file of crystals has "
            "atomic_numbers, frac_coords and lattice; a CSV file has cif."
        )
    n = table.num_rows
    found = present(names_of(columns or {}), table.column_names)
    ids = _ids(table, found.get("id"), f"{id_prefix}row:", first_row, origin)
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
    reject(
        np.flatnonzero(counts > _MOST_ATOMS), "too_large", lambda i: f"{counts[i]} atoms; at most {_MOST_ATOMS}"
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
    facts = _facts(table, found, ids, source, energy_method, origin)
    kept = pa.table(facts).filter(pa.array(keep))
    structure = structure_columns(flat, formulas(flat))
    names = [*CRYSTAL, *(name for name in facts if name not in CRYSTAL)]
    return Imported(
        pa.table({name: structure.get(name, kept[name] if name in facts else None) for name in names}),
        [rejected_row(ids[i], reason[i], detail[i]) for i in np.flatnonzero(~keep)],
        n,
    )


def _ids(table: pa.Table, name: str | None, prefix: str, first_row: int, origin: str) -> list[str]:
    given = _text(table[name], name, origin).to_pylist() if name else [None] * table.num_rows
    return [value or f"{prefix}{first_row + i}" for i, value in enumerate(given)]


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
    table: pa.Table,
    found: Mapping[str, str],
    ids: list[str],
    source: str,
    energy_method: str | Mapping[str, str] | None,
    origin: str,
) -> dict[str, pa.Array]:
    """Everything but the structure, with the types of the schema."""
    columns: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    for name in ALIASES:
        given = found.get(name)
        if name == "id" or (given is None and name in OPTIONAL):
            continue
        wanted = COLUMNS[name].type
        if given is None:
            columns[name] = pa.nulls(table.num_rows, wanted)
        elif pa.types.is_string(wanted):
            columns[name] = _text(table[given], given, origin)
        else:
            columns[name] = _finite(table[given], given, origin, whole=name == "spacegroup").cast(wanted)
    columns["source"] = pc.fill_null(columns["source"], source)
    has_energy = pc.or_(pc.is_valid(columns["formation_energy"]), pc.is_valid(columns["e_above_hull"]))
    method = pc.coalesce(columns["energy_method"], _methods(columns["source"], energy_method))
    columns["energy_method"] = pc.if_else(has_energy, method, pa.scalar(None, pa.string()))
    return columns


def _methods(sources: pa.ChunkedArray, wanted: str | Mapping[str, str] | None) -> pa.ChunkedArray | pa.Scalar:
    """Level of theory for rows that name none: one for all, or by source."""
    if not isinstance(wanted, Mapping):
        return pa.scalar(wanted or None, pa.string())
    place = pc.index_in(sources, value_set=pa.array(list(wanted), pa.string()))
    return pa.chunked_array([pa.array(list(wanted.values()), pa.string())]).take(place)


def _text(column: pa.ChunkedArray, name: str, origin: str) -> pa.ChunkedArray:
    """Strings, with empty ones as null."""
    try:
        text = column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"{origin}: column {name} is {column.type}; it must hold text.") from None
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _finite(column: pa.ChunkedArray, name: str, origin: str, whole: bool) -> pa.ChunkedArray:
    """Numbers, null where not finite; of space groups (``whole``) also those outside 1 to 230."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        values = pa.chunked_array([pa.array([_number(text) for text in column.to_pylist()], pa.float64())])
    else:
        try:
            values = column.cast(pa.float64())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(f"{origin}: column {name} is {column.type}; it must hold numbers.") from None
    usable = pc.fill_null(pc.is_finite(values), False)
    if whole:
        in_range = pc.and_(pc.greater_equal(values, 1), pc.less_equal(values, 230))
        usable = pc.and_(usable, pc.fill_null(pc.and_(in_range, pc.equal(values, pc.floor(values))), False))
    return pc.if_else(usable, values, pa.scalar(None, pa.float64()))


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
