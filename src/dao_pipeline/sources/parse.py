"""Records to pieces of a crystal table; runs in worker processes. No record can stop the others."""

from __future__ import annotations

import io
import math
import re
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.sources.cif import Parsed, parse_cif
from dao_pipeline.sources.columns import STRUCTURE, from_columns, names_of, present
from dao_pipeline.sources.imported import Imported, encodable, rejected_row
from dao_pipeline.sources.records import Record

_SYMBOL = re.compile(r"[A-Z][a-z]?")
_ISOTOPES = {"D": "H", "T": "H"}
_FULL = 1e-6
"""How far an occupancy may be from 1."""


class _TooLong(BaseException):
    """The time limit is over; no Exception, so that no parser catches it."""


@dataclass
class Batch:
    """Records that one worker parses together.

    seconds: time limit of each record.
    columns: the user's own names of columns.
    """

    records: Sequence[Record]
    source: str
    energy_method: str | Mapping[str, str] | None = None
    seconds: float = 30.0
    columns: Mapping[str, str] = field(default_factory=dict)


def parse_batch(batch: Batch) -> Imported:
    """The records' crystals, in order, and the others with file, row and reason."""
    names = names_of(batch.columns)
    parsed = [_parse(record, batch.seconds, names) for record in batch.records]
    good = [i for i, result in enumerate(parsed) if not result.reason]
    facts = sorted({name for record in batch.records for name in record.facts})
    columns: dict[str, Any] = {
        name: pa.array([encodable(batch.records[i].facts.get(name)) for i in good], pa.string()) for name in facts
    }
    for name in STRUCTURE:
        columns[name] = pa.array([getattr(parsed[i], name) for i in good], pa.list_(pa.float64()))
    columns["id"] = pa.array([encodable(batch.records[i].id) for i in good], pa.string())
    imported = from_columns(pa.table(columns), batch.source, batch.energy_method, batch.source)
    imported.rejected += [
        rejected_row(record.id, result.reason, f"{result.detail} ({record.where})")
        for record, result in zip(batch.records, parsed, strict=True)
        if result.reason
    ]
    imported.examined = len(batch.records)
    return imported


def _parse(record: Record, seconds: float, names: Mapping[str, tuple[str, ...]]) -> Parsed:
    if record.problem:
        return Parsed(reason=record.problem[0], detail=record.problem[1])
    try:
        with _time_limit(seconds):
            if record.kind == "cif":
                return parse_cif(record.payload)
            if record.kind == "json":
                return parse_structure(record.payload)
            return _parse_xyz(record, names)
    except _TooLong:
        return Parsed(reason="timed_out", detail=f"parsing took more than {seconds:g} s")
    except RecursionError:
        return Parsed(reason="bad_structure", detail="nested too deeply")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise _TooLong after so many seconds, where that can be done: in the main thread of a process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def parse_structure(value: Any) -> Parsed:
    """A pymatgen Structure dict as plain lists.

    Read without pymatgen: its decoder would import whatever module the file names.
    """
    try:
        matrix = np.array(value["lattice"]["matrix"], dtype=np.float64)
        sites = list(value["sites"])
        coords = np.array([site["abc"] for site in sites], dtype=np.float64).reshape(len(sites), 3)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.isfinite(coords).all():
            return Parsed(reason="bad_structure", detail="lattice or coordinates are not finite numbers")
        numbers: list[int] = []
        for site in sites:
            species = site["species"]
            shown = ", ".join(f"{s['element']} {float(s.get('occu', 1)):g}" for s in species)[:100]
            if len(species) != 1 or not abs(float(species[0].get("occu", 1)) - 1) <= _FULL:  # NaN is not full
                return Parsed(reason="disordered", detail=f"a site holds {shown or 'nothing'}")
            match = _SYMBOL.match(str(species[0]["element"]))
            symbol = match.group() if match else ""
            number = ATOMIC_NUMBERS.get(_ISOTOPES.get(symbol, symbol))
            if number is None:
                return Parsed(reason="unknown_element", detail=f"{shown} is no element")
            numbers.append(number)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        return Parsed(
            reason="bad_structure", detail=f"no pymatgen structure ({type(error).__name__}: {error})"[:200]
        )
    return Parsed(numbers, coords.ravel().tolist(), matrix.ravel().tolist())


def _parse_xyz(record: Record, names: Mapping[str, tuple[str, ...]]) -> Parsed:
    """A frame of extended XYZ; what its comment says of energies and so on goes into the record's facts."""
    from ase.io import read

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            atoms = read(io.StringIO(record.payload), format="extxyz")
        matrix = np.array(atoms.cell, dtype=np.float64)
        if not atoms.pbc.all() or not abs(np.linalg.det(matrix)) > 0:
            return Parsed(reason="no_cell", detail="the frame has no lattice in three directions")
        coords = atoms.get_scaled_positions(wrap=False)
        carried = dict(atoms.calc.results if atoms.calc is not None else {}) | atoms.info
        for column, given in present(names, carried).items():
            value = carried[given]
            record.facts[column] = str(value) if np.ndim(value) == 0 else None
        record.id = record.facts.pop("id", None) or record.id
        numbers = atoms.numbers.tolist()
    except Exception as error:  # ASE fails in many ways on damaged text
        return Parsed(reason="bad_xyz", detail=" ".join(f"{type(error).__name__}: {error}".split())[:200])
    if not numbers or not all(1 <= number <= 118 for number in numbers):
        return Parsed(reason="unknown_element" if numbers else "no_atoms", detail="a site holds no element")
    if not all(math.isfinite(x) for x in coords.ravel()):
        return Parsed(reason="bad_xyz", detail="coordinates are not finite numbers")
    return Parsed(numbers, coords.ravel().tolist(), matrix.ravel().tolist())
