"""How the crystals of a shard are made batch by batch: what fits into memory, what is finished, what is left."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dao_pipeline.crystals.table import is_finished, read_table, write_table, write_text
from dao_pipeline.device import out_of_memory

_log = logging.getLogger("dao_pipeline")


class BatchSize:
    """Atoms of a batch. Halved where memory runs out; what was found is kept for the shards that follow.

    folder: where it is kept, in a file for each ``of``: names and hashes of models and device, on which memory
    depends. Lowered within a run and never raised: delete the file to try again.
    """

    def __init__(self, most: int, folder: Path, of: Mapping[str, str]) -> None:
        self._of = dict(of)
        digest = hashlib.sha256(json.dumps(self._of, sort_keys=True).encode()).hexdigest()
        self.file = folder / f"fits-{digest[:16]}.json"
        self.atoms = min(most, self._kept() or most)

    def lower(self, atoms: int) -> None:
        """So many atoms from now on."""
        self.atoms = min(atoms, self._kept() or atoms)  # another shard may have found less
        write_text(self.file, json.dumps({"batch_atoms": self.atoms, **self._of}, indent=2) + "\n")

    def _kept(self) -> int | None:
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))["batch_atoms"]
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a hint, no more
        return kept if isinstance(kept, int) and kept > 0 else None


Make = Callable[[pa.Table], pa.Table]
"""Rows of a plan -> the same rows with crystals."""


def in_batches(rows: pa.Table, size: BatchSize, make: Make, failed: Make) -> Iterator[pa.Table]:
    """``rows`` of all compositions by rising number of atoms, made batch by batch.

    A batch for which memory is too small is halved, and so are those that follow. A crystal that does not even fit
    alone goes to ``failed``, and the others go on.
    """
    atoms = rows["num_atoms"].to_numpy().astype(np.int64)
    order = np.argsort(atoms, kind="stable")
    before = np.concatenate([[0], np.cumsum(atoms[order])])
    start = 0
    while start < len(order):
        fit = int(np.searchsorted(before, before[start] + size.atoms, side="right")) - 1
        stop = max(start + 1, fit)
        batch = rows.take(order[start:stop])
        made = _made(batch, make)
        if made is None:
            asked = int(before[stop] - before[start])
            if stop - start > 1:
                size.lower(max(1, asked // 2))
                _log.warning("out of memory with a batch of %d atoms: %d from now on", asked, size.atoms)
                continue
            _log.warning("out of memory with one crystal of %d atoms: it is left out", asked)
            made = failed(batch)
        yield made
        start = stop


def _made(batch: pa.Table, make: Make) -> pa.Table | None:
    """The batch, or None if memory ran out."""
    try:
        return make(batch)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    # outside of the handler: the exception keeps the failed batch's tensors alive
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


class Parts:
    """What is finished of a shard: files of rows, whatever batches they were made in.

    A candidate is known by its composition and its number there, as its noise is. Files of another ``identity``
    (models, settings, seed) are deleted.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder, self._identity = folder, identity
        self._tables: list[pa.Table] = []
        self._number = 0
        for file in sorted(folder.glob("*.parquet")):
            if is_finished(file, identity):
                self._tables.append(read_table(file).replace_schema_metadata())
                self._number = max(self._number, int(file.stem.rpartition("-")[2]) + 1)
            else:
                file.unlink()

    def add(self, kind: str, made: pa.Table, about: dict[str, Any]) -> None:
        """Keep rows that are finished."""
        file = self._folder / f"{kind}-{self._number:05d}.parquet"
        write_table(made, file, {**about, "identity": self._identity})
        self._tables.append(made.replace_schema_metadata())
        self._number += 1

    def have(self, rows: pa.Table) -> np.ndarray:
        """(rows,) bool: which of the plan's rows are finished."""
        return self._places(rows) >= 0

    def of(self, rows: pa.Table) -> pa.Table:
        """The plan's rows as they were made, in its order. Raises RuntimeError if any is missing."""
        places = self._places(rows)
        if (places < 0).any():
            raise RuntimeError(f"{self._folder}: {(places < 0).sum()} of {len(places)} candidates were not made")
        made = pa.concat_tables(self._tables).take(places)
        for i, name in enumerate(made.column_names):
            if name in rows.column_names and name != "origin":  # the plan may have changed numbers since
                made = made.set_column(i, name, rows[name])
        return made

    def _places(self, rows: pa.Table) -> np.ndarray:
        """(rows,) int64: each row's place among all that is finished; -1: nowhere."""
        if not self._tables:
            return np.full(rows.num_rows, -1)
        finished = pa.concat_tables([_names(table) for table in self._tables]).combine_chunks()
        found = pc.index_in(_names(rows)["name"], value_set=finished["name"].combine_chunks())
        return np.asarray(pc.fill_null(found, -1)).astype(np.int64)


def _names(rows: pa.Table) -> pa.Table:
    name = pc.binary_join_element_wise(rows["composition"], pc.cast(rows["sample"], pa.string()), ":")
    return pa.table({"name": name})
