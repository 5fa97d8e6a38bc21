"""An index of known crystals, and what it proposes for a composition.

Known crystals are sorted by stoichiometry pattern (``patterns``) and, within it, by structure type (``types``);
that is done once. A composition is compared with the templates of its pattern, under every assignment of its
elements to their places. Every template votes for its type, the more the nearer it is (``buckets``); proposals are
the types with the most votes, each made from its nearest template.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Templates
from dao_pipeline.crystals.flat import FlatCrystals, flatten, structure_columns
from dao_pipeline.crystals.geometry import volumes
from dao_pipeline.templates.buckets import Bucket, Choices, above_hull
from dao_pipeline.templates.cells import primitive_cells, supercells
from dao_pipeline.templates.metric import NUM, Metric, fixed_metric
from dao_pipeline.templates.patterns import Pattern, assignments, compositions, slots_of
from dao_pipeline.templates.prints import slot_prints
from dao_pipeline.templates.proposals import Proposals
from dao_pipeline.templates.types import find_types
from dao_pipeline.templates.volume import VolumeModel

COLUMNS = ["id", "source", "formula", "num_atoms", "atomic_numbers", "frac_coords", "lattice", "e_above_hull"]
"""Columns of the crystal table that an index keeps."""

SUPERCELL = 4.0
"""Loss of ln votes (see ``TemplateIndex``): of 870 cells of MP-20 and MPTS-52 that could be supercells, 12 are."""


@dataclass(frozen=True)
class TemplateIndex:
    """Known crystals, ready to be looked up. Made by ``build``, kept by ``files.save`` and ``files.load``.

    table: the n crystals. settings: as it was built. metric: distance of compositions.
    label: (n,) int64, structure type. places: (n, s) int64, the element on each place of the type, padded with 0.
    classes: by pattern (types, P), see ``types.Types``; types of a pattern are numbered in a row.
    volume: what volume to expect of a composition.
    instability: what a template's vote loses, in its logarithm, per eV/atom above the hull.
    supercell: what a type loses, in the logarithm of its votes, if it takes a supercell to have as many atoms.
    """

    table: pa.Table
    settings: Templates
    metric: Metric
    label: np.ndarray
    places: np.ndarray
    classes: dict[Pattern, np.ndarray]
    volume: VolumeModel
    instability: float = 0.0
    supercell: float = SUPERCELL

    @classmethod
    def build(cls, table: pa.Table, settings: Templates) -> TemplateIndex:
        """Index the crystals of a table; they are used in their primitive cells."""
        missing = [name for name in COLUMNS if name not in table.column_names]
        table = table.select([n for n in COLUMNS if n not in missing])
        if "e_above_hull" in missing:
            table = table.append_column("e_above_hull", pa.nulls(table.num_rows, pa.float64()))
        flat = flatten(table)
        smaller = primitive_cells(flat)
        if smaller is not flat:
            for name, column in structure_columns(smaller, table["formula"].to_pylist()).items():
                table = table.set_column(table.column_names.index(name), name, column)
            flat = flatten(table)
        slots = slots_of(flat)
        label = np.zeros(len(flat), dtype=np.int64)
        places = np.zeros_like(slots.elements)
        stability = np.nan_to_num(table["e_above_hull"].to_numpy().astype(np.float64), nan=np.inf)
        classes: dict[Pattern, np.ndarray] = {}
        start = 0
        for pattern, rows in _usable(slots.groups()):
            elements = slots.elements[rows][:, : len(pattern)]
            prints = slot_prints(flat, rows, elements, pattern)
            found = find_types(prints, pattern, settings.same_type, np.argsort(stability[rows], kind="stable"))
            label[rows] = start + found.label
            places[rows[:, None], np.arange(len(pattern))] = np.take_along_axis(elements, found.places, 1)
            classes[pattern] = found.classes
            start += len(found.leaders)
        fixed = fixed_metric("mendeleev" if settings.distance == "learned" else settings.distance)
        index = cls(table, settings, fixed, label, places, classes, VolumeModel.fit(table))
        if settings.distance != "learned":
            return index
        from dao_pipeline.templates.learn import learn_metric

        metric, instability = learn_metric(index.buckets, settings.learned, fixed)
        return replace(index, metric=metric, instability=instability)

    @cached_property
    def flat(self) -> FlatCrystals:
        """The crystals as arrays."""
        return flatten(self.table)

    @cached_property
    def buckets(self) -> dict[Pattern, Bucket]:
        """The templates of each pattern."""
        flat = self.flat
        log_volume = np.log(volumes(flat.lattice) / self.volume.expected(flat))
        stability = self.table["e_above_hull"].to_numpy().astype(np.float64)
        result = {}
        for pattern, rows in _usable(slots_of(flat).groups()):
            rows = rows[np.argsort(self.label[rows], kind="stable")]
            label = self.label[rows]
            result[pattern] = Bucket(
                pattern=pattern,
                rows=rows,
                elements=self.places[rows][:, : len(pattern)],
                label=label,
                classes=self.classes[pattern][label - label[0]],
                weight=-self.instability * above_hull(stability[rows]),
                stability=stability[rows],
                log_volume=log_volume[rows],
            )
        return result

    def rows_of(self, formulas: Iterable[str]) -> np.ndarray:
        """(n,) bool: crystals with one of these reduced formulas (column ``formula`` of the crystal table)."""
        return np.asarray(pc.is_in(self.table["formula"], value_set=pa.array(sorted(set(formulas)), pa.string())))

    def propose(
        self,
        cells: Sequence[np.ndarray],
        k: int,
        exclude: str | None = None,
        banned: np.ndarray | None = None,
    ) -> Proposals:
        """Up to ``k`` crystals, all different, for each of c compositions, given as atomic numbers of a cell.

        exclude: as ``settings.exclude``, which None stands for. banned: (n,) bool, templates that must not be
        used at all. Compositions without any template have no proposals.
        """
        own = (self.settings.exclude if exclude is None else exclude) == "none"
        banned = np.zeros(self.table.num_rows, bool) if banned is None else banned
        wanted = compositions(cells)
        slots = slots_of(wanted)
        parts: list[tuple[np.ndarray, np.ndarray, Choices, Bucket, int]] = []
        for pattern, rows in _usable(slots.groups()):
            targets = slots.elements[rows][:, : len(pattern)]
            for multiple in divisors(gcd(*pattern)):
                bucket = self.buckets.get(tuple(c // multiple for c in pattern))
                if bucket is None:
                    continue
                found = bucket.choose(targets, k, self.metric, banned[bucket.rows], own)
                parts.append((rows[found.target], targets[found.target], found, bucket, multiple))
        return self._made(parts, k)

    def _made(self, parts: Sequence[tuple[np.ndarray, np.ndarray, Choices, Bucket, int]], k: int) -> Proposals:
        """The crystals of the choices, sorted."""

        def joined(values: Sequence[np.ndarray], kind: type) -> np.ndarray:
            return np.concatenate([np.zeros(0, kind), *values]).astype(kind)

        composition = joined([rows for rows, *_ in parts], np.int64)
        multiple = joined([np.full(len(rows), m) for rows, _, _, _, m in parts], np.int64)
        known = joined([found.known for _, _, found, _, _ in parts], bool)
        score = joined([found.score for _, _, found, _, _ in parts], np.float64)
        total = joined([found.total for _, _, found, _, _ in parts], np.float64)
        score, total = score - self.supercell * (multiple > 1), total - self.supercell * (multiple > 1)
        # every source of a composition has part of its votes
        source, first = np.unique(np.stack([composition, multiple], 1), axis=0, return_index=True)
        votes = np.full(int(composition.max(initial=-1)) + 1, -np.inf)
        np.logaddexp.at(votes, source[:, 0], total[first])
        order = np.lexsort((-score, composition))
        rank = np.arange(len(order)) - np.searchsorted(composition[order], composition[order])
        order, rank = order[rank < k], rank[rank < k]
        row = joined([bucket.rows[found.template] for _, _, found, bucket, _ in parts], np.int64)[order]
        known, multiple = known[order], multiple[order]
        with np.errstate(over="ignore", invalid="ignore"):
            probability = np.exp(score - votes[composition])[order]
        # which element takes the place of which, as one table per proposal
        swap = np.zeros((len(composition), NUM), dtype=np.int64)
        start = 0
        for _, targets, found, bucket, _ in parts:
            new = np.take_along_axis(targets, assignments(bucket.pattern)[found.way], 1)
            swap[start + np.arange(len(new))[:, None], bucket.elements[found.template]] = new
            start += len(new)
        log_volume = joined([found.log_volume for _, _, found, _, _ in parts], np.float64)[order]
        return Proposals(
            composition=composition[order],
            rank=rank,
            template=row,
            template_id=np.asarray(self.table["id"].take(pa.array(row)).to_pylist(), dtype=object),
            structure_type=joined([found.label for _, _, found, _, _ in parts], np.int64)[order],
            distance=joined([found.distance for _, _, found, _, _ in parts], np.float64)[order],
            probability=np.where(known, 1.0, probability),
            votes=joined([found.votes for _, _, found, _, _ in parts], np.int64)[order],
            known=known,
            multiple=multiple,
            crystals=self._substituted(row, swap[order], np.where(known, np.nan, log_volume), multiple),
        )

    def _substituted(
        self, rows: np.ndarray, swap: np.ndarray, log_volume: np.ndarray, multiple: np.ndarray
    ) -> FlatCrystals:
        """Crystals ``rows`` (p,) with other elements, scaled to the volume expected (NaN: not), then repeated."""
        flat = self.flat
        counts = flat.counts[rows]
        owner = np.repeat(np.arange(len(rows)), counts)
        atoms = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts) + flat.ptr[rows][owner]
        made = FlatCrystals(
            numbers=swap[owner, flat.numbers[atoms]],
            frac=flat.frac[atoms],
            lattice=flat.lattice[rows],
            counts=counts,
        )
        ratio = self.volume.expected(made) * np.exp(log_volume) / volumes(made.lattice)
        scale = np.cbrt(np.where(np.isnan(log_volume), 1.0, ratio))[:, None, None]
        return supercells(replace(made, lattice=made.lattice * scale), multiple)


def divisors(number: int) -> list[int]:
    """Divisors of a number, rising."""
    return [d for d in range(1, number + 1) if number % d == 0]


def _usable(groups: dict[Pattern, np.ndarray]) -> Iterable[tuple[Pattern, np.ndarray]]:
    """Patterns whose assignments can be tried one by one."""
    for pattern, rows in groups.items():
        try:
            assignments(pattern)
        except ValueError:
            continue
        yield pattern, rows
