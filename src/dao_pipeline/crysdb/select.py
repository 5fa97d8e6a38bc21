"""What is decided on all crystals together: labels, ids, exclusions, duplicates and sides."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.config import Campaign, CrysDB
from dao_pipeline.crysdb import exclude
from dao_pipeline.crysdb.duplicates import find_duplicates
from dao_pipeline.crysdb.exclude import Excluded, read_excluded
from dao_pipeline.crysdb.facts import Facts, coded
from dao_pipeline.crysdb.hull import Phases
from dao_pipeline.crysdb.labels import add_own_hull, keep_methods, labelled_methods, require_one_method
from dao_pipeline.crysdb.ledger import Rejections
from dao_pipeline.crysdb.split import (
    LEFT_OUT,
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    assign_by_date,
    assign_coded,
    drawn,
    propose_dates,
)
from dao_pipeline.crysdb.store import Store, StoreWriter
from dao_pipeline.crystals.table import read_about, read_table
from dao_pipeline.errors import UserError

PHASES = "phases.parquet"
"""Competing phases, beside the raw crystals where their source has them."""

Step = Callable[..., AbstractContextManager[None]]


@dataclass
class Selection:
    """The crystals of CrysDB.

    rows: (m,) which of the facts' crystals. side: (m,) 0 to 2. links: (m,) Arrow, ``precursor_of`` as it shall
    stand. excluded: tables that were excluded; removed_by: crystals that each removed. copies: duplicates by
    source, within it and across. about: further metadata.
    """

    rows: np.ndarray
    side: np.ndarray
    links: pa.Array
    excluded: list[Excluded]
    removed_by: list[int]
    copies: dict[str, dict[str, int]]
    about: dict[str, Any] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Crystals on each side."""
        return {name: int((self.side == k).sum()) for k, name in enumerate(SPLITS)}

    def removed(self) -> Iterator[tuple[Excluded, int]]:
        """Each excluded table with the number of crystals that it removed."""
        return zip(self.excluded, self.removed_by, strict=True)


class _Living:
    """The crystals that are not rejected yet; rejecting one records why."""

    def __init__(self, facts: Facts, rejections: Rejections) -> None:
        self._facts, self._rejections = facts, rejections
        self.mask = np.ones(len(facts), dtype=bool)

    @property
    def rows(self) -> np.ndarray:
        return np.flatnonzero(self.mask)

    def reject(self, bad: np.ndarray, reason: str, detail: Callable[[int], str]) -> np.ndarray:
        """Reject living crystals where ``bad`` (m,) is set; ``detail`` describes one. Returns which they were."""
        rows = np.flatnonzero(bad & self.mask)
        where = pa.array(rows)
        details = [detail(row) for row in rows.tolist()]
        ids, sources = self._facts.ids.take(where), self._facts.sources.take(where)
        self._rejections.add(self._facts.row[rows], ids, sources, reason, details)
        self.mask[rows] = False
        return rows


def select(
    campaign: Campaign, raw: Path, store: Store, facts: Facts, rejections: Rejections, step: Step
) -> Selection:
    """Decide which crystals stay and on which side; changes energies and methods of ``facts`` on the way.

    Raises UserError for labels of several levels of theory, unreadable tables and missing dates.
    """
    limits = campaign.crysdb
    living = _Living(facts, rejections)
    with step("label"):
        about = _label(campaign, raw, facts, living)
    # only now, so that an unusable row does not stand in the way of a usable one
    given = facts.given.code if limits.use_given_split else np.full(len(facts), -1, dtype=np.int32)
    rank = preference(facts, store.counts, given, limits, _place_of_source(raw, facts))
    with step("exclude"):
        first = _repeated(facts.ids, rank, living.mask)
        living.reject(first >= 0, "duplicate_id", lambda i: f"row {facts.row[first[i]]} has this id")
        tables = read_excluded(campaign)
        removed = _exclude(limits, tables, facts, living)
        odd = given >= len(SPLITS)
        living.reject(odd, "unknown_split", lambda i: f"split {facts.given.of(i)!r} is not train, val or test")
    with step("deduplicate", int(living.mask.sum())):
        copy_of, matched = _copies(campaign, store, facts, living, rank, tables)
    benchmark = living.reject(
        matched >= 0, "excluded", lambda i: f"the same crystal is in {tables[matched[i]].name} of crysdb.exclude"
    )
    owner = _owners(facts, first, copy_of)
    matched = np.maximum(matched, _of_owner(matched, owner))
    precursors = living.reject(
        matched >= 0,
        "excluded",
        lambda i: f"its relaxed crystal is in {tables[matched[i]].name} of crysdb.exclude",
    )
    removed += np.bincount(matched[np.concatenate([benchmark, precursors])], minlength=len(tables))
    ids = facts.ids.combine_chunks()
    lost = living.reject(copy_of >= 0, "duplicate", lambda i: f"same crystal as {ids[copy_of[i]]}")
    with step("split", int(living.mask.sum())):
        given = _draw(campaign, facts, living, given)
        side = _split(campaign, facts, living, given, owner)
    rows = living.rows
    chosen = Selection(
        rows=rows,
        side=side[rows],
        links=_links(facts, rows, side, owner[rows]),
        excluded=tables,
        removed_by=removed.tolist(),
        copies=_copies_by_source(facts, lost, copy_of),
        about=about,
    )
    above = facts.e_above_hull[rows]
    chosen.about["energy_methods"] = labelled_methods(
        facts, np.fmin(facts.formation_energy, facts.e_above_hull), living.mask
    )
    chosen.about["stability"] = {
        "threshold": limits.stable_threshold,
        "stable": int((above <= limits.stable_threshold).sum()),
        "unstable": int((above > limits.stable_threshold).sum()),
        "unknown": int(np.isnan(above).sum()),
    }
    return chosen


def preference(
    facts: Facts, atoms: np.ndarray, given: np.ndarray, limits: CrysDB, place_of_source: np.ndarray
) -> np.ndarray:
    """(m,) which of several equal crystals is kept, the lowest.

    One in the given test or val split stays there, its copies elsewhere go; with ``split: time``, the first
    published (what was known before is no discovery); a relaxed crystal rather than a precursor; the preferred
    source (``dedup.prefer``), then the earlier of ``data.sources``; one with a hull distance, or else a formation
    energy, rather than none, and the lowest of them; the smallest cell; the first by id. Nothing depends on the
    order of a source's crystals, except between rows of one id.
    """
    side = np.select([given == TEST, given == VAL], [0, 1], 2)
    date = np.zeros(len(facts), dtype=np.int64)
    if limits.split == "time":
        date = np.where(np.isnat(facts.published), np.iinfo(np.int64).max, facts.published.astype(np.int64))
    sources = coded(facts.sources)
    order = {name: k for k, name in enumerate(limits.dedup.prefer)}
    place = np.array([order.get(name, len(order)) for name in sources.names] + [len(order)])[sources.code]
    by_id = np.empty(len(facts), dtype=np.int64)
    by_id[pc.sort_indices(facts.ids).to_numpy()] = np.arange(len(facts))
    # np.lexsort: the last key is the most important; NaN, unknown, comes last
    energies = (facts.formation_energy, facts.e_above_hull)
    keys = (by_id, atoms, *energies, place_of_source, place, facts.precursor, date, side)
    rank = np.empty(len(facts), dtype=np.int64)
    rank[np.lexsort(keys)] = np.arange(len(facts))
    return rank


def _place_of_source(raw: Path, facts: Facts) -> np.ndarray:
    """(m,) which of the campaign's sources each crystal is from: the raw table has them one after another."""
    ends = np.cumsum([entry["crystals"] for entry in read_about(raw).get("sources") or []], dtype=np.int64)
    return np.searchsorted(ends, facts.row, side="right")


def _label(campaign: Campaign, raw: Path, facts: Facts, living: _Living) -> dict[str, Any]:
    """Compute hulls, leave out energies of other methods, and reject by energy and for want of a label."""
    limits, label = campaign.crysdb, campaign.energy_model.label
    about: dict[str, Any] = {}
    if limits.hull != "given":
        workers = campaign.compute.cpu.threads
        about["own_hull"] = add_own_hull(facts, limits, _phases(raw.with_name(PHASES)), workers)
    if lost := keep_methods(facts, limits.energy_methods):
        about["energies_left_out"] = lost
    above, limit = facts.e_above_hull, limits.max_e_above_hull
    with np.errstate(invalid="ignore"):
        far = above > limit  # NaN, unknown, is not far
    living.reject(far, "e_above_hull", lambda i: f"{above[i]:.4g} eV/atom above the hull, at most {limit:g}")
    energies = above if label == "e_above_hull" else facts.formation_energy
    if limits.require_label:
        living.reject(np.isnan(energies), "no_label", lambda i: f"{label} is missing")
    require_one_method(labelled_methods(facts, energies, living.mask), limits, label)
    return about


def _phases(path: Path) -> list[Phases]:
    """Competing phases that the source gives beside its crystals, if it does, by level of theory."""
    wanted = ["formula", "formation_energy", "energy_method"]
    if not path.exists() or not set(wanted) <= set(pq.read_schema(path).names):
        return []
    table = read_table(path, columns=wanted)
    table = table.filter(pc.and_(pc.is_valid(table["formation_energy"]), pc.is_valid(table["formula"])))
    formula, method = coded(table["formula"]), coded(table["energy_method"])
    energy = table["formation_energy"].to_numpy()
    rows = [(name, method.code == k) for k, name in enumerate(method.names)]
    return [Phases(name, formula.names, formula.code[mine], energy[mine]) for name, mine in rows]


def _repeated(ids: pa.ChunkedArray, rank: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """For each living crystal whose id a better one has, that one (m,); else -1."""
    code = coded(ids).code
    rows = np.flatnonzero(alive)
    order = rows[np.lexsort((rank[rows], code[rows]))]
    first = np.concatenate([[True], code[order[1:]] != code[order[:-1]]])[: len(order)]
    result = np.full(len(code), -1, dtype=np.int64)
    owner = order[np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))] if len(order) else order
    result[order[~first]] = owner[~first]
    return result


def _exclude(limits: CrysDB, tables: list[Excluded], facts: Facts, living: _Living) -> np.ndarray:
    """Reject by composition or by id; how many crystals each table removed."""
    if limits.exclude_by == "composition":
        found = exclude.by_composition(tables, facts.formula)
        what = "its composition is in {} of crysdb.exclude"
    else:
        found = exclude.by_id(tables, facts.ids, facts.formula)
        found = np.maximum(found, exclude.by_id(tables, facts.precursor_of, facts.formula))
        what = "its id, or that of its relaxed crystal, and composition are in {} of crysdb.exclude"
    rows = living.reject(found >= 0, "excluded", lambda i: what.format(tables[found[i]].name))
    return np.bincount(found[rows], minlength=len(tables))


def _copies(
    campaign: Campaign, store: Store, facts: Facts, living: _Living, rank: np.ndarray, tables: list[Excluded]
) -> tuple[np.ndarray, np.ndarray]:
    """For each crystal the one it is a copy of, and the excluded table that it is in; -1 for none, (m,) both."""
    limits = campaign.crysdb
    rows, m = living.rows, len(facts)
    copy_of, matched = np.full(m, -1, dtype=np.int64), np.full(m, -1, dtype=np.int64)
    formula, volume = facts.formula.code[rows].astype(np.int64), facts.volume[rows]
    ranks, precursor = rank[rows], facts.precursor[rows]
    table_of = np.zeros(0, dtype=np.int64)
    if limits.exclude_by == "structure" and tables:
        flat, table_of, more, share = exclude.structures(tables, facts.formula)
        store = _joined(store, flat)
        rows = np.concatenate([rows, m + np.arange(len(flat))])
        formula, volume = np.concatenate([formula, more]), np.concatenate([volume, share])
        ranks = np.concatenate([ranks, np.arange(-len(flat), 0)])
        precursor = np.concatenate([precursor, np.zeros(len(flat), dtype=bool)])
    elif limits.dedup.mode == "off":
        return copy_of, matched
    benchmark = rows >= m
    found = find_duplicates(
        store.folder,
        rows,
        formula,
        volume,
        ranks,
        precursor,
        benchmark,
        limits.dedup,
        campaign.compute.cpu.threads,
    )
    of = np.where(found >= 0, rows[found], -1)
    ours = ~benchmark
    copy_of[rows[ours]] = np.where(of[ours] < m, of[ours], -1)
    hit = ours & (of >= m)
    matched[rows[hit]] = table_of[of[hit] - m]
    return copy_of, matched


def _joined(store: Store, flat: Any) -> Store:
    """A store with further crystals at its end."""
    writer = StoreWriter(store.folder.with_name("with_excluded"))
    for start in range(0, len(store), 10_000):
        writer.append(store.take(np.arange(start, min(start + 10_000, len(store)))))
    writer.append(flat)
    return writer.close()


def _split(campaign: Campaign, facts: Facts, living: _Living, given: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """The side of each living crystal (m,); those that would leak from the given test split are rejected."""
    limits, rows = campaign.crysdb, living.rows
    side = np.full(len(facts), LEFT_OUT, dtype=np.int64)
    if limits.split in ("given", "time"):
        by_itself = np.where(given[rows] >= 0, given[rows], TRAIN)
        side[rows] = by_itself if limits.split == "given" else _by_date(limits, facts, rows, given[rows])
        # a precursor relaxes to its crystal: training on it would show one of the test split
        follows = np.where(given >= 0, LEFT_OUT, _of_owner(side, owner))[rows]
        side[rows] = np.where(follows >= 0, follows, side[rows])
        return side
    keys, code, what = facts.formula.names, facts.formula.code, "composition"
    if limits.split == "chemical_system":
        systems = coded(pa.array([_system(name) for name in keys], pa.string()))
        keys, code, what = systems.names, systems.code[code], "chemical_system"
    fractions = {"val_fraction": limits.val_fraction, "test_fraction": limits.test_fraction}
    side[rows] = assign_coded(keys, code[rows], given[rows], seed=campaign.seed, **fractions)
    name = what.replace("_", " ")
    living.reject(side == LEFT_OUT, f"{what}_in_test", lambda i: f"the given test split has this {name}")
    return side


def _draw(campaign: Campaign, facts: Facts, living: _Living, given: np.ndarray) -> np.ndarray:
    """``given`` (m,) with the crystals of ``crysdb.held_out`` in the test split; no side for others like them."""
    given = given.copy()
    rows = living.rows[~facts.precursor[living.rows]]
    sources = np.array(pc.fill_null(facts.sources, "").take(pa.array(rows)).to_pylist(), dtype=str)
    for name, count in campaign.crysdb.held_out.items():
        own = rows[sources == name]
        if len(own) < count:
            raise UserError(
                f"crysdb.held_out.{name} = {count}: there are {len(own)} usable crystals of that source; sources "
                f"are {', '.join(sorted(set(sources.tolist())))}. Hold out fewer, or correct the name."
            )
        chosen = own[drawn(facts.ids.take(pa.array(own)).to_pylist(), count, campaign.seed)]
        like = np.isin(facts.formula.code, facts.formula.code[chosen])
        given[like & (given != TEST)] = -1
        given[chosen] = TEST
    return given


def _by_date(limits: CrysDB, facts: Facts, rows: np.ndarray, given: np.ndarray) -> np.ndarray:
    published = facts.published[rows]
    open_ones = published[given < 0]
    if limits.val_from and limits.test_from:
        return assign_by_date(published, given, limits.val_from, limits.test_from)
    if np.isnat(open_ones).all():
        raise UserError(
            "crysdb.split = time: no crystal has a date of publication (column published). Take them from a "
            "source that has it, or choose another split."
        )
    val, test = propose_dates(open_ones, limits.val_fraction, limits.test_fraction)
    raise UserError(
        "crysdb.split = time: crysdb.val_from and crysdb.test_from are not given. They are settings, not shares "
        "of the data, so that no crystal changes sides when the data grow. With this set, val_from: "
        f"'{val}' and test_from: '{test}' come closest to crysdb.val_fraction and crysdb.test_fraction."
    )


def _system(formula: str) -> str:
    """Elements of a formula, e.g. Fe-O."""
    return "-".join(sorted(set(re.findall(r"[A-Z][a-z]?", formula))))


def _owners(facts: Facts, first: np.ndarray, copy_of: np.ndarray) -> np.ndarray:
    """For each crystal the one that it is a precursor of (m,); -1 for none.

    Where several have the id that it names, the ``first`` (m,); and of a copy what it is a copy of.
    """
    if facts.precursor_of.null_count == len(facts):
        return np.full(len(facts), -1, dtype=np.int64)
    kept = np.where(first >= 0, first, np.arange(len(facts)))
    kept = np.where(copy_of[kept] >= 0, copy_of[kept], kept)
    owner = pc.fill_null(pc.index_in(facts.precursor_of, value_set=facts.ids), -1).to_numpy()
    return np.where(owner >= 0, kept[owner], -1)


def _of_owner(value: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """``value`` (m,) of the crystal that each is a precursor of; -1 for none."""
    return np.where(owner >= 0, value[owner], -1)


def _links(facts: Facts, rows: np.ndarray, side: np.ndarray, owner: np.ndarray) -> pa.Array:
    """``precursor_of`` of the crystals that stay, from the crystal that each is one of; null where that is lost or
    on another side."""
    sound = (owner >= 0) & (side[owner] == side[rows])
    return facts.ids.combine_chunks().take(pa.array(owner, mask=~sound))


def _copies_by_source(facts: Facts, lost: np.ndarray, copy_of: np.ndarray) -> dict[str, dict[str, int]]:
    """Duplicates of each source: of a crystal of the same source, and of another one."""
    sources = coded(pc.fill_null(facts.sources, ""))
    pairs: Counter[tuple[int, bool]] = Counter(
        zip(
            sources.code[lost].tolist(),
            (sources.code[lost] == sources.code[copy_of[lost]]).tolist(),
            strict=True,
        )
    )
    result: dict[str, dict[str, int]] = {}
    for (code, same), n in sorted(pairs.items()):
        result.setdefault(sources.names[code], {})["duplicates_within" if same else "duplicates_across"] = n
    return result
