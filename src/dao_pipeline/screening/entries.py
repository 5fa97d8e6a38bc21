"""Known phases that a hull is made of, and the passport that says where their energies come from."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.crystals.table import file_hash, read_about, table_files
from dao_pipeline.errors import UserError
from dao_pipeline.screening.columns import STRUCTURE

_ENERGIES = ("e_above_hull", "formation_energy", "energy_method")
_PASSPORT = ("database_version", "thermo_type", "correction_scheme", "model")
_MOST_SUBSETS = 10
"""Elements up to which all subsystems of a chemical system are listed."""


@dataclass(frozen=True)
class Entries:
    """Phases of some chemical systems.

    table: id, formula, and structure, formation_energy and energy_method as far as the file has them. passport:
    where they come from (name, path, hash, levels of theory, library versions, database version, thermo type,
    correction scheme, model); null where the file does not say.
    """

    table: pa.Table
    passport: dict[str, Any]

    @property
    def has_structures(self) -> bool:
        """Whether a model can evaluate them."""
        return set(STRUCTURE) <= set(self.table.column_names)


def read_entries(path: Path, systems: Collection[frozenset[str]], per_formula: int | None = None) -> Entries:
    """Phases of ``path`` whose elements are all in one of the ``systems`` (element symbols).

    path: a crystal table, a folder of such, a CrysDB folder (its training and validation crystals), or JSON, as
    docs/ranking.md describes. per_formula: of each formula at most so many crystals, those of lowest energy above
    the hull, or else of lowest formation energy, where they are known; None: all.

    Raises UserError, naming file, entry, field and remedy, for what cannot be read.
    """
    if path.suffix.lower() == ".json":
        return _from_json(path, _Subsystems(systems))
    own = (path / "train.parquet").exists()
    files = [path / f"{name}.parquet" for name in ("train", "val")] if own else [path]
    wanted = _Subsystems(systems)
    pieces: list[pa.Table] = []
    for file in files:
        read_about(file)
        names = pq.read_schema(table_files(file)[0]).names
        if missing := [name for name in ("id", "formula") if name not in names]:
            raise UserError(f"{file}: no column {missing[0]}; name a crystal table, with {', '.join(STRUCTURE)}.")
        columns = [n for n in (*STRUCTURE, *_ENERGIES) if n in names]
        for part in table_files(file):
            pieces += _wanted_rows(pq.ParquetFile(part, pre_buffer=False), wanted, columns)
    table = pa.concat_tables(pieces, promote_options="default")
    if per_formula is not None:
        table = _most_stable(table, per_formula)
    return Entries(table, _passport(path, files, table))


def _wanted_rows(file: pq.ParquetFile, wanted: _Subsystems, columns: list[str]) -> Iterator[pa.Table]:
    """Rows of the systems; of row groups without any, nothing but the formulas is read."""
    yield file.schema_arrow.remove_metadata().empty_table().select(columns)
    for group in range(file.num_row_groups):
        formulas = file.read_row_group(group, columns=["formula"])["formula"]
        inside = [name for name in pc.unique(formulas).to_pylist() if wanted.include(name)]
        if inside:
            kept = pc.is_in(formulas, value_set=pa.array(inside, pa.string()))
            yield file.read_row_group(group, columns=columns).filter(kept).replace_schema_metadata()


class _Subsystems:
    """Whether a formula's elements are all in one chemical system."""

    def __init__(self, systems: Collection[frozenset[str]]) -> None:
        self._large = [system for system in systems if len(system) > _MOST_SUBSETS]
        self._small = {
            frozenset(part)
            for system in systems
            if len(system) <= _MOST_SUBSETS
            for size in range(1, len(system) + 1)
            for part in combinations(sorted(system), size)
        }

    def include(self, formula: str | None) -> bool:
        """Whether the formula lies in one of the systems; what is no formula does not."""
        try:
            elements = frozenset(parse_formula(formula or ""))
        except ValueError:
            return False
        return elements in self._small or any(elements <= system for system in self._large)


def _most_stable(table: pa.Table, per_formula: int) -> pa.Table:
    """At most ``per_formula`` rows of each formula, in the order of the table."""
    energies = []
    for name in ("formation_energy", "e_above_hull"):  # the last key is the first to sort by
        values = table[name].to_numpy() if name in table.column_names else np.full(table.num_rows, np.nan)
        energies.append(np.nan_to_num(values.astype(np.float64), nan=np.inf))
    _, code = np.unique(np.array(table["formula"].to_pylist(), dtype=str), return_inverse=True)
    order = np.lexsort((np.arange(table.num_rows), *energies, code))
    place = np.arange(len(order)) - np.searchsorted(code[order], code[order])
    return table.take(pa.array(np.sort(order[place < per_formula])))


def _passport(path: Path, files: list[Path], table: pa.Table) -> dict[str, Any]:
    note = read_about(files[0])
    given: dict[str, Any] = note.get("passport") or {}
    methods = pc.unique(table["energy_method"]).to_pylist() if "energy_method" in table.column_names else []
    return {
        "name": path.name,
        "path": str(path),
        "hash": "+".join(file_hash(part) for file in files for part in table_files(file)),
        "levels_of_theory": sorted(name for name in methods if name is not None),
        "libraries": given.get("libraries", note.get("packages")),
        **{name: given.get(name, note.get(name)) for name in _PASSPORT},
    }


def _from_json(path: Path, wanted: _Subsystems) -> Entries:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no readable JSON ({error}); correct screen.hull.entries.") from error
    if not isinstance(content, dict) or not isinstance(content.get("entries"), list):
        raise UserError(
            f"{path}: no list named entries; write {{passport: ..., entries: [...]}} (docs/ranking.md)."
        )
    given = content["passport"] if isinstance(content.get("passport"), dict) else {}
    rows = [row for row in _rows(path, content["entries"]) if wanted.include(row["formula"])]
    schema = pa.schema([("id", pa.string()), ("formula", pa.string()), ("formation_energy", pa.float64())])
    passport = {
        "name": path.name,
        "path": str(path),
        "hash": file_hash(path),
        "levels_of_theory": [given["level_of_theory"]] if given.get("level_of_theory") else [],
        "libraries": given.get("libraries"),
        **{name: given.get(name) for name in _PASSPORT},
    }
    return Entries(pa.Table.from_pylist(rows, schema=schema), passport)


def _rows(path: Path, entries: list[Any]) -> Iterator[dict[str, Any]]:
    for number, entry in enumerate(entries):
        where = f"{path}: entries[{number}]"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is no object; write id, formula and formation_energy (eV/atom).")
        formula, energy = str(entry.get("formula", "")), entry.get("formation_energy")
        try:
            parse_formula(formula)
        except ValueError as error:
            raise UserError(f"{where}.formula: {error}.") from error
        if isinstance(energy, bool) or not isinstance(energy, int | float) or not np.isfinite(energy):
            raise UserError(f"{where}.formation_energy = {energy!r}: write a number, eV/atom.")
        yield {"id": str(entry.get("id", number)), "formula": formula, "formation_energy": float(energy)}
