"""Which files and servers hold crystals; light enough for the Snakefile."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from dao_pipeline.errors import UserError

CSV_SUFFIXES = (".csv", ".tsv", ".txt")
XYZ_SUFFIXES = (".xyz", ".extxyz")
JSON_SUFFIXES = (".json", ".jsonl")

KNOWN_SUFFIXES = (".parquet", *CSV_SUFFIXES, ".cif", ".zip", *XYZ_SUFFIXES, *JSON_SUFFIXES)
"""What is read; in a folder, other files are passed over."""

TABLES = {".parquet", *CSV_SUFFIXES}
"""Kinds whose elements are found without parsing each crystal."""

OPTIMADE_NAMES = ("oqmd", "alexandria", "alexandria-pbesol", "jarvis", "cod", "mp")
"""OPTIMADE servers that are known by name."""

_OUTPUTS = ("rejected.parquet", "phases.parquet")
"""Tables without crystals that our stages write beside others."""


def suffix_of(path: Path | PurePosixPath) -> str:
    """The suffix that says what a file is, in lower case; ``.gz`` does not count."""
    name = path.name.lower().removesuffix(".gz")
    return PurePosixPath(name).suffix


def crystal_files(path: Path) -> list[Path]:
    """The files to read: ``path`` itself, or all known ones in the folder, in order of name.

    Raises UserError when there is none, and for a file of unknown kind.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file. Correct the path.")
    known = ", ".join(KNOWN_SUFFIXES)
    if path.is_dir():
        inside = (
            p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts)
        )
        files = [p for p in inside if p.is_file() and suffix_of(p) in KNOWN_SUFFIXES and p.name not in _OUTPUTS]
        if not files:
            raise UserError(f"{path}: no file of crystals in this folder ({known}). Correct the path.")
        return sorted(files, key=lambda p: p.relative_to(path).as_posix())
    if suffix_of(path) not in KNOWN_SUFFIXES:
        raise UserError(f"{path}: unknown kind of file; known are {known}. Rename or convert it.")
    return [path]
