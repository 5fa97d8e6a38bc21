"""Stage build_crysdb: from raw crystals to clean, reduced, labelled and split ones.

Two passes over the raw table, a row group at a time. The first cleans structures and puts them into plain files;
what is then decided on all crystals together (labels, duplicates, splits) needs a few dozen bytes of each. The
second writes the splits. Memory is that, and not the size of the table.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crysdb.clean import clean
from dao_pipeline.crysdb.facts import Facts, facts_of, gather
from dao_pipeline.crysdb.ledger import Ledger, Rejections
from dao_pipeline.crysdb.select import PHASES, Selection, select
from dao_pipeline.crysdb.split import SPLITS, TRAIN
from dao_pipeline.crysdb.store import Store, StoreWriter
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.flat import structure_columns
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.crystals.held_out import crystals_digest
from dao_pipeline.crystals.schema import COLUMNS, CRYSTAL
from dao_pipeline.crystals.table import (
    ROW_GROUP,
    file_hash,
    iter_tables,
    provenance,
    read_about,
    require_crystals,
    table_files,
    write_table,
    writing,
)
from dao_pipeline.errors import UserError

log = logging.getLogger(__name__)

STAGE = "build_crysdb"

Observer = Callable[[str, int, float], None]
"""Told of each step that is over: its name, crystals that entered it, seconds."""

_PASSPORT = ("database_version", "thermo_type", "correction_scheme")
"""What a source's snapshot may say of its energies."""

_OPTIONAL = ("published", "precursor_of")
"""Columns beyond the crystal schema that CrysDB keeps where the source has them."""


def build_crysdb(campaign: Campaign, raw: Path, out: Path, observe: Observer | None = None) -> None:
    """Write ``train``, ``val``, ``test`` and ``rejected.parquet`` into ``out``: every raw crystal is in one.

    Cells become Niggli cells, rebuilt from their parameters; formulas are computed anew.

    Raises UserError when nothing is left to train on, when ``raw`` is no crystal table, when labels of several
    levels of theory are mixed, and when an element of the requested compositions does not occur in the training
    split.
    """
    require_crystals(raw)
    work = out.parent / f".{out.name}.building"
    shutil.rmtree(work, ignore_errors=True)
    try:
        _build(campaign, raw, out, work, observe or _log_step)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _build(campaign: Campaign, raw: Path, out: Path, work: Path, observe: Observer) -> None:
    rejections = Rejections(STAGE)

    @contextmanager
    def step(name: str, crystals: int | None = None) -> Iterator[None]:
        start = time.perf_counter()
        yield
        observe(name, total if crystals is None else crystals, time.perf_counter() - start)

    total = sum(pq.ParquetFile(file).metadata.num_rows for file in table_files(raw))
    if total == 0:
        raise UserError(f"{raw}: no crystals. Check the campaign's data section and rerun download.")
    with step("clean"):
        store, facts, raw_sources = _clean(campaign, raw, work / "structures", rejections)
    chosen = select(campaign, raw, store, facts, rejections, step)
    note = _note(campaign, raw, facts, chosen, rejections, raw_sources)
    if chosen.counts() != {name: note["counts"][name] for name in SPLITS} or note["counts"]["raw"] != total:
        raise RuntimeError(f"{raw}: {total} crystals do not add up after cleaning")
    _require_training(campaign, facts, chosen, note["counts"])
    with step("write", len(chosen.rows)):
        _write(raw, store, facts, chosen, out, note)
        write_table(rejections.table(), out / "rejected.parquet", note)
    if not note["counts"]["val"]:
        log.warning("crysdb: no crystals for validation; raise crysdb.val_fraction or give some the split val")
    log.info("crysdb: %s", ", ".join(f"{name} {n}" for name, n in note["counts"].items()))


def _log_step(name: str, crystals: int, seconds: float) -> None:
    log.info("crysdb: %s: %d crystals, %.1f s", name, crystals, seconds)


def _clean(
    campaign: Campaign, raw: Path, folder: Path, rejections: Rejections
) -> tuple[Store, Facts, dict[str, int]]:
    """The first pass: usable structures in a store, facts about them, and raw crystals by source."""
    writer = StoreWriter(folder)
    pieces = []
    sources: Counter[str] = Counter()
    done = 0
    for piece in iter_tables(raw, ROW_GROUP):
        piece = _complete(piece)
        ledger = Ledger([""] * piece.num_rows)
        flat, rows = clean(piece, campaign.crysdb, ledger)
        writer.append(flat)
        pieces.append(facts_of(piece.take(pa.array(rows)), flat, done + rows))
        lost = np.flatnonzero(~ledger.alive)
        named = piece.select(["id", "source"]).take(pa.array(lost))
        rejections.add(
            done + lost, named["id"], named["source"], ledger.reason[lost].tolist(), ledger.detail[lost].tolist()
        )
        for entry in pc.value_counts(pc.fill_null(piece["source"], "")).to_pylist():
            sources[entry["values"]] += entry["counts"]
        done += piece.num_rows
    return writer.close(), gather(pieces), dict(sources)


def _complete(table: pa.Table) -> pa.Table:
    """The table with every column of the crystal schema, null where it lacks one."""
    for name in (*CRYSTAL, *_OPTIONAL):
        column = COLUMNS[name]
        if name not in table.column_names:
            if name in CRYSTAL:
                table = table.append_column(name, pa.nulls(table.num_rows, column.type))
        elif table[name].type != column.type:
            raise UserError(
                f"column {name} is {table[name].type}, not {column.type}; this is no crystal table. "
                "Import foreign files with the download stage (data.source: file)."
            )
    return table.select([*CRYSTAL, *(name for name in _OPTIONAL if name in table.column_names)])


def _note(
    campaign: Campaign,
    raw: Path,
    facts: Facts,
    chosen: Selection,
    rejections: Rejections,
    raw_sources: dict[str, int],
) -> dict[str, Any]:
    """The metadata of all four files."""
    counts: dict[str, Any] = chosen.counts()
    total = sum(counts.values()) + len(rejections)
    counts |= {"raw": total, "rejected": rejections.counts()}
    inputs = {"raw": raw} | {f"exclude[{i}]": e.path for i, e in enumerate(chosen.excluded)}
    test = pa.array(chosen.rows[chosen.side == SPLITS.index("test")])
    formulas = pa.array(facts.formula.names, pa.string()).take(pa.array(facts.formula.code)).take(test)
    own_test = {
        "name": "own test split",
        "crystals": len(test),
        "digest": crystals_digest(facts.ids.take(test), pa.chunked_array([formulas])),
    }
    phases = raw.with_name(PHASES)
    if campaign.crysdb.hull != "given" and phases.exists():
        inputs["phases"] = phases
    origin = read_about(raw).get("sources") or []
    return provenance(
        STAGE,
        campaign=campaign.name,
        settings=stage_settings(campaign, STAGE),
        inputs=inputs,
        counts=counts,
        label=campaign.energy_model.label,
        **chosen.about,
        held_out=[own_test, *(e.about(campaign.crysdb.exclude_by, n) for e, n in chosen.removed())],
        sources={entry["name"]: entry["hash"] for entry in origin} or {"raw": file_hash(raw)},
        passport=_passport(origin),
        coverage=_coverage(facts, chosen, rejections, raw_sources),
    )


def _passport(sources: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Where the energies come from, as far as any of the raw table's ``sources`` says.

    A fact that is not the same for all of them is given by source, null where a source does not say.
    """
    passport: dict[str, Any] = {}
    for fact in _PASSPORT:
        said = {entry["name"]: entry.get(entry.get("source", ""), {}).get(fact) for entry in sources}
        different = set(said.values())
        if different - {None}:
            passport[fact] = said if len(different) > 1 else different.pop()
    return passport


def _coverage(
    facts: Facts, chosen: Selection, rejections: Rejections, raw_sources: dict[str, int]
) -> dict[str, dict[str, Any]]:
    """By source: crystals in, rejected by reason, duplicates within and across sources, and on each side."""
    lost = rejections.by_source()
    kept = pc.fill_null(facts.sources, "").take(pa.array(chosen.rows))
    sides = pa.table({"source": kept, "side": pa.array(np.array(SPLITS)[chosen.side])})
    result: dict[str, dict[str, Any]] = {
        name: {"raw": n, "rejected": lost.get(name, {}), **dict.fromkeys(SPLITS, 0), **chosen.copies.get(name, {})}
        for name, n in raw_sources.items()
    }
    for entry in sides.group_by(["source", "side"]).aggregate([([], "count_all")]).to_pylist():
        result[entry["source"]][entry["side"]] = entry["count_all"]
    return result


def _write(raw: Path, store: Store, facts: Facts, chosen: Selection, out: Path, note: dict[str, Any]) -> None:
    """The second pass: the raw table again, with new structures, energies, splits and links."""
    names = set(pq.read_schema(table_files(raw)[0]).names)
    columns = [*CRYSTAL, *(name for name in _OPTIONAL if name in names)]
    schema = pa.schema([(name, COLUMNS[name].type) for name in columns])
    formula_names = pa.array(facts.formula.names, pa.string())
    method_names = pa.array(facts.method.names, pa.string())
    counts = chosen.counts()
    with (
        writing(out / "train.parquet", schema, note, counts["train"]) as train,
        writing(out / "val.parquet", schema, note, counts["val"]) as val,
        writing(out / "test.parquet", schema, note, counts["test"]) as test,
    ):
        done = 0
        for piece in iter_tables(raw, ROW_GROUP):
            places = np.arange(*np.searchsorted(facts.row[chosen.rows], [done, done + piece.num_rows]))
            rows, side = chosen.rows[places], chosen.side[places]
            table = _complete(piece).take(pa.array(facts.row[rows] - done))
            done += piece.num_rows
            if not len(rows):
                continue
            method = facts.method.code[rows]
            new = {
                **structure_columns(store.take(rows), formula_names.take(pa.array(facts.formula.code[rows]))),
                "split": pa.array(np.array(SPLITS, dtype=object)[side], pa.string()),
                "formation_energy": pa.array(facts.formation_energy[rows], from_pandas=True),
                "e_above_hull": pa.array(facts.e_above_hull[rows], from_pandas=True),
                "energy_method": method_names.take(pa.array(method, mask=method < 0)),
                "precursor_of": chosen.links.take(pa.array(places)),
            }
            values = [new.get(name, table[name]) for name in columns]
            table = pa.table(values, schema=schema)
            for k, split in enumerate((train, val, test)):
                split.write(table.filter(pa.array(side == k)))
        train.about["elements"] = sorted(ATOMIC_NUMBERS[symbol] for symbol in _trained(facts, chosen))


def _trained(facts: Facts, chosen: Selection) -> set[str]:
    """Symbols of the elements of the training split."""
    formulas = np.unique(facts.formula.code[chosen.rows[chosen.side == TRAIN]])
    return {symbol for k in formulas.tolist() for symbol in parse_formula(facts.formula.names[k])}


def _require_training(campaign: Campaign, facts: Facts, chosen: Selection, counts: dict[str, Any]) -> None:
    """Raise UserError unless there is something to train on, with all elements that are asked for."""
    train = chosen.rows[chosen.side == TRAIN]
    if not len(train):
        lost = ", ".join(f"{n} {reason}" for reason, n in counts["rejected"].items()) or "none"
        raise UserError(
            f"crysdb: no crystal is left to train on ({counts['raw']} in, rejected: {lost}; val {counts['val']}, "
            f"test {counts['test']}). Widen the limits of crysdb, choose an energy_model.label that the source "
            "has, or use more compositions."
        )
    asked = campaign.generate.compositions or []
    if not asked:
        return
    seen = _trained(facts, chosen)
    for i, composition in enumerate(asked):
        for symbol in parse_formula(composition.formula):
            if symbol not in seen:
                raise UserError(
                    f"generate.compositions[{i}] = {composition.formula}: no training crystal contains {symbol}. "
                    f"Add crystals with {symbol} to the source, or remove the composition."
                )
