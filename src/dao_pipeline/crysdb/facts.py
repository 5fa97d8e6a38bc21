"""What is known about each usable crystal beside its structure, as columns: a few dozen bytes per crystal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.crysdb.split import ALIASES, SPLITS
from dao_pipeline.crystals.flat import FlatCrystals, formulas
from dao_pipeline.crystals.geometry import volumes

UNKNOWN = "unknown"
"""Level of theory of energies whose source does not name it."""


class Coded(NamedTuple):
    """A text column: the distinct texts, and the number of the text of each row, -1 for none."""

    names: list[str]
    code: np.ndarray

    def of(self, row: int) -> str:
        """The text of a row, '' for none."""
        return self.names[self.code[row]] if self.code[row] >= 0 else ""


@dataclass
class Facts:
    """m crystals. Columns are numpy arrays of length m, or Arrow columns.

    row: number of the crystal in the raw table. ids, sources: Arrow. formula, method, given: coded texts;
    ``given`` is the source's split, names as written unless they are a known alias. volume: angstrom^3 per atom.
    energies: eV/atom, NaN where unknown. published: datetime64[D]. precursor: whether the crystal is the precursor
    of another one; precursor_of: of which, Arrow.
    """

    row: np.ndarray
    ids: pa.ChunkedArray
    sources: pa.ChunkedArray
    formula: Coded
    volume: np.ndarray
    formation_energy: np.ndarray
    e_above_hull: np.ndarray
    method: Coded
    given: Coded
    published: np.ndarray
    precursor_of: pa.ChunkedArray

    def __len__(self) -> int:
        return len(self.row)

    @property
    def precursor(self) -> np.ndarray:
        """(m,) bool."""
        return self.precursor_of.is_valid().to_numpy()


_COLUMNS = {
    "id": pa.string(),
    "source": pa.string(),
    "energy_method": pa.string(),
    "split": pa.string(),
    "published": pa.string(),
    "precursor_of": pa.string(),
    "formation_energy": pa.float64(),
    "e_above_hull": pa.float64(),
    "row": pa.int64(),
    "formula": pa.string(),
    "volume": pa.float64(),
}


def facts_of(table: pa.Table, flat: FlatCrystals, rows: np.ndarray) -> pa.Table:
    """The facts of a piece: ``table`` and ``flat`` hold the same crystals, which are ``rows`` of the raw table."""
    nulls = pa.nulls(len(flat))
    columns = {name: table[name] if name in table.column_names else nulls for name in _COLUMNS}
    columns |= {
        "row": pa.array(rows, pa.int64()),
        "formula": pa.array(formulas(flat), pa.string()),
        "volume": pa.array(volumes(flat.lattice) / flat.counts, pa.float64()),
    }
    return pa.table({name: columns[name].cast(kind) for name, kind in _COLUMNS.items()})


def gather(pieces: list[pa.Table]) -> Facts:
    """The facts of all pieces together."""
    table = pa.concat_tables([pa.schema(list(_COLUMNS.items())).empty_table(), *pieces])
    above, formation = (_energies(table[name]) for name in ("e_above_hull", "formation_energy"))
    method = pc.fill_null(table["energy_method"], UNKNOWN)
    known = pa.array(np.isfinite(above) | np.isfinite(formation))
    split = pc.utf8_lower(pc.utf8_trim_whitespace(table["split"]))
    given = coded(pc.if_else(pc.equal(split, ""), pa.scalar(None, pa.string()), split))
    return Facts(
        row=table["row"].to_numpy(),
        ids=table["id"],
        sources=table["source"],
        formula=coded(table["formula"]),
        volume=table["volume"].to_numpy(),
        formation_energy=formation,
        e_above_hull=above,
        method=coded(pc.if_else(known, method, pa.scalar(None, pa.string()))),
        given=_merged(given),
        published=dates(table["published"]),
        precursor_of=table["precursor_of"],
    )


def coded(column: pa.ChunkedArray | pa.Array) -> Coded:
    """A text column by its distinct texts."""
    combined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = combined.dictionary_encode()
    code = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int32)
    return Coded(encoded.dictionary.to_pylist(), code)


def _merged(given: Coded) -> Coded:
    """The given split with train, val and test as the first three names, whatever they are called."""
    names = [*SPLITS, *sorted({ALIASES.get(name, name) for name in given.names} - set(SPLITS))]
    place = np.array([names.index(ALIASES.get(name, name)) for name in given.names] + [-1], dtype=np.int32)
    return Coded(names, place[given.code])


def _energies(column: pa.ChunkedArray) -> np.ndarray:
    """(m,) float64, NaN where unknown or not finite."""
    values = column.to_numpy().astype(np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def dates(column: pa.ChunkedArray) -> np.ndarray:
    """(m,) datetime64[D]: first day of the year or month where no more is given; NaT where there is no date."""
    text = pc.utf8_slice_codeunits(column, 0, 10)
    sound = pc.fill_null(pc.match_substring_regex(text, r"^\d{4}(-\d\d(-\d\d)?)?$"), False)
    known = coded(pc.if_else(sound, text, pa.scalar(None, pa.string())))
    days = np.array([_day(name) for name in known.names] + ["NaT"], dtype="datetime64[D]")
    return days[known.code]


def _day(text: str) -> np.datetime64:
    try:
        return np.datetime64(text, "D")
    except ValueError:  # 2018-02-31
        return np.datetime64("NaT", "D")
