"""What a campaign asks for, as a table of cells: resolved once, before any job, and then only read.

The main process of a run calls ``resolve``, which keeps the table in ``results/<campaign>/compositions.parquet``
as long as settings and files of formulas stay the same; jobs read it, whatever has become of these files since.
Snakemake parses in every job, so Arrow arrays are made from Python values only where they are wanted: that imports
pandas, half a second.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dao_pipeline.candidates.formula_files import read_formulas
from dao_pipeline.config import Campaign, expand_path
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.formula import formula_text, parse_formula, reduced
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import file_hash, provenance, read_about, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.stage_code import stage_code_hash

log = logging.getLogger(__name__)

_NAMES = ("composition", "formula", "num_atoms", "atomic_numbers", "asked_by")
ASKED_SCHEMA = pa.schema([(name, COLUMNS[name].type) for name in _NAMES])
"""One row per cell to fill; ``asked_by`` is the entry of the configuration, or file and row."""

DROPPED_SCHEMA = pa.schema([(name, pa.string()) for name in ("composition", "asked_by", "reason", "detail")])
"""What was asked for and is not planned: duplicate, too_many_atoms, elements_become_one or not_neutral."""

EXPLICIT = "generate.compositions"
"""How ``asked_by`` begins for what stands in the campaign itself: that must be feasible, or the campaign stops."""

_SETTINGS = ("compositions", "files", "systems", "substitutions", "unit_atoms", "max_atoms")
_MOST_CELLS = 5_000_000
_NAMED = 3


class Asked:
    """The cells of a campaign, what was dropped, and what the table says about itself."""

    def __init__(self, about: dict[str, Any], cells: _Cells | None = None, path: Path | None = None) -> None:
        self.about = about
        self._cells, self._path = cells, path

    @cached_property
    def table(self) -> pa.Table:
        """One row per cell: ``ASKED_SCHEMA``."""
        return self._cells.table() if self._cells else pq.ParquetFile(self._path).read()

    @cached_property
    def dropped(self) -> pa.Table:
        """``DROPPED_SCHEMA``."""
        if self._cells:
            return pa.table(self._cells.dropped, schema=DROPPED_SCHEMA)
        assert self._path is not None
        return pq.ParquetFile(_dropped_file(self._path)).read()

    @cached_property
    def names(self) -> list[str]:
        """Column ``composition``."""
        if self._cells:
            return self._cells.names
        names: list[str] = pq.ParquetFile(self._path).read(["composition"])["composition"].to_pylist()
        return names

    @cached_property
    def count(self) -> int:
        """Number of cells; of a file, without reading it."""
        return len(self._cells.names) if self._cells else int(pq.read_metadata(self._path).num_rows)


_in_memory: dict[str, Asked] = {}


def asked_file(campaign: Campaign) -> Path:
    """Where the resolved compositions of a campaign are."""
    return Path("results", campaign.name, "compositions.parquet")


def asked(campaign: Campaign) -> Asked:
    """The cells that a campaign asks for, in order: of this process, of the file, or resolved now.

    Not for campaigns that predict the test split (``generate.known``).
    """
    settings = _settings(campaign)
    key = json.dumps([campaign.name, settings], sort_keys=True)
    if key not in _in_memory:
        kept = _kept(campaign, settings)
        _in_memory[key] = kept if kept is not None else _resolve(campaign, settings)
    return _in_memory[key]


def resolve(campaign: Campaign, *, write: bool = False) -> Asked:
    """The same after a look at the files that it depends on; for the main process.

    write: keep the table, and what was dropped, on disk for the jobs.

    Raises UserError, with all problems, for files of formulas that are not sound.
    """
    settings = _settings(campaign)
    key = json.dumps([campaign.name, settings], sort_keys=True)
    inputs = _files(campaign)
    found = _in_memory.get(key)
    if found is None or found.about["files"] != inputs:
        kept = _kept(campaign, settings)
        current = kept is not None and kept.about.get("identity") == _identity(campaign, settings, inputs)
        found = kept if current else None
        found = found or _resolve(campaign, settings)
        _in_memory[key] = found
    if write:
        _keep(campaign, found)
    return found


def asked_hash(campaign: Campaign) -> str:
    """Hash of the cells in their order: what plans depend on besides settings."""
    text = "\n".join(asked(campaign).names)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _settings(campaign: Campaign) -> dict[str, Any]:
    values = campaign.generate.model_dump(mode="json")
    return {f"generate.{name}": values[name] for name in _SETTINGS}


def _files(campaign: Campaign) -> dict[str, str]:
    """Hashes of the files that the compositions depend on; those that are missing are named when they are read."""
    generate = campaign.generate
    found: dict[str, str] = {}
    named = [(f"generate.files[{i}]", text) for i, text in enumerate(generate.files)]
    if generate.substitutions.path:
        named.append(("generate.substitutions.path", generate.substitutions.path))
    for key, text in named:
        try:
            path = expand_path(text)
        except UserError as error:
            raise UserError(f"{key}: {error}") from None
        if path.is_file() or (path.is_dir() and key.endswith("path")):
            found[str(path)] = file_hash(path)
    return found


def _identity(campaign: Campaign, settings: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """What the cells follow from: settings, files, this code and the library that judges formulas."""
    judged = campaign.generate.systems.of or campaign.generate.substitutions.charge_neutral
    return {
        "settings": dict(settings),
        "files": dict(files),
        "code": stage_code_hash("plan_candidates"),
        "smact": metadata.version("smact") if judged else None,
    }


def _kept(campaign: Campaign, settings: Mapping[str, Any]) -> Asked | None:
    """What is on disk, if it was made from these settings."""
    path = asked_file(campaign)
    if not path.is_file():
        return None
    about = read_about(path)
    if about.get("stage") != "compositions" or about.get("settings") != settings:
        return None
    return Asked(about, path=path)


def _dropped_file(path: Path) -> Path:
    return path.with_name("compositions_dropped.parquet")


def _keep(campaign: Campaign, found: Asked) -> None:
    path = asked_file(campaign)
    if path.is_file() and read_about(path).get("identity") == found.about["identity"]:
        return
    write_table(found.dropped, _dropped_file(path), found.about)
    write_table(found.table, path, found.about)


def _resolve(campaign: Campaign, settings: Mapping[str, Any]) -> Asked:
    cells = _Cells(campaign.generate.max_atoms, campaign.generate.unit_atoms)
    _explicit(campaign, cells)
    _from_files(campaign, cells)
    enumerated = _from_systems(campaign, cells)
    _substituted(campaign, cells)
    reasons = dict(Counter(cells.dropped["reason"]))
    files = _files(campaign)
    about = provenance("compositions", campaign=campaign.name, settings=dict(settings))
    about |= {"files": files, "dropped": reasons, "enumerated": enumerated}
    if campaign.generate.systems.of or campaign.generate.substitutions.charge_neutral:
        about["plausible_by"] = f"SMACT {metadata.version('smact')}, oxidation states of the ICSD 2024"
    about["identity"] = _identity(campaign, settings, files)
    for reason, number in reasons.items():
        examples = cells.dropped["composition"]
        named = [examples[i] for i, why in enumerate(cells.dropped["reason"]) if why == reason]
        more = ", ..." if number > _NAMED else ""
        log.warning("%d compositions dropped, %s: %s%s", number, reason, ", ".join(named[:_NAMED]), more)
    return Asked(about, cells)


class _Cells:
    """Collects cells; one that is there already, after reduction, is merged into the first."""

    def __init__(self, max_atoms: int, unit_atoms: int) -> None:
        self.max_atoms, self.unit_atoms = max_atoms, unit_atoms
        self.names: list[str] = []
        self.formulas: list[str] = []
        self.sizes: list[int] = []
        self.asked_by: list[str] = []
        self.species: list[int] = []
        self.repeats: list[int] = []
        self.first: dict[tuple[str, int], int] = {}
        self.dropped: dict[str, list[str]] = {name: [] for name in DROPPED_SCHEMA.names}

    def add(self, counts: Mapping[str, int], units: int | None, asked_by: str, formula: str | None = None) -> None:
        """A formula with one number of formula units, or all that fit.

        formula: what ``counts`` are in their order, if they are reduced and ordered already.
        """
        atoms, plain, formula = sum(counts.values()), formula, formula or reduced(counts)
        species = [ATOMIC_NUMBERS[symbol] for symbol in counts]
        numbers = [units] if units else range(1, max(1, self.unit_atoms // atoms) + 1)
        for number in numbers:
            repeats = [count * number for count in counts.values()]
            name = plain if plain and number == 1 else _text(counts, repeats)
            size = atoms * number
            if size > self.max_atoms:
                self.drop(name, asked_by, "too_many_atoms", f"{size}, generate.max_atoms is {self.max_atoms}")
                break
            place = self.first.setdefault((formula, size), len(self.names))
            if place < len(self.names):
                self.drop(name, asked_by, "duplicate", f"of {self.names[place]}, {self.asked_by[place]}")
                continue
            self.names.append(name)
            self.formulas.append(formula)
            self.sizes.append(size)
            self.asked_by.append(asked_by)
            self.species += species
            self.repeats += repeats
        if len(self.names) > _MOST_CELLS:
            raise UserError(
                f"generate: {asked_by} brings the campaign above {_MOST_CELLS:,} cells; ask for fewer formulas, "
                "or lower generate.unit_atoms."
            )

    def drop(self, *values: str) -> None:
        """Note a composition that is left out: composition, asked_by, reason, detail."""
        for column, value in zip(self.dropped.values(), values, strict=True):
            column.append(value)

    def table(self) -> pa.Table:
        """All of them, as ``ASKED_SCHEMA`` says."""
        numbers = np.repeat(np.asarray(self.species, np.int16), np.asarray(self.repeats, np.int64))
        ends = np.concatenate([[0], np.cumsum(np.asarray(self.sizes, np.int64))]).astype(np.int32)
        values = pa.Array.from_buffers(pa.int16(), len(numbers), [None, pa.py_buffer(numbers)])
        offsets = pa.Array.from_buffers(pa.int32(), len(ends), [None, pa.py_buffer(ends)])
        lists = pa.ListArray.from_arrays(offsets, values)
        columns = (self.names, self.formulas, self.sizes, lists, self.asked_by)
        arrays = [
            values if isinstance(values, pa.Array) else pa.array(values, field.type)
            for values, field in zip(columns, ASKED_SCHEMA, strict=True)
        ]
        return pa.table([array.cast(f.type) for array, f in zip(arrays, ASKED_SCHEMA, strict=True)], ASKED_SCHEMA)


def _text(symbols: Iterable[str], numbers: Iterable[int]) -> str:
    return "".join([s if n == 1 else f"{s}{n}" for s, n in zip(symbols, numbers, strict=True)])


def _explicit(campaign: Campaign, cells: _Cells) -> None:
    for i, given in enumerate(campaign.generate.compositions or []):
        cells.add(parse_formula(given.formula), given.formula_units, f"{EXPLICIT}[{i}]")


def _from_files(campaign: Campaign, cells: _Cells) -> None:
    problems = []
    for i, text in enumerate(campaign.generate.files):
        try:
            path = expand_path(text)
            for line in read_formulas(path):
                cells.add(line.counts, line.units, f"{path.name}, {line.place}")
        except UserError as error:
            problems += [f"generate.files[{i}]: {problem}" for problem in str(error).splitlines()]
    if problems:
        raise UserError("\n".join(problems))


def _from_systems(campaign: Campaign, cells: _Cells) -> dict[str, int]:
    if not campaign.generate.systems.of:
        return {}
    from dao_pipeline.candidates.chemistry import enumerate_formulas

    tally: Counter[str] = Counter()
    for counts, asked_by in enumerate_formulas(campaign.generate.systems, tally):
        tally["formulas"] += 1
        cells.add(counts, None, asked_by, formula_text(counts))
    return dict(tally)


def _substituted(campaign: Campaign, cells: _Cells) -> None:
    settings = campaign.generate.substitutions
    if not settings:
        return
    from dao_pipeline.candidates.substitute import substituted

    try:
        for new in substituted(settings):
            asked_by = f"generate.substitutions: {new.how}"
            if new.reason:
                cells.drop(formula_text(new.counts), asked_by, new.reason, "")
            else:
                cells.add(new.counts, new.units, asked_by)
    except UserError as error:
        lines = [
            problem if problem.startswith("generate.") else f"generate.substitutions.path: {problem}"
            for problem in str(error).splitlines()
        ]
        raise UserError("\n".join(lines)) from None
