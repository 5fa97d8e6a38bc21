"""Stage build_crysdb: from raw crystals to clean, reduced, labelled and split ones."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Campaign, expand_path, stage_settings
from dao_pipeline.crysdb.clean import Ledger, duplicates, implausible, malformed, repeated_ids, too_close
from dao_pipeline.crysdb.labels import energies, methods
from dao_pipeline.crysdb.split import SPLITS, assign, given_split
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.flat import FlatCrystals, flatten, formulas, list_values, structure_columns
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.crystals.niggli import niggli_reduce
from dao_pipeline.crystals.schema import CRYSTAL
from dao_pipeline.crystals.table import provenance, read_table, require_crystals, write_rejected, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.sources.files import read_crystals

log = logging.getLogger(__name__)

STAGE = "build_crysdb"


def build_crysdb(campaign: Campaign, raw: Path, out: Path) -> None:
    """Write ``train``, ``val``, ``test`` and ``rejected.parquet`` into ``out``: every raw crystal is in one.

    Cells become Niggli cells, rebuilt from their parameters; formulas are computed anew.

    Raises UserError when nothing is left to train on, when ``raw`` is no crystal table, and when an element of
    the requested compositions does not occur in the training split.
    """
    require_crystals(raw)
    table = _complete(read_table(raw))
    if table.num_rows == 0:
        raise UserError(f"{raw}: no crystals. Check the campaign's data section and rerun download.")
    excluded, exclude_paths = _excluded(campaign)
    ledger = Ledger(table["id"].to_pylist())
    kept = _clean(table, campaign, excluded, ledger)
    parts = {split: kept.filter(pa.array(np.array(kept["split"].to_pylist()) == split)) for split in SPLITS}
    rejected = ledger.rows(STAGE)
    if sum(part.num_rows for part in parts.values()) + len(rejected) != table.num_rows:
        raise RuntimeError(f"{raw}: {table.num_rows} crystals do not add up after cleaning")
    counts: dict[str, Any] = {split: part.num_rows for split, part in parts.items()}
    counts |= {"raw": table.num_rows, "rejected": dict(Counter(row["reason"] for row in rejected).most_common())}
    _require_training(campaign, parts["train"], counts)

    note = provenance(
        STAGE,
        campaign=campaign.name,
        settings=stage_settings(campaign, STAGE),
        inputs={"raw": raw} | {f"exclude[{i}]": path for i, path in enumerate(exclude_paths)},
        counts=counts,
        label=campaign.energy_model.label,
        energy_methods=methods(kept),
    )
    for split, part in parts.items():
        write_table(part, out / f"{split}.parquet", note)
    write_rejected(rejected, out / "rejected.parquet", note)
    if not parts["val"].num_rows:
        log.warning("crysdb: no crystals for validation; raise crysdb.val_fraction or give some the split val")
    log.info("crysdb: %s", ", ".join(f"{name} {n}" for name, n in counts.items()))


def _complete(table: pa.Table) -> pa.Table:
    """The table with every column of the crystal schema, null where it lacks one."""
    for name, column in CRYSTAL.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, column.type))
        elif table[name].type != column.type:
            raise UserError(
                f"column {name} is {table[name].type}, not {column.type}; this is no crystal table. "
                "Import foreign files with the download stage (data.source: file)."
            )
    names = [*CRYSTAL, *(["precursor_of"] if "precursor_of" in table.column_names else [])]
    return table.select(names)


def _clean(table: pa.Table, campaign: Campaign, excluded: set[str], ledger: Ledger) -> pa.Table:
    """The usable crystals of ``table``, reduced and split; the others go into the ledger."""
    limits = campaign.crysdb
    malformed(table, ledger)
    rows = np.flatnonzero(ledger.alive)
    flat = flatten(table.filter(pa.array(ledger.alive)))

    def drop() -> None:
        nonlocal rows, flat
        keep = ledger.alive[rows]
        rows, flat = rows[keep], flat.select(keep)

    implausible(flat, rows, ledger, limits)
    drop()
    flat, failures = niggli_reduce(flat)
    failed = list(failures)
    ledger.reject(rows[failed], "niggli_failed", lambda k: failures[failed[k]])
    drop()
    too_close(flat, rows, ledger, limits.min_distance)
    drop()
    _label(table, campaign, rows, ledger)
    drop()
    repeated_ids(rows, ledger)  # only now, so that an unusable row does not stand in the way of a usable one
    drop()
    names = np.full(table.num_rows, "", dtype=object)
    names[rows] = formulas(flat)
    hit = rows[np.isin(names[rows], list(excluded))] if excluded else rows[:0]
    ledger.reject(hit, "excluded", "its composition is in a table of crysdb.exclude")
    given = given_split(table) if limits.use_given_split else np.full(table.num_rows, "", dtype=object)
    odd = rows[~np.isin(given[rows], ["", *SPLITS])]
    ledger.reject(odd, "unknown_split", lambda k: f"split {given[odd[k]]!r} is not train, val or test")
    drop()
    copies = duplicates(flat, names[rows].tolist(), _preference(table.take(pa.array(rows)), given[rows]))
    copy = list(copies)
    ledger.reject(rows[copy], "duplicate", lambda k: f"same crystal as {ledger.ids[rows[copies[copy[k]]]]}")
    same_as = {ledger.ids[rows[i]]: ledger.ids[rows[j]] for i, j in copies.items()}
    drop()
    fractions = {"val_fraction": limits.val_fraction, "test_fraction": limits.test_fraction}
    split = assign(names[rows].tolist(), given[rows], seed=campaign.seed, **fractions)
    ledger.reject(rows[split == ""], "composition_in_test", "the given test split has this composition")
    drop()
    return _rebuild(table.take(pa.array(rows)), flat, names[rows].tolist(), split[split != ""].tolist(), same_as)


def _preference(table: pa.Table, given: np.ndarray) -> np.ndarray:
    """(m,) int64: which of several equal crystals is kept, the lowest.

    One that stands in the given test or val split is kept there, its copies elsewhere are not; a relaxed
    crystal is kept rather than the precursor that is equal to it; else the first.
    """
    side = np.array([{"test": 0, "val": 1}.get(name, 2) for name in given], dtype=np.int64)
    precursor = np.zeros(len(side), dtype=bool)
    if "precursor_of" in table.column_names:
        precursor = table["precursor_of"].is_valid().to_numpy()
    rank = np.empty(len(side), dtype=np.int64)
    rank[np.lexsort((np.arange(len(side)), precursor, side))] = np.arange(len(side))
    return rank


def _label(table: pa.Table, campaign: Campaign, rows: np.ndarray, ledger: Ledger) -> None:
    """Reject crystals too far above the hull, and those without the label of the energy model."""
    limit = campaign.crysdb.max_e_above_hull
    above = energies(table, "e_above_hull")
    far = np.flatnonzero(above[rows] > limit)  # NaN, unknown, is not far
    ledger.reject(
        rows[far], "e_above_hull", lambda k: f"{above[rows[far[k]]]:.4g} eV/atom above the hull, at most {limit:g}"
    )
    label = campaign.energy_model.label
    unlabelled = rows[np.isnan(energies(table, label)[rows])]
    ledger.reject(unlabelled, "no_label", f"{label} is missing")


def _rebuild(
    table: pa.Table, flat: FlatCrystals, names: list[str], split: list[str], same_as: dict[str | None, str | None]
) -> pa.Table:
    """``table`` with its structures replaced by ``flat``, its splits set, and links to lost crystals cut."""
    columns = {**structure_columns(flat, names), "split": pa.array(split, pa.string())}
    for name in ("formation_energy", "e_above_hull"):
        columns[name] = pa.array(energies(table, name), from_pandas=True)
    if "precursor_of" in table.column_names:
        side = dict(zip(table["id"].to_pylist(), split, strict=True))
        targets = [same_as.get(target, target) for target in table["precursor_of"].to_pylist()]
        linked = [target if side.get(target) == own else None for target, own in zip(targets, split, strict=True)]
        columns["precursor_of"] = pa.array(linked, pa.string())
    return pa.table({name: columns.get(name, table[name]) for name in table.column_names})


def _excluded(campaign: Campaign) -> tuple[set[str], list[Path]]:
    """Compositions that must not be trained on, and the files they come from."""
    paths = [expand_path(text) for text in campaign.crysdb.exclude]
    found: set[str] = set()
    for path in paths:
        imported = read_crystals(path, processes=campaign.compute.cpu.threads)
        found |= set(imported.table["formula"].to_pylist())
        if imported.rejected:
            log.warning("%s: %d rows could not be read and exclude nothing", path, len(imported.rejected))
    return found, paths


def _require_training(campaign: Campaign, train: pa.Table, counts: dict[str, Any]) -> None:
    """Raise UserError unless there is something to train on, with all elements that are asked for."""
    if train.num_rows == 0:
        lost = ", ".join(f"{n} {reason}" for reason, n in counts["rejected"].items()) or "none"
        raise UserError(
            f"crysdb: no crystal is left to train on ({counts['raw']} in, rejected: {lost}; val {counts['val']}, "
            f"test {counts['test']}). Widen the limits of crysdb, choose an energy_model.label that the source "
            "has, or use more compositions."
        )
    seen = set(np.unique(list_values(train["atomic_numbers"])).tolist())
    for i, composition in enumerate(campaign.generate.compositions or []):
        for symbol in parse_formula(composition.formula):
            if ATOMIC_NUMBERS[symbol] not in seen:
                raise UserError(
                    f"generate.compositions[{i}] = {composition.formula}: no training crystal contains {symbol}. "
                    f"Add crystals with {symbol} to the source, or remove the composition."
                )
