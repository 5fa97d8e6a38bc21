"""Stage reference_energies: elements and reference phases, computed with the settings of the candidates.

A compound is computed with the cut-offs that the hungriest of its elements needs, and its elements must be
computed with the same ones: so an element is computed once for each set of settings in which it is needed. What is
computed stays in ``work``, which campaigns share.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.config import Campaign, expand_path, stage_settings
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.crystals.table import iter_tables, provenance, read_table, table_files, write_table
from dao_pipeline.qe.inputs import elements_of, method
from dao_pipeline.qe.pseudopotentials import find_pseudopotentials
from dao_pipeline.qe.validate import VALIDATION, compute_row
from dao_pipeline.sources.files import read_crystals

log = logging.getLogger(__name__)

_COLUMNS = ["id", "source", "formula", "num_atoms", "atomic_numbers", "frac_coords", "lattice"]


def reference_energies(
    campaign: Campaign, validation: Path, crysdb: Path, out: Path, work: Path, minutes: float | None = None
) -> None:
    """Write one row (``qe.validate.VALIDATION``) per reference and set of settings, converged or not.

    References are the most stable crystal of each element in CrysDB's training split, and the crystals of
    ``compare_dft.phases`` within the chemical systems of the candidates. An element without a crystal of at most
    ``compare_dft.max_element_atoms`` atoms is named in the log and in the file's metadata.

    minutes: that this job may take. Raises UserError as validate_qe does, and ContinueLater where the time was too
    short and another job may go on.
    """
    started = time.monotonic()
    settings = campaign.qe.model_copy(update={"calculation": "vc-relax"})
    systems = sorted(set(_systems(validation)))
    wanted = {symbol for system in systems for symbol in system}
    elements = element_crystals(crysdb / "train.parquet", wanted, campaign.compare_dft.max_element_atoms)
    phases = [] if campaign.compare_dft.phases is None else list(_phases(campaign.compare_dft.phases))
    missing = sorted(wanted - set(elements))
    if missing:
        log.warning("no crystal of %s in the training split that is small enough", ", ".join(missing))
    folder = expand_path(settings.pseudo_dir or "")
    table = None if settings.pseudo_table is None else expand_path(settings.pseudo_table)
    rows, done = [], set()
    for crystal, system in _needed(systems, elements, phases):
        pseudos = find_pseudopotentials(folder, system, settings.functional, table)
        files = [pseudos[symbol] for symbol in system]
        key = (crystal.id, method(settings, files))
        if key in done:
            continue
        done.add(key)
        own = {symbol: pseudos[symbol] for symbol in elements_of(crystal)}
        left = None if minutes is None else 60 * minutes - (time.monotonic() - started)
        row = compute_row(crystal, settings, own, work, seconds=left, cutoffs_of=files)
        log.info("%s: %s", crystal.id, row["status"])
        rows.append(row)
    about = provenance(
        "reference_energies",
        campaign=campaign.name,
        settings=stage_settings(campaign, "reference_energies"),
        inputs={"validation": validation, "crysdb": crysdb / "train.parquet"},
        missing=missing,
    )
    write_table(pa.Table.from_pylist(rows, schema=VALIDATION), out, about)


def _systems(validation: Path) -> Iterator[tuple[str, ...]]:
    """Elements of each converged calculation."""
    for file in table_files(validation):
        table = read_table(file, columns=["status", "atomic_numbers"])
        for numbers in table.filter(pc.equal(table["status"], "converged"))["atomic_numbers"].to_pylist():
            yield tuple(SYMBOLS[z] for z in sorted(set(numbers)))


def _needed(
    systems: Sequence[tuple[str, ...]], elements: dict[str, Crystal], phases: Sequence[Crystal]
) -> Iterator[tuple[Crystal, tuple[str, ...]]]:
    """Each reference with the chemical system whose settings it is computed with."""
    for system in systems:
        yield from ((elements[symbol], system) for symbol in system if symbol in elements)
        yield from ((phase, system) for phase in phases if set(elements_of(phase)) <= set(system))


def _phases(path: str) -> Iterator[Crystal]:
    yield from from_table(read_crystals(expand_path(path)).table)


def element_crystals(train: Path, symbols: Iterable[str], max_atoms: int) -> dict[str, Crystal]:
    """The most stable crystal of each element in a crystal table, by symbol; streamed.

    By energy above hull, else by formation energy, else the smallest cell; absent where there is none of at most
    ``max_atoms`` atoms. Precursors of relaxed crystals do not count.
    """
    wanted = pa.array(sorted(symbols), pa.string())
    best: dict[str, tuple[tuple[float, ...], Crystal]] = {}
    names = ["e_above_hull", "formation_energy", "precursor_of"]
    for piece in iter_tables(train, columns=[*_COLUMNS, *_present(train, names)]):
        rows = piece.filter(
            pc.and_(pc.is_in(piece["formula"], value_set=wanted), pc.less_equal(piece["num_atoms"], max_atoms))
        )
        for crystal in from_table(rows):
            if crystal.extra.get("precursor_of") is not None:
                continue
            key = (*(_or_inf(crystal.extra.get(name)) for name in names[:2]), crystal.num_atoms)
            if crystal.formula not in best or key < best[crystal.formula][0]:
                best[crystal.formula] = (key, crystal)
    return {symbol: crystal for symbol, (_, crystal) in best.items()}


def _present(path: Path, names: Sequence[str]) -> list[str]:
    there = set(pq.read_schema(table_files(path)[0]).names)
    return [name for name in names if name in there]


def _or_inf(value: Any) -> float:
    return np.inf if value is None else float(value)
