"""Known crystals that candidates are compared with, sorted by formula.

Novelty asks for the crystals of a shard's formulas. To read all known crystals for that, shard by shard, would
cost more than the comparison; of a sorted table only the row groups that can hold a formula are read.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import iter_tables, provenance, read_about, writing

STRUCTURE = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]
ENERGIES = ["e_above_hull", "formation_energy", "energy_method"]
_SCHEMA = pa.schema([(name, COLUMNS[name].type) for name in (*STRUCTURE, *ENERGIES)])

GROUP = 1_000
"""Rows of a row group: what is read for one formula."""

BUCKET = 50_000
"""Rows that are sorted at once, unless more of them have one formula."""


def sort_references(crysdb: Path, out: Path) -> None:
    """Write the crystals of the training and validation splits sorted by reduced formula.

    Those of one formula keep their order. Memory does not grow with the number of crystals: they are put into
    buckets of neighbouring formulas, and these are sorted one by one. What CrysDB says about the origin of its
    energies (``passport``) stays with them.
    """
    splits = {name: crysdb / f"{name}.parquet" for name in ("train", "val")}
    passport = read_about(splits["train"]).get("passport") or {}
    about = provenance("sort_references", inputs=splits, passport=passport)
    formulas, bounds = _buckets(splits.values())
    with (
        tempfile.TemporaryDirectory(dir=_folder(out)) as folder,
        writing(out, _SCHEMA, about, group=GROUP) as file,
    ):
        buckets = [Path(folder) / f"{number}.arrow" for number in range(len(bounds))]
        with ExitStack() as stack:
            streams = [stack.enter_context(pa.ipc.new_stream(bucket, _SCHEMA)) for bucket in buckets]
            for path in splits.values():
                names = set(pq.read_schema(path).names)
                for piece in iter_tables(path, columns=[name for name in _SCHEMA.names if name in names]):
                    code = pc.index_in(piece["formula"], value_set=formulas).to_numpy()
                    bucket = np.searchsorted(bounds, code, side="right")
                    for number in np.unique(bucket):
                        streams[number].write_table(_complete(piece.filter(pa.array(bucket == number))))
        for bucket in buckets:
            with pa.ipc.open_stream(bucket) as stream:
                rows = stream.read_all()
            keys = {"formula": rows["formula"], "row": pa.array(np.arange(rows.num_rows))}
            order = pc.sort_indices(pa.table(keys), [("formula", "ascending"), ("row", "ascending")])
            file.write(rows.take(order))


def _complete(piece: pa.Table) -> pa.Table:
    """All columns, those that are not there with nulls."""
    for name in ENERGIES:
        if name not in piece.column_names:
            piece = piece.append_column(name, pa.nulls(piece.num_rows, _SCHEMA.field(name).type))
    return piece.select(_SCHEMA.names).cast(_SCHEMA)


def _folder(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent


def _buckets(paths: Collection[Path]) -> tuple[pa.Array, np.ndarray]:
    """All formulas, sorted, and the index of the first formula behind each bucket; the last bucket is open."""
    counts: dict[str, int] = defaultdict(int)
    for path in paths:
        for piece in iter_tables(path, rows=100_000, columns=["formula"]):
            for entry in pc.value_counts(piece["formula"].combine_chunks()).to_pylist():
                counts[entry["values"]] += entry["counts"]
    formulas = sorted(counts)
    end = np.cumsum([counts[formula] for formula in formulas], dtype=np.int64)
    wanted = np.arange(BUCKET, end[-1] if len(end) else 0, BUCKET)
    bounds = np.unique(np.searchsorted(end, wanted, side="right"))
    return pa.array(formulas, pa.string()), np.append(bounds, max(len(formulas), 1))


def read_references(path: Path, formulas: Collection[str]) -> dict[str, list[Crystal]]:
    """Crystals of a table by ``sort_references`` that have one of the reduced ``formulas``, by formula."""
    found: dict[str, list[Crystal]] = defaultdict(list)
    for rows in rows_of(path, formulas, STRUCTURE):
        for crystal, formula in zip(from_table(rows), rows["formula"].to_pylist(), strict=True):
            found[formula].append(crystal)
    return dict(found)


def rows_of(path: Path, formulas: Collection[str], columns: list[str]) -> Iterator[pa.Table]:
    """Rows with one of the ``formulas``; only row groups that may hold some are read."""
    wanted = sorted(formulas)
    read_about(path)
    stored = pq.ParquetFile(path, pre_buffer=False)
    column = stored.schema_arrow.get_field_index("formula")
    values = pa.array(wanted, pa.string())
    # leaf columns are numbered as the fields are: no field before the formula is nested
    for number in range(stored.num_row_groups):
        statistics = stored.metadata.row_group(number).column(column).statistics
        place = bisect_left(wanted, statistics.min)
        if place == len(wanted) or wanted[place] > statistics.max:
            continue
        rows = stored.read_row_group(number, columns)
        yield rows.filter(pc.is_in(rows["formula"], value_set=values))
