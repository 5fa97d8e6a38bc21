"""Single rows of large tables: only row groups that may hold them are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.crystals.table import read_about, table_files

_FEW = 5
_LONGEST = 40
"""Signs of an id that are compared."""


def find_rows(path: Path, column: str, value: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a table (file or folder of shards) whose ``column`` is the text ``value``, in order.

    columns: what of them is read; None: all.
    """
    found: list[pa.Table] = []
    schema: pa.Schema | None = None
    for file in table_files(path):
        read_about(file)
        stored = pq.ParquetFile(file)
        names = [n for n in (columns or stored.schema_arrow.names) if n in stored.schema_arrow.names]
        schema = schema or pa.schema([stored.schema_arrow.field(name) for name in names])
        for group in _groups(stored, column, value):
            mask = pc.equal(stored.read_row_group(group, columns=[column])[column], value)
            if pc.any(mask).as_py():
                found.append(stored.read_row_group(group, columns=names).filter(mask))
    assert schema is not None
    return pa.concat_tables([schema.empty_table(), *found], promote_options="default")


def _groups(stored: pq.ParquetFile, column: str, value: str) -> Iterator[int]:
    """Row groups in which a text may be, by their statistics."""
    place = stored.schema_arrow.names.index(column)
    for group in range(stored.num_row_groups):
        part = stored.metadata.row_group(group)
        chunk = next(
            part.column(i) for i in range(place, part.num_columns) if part.column(i).path_in_schema == column
        )
        known = chunk.statistics
        if known is None or not known.has_min_max or known.min <= value <= known.max:
            yield group


def similar_ids(path: Path, wanted: str) -> list[str]:
    """A few ids of a table, those first that begin as ``wanted`` does for longest."""
    files = [pq.ParquetFile(file) for file in table_files(path)]
    found: dict[str, None] = {}
    for length in range(min(len(wanted), _LONGEST) - 1, 0, -1):
        for stored in files:
            for batch in stored.iter_batches(batch_size=200_000, columns=["id"]):
                ids = batch.column(0)
                same = ids.filter(pc.starts_with(ids, wanted[:length])).slice(0, _FEW)
                found |= dict.fromkeys(same.to_pylist())
                if len(found) >= _FEW:
                    return list(found)[:_FEW]
    return list(found)
