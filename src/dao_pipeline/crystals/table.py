"""Parquet files of crystals: atomic writing, checked reading, provenance in the metadata.

A table is one ``.parquet`` file or a directory of shards. Files are written to a temporary name in the
same directory and renamed, so a reader never sees half a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dao_pipeline import __version__
from dao_pipeline.crystals.schema import COLUMNS, CRYSTAL, REJECTED_SCHEMA, SCHEMA_VERSION
from dao_pipeline.errors import UserError

_KEY = b"dao_pipeline"
ROW_GROUP = 10_000
"""Rows of a row group: what a reader that streams a table holds at once."""

_PACKAGES = ("torch", "numpy", "pyarrow", "pymatgen", "ase", "chgnet", "moyopy", "smact")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_hash(path: Path) -> str:
    """SHA-256 (first 16 hex digits) of a file, or of the names and hashes of a directory's files."""
    digest = hashlib.sha256()
    if path.is_dir():
        for child in sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")):
            digest.update(f"{child.relative_to(path)}:{file_hash(child)}".encode())
    else:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that decide numbers, and of Python."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def provenance(
    stage: str,
    *,
    campaign: str = "",
    settings: object = None,
    inputs: dict[str, Path] | None = None,
    **extra: object,
) -> dict[str, Any]:
    """What a file must say about itself: stage, campaign, effective settings, inputs with hashes, versions.

    ``settings`` is anything JSON can hold; its hash stands beside it. Nothing secret may be passed.
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    return {
        "stage": stage,
        "campaign": campaign,
        "settings": settings,
        "settings_hash": hashlib.sha256(text.encode()).hexdigest()[:16],
        "inputs": {k: {"path": str(p), "hash": file_hash(p)} for k, p in (inputs or {}).items()},
        "code_version": __version__,
        "packages": package_versions(),
        **extra,
    }


def _check_columns(schema: pa.Schema, path: Path) -> None:
    for field in schema:
        if field.name in COLUMNS and field.type != COLUMNS[field.name].type:
            raise ValueError(f"{path}: column {field.name} is {field.type}, not {COLUMNS[field.name].type}")


def write_table(table: pa.Table, path: Path, about: dict[str, Any]) -> None:
    """Write ``table`` to ``path`` atomically (zstd), with ``about`` and the row count in its metadata.

    Raises ValueError when a column of the crystal table has another type than ``schema.COLUMNS`` says.
    """
    with writing(path, table.schema, about) as out:
        out.write(table)


class TableWriter:
    """A Parquet file that is written piece by piece: memory does not grow with the number of rows.

    Pieces are collected into row groups of a fixed size, so any cut of the same rows gives the same file.

    about: what the file says about itself; may be filled until the end. rows: written so far.
    """

    def __init__(self, writer: pq.ParquetWriter, about: dict[str, Any], group: int) -> None:
        self.about = about
        self.rows = 0
        self._writer = writer
        self._group = group
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0

    def write(self, piece: pa.Table) -> None:
        """Append rows; columns are taken by name."""
        self._waiting.append(piece.select(self._writer.schema.names).replace_schema_metadata())
        self._waiting_rows += piece.num_rows
        self.rows += piece.num_rows
        if self._waiting_rows >= self._group:
            self._flush(whole_groups=True)

    def _flush(self, whole_groups: bool) -> None:
        rows = pa.concat_tables([self._writer.schema.empty_table(), *self._waiting])
        end = rows.num_rows - rows.num_rows % self._group if whole_groups else rows.num_rows
        for start in range(0, end, self._group):
            group = rows.slice(start, min(self._group, end - start))
            self._writer.write_table(group.combine_chunks(), row_group_size=self._group)
        self._waiting, self._waiting_rows = [rows.slice(end)], rows.num_rows - end

    def finish(self) -> None:
        """Write the last rows, and into the footer ``about``, schema version and row count."""
        self._flush(whole_groups=False)
        note = {"schema_version": SCHEMA_VERSION, "rows": self.rows, **self.about}
        self._writer.add_key_value_metadata({_KEY: json.dumps(note, default=str).encode()})


@contextmanager
def writing(
    path: Path,
    schema: pa.Schema,
    about: dict[str, Any] | None = None,
    rows: int | None = None,
    group: int | None = None,
) -> Iterator[TableWriter]:
    """Write a table in pieces: yields what takes them. The file appears when the block has succeeded.

    Like ``write_table`` otherwise. Raises RuntimeError, and leaves no file, when the pieces have other than
    ``rows`` rows together, where that is given. group: rows of a row group.
    """
    _check_columns(schema, path)
    schema = schema.remove_metadata()  # of the file that it was read from
    with replacing(path) as temporary:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            out = TableWriter(writer, dict(about or {}), group or ROW_GROUP)
            yield out
            out.finish()
        if rows is not None and out.rows != rows:
            raise RuntimeError(f"{path}: {out.rows} rows written, {rows} announced")


def write_rejected(rows: Iterable[dict[str, str]], path: Path, about: dict[str, Any]) -> None:
    """Write dropped crystals (id, stage, reason, detail) beside a stage's output."""
    write_table(pa.Table.from_pylist(list(rows), schema=REJECTED_SCHEMA), path, about)


def table_files(path: Path) -> list[Path]:
    """Parquet files of a table: the file itself, or a directory's shards in order of name.

    ``rejected.parquet`` beside shards is not part of the table.
    """
    if path.is_dir():
        files = sorted(p for p in path.glob("*.parquet") if p.name != "rejected.parquet")
        if not files:
            raise UserError(f"{path}: no Parquet files in this directory.")
        return files
    if not path.exists():
        raise UserError(f"{path}: no such file. Run the stage that writes it, or correct the path.")
    return [path]


def read_about(path: Path) -> dict[str, Any]:
    """Metadata of a table (of its first shard): stage, settings, inputs, versions; empty for foreign files.

    Raises UserError for unreadable files and for a schema version newer than this code.
    """
    first = table_files(path)[0]
    try:
        raw = (pq.read_metadata(first).metadata or {}).get(_KEY, b"{}")
        note: dict[str, Any] = json.loads(raw)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise UserError(
            f"{first}: not a readable Parquet file ({error}). Delete it and rerun its stage."
        ) from error
    version = note.get("schema_version", SCHEMA_VERSION)
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{first}: schema version {version} is newer than {SCHEMA_VERSION}, which this code reads. "
            "Update dao-pipeline."
        )
    return note


def is_finished(part: Path, identity: dict[str, Any]) -> bool:
    """Whether ``part``, a finished piece of a stage's work, is there and was made from the same ``identity``.

    A stage writes pieces with ``identity`` (inputs, settings) among their metadata; after an interruption those
    with the same one are kept, others are made anew.
    """
    return part.exists() and read_about(part).get("identity") == identity


def _read_file(path: Path, columns: Sequence[str] | None) -> pa.Table:
    note = read_about(path)
    try:
        table = pq.read_table(path, columns=list(columns) if columns is not None else None)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: damaged Parquet file ({error}). Delete it and rerun its stage.") from error
    if "rows" in note and note["rows"] != table.num_rows:
        raise UserError(f"{path}: {table.num_rows} rows, its metadata says {note['rows']}. Rerun its stage.")
    return table


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table (file or directory of shards) whole; ``columns`` restricts what is read.

    Raises UserError for missing, damaged, truncated or newer files.
    """
    tables = [_read_file(file, columns) for file in table_files(path)]
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def iter_tables(path: Path, rows: int = 10_000, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Stream a table in pieces of at most ``rows`` rows, in order: constant memory."""
    for file in table_files(path):
        read_about(file)
        stored = pq.ParquetFile(file, pre_buffer=False)  # else what was read stays in memory to the end
        for batch in stored.iter_batches(batch_size=rows, columns=columns):
            yield pa.Table.from_batches([batch])


def require_crystals(path: Path) -> None:
    """Raise UserError unless ``path`` has every required column of the crystal table."""
    names = set(pq.read_schema(table_files(path)[0]).names)
    missing = [name for name, column in CRYSTAL.items() if column.required and name not in names]
    if missing:
        raise UserError(
            f"{path}: columns {', '.join(missing)} are missing; this is no crystal table. "
            "Import foreign files with the download stage (data.source: file)."
        )
