"""Single crystals as they stand in files, unparsed: CSV rows, CIFs of folders and zips, extended XYZ, JSON.

Readers go through a file once and hold one record at a time. Files may be hostile: nothing is unpacked to disk,
and neither a line, a record nor a member of a zip may be larger than its limit.
"""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TextIO

from dao_pipeline.errors import UserError
from dao_pipeline.sources.cif import MAX_CHARACTERS
from dao_pipeline.sources.columns import names_of, present
from dao_pipeline.sources.kinds import CSV_SUFFIXES, XYZ_SUFFIXES, suffix_of

MAX_LINE = 64 << 20
"""Characters of a line of CSV or JSON lines, or of one item of a JSON list."""

MAX_JSON = 1 << 30
"""Characters of a JSON file that is no list and must be read whole."""

MAX_ATOMS = 10_000
"""Atoms of a frame of extended XYZ; larger ones are no crystal for these models."""

_PIECE = 1 << 20


@dataclass(slots=True)
class Record:
    """One crystal, unparsed: a text or decoded JSON, and what stands beside it by column of the crystal table.

    where: file and row, for rejected.parquet.
    problem: reason and detail when it cannot even be read.
    """

    kind: Literal["cif", "xyz", "json"]
    payload: Any
    id: str
    where: str
    facts: dict[str, str | None] = field(default_factory=dict)
    problem: tuple[str, str] | None = None


def read_records(path: Path, name: str, columns: Mapping[str, str], prefix: str = "") -> Iterator[Record]:
    """Records of one file that is no Parquet, in order; ``name`` is how messages call it, ``prefix`` begins ids.

    Raises UserError when the file as a whole cannot be read.
    """
    suffix = suffix_of(path)
    try:
        if suffix in CSV_SUFFIXES:
            yield from _csv(path, name, columns, prefix)
        elif suffix == ".cif":
            yield _cif(path, name)
        elif suffix == ".zip":
            yield from _zip(path, name, prefix)
        elif suffix in XYZ_SUFFIXES:
            yield from _xyz(path, name, prefix)
        else:
            yield from _json(path, name, columns, prefix)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}). Mend or remove the file.") from None


def _open(path: Path) -> TextIO:
    """The file as UTF-8 text, unpacked on the fly, wrong bytes replaced."""
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace", newline="")
    return path.open(encoding="utf-8-sig", errors="replace", newline="")


def _lines(stream: TextIO, path: Path) -> Iterator[str]:
    while line := stream.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise UserError(f"{path}: a line of more than {MAX_LINE >> 20} million characters. Mend the file.")
        yield line


# --- CSV ---------------------------------------------------------------------------------------------


def _csv(path: Path, name: str, columns: Mapping[str, str], prefix: str) -> Iterator[Record]:
    """Rows of a CSV file; ragged ones have None in what they lack."""
    csv.field_size_limit(MAX_LINE)
    with _open(path) as stream:
        if "\0" in stream.read(4096):
            raise UserError(f"{path}: binary data, no CSV text. Save it as CSV in UTF-8.")
        stream.seek(0)
        rows = csv.DictReader(_lines(stream, path), delimiter="\t" if suffix_of(path) == ".tsv" else ",")
        try:
            header = rows.fieldnames or []
            if "cif" not in header:
                shown = ", ".join(str(column)[:30] for column in header[:10]) or "nothing"
                raise UserError(f"{path}: no column cif in the CSV header (found: {shown}). Add it.")
            names = present(names_of(columns), header)
            for number, row in enumerate(rows):
                facts = {column: row.get(given) for column, given in names.items()}
                given_id = facts.pop("id", None)
                yield Record(
                    "cif", row.get("cif"), given_id or f"{prefix}row:{number}", f"{name}, row {number}", facts
                )
        except csv.Error as error:
            raise UserError(f"{path}: line {rows.line_num}: not valid CSV ({error}). Mend the file.") from None


# --- CIF files and zips of them ------------------------------------------------------------------------


def _cif(path: Path, name: str) -> Record:
    with _open(path) as stream:
        text = stream.read(MAX_CHARACTERS + 1)
    return Record("cif", text, str(PurePosixPath(name.removesuffix(".gz")).with_suffix("")), name)


def _zip(path: Path, name: str, prefix: str) -> Iterator[Record]:
    """CIFs in a zip; no member is unpacked to disk, and no more of it is read than a CIF may have."""
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir() and m.filename.lower().endswith(".cif")]
        if not members:
            raise UserError(f"{path}: no .cif file in this zip. Name a zip of CIF files.")
        for member in members:
            inside = PurePosixPath(member.filename.replace("\\", "/"))
            # a name may try to lead out of the folder: it is an id here, and never a path
            clean = "/".join(part for part in inside.with_suffix("").parts if part not in ("/", "..", "."))
            record = Record("cif", None, f"{prefix}{clean}", f"{name}, {clean}.cif")
            try:
                with archive.open(member) as stream:
                    record.payload = stream.read(MAX_CHARACTERS + 1).decode("utf-8", errors="replace")
            except Exception as error:  # each compression, and a wrong place or password, fails in its own way
                record.problem = ("unreadable", f"{type(error).__name__}: {str(error)[:150]}")
            yield record


# --- extended XYZ --------------------------------------------------------------------------------------


def _xyz(path: Path, name: str, prefix: str) -> Iterator[Record]:
    """Frames of extended XYZ as text: a count, a comment with the lattice, and a line per atom."""
    number = 0
    with _open(path) as stream:
        lines = _lines(stream, path)
        for line in lines:
            if not line.strip():
                continue
            count = int(line) if line.strip().isdigit() and len(line.strip()) < 9 else -1
            if count < 0:
                raise UserError(
                    f"{path}: frame {number} begins with {line.strip()[:30]!r} instead of its number of atoms. "
                    "Mend the file."
                )
            record = Record("xyz", None, f"{prefix}row:{number}", f"{name}, frame {number}")
            if count > MAX_ATOMS:
                record.problem = ("too_large", f"{count} atoms; at most {MAX_ATOMS} are read")
                read = sum(1 for _ in zip(range(count + 1), lines, strict=False))
            else:
                frame = [text for _, text in zip(range(count + 1), lines, strict=False)]
                read = len(frame)
                record.payload = line + "".join(frame)
            if read < count + 1:
                record.problem = ("truncated", f"the frame should have {count} atoms, the file ends before")
            yield record
            number += 1


# --- JSON ----------------------------------------------------------------------------------------------


def _json(path: Path, name: str, columns: Mapping[str, str], prefix: str) -> Iterator[Record]:
    """Structures, entries or rows of JSON: a list, JSON lines, a single one, or a mapping from ids."""
    names = names_of(columns)
    try:
        for number, (key, item) in enumerate(_items(path)):
            facts, structure = _facts_of(item, names, key)
            given_id = facts.pop("id", None) or key
            record = Record(
                "json", structure, given_id or f"{prefix}row:{number}", f"{name}, item {number}", facts
            )
            if isinstance(structure, str):
                record.kind = "cif"
            yield record
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}). Mend the file.") from None


def _items(path: Path) -> Iterator[tuple[str | None, Any]]:
    """Items with their keys, if they have any."""
    with _open(path) as stream:
        if suffix_of(path) == ".jsonl":
            for line in _lines(stream, path):
                if line.strip():
                    yield None, json.loads(line)
            return
        if stream.read(_PIECE).lstrip()[:1] == "[":
            stream.seek(0)
            for item in _list_items(stream, path):
                yield None, item
            return
        stream.seek(0)
        text = stream.read(MAX_JSON + 1)
        if len(text) > MAX_JSON:
            raise UserError(f"{path}: more than {MAX_JSON >> 30} GiB of JSON; make it a JSON list or JSON lines.")
        yield from _whole(json.loads(text))


def _whole(value: Any) -> Iterator[tuple[str | None, Any]]:
    if not isinstance(value, dict) or any(key in value for key in ("lattice", "structure", "cif")):
        yield None, value
    elif isinstance(value.get("entries"), list):
        yield from ((None, item) for item in value["entries"])
    elif isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        names, index = value["columns"], value.get("index") or [None] * len(value["data"])
        for key, row in zip(index, value["data"], strict=True):  # pandas, orient="split"
            if not isinstance(row, list):
                raise ValueError(f"a row of the table is {type(row).__name__}, not a list")
            yield (None if key is None else str(key)), dict(zip(map(str, names), row, strict=True))
    else:
        yield from ((str(key), item) for key, item in value.items())


def _list_items(stream: TextIO, path: Path) -> Iterator[Any]:
    """Items of a JSON list, one at a time: only the current one is in memory."""
    decoder = json.JSONDecoder()
    buffer = stream.read(_PIECE).lstrip().removeprefix("[")
    while True:
        buffer = buffer.lstrip(" \t\r\n,")
        if buffer.startswith("]"):
            rest = buffer[1:]
            while rest or (rest := stream.read(_PIECE)):
                if rest.strip():
                    raise ValueError(f"after the list comes {rest.strip()[:30]!r}")
                rest = ""
            return
        try:
            item, end = decoder.raw_decode(buffer)
            if end == len(buffer):  # a number may go on
                raise ValueError("the list does not end")
        except ValueError:
            more = stream.read(max(_PIECE, len(buffer)))  # doubling keeps the repeated decoding linear
            if not more or len(buffer) > MAX_LINE:
                raise
            buffer += more
            continue
        yield item
        buffer = buffer[end:]


def _facts_of(
    item: Any, names: Mapping[str, tuple[str, ...]], key: str | None
) -> tuple[dict[str, str | None], Any]:
    """Values by column, and the structure (a dict, or CIF text) of an item; also from the ``data`` of an entry.

    An id of the item's own comes before its ``key``, which may be no more than a row number.
    """
    if not isinstance(item, dict):
        return {}, item
    further = item.get("data") if isinstance(item.get("data"), dict) else {}
    carried = {"material_id": key or item.get("entry_id")} | (further or {}) | item
    facts: dict[str, str | None] = {}
    for column, given in present(names, carried).items():
        value = carried[given]
        facts[column] = None if value is None or isinstance(value, (dict, list)) else str(value)
    return facts, item.get("structure") or item.get("cif") or item
