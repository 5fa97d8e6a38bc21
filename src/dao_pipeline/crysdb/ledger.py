"""Which crystals are rejected, and why: a small ledger for each piece of a table, and one for all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.crystals.schema import REJECTED_SCHEMA


class Ledger:
    """Which of n crystals are rejected, and why; the first reason stands. For small tables and pieces of large
    ones."""

    def __init__(self, ids: Sequence[str | None]) -> None:
        self.ids = ids
        self.reason = np.full(len(ids), "", dtype=object)
        self.detail = np.full(len(ids), "", dtype=object)

    @property
    def alive(self) -> np.ndarray:
        """(n,) bool: rows that are not rejected."""
        return self.reason == ""

    def reject(self, rows: Iterable[int], reason: str, detail: str | Callable[[int], str]) -> None:
        """Reject those of ``rows`` that are still alive; ``detail`` is a text, or describes the k-th of them."""
        for k, row in enumerate(rows):
            if self.reason[row] == "":
                self.reason[row] = reason
                self.detail[row] = detail if isinstance(detail, str) else detail(k)

    def rows(self, stage: str) -> list[dict[str, str]]:
        """The rejected rows as rejected.parquet has them."""
        return [
            {"id": self.ids[i] or f"row:{i}", "stage": stage, "reason": self.reason[i], "detail": self.detail[i]}
            for i in np.flatnonzero(~self.alive).tolist()
        ]


class Rejections:
    """The rejected rows of a whole table, as they will stand in rejected.parquet.

    Kept in Arrow's memory: a million rows are a few buffers, not millions of Python objects.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._tables: list[pa.Table] = []

    def add(
        self,
        rows: np.ndarray,
        ids: pa.Array | pa.ChunkedArray,
        sources: pa.Array | pa.ChunkedArray,
        reason: str | Sequence[str],
        detail: Sequence[str],
    ) -> None:
        """Rows by number in the table, with id (null: none), source, reason and detail of each."""
        if not len(rows):
            return
        reasons = [reason] * len(rows) if isinstance(reason, str) else list(reason)
        numbers = pa.array(rows, pa.int64())
        names = pc.binary_join_element_wise("row:", numbers.cast(pa.string()), "")
        self._tables.append(
            pa.table(
                {
                    "row": numbers,
                    "id": pc.coalesce(ids, names),
                    "source": pc.fill_null(sources, ""),
                    "stage": pa.array([self.stage] * len(rows), pa.string()),
                    "reason": pa.array(reasons, pa.string()),
                    "detail": pa.array(list(detail), pa.string()),
                }
            )
        )

    def __len__(self) -> int:
        return sum(table.num_rows for table in self._tables)

    def counts(self) -> dict[str, int]:
        """Rejected crystals by reason, most frequent first."""
        found = pc.value_counts(self._all()["reason"]).to_pylist()
        return dict(sorted(((e["values"], e["counts"]) for e in found), key=lambda pair: (-pair[1], pair[0])))

    def by_source(self) -> dict[str, dict[str, int]]:
        """Rejected crystals by source and reason."""
        found = self._all().group_by(["source", "reason"]).aggregate([([], "count_all")]).to_pylist()
        result: dict[str, dict[str, int]] = {}
        for entry in sorted(found, key=lambda e: (e["source"], -e["count_all"], e["reason"])):
            result.setdefault(entry["source"], {})[entry["reason"]] = entry["count_all"]
        return result

    def table(self) -> pa.Table:
        """All of them in the order of the table they come from, as rejected.parquet has them."""
        return self._all().sort_by("row").select(REJECTED_SCHEMA.names)

    def _all(self) -> pa.Table:
        columns = [
            ("row", pa.int64()),
            *((name, pa.string()) for name in ("id", "source", "stage", "reason", "detail")),
        ]
        return pa.concat_tables([pa.schema(columns).empty_table(), *self._tables])
