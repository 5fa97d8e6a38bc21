"""An index of known crystals, and what it proposes for a composition.

Known crystals are sorted by stoichiometry pattern (``patterns``) and, within it, by structure type (``types``);
that is done once. A composition is compared with the templates of its pattern, under every assignment of its
elements to their places. Every template votes for its type, the more the nearer it is (``buckets``); proposals are
the types with the most votes, each made from the template with the largest. Where they are too few, known
structures with other numbers of elements on their sites are proposed too (``recolour``).
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
from dao_pipeline.templates.patterns import Pattern, Slots, assignments, compositions, slots_of
from dao_pipeline.templates.prints import slot_prints
from dao_pipeline.templates.proposals import Proposals
from dao_pipeline.templates.recolour import Recoloured, recolour
from dao_pipeline.templates.types import find_types
from dao_pipeline.templates.volume import VolumeModel

COLUMNS = ["id", "source", "formula", "num_atoms", "atomic_numbers", "frac_coords", "lattice", "e_above_hull"]
"""Columns of the crystal table that an index keeps."""

SUPERCELL = 4.0
"""Loss of ln votes (see ``TemplateIndex``): of 870 cells of MP-20 and MPTS-52 that could be supercells, 12 are."""

RECOLOURED = 4.0
"""Loss of ln votes of types that are known with other numbers of elements only; 2 to 6 do as well."""

FEW_OPTIONS = 100
"""Types under different assignments; where a pattern has as many, recoloured ones add nothing."""


@dataclass(frozen=True)
class _Part:
    """Options of c compositions from one bucket. composition: (c,). targets: (c, s), their slots.

    rows: (c,) the templates in ``flat``; template: (c,) in the index. loss: of ln votes.
    """

    composition: np.ndarray
    targets: np.ndarray
    found: Choices
    bucket: Bucket
    flat: FlatCrystals
    template: np.ndarray
    multiple: int
    recoloured: bool
    loss: float

    @property
    def rows(self) -> np.ndarray:
        return self.bucket.rows[self.found.template]

    def swap(self) -> np.ndarray:
        """(c, 119): which element takes the place of which."""
        table = np.zeros((len(self.composition), NUM), dtype=np.int64)
        new = np.take_along_axis(self.targets, assignments(self.bucket.pattern)[self.found.way], 1)
        table[np.arange(len(new))[:, None], self.bucket.elements[self.found.template]] = new
        return table


@dataclass(frozen=True)
class TemplateIndex:
    """Known crystals, ready to be looked up. Made by ``build``, kept by ``files.save`` and ``files.load``.

    table: the n crystals. settings: as it was built. metric: distance of compositions.
    label: (n,) int64, structure type. places: (n, s) int64, the element on each place of the type, padded with 0.
    classes: by pattern (types, P), see ``types.Types``; types of a pattern are numbered in a row.
    volume: what volume to expect of a composition.
    instability: what a template's vote loses, in its logarithm, per eV/atom above the hull.
    supercell: what a type loses, in the logarithm of its votes, if it takes a supercell to have as many atoms.
    recoloured: what it loses if only crystals with other numbers of elements have it; infinite: it is left out.
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
    recoloured: float = RECOLOURED

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
    def slots(self) -> Slots:
        """The slots of the crystals."""
        return slots_of(self.flat)

    @cached_property
    def buckets(self) -> dict[Pattern, Bucket]:
        """The templates of each pattern."""
        flat = self.flat
        log_volume = np.log(volumes(flat.lattice) / self.volume.expected(flat))
        stability = self.table["e_above_hull"].to_numpy().astype(np.float64)
        result = {}
        for pattern, rows in _usable(self.slots.groups()):
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
        slots = slots_of(compositions(cells))
        parts: list[_Part] = []
        for pattern, rows in _usable(slots.groups()):
            targets = slots.elements[rows][:, : len(pattern)]
            options = 0
            for multiple in divisors(gcd(*pattern)):
                bucket = self.buckets.get(tuple(c // multiple for c in pattern))
                if bucket is None:
                    continue
                found = bucket.choose(targets, k, self.metric, banned[bucket.rows], own)
                parts.append(self._part(rows, targets, found, bucket, multiple))
                options += len(bucket.entries[2])
            if options < FEW_OPTIONS and np.isfinite(self.recoloured):
                parts += self._recoloured_part(pattern, rows, targets, k, banned)
        return self._made(parts, k)

    def _part(self, rows: np.ndarray, targets: np.ndarray, found: Choices, bucket: Bucket, multiple: int) -> _Part:
        return _Part(
            composition=rows[found.target],
            targets=targets[found.target],
            found=found,
            bucket=bucket,
            flat=self.flat,
            template=bucket.rows[found.template],
            multiple=multiple,
            recoloured=False,
            loss=self.supercell if multiple > 1 else 0.0,
        )

    def _recoloured_part(
        self, pattern: Pattern, rows: np.ndarray, targets: np.ndarray, k: int, banned: np.ndarray
    ) -> list[_Part]:
        if pattern not in self._recoloured:
            self._recoloured[pattern] = recolour(self, pattern)
        other = self._recoloured[pattern]
        if other is None:
            return []
        bucket = other.index.buckets[pattern]
        found = bucket.choose(targets, k, self.metric, banned[other.parent[bucket.rows]], None)
        part = other.index._part(rows, targets, found, bucket, 1)
        return [replace(part, template=other.parent[part.rows], recoloured=True, loss=self.recoloured)]

    @cached_property
    def _recoloured(self) -> dict[Pattern, Recoloured | None]:
        """Those of the patterns that were asked for."""
        return {}

    def _made(self, parts: Sequence[_Part], k: int) -> Proposals:
        """The crystals of the choices, sorted."""

        def joined(values: Sequence[np.ndarray], kind: type) -> np.ndarray:
            return np.concatenate([np.zeros(0, kind), *values]).astype(kind)

        composition = joined([part.composition for part in parts], np.int64)
        of_part = joined([np.full(len(part.composition), i) for i, part in enumerate(parts)], np.int64)
        loss = np.array([part.loss for part in parts])[of_part]
        known = joined([part.found.known for part in parts], bool)
        score = joined([part.found.score for part in parts], np.float64) - loss
        total = joined([part.found.total for part in parts], np.float64) - loss
        # every source of a composition has part of its votes
        source, first = np.unique(np.stack([composition, of_part], 1), axis=0, return_index=True)
        votes = np.full(int(composition.max(initial=-1)) + 1, -np.inf)
        np.logaddexp.at(votes, source[:, 0], total[first])
        order = np.lexsort((-score, composition))
        rank = np.arange(len(order)) - np.searchsorted(composition[order], composition[order])
        order, rank = order[rank < k], rank[rank < k]
        row = joined([part.template for part in parts], np.int64)[order]
        known, of_part = known[order], of_part[order]
        multiple = np.array([part.multiple for part in parts], dtype=np.int64)[of_part]
        with np.errstate(over="ignore", invalid="ignore"):
            probability = np.exp(score - votes[composition])[order]
        # crystals part by part, then in order
        chosen = np.zeros(len(composition), dtype=bool)
        chosen[order] = True
        pieces, start = [], 0
        for part in parts:
            mine = chosen[start : start + len(part.composition)]
            pieces.append(taken(part.flat, part.rows[mine], part.swap()[mine]))
            start += len(mine)
        crystals = taken(joined_crystals(pieces), np.cumsum(chosen)[order] - 1)
        log_volume = joined([part.found.log_volume for part in parts], np.float64)[order]
        return Proposals(
            composition=composition[order],
            rank=rank,
            template=row,
            template_id=np.asarray(self.table["id"].take(pa.array(row)).to_pylist(), dtype=object),
            structure_type=joined([part.found.label for part in parts], np.int64)[order],
            distance=joined([part.found.distance for part in parts], np.float64)[order],
            probability=np.where(known, 1.0, probability),
            votes=joined([part.found.votes for part in parts], np.int64)[order],
            known=known,
            multiple=multiple,
            recoloured=np.array([part.recoloured for part in parts], dtype=bool)[of_part],
            crystals=self._scaled(crystals, np.where(known, np.nan, log_volume), multiple),
        )

    def _scaled(self, crystals: FlatCrystals, log_volume: np.ndarray, multiple: np.ndarray) -> FlatCrystals:
        """Crystals scaled to the volume expected (NaN: not), then repeated."""
        ratio = self.volume.expected(crystals) * np.exp(log_volume) / volumes(crystals.lattice)
        scale = np.cbrt(np.where(np.isnan(log_volume), 1.0, ratio))[:, None, None]
        return supercells(replace(crystals, lattice=crystals.lattice * scale), multiple)


def taken(flat: FlatCrystals, rows: np.ndarray, swap: np.ndarray | None = None) -> FlatCrystals:
    """Crystals ``rows`` (p,) in this order, with other elements if ``swap`` (p, 119) says which."""
    counts = flat.counts[rows]
    owner = np.repeat(np.arange(len(rows)), counts)
    atoms = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts) + flat.ptr[rows][owner]
    numbers = flat.numbers[atoms]
    return FlatCrystals(
        numbers=numbers if swap is None else swap[owner, numbers],
        frac=flat.frac[atoms],
        lattice=flat.lattice[rows],
        counts=counts,
    )


def joined_crystals(pieces: Sequence[FlatCrystals]) -> FlatCrystals:
    """All crystals of the pieces in a row."""
    return FlatCrystals(
        numbers=np.concatenate([np.zeros(0, np.int64), *(p.numbers for p in pieces)]),
        frac=np.concatenate([np.zeros((0, 3)), *(p.frac for p in pieces)]),
        lattice=np.concatenate([np.zeros((0, 3, 3)), *(p.lattice for p in pieces)]),
        counts=np.concatenate([np.zeros(0, np.int64), *(p.counts for p in pieces)]),
    )


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
