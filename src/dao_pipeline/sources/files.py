"""Crystals from files: Parquet (ours, or the public layout), CSV with a ``cif`` column, CIF, extended XYZ and
pymatgen JSON, and folders and zips of such. Pieces stream through; parsing uses all cores and keeps the order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from dao_pipeline.config import DataSource
from dao_pipeline.crystals.table import ROW_GROUP, file_hash, read_about
from dao_pipeline.errors import UserError
from dao_pipeline.parallel import available_cpus
from dao_pipeline.sources.columns import STRUCTURE, from_columns, names_of
from dao_pipeline.sources.imported import Imported, Source, cut
from dao_pipeline.sources.kinds import crystal_files, suffix_of
from dao_pipeline.sources.parse import Batch, parse_batch
from dao_pipeline.sources.parts import Parts
from dao_pipeline.sources.records import Record, read_records

_GROUP = 5_000
"""Records in memory at a time, and in a kept piece."""

_BATCH = 100
"""Records per task of a worker."""

_IN_PROCESS = 3_000
"""Fewer records than this are parsed here: starting processes costs seconds, a plain CIF half a millisecond."""


def file_source(path: Path, data: DataSource, *, processes: int = 1, work: Path | None = None) -> Source:
    """The crystals of a file or folder, piece by piece; parsed pieces are kept in ``work`` until ``done``.

    Raises UserError for files that are missing, unreadable, empty or of another kind.
    """
    reader = _Reader(path, data, processes, work)
    return Source(reader.parts(), file=path, done=reader.forget)


def read_crystals(
    path: Path,
    *,
    energy_method: str | dict[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    processes: int = 1,
) -> Imported:
    """Read a file or folder of crystals whole; ``limit`` stops after the first so many usable ones.

    columns: names that the file gives to columns of the crystal table, as ``data.columns``.

    Raises UserError for files that are missing, unreadable, empty or of another kind.
    """
    data = DataSource(
        source="file",
        path=str(path),
        energy_method=energy_method,
        columns=columns or {},
        limit=limit,
    )
    tables: list[pa.Table] = []
    result = Imported(pa.table({}))
    usable = 0
    for part in file_source(path, data, processes=processes).parts:
        if limit is not None:
            part = cut(part, limit - usable)
        tables.append(part.table)
        result.rejected += part.rejected
        result.examined += part.examined
        usable += part.table.num_rows
        if usable == limit:
            break
    result.table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    return result


class _Reader:
    def __init__(self, path: Path, data: DataSource, processes: int, work: Path | None) -> None:
        self.path, self.data = path, data
        self.columns: dict[str, str] = {str(name): given for name, given in data.columns.items()}
        self.pool = _Pool(processes)
        self.work = work
        self.kept: Parts | None = None
        self.usable = self.groups = 0

    def parts(self) -> Iterator[Imported]:
        """All pieces, in order of files and rows."""
        examined = 0
        with self.pool:
            for part in self._pieces():
                examined += part.examined
                self.usable += part.table.num_rows
                if part.examined:
                    yield part
        if examined == 0:
            raise UserError(f"{self.path}: no crystals in this file. Name a file with at least one row.")

    def forget(self) -> None:
        """Remove the kept pieces."""
        if self.kept is not None:
            self.kept.clear()

    def _pieces(self) -> Iterator[Imported]:
        files = crystal_files(self.path)
        # single CIFs of a folder go through together, as if they were one file
        waiting: list[Path] = []
        for file in files:
            if suffix_of(file) == ".cif":
                waiting.append(file)
                continue
            yield from self._parsed(waiting)
            waiting = []
            yield from self._parquet(file) if suffix_of(file) == ".parquet" else self._parsed([file])
        yield from self._parsed(waiting)

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix() if self.path.is_dir() else file.name

    def _prefix(self, file: Path) -> str:
        """What ids without one of their own begin with: the file's name, where there are several."""
        return f"{self._name(file)}:" if self.path.is_dir() and suffix_of(file) != ".cif" else ""

    def _source(self, file: Path) -> str:
        if self.data.name:
            return self.data.name
        several = self.path.is_dir() and suffix_of(file) in (".cif", ".parquet")
        return self.path.name if several else file.name.split(".")[0]

    # Parquet

    def _parquet(self, file: Path) -> Iterator[Imported]:
        first = 0
        for table in _tables(file, self.columns):
            source, method, prefix = self._source(file), self.data.energy_method, self._prefix(file)
            yield from_columns(table, source, method, str(file), first, self.columns, prefix)
            first += table.num_rows

    # everything that must be parsed

    def _parsed(self, files: list[Path]) -> Iterator[Imported]:
        if not files:
            return
        records = (
            record
            for file in files
            for record in read_records(file, self._name(file), self.columns, self._prefix(file))
        )
        while group := list(islice(records, self._group_size())):
            yield self._group(f"piece-{self.groups:06d}", group, self._source(files[0]))
            self.groups += 1

    def _group_size(self) -> int:
        """With a limit, look at little more than what is still wanted."""
        limit = self.data.limit
        return _GROUP if limit is None else min(_GROUP, max(100, limit - self.usable))

    def _group(self, name: str, records: list[Record], source: str) -> Imported:
        many = len(records) >= _IN_PROCESS
        kept = self._kept() if many else None
        if kept is not None and kept.about(name) is not None:
            return kept.read(name)
        settings = {"energy_method": self.data.energy_method, "seconds": self.data.seconds_per_crystal}
        batches = (
            Batch(records[i : i + _BATCH], source, columns=self.columns, **settings)  # type: ignore[arg-type]
            for i in range(0, len(records), _BATCH)
        )
        # JSON is decoded as it is read: handing the result to a worker costs more than parsing it
        spread = many and records[0].kind != "json"
        done = list(self.pool.map(batches) if spread else map(parse_batch, batches))
        imported = Imported(
            pa.concat_tables([part.table for part in done], promote_options="default").combine_chunks(),
            [row for part in done for row in part.rejected],
            len(records),
        )
        if kept is not None:
            kept.keep(name, imported)
        return imported

    def _kept(self) -> Parts | None:
        if self.work is None:
            return None
        if self.kept is None:
            asked = {
                "path": str(self.path),
                "hash": file_hash(self.path),
                "columns": self.columns,
                "group": _GROUP,
            }
            asked |= self.data.model_dump(include={"name", "energy_method", "limit", "seconds_per_crystal"})
            self.kept = Parts(self.work, "file", asked)
        return self.kept


def _tables(file: Path, columns: Mapping[str, str]) -> Iterator[pa.Table]:
    """What is needed of a Parquet file, in pieces. Raises UserError for a damaged or truncated one."""
    note = read_about(file)
    try:
        stored = pq.ParquetFile(file, pre_buffer=False)  # else what was read stays in memory to the end
        rows = stored.metadata.num_rows
        if note.get("rows", rows) != rows:
            raise UserError(f"{file}: {rows} rows, its metadata says {note['rows']}. Rerun its stage.")
        wanted = {*STRUCTURE, *(alias for aliases in names_of(columns).values() for alias in aliases)}
        names = [name for name in stored.schema_arrow.names if name in wanted]
        if rows == 0:
            yield pa.Table.from_batches([], stored.schema_arrow).select(names)
        for batch in stored.iter_batches(batch_size=ROW_GROUP, columns=names):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file}: damaged Parquet file ({error}). Delete it and rerun its stage.") from error


class _Pool:
    """Worker processes, started at the first use; results come in order, with few tasks waiting."""

    def __init__(self, processes: int) -> None:
        self.processes = min(processes, available_cpus())
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> _Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def map(self, batches: Iterator[Batch]) -> Iterator[Imported]:
        """``parse_batch`` of each batch, in order."""
        if self.processes <= 1:
            yield from map(parse_batch, batches)
            return
        if self._pool is None:  # spawned, not forked: torch's threads do not survive a fork
            self._pool = ProcessPoolExecutor(self.processes, mp_context=get_context("spawn"))
        running: deque[Future[Imported]] = deque()
        try:
            for batch in batches:
                running.append(self._pool.submit(parse_batch, batch))
                if len(running) > 4 * self.processes:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                "a process that parses crystals died, most likely of too little memory: raise compute.cpu.mem_mb "
                "or lower compute.cpu.threads. What is parsed is kept; the same command continues."
            ) from None
