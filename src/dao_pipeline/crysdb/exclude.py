"""Tables that must not be trained on (benchmark tests), and which crystals they keep out of CrysDB."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Campaign, expand_path
from dao_pipeline.crysdb.clean import malformed
from dao_pipeline.crysdb.facts import Coded
from dao_pipeline.crysdb.ledger import Ledger
from dao_pipeline.crystals.flat import FlatCrystals, flatten
from dao_pipeline.crystals.formula import MAX_ATOMIC_NUMBER
from dao_pipeline.crystals.geometry import volumes
from dao_pipeline.crystals.held_out import crystals_digest
from dao_pipeline.crystals.niggli import niggli_reduce
from dao_pipeline.crystals.table import file_hash
from dao_pipeline.sources.files import read_crystals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Excluded:
    """One table of ``crysdb.exclude``: its path as written in the campaign, and its crystals."""

    name: str
    path: Path
    table: pa.Table

    def about(self, by: str, removed: int) -> dict[str, Any]:
        """What the provenance of CrysDB, and of models trained on it, says about this table."""
        return {
            "name": self.name,
            "hash": file_hash(self.path),
            "crystals": self.table.num_rows,
            "digest": crystals_digest(self.table["id"], self.table["formula"]),
            "by": by,
            "removed": removed,
        }


def read_excluded(campaign: Campaign) -> list[Excluded]:
    """The tables that the campaign excludes. Raises UserError for those that cannot be read."""
    tables = []
    for text in campaign.crysdb.exclude:
        path = expand_path(text)
        imported = read_crystals(path, processes=campaign.compute.cpu.threads)
        if imported.rejected:
            log.warning("%s: %d rows could not be read and exclude nothing", path, len(imported.rejected))
        tables.append(Excluded(text, path, imported.table.select(["id", "formula", *_STRUCTURE])))
    return tables


_STRUCTURE = ["atomic_numbers", "frac_coords", "lattice"]


def by_composition(tables: list[Excluded], formula: Coded) -> np.ndarray:
    """For each crystal the first table that has its composition (m,), -1 for none."""
    return _first_table(tables, "formula", formula.names)[formula.code]


def by_id(tables: list[Excluded], ids: pa.ChunkedArray, formula: Coded) -> np.ndarray:
    """For each crystal the first table that has a crystal of its id and composition (m,), -1 for none.

    The composition as well: ids of other databases may be mere numbers.
    """
    names = pa.array(formula.names, pa.string()).take(pa.array(formula.code))
    found = np.full(len(formula.code), -1, dtype=np.int64)
    for k, excluded in reversed(list(enumerate(tables))):
        keys = pc.binary_join_element_wise(excluded.table["id"], excluded.table["formula"], " ")
        own = pc.binary_join_element_wise(ids, pa.chunked_array([names]), " ")
        found[pc.is_in(own, value_set=keys).to_numpy()] = k
    return found


def _first_table(tables: list[Excluded], column: str, names: list[str]) -> np.ndarray:
    found = np.full(len(names), -1, dtype=np.int64)
    for k, excluded in reversed(list(enumerate(tables))):
        known = set(excluded.table[column].unique().to_pylist())
        found[[name in known for name in names]] = k
    return found


def structures(tables: list[Excluded], formula: Coded) -> tuple[FlatCrystals, np.ndarray, np.ndarray, np.ndarray]:
    """Crystals of the tables whose composition occurs in ``formula``, in their Niggli cells.

    Returns them with the table of each, the number of its formula, and its volume per atom in angstrom^3.
    """
    parts: list[FlatCrystals] = []
    table_of, formula_of = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    place = {name: i for i, name in enumerate(formula.names)}
    for k, excluded in enumerate(tables):
        table = excluded.table
        codes = np.array([place.get(name, -1) for name in table["formula"].to_pylist()], dtype=np.int64)
        ledger = Ledger([""] * table.num_rows)
        malformed(table, ledger)
        keep = ledger.alive & (codes >= 0)
        flat = flatten(table.filter(pa.array(keep)))
        sound = np.isfinite(flat.lattice).all((1, 2))
        sound[flat.crystal_of_atom[~np.isfinite(flat.frac).all(1) | (flat.numbers > MAX_ATOMIC_NUMBER)]] = False
        reduced, failures = niggli_reduce(flat.select(sound))
        usable = ~np.isin(np.arange(len(reduced)), list(failures))
        parts.append(reduced.select(usable))
        formula_of.append(codes[keep][sound][usable])
        table_of.append(np.full(int(usable.sum()), k))
    flat = FlatCrystals(
        numbers=np.concatenate([np.zeros(0, np.int64), *(part.numbers for part in parts)]),
        frac=np.concatenate([np.zeros((0, 3)), *(part.frac for part in parts)]),
        lattice=np.concatenate([np.zeros((0, 3, 3)), *(part.lattice for part in parts)]),
        counts=np.concatenate([np.zeros(0, np.int64), *(part.counts for part in parts)]),
    )
    volume = volumes(flat.lattice) / np.maximum(flat.counts, 1)
    return flat, np.concatenate(table_of), np.concatenate(formula_of), volume
