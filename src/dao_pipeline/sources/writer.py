"""A Parquet file written piece by piece: memory does not grow with the number of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dao_pipeline.crystals.table import file_metadata
from dao_pipeline.sources.imported import ROWS_AT_ONCE


class TableWriter:
    """Collects pieces into row groups of ``ROWS_AT_ONCE`` rows; ``close`` adds what the file says about itself.

    The pieces and their row groups are independent: any cut of the same rows gives the same file.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.rows = 0
        self._schema = schema
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._open = True

    def write(self, piece: pa.Table) -> None:
        """Append rows."""
        self.rows += piece.num_rows
        self._waiting.append(piece)
        if sum(table.num_rows for table in self._waiting) >= ROWS_AT_ONCE:
            self._flush(whole_groups=True)

    def _flush(self, whole_groups: bool) -> None:
        rows = pa.concat_tables([self._schema.empty_table(), *self._waiting])
        end = rows.num_rows - rows.num_rows % ROWS_AT_ONCE if whole_groups else rows.num_rows
        for start in range(0, end, ROWS_AT_ONCE):
            size = min(ROWS_AT_ONCE, end - start)
            self._writer.write_table(rows.slice(start, size).combine_chunks(), row_group_size=ROWS_AT_ONCE)
        self._waiting = [rows.slice(end)]

    def close(self, about: dict[str, Any]) -> None:
        """Write the last rows and the metadata: ``about``, schema version and row count."""
        self._flush(whole_groups=False)
        self._writer.add_key_value_metadata(file_metadata(about, self.rows))
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file, finished or not."""
        if self._open:
            self._open = False
            self._writer.close()
