"""What structure types known crystals of similar composition have: the evidence for and against a candidate.

Known crystals are sorted by reduced stoichiometry. For a composition, each of them suggests its structure type
once for every assignment of the composition's elements to its own (a *suggestion*). Suggestions of the same type
with equivalent assignments are of one *kind*; a candidate is of a kind too, whatever made it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import pyarrow as pa

from dao_pipeline.crystals.elements import MENDELEEV
from dao_pipeline.ranking.structure_type import StructureType
from dao_pipeline.templates.patterns import Pattern, assignments, cosets

MOST_SLOTS = 6
"""Elements of a composition; with more, nothing is known."""

NO_KIND = -1
"""Kind of a candidate that no known crystal suggests, and of padding."""

_MENDELEEV = np.asarray(MENDELEEV, dtype=np.float64)
_OTHER_SIZE = 3.0
"""What a different number of atoms adds to the distance by which suggestions are preselected."""

_KINDS_OF_TYPE = 1_000
"""More than assignments of ``MOST_SLOTS`` elements: kind = type * this + class of the assignment."""


@dataclass(frozen=True)
class Suggestions:
    """The k nearest suggestions for each of c compositions, nearest by Mendeleev number first.

    row: (c, k) int64, known crystal; -1: padding. kind: (c, k) int64. new, old: (c, k, 6) int64, elements of the
    composition and those of the known crystal that they stand for, padded with 0. weight: (c, 6), share of the
    atoms of each slot. resized: (c, k) bool, whether the known crystal has another number of atoms.
    """

    row: np.ndarray
    kind: np.ndarray
    new: np.ndarray
    old: np.ndarray
    weight: np.ndarray
    resized: np.ndarray

    def take(self, rows: np.ndarray) -> Suggestions:
        """The suggestions for some of the compositions."""
        return Suggestions(**{name: getattr(self, name)[rows] for name in Suggestions.__dataclass_fields__})


@dataclass(frozen=True)
class _Bucket:
    """Known crystals of one reduced pattern: rows (m,), elements (m, s) in the order of their types' slots."""

    rows: np.ndarray
    elements: np.ndarray


@dataclass(frozen=True)
class KnownTypes:
    """Known crystals by stoichiometry. Made by ``build``.

    formula: (n,) int64, numbers of the reduced formulas. atoms: (n,) in the stored cell. label: (n,) type.
    e_above_hull: (n,) eV/atom, NaN where unknown. types: of each label. classes: (types, P) by label, assignments
    with the same number are equivalent.
    """

    formulas: dict[str, int]
    formula: np.ndarray
    atoms: np.ndarray
    label: np.ndarray
    e_above_hull: np.ndarray
    types: list[StructureType]
    numbers: dict[StructureType, int]
    classes: list[np.ndarray]
    buckets: dict[Pattern, _Bucket]

    @classmethod
    def build(cls, table: pa.Table, found: Sequence[tuple[StructureType, np.ndarray] | None]) -> KnownTypes:
        """From a crystal table and the structure type of each row (``structure_type.structure_types``)."""
        formulas: dict[str, int] = {}
        numbers: dict[StructureType, int] = {}
        members: dict[Pattern, list[tuple[int, np.ndarray]]] = defaultdict(list)
        label = np.full(table.num_rows, -1, dtype=np.int64)
        formula = np.array([formulas.setdefault(f, len(formulas)) for f in table["formula"].to_pylist()])
        for row, described in enumerate(found):
            if described is None or len(described[1]) > MOST_SLOTS:
                continue
            kind, elements = described
            label[row] = numbers.setdefault(kind, len(numbers))
            members[reduced_pattern(kind)].append((row, elements))
        return cls(
            formulas=formulas,
            formula=formula.astype(np.int64),
            atoms=table["num_atoms"].to_numpy().astype(np.int64),
            label=label,
            e_above_hull=_energies(table),
            types=list(numbers),
            numbers=numbers,
            classes=[_equivalent(kind) for kind in numbers],
            buckets={
                pattern: _Bucket(np.array([row for row, _ in rows]), np.array([e for _, e in rows]))
                for pattern, rows in members.items()
            },
        )

    def kind_of(self, described: tuple[StructureType, np.ndarray] | None) -> int:
        """The kind of a crystal, given its structure type; ``NO_KIND`` where no known crystal has that type."""
        label = self.numbers.get(described[0]) if described is not None else None
        if described is None or label is None:
            return NO_KIND
        pattern = reduced_pattern(described[0])
        wanted = slots(described[1], pattern)
        order = np.array([int(np.flatnonzero(wanted == z)[0]) for z in described[1]])
        way = int(np.flatnonzero((assignments(pattern) == order).all(1))[0])
        return label * _KINDS_OF_TYPE + int(self.classes[label][way])

    def suggest(self, cells: Sequence[np.ndarray], formulas: Sequence[str], count: int) -> Suggestions:
        """The ``count`` nearest suggestions for each cell (atomic numbers), other than from its own formula.

        Types whose primitive cell does not fit into the number of atoms are left out.
        """
        c = len(cells)
        found = Suggestions(
            row=np.full((c, count), -1),
            kind=np.full((c, count), NO_KIND),
            new=np.zeros((c, count, MOST_SLOTS), dtype=np.int64),
            old=np.zeros((c, count, MOST_SLOTS), dtype=np.int64),
            weight=np.zeros((c, MOST_SLOTS)),
            resized=np.zeros((c, count), dtype=bool),
        )
        primitive = np.array([kind.num_atoms for kind in self.types], dtype=np.int64)
        for i, (cell, formula) in enumerate(zip(cells, formulas, strict=True)):
            elements, counts = np.unique(np.asarray(cell, dtype=np.int64), return_counts=True)
            pattern = tuple(sorted((counts // np.gcd.reduce(counts)).tolist()))
            if len(pattern) > MOST_SLOTS:
                continue
            found.weight[i, : len(pattern)] = np.asarray(pattern) / sum(pattern)
            bucket = self.buckets.get(pattern)
            if bucket is not None:
                wanted = slots(elements[np.argsort(counts, kind="stable")], pattern)
                fits = len(cell) % primitive[self.label[bucket.rows]] == 0
                fits &= self.formula[bucket.rows] != self.formulas.get(formula, -1)
                self._nearest(i, wanted, pattern, bucket, np.flatnonzero(fits), len(cell), found)
        return found

    def _nearest(
        self,
        i: int,
        wanted: np.ndarray,
        pattern: Pattern,
        bucket: _Bucket,
        usable: np.ndarray,
        size: int,
        found: Suggestions,
    ) -> None:
        """Fill row ``i`` of ``found``."""
        ways = assignments(pattern)
        rows, old = bucket.rows[usable], bucket.elements[usable]
        new = wanted[ways]
        share = np.asarray(pattern) / sum(pattern)
        distance = np.abs(_MENDELEEV[new][:, None] - _MENDELEEV[old][None]) @ share
        resized = self.atoms[rows] != size
        distance += _OTHER_SIZE * resized
        count = min(found.row.shape[1], distance.size)
        nearest = np.argpartition(distance.ravel(), count - 1)[:count] if count else np.zeros(0, np.int64)
        nearest = nearest[np.argsort(distance.ravel()[nearest], kind="stable")]
        way, one = np.divmod(nearest, max(1, len(rows)))
        label = self.label[rows[one]]
        found.row[i, :count] = rows[one]
        found.kind[i, :count] = [
            t * _KINDS_OF_TYPE + self.classes[t][w] for t, w in zip(label.tolist(), way.tolist(), strict=True)
        ]
        found.new[i, :count, : len(pattern)] = new[way]
        found.old[i, :count, : len(pattern)] = old[one]
        found.resized[i, :count] = resized[one]


def reduced_pattern(kind: StructureType) -> Pattern:
    """Relative number of atoms of each slot of a type."""
    divisor = gcd(*kind.counts)
    return tuple(count // divisor for count in kind.counts)


def slots(elements: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Elements, given in an order of rising counts, in the order that does not depend on any structure."""
    return elements[np.lexsort((elements, _MENDELEEV[elements], np.asarray(pattern)))]


def _equivalent(kind: StructureType) -> np.ndarray:
    """(P,) classes of assignments: slots with the same role and place can exchange their elements."""
    pattern = reduced_pattern(kind)
    sites = list(zip(kind.roles, kind.places, strict=True))
    roles = np.array([sites.index(site) for site in sites])
    return cosets(pattern, (roles[assignments(pattern)] == roles).all(1))


def _energies(table: pa.Table) -> np.ndarray:
    if "e_above_hull" not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return table["e_above_hull"].to_numpy().astype(np.float64)
