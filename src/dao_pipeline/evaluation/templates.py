"""Template substitution: the structure of a known crystal of similar composition, with the elements swapped.

Published comparisons find that this simple retrieval beats most generators, so it is always shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.elements import MENDELEEV
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.matching import Sameness
from dao_pipeline.crystals.symmetry import spacegroup

MAX_TRIED = 10
"""Templates tried per one wanted: past these, a target gets fewer than it asked for."""

_MENDELEEV = np.asarray(MENDELEEV)
_COLUMNS = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]

Pattern = tuple[int, ...]
"""Atoms of each element in the cell, rising: (1, 1, 3) for a perovskite of 5 atoms."""


def slots(numbers: np.ndarray) -> tuple[Pattern, np.ndarray]:
    """The pattern of a cell, and the element of each of its entries: by count, then by Mendeleev number.

    Sorting solves the assignment of elements to elements of another cell: for numbers on a line, pairing them
    in order gives the least sum of distances, and only elements with the same count can replace each other.
    """
    elements, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    order = np.lexsort((elements, _MENDELEEV[elements], counts))
    return tuple(int(c) for c in counts[order]), elements[order]


@dataclass(frozen=True)
class _Bucket:
    """Templates of one pattern: rows of the table (m,) and the elements of their slots (m, slots)."""

    rows: np.ndarray
    elements: np.ndarray


@dataclass(frozen=True)
class Templates:
    """Known crystals, ready to be looked up by pattern.

    table: the crystals. element_volumes: (101,) angstrom^3, see ``crystals.volume``.
    preference: (rows,), the smaller first among templates that are equally near.
    """

    table: pa.Table
    element_volumes: np.ndarray
    preference: np.ndarray
    buckets: dict[Pattern, _Bucket]

    @classmethod
    def build(cls, table: pa.Table, element_volumes: np.ndarray) -> Templates:
        """Sort the crystals of a table by pattern; more stable ones (e_above_hull) are preferred."""
        flat = flatten(table)
        found: dict[Pattern, list[tuple[int, np.ndarray]]] = {}
        for row, (start, end) in enumerate(pairwise(flat.ptr)):
            pattern, elements = slots(flat.numbers[start:end])
            found.setdefault(pattern, []).append((row, elements))
        buckets = {
            pattern: _Bucket(np.array([row for row, _ in members]), np.array([e for _, e in members]))
            for pattern, members in found.items()
        }
        preference = np.zeros(table.num_rows)
        if "e_above_hull" in table.column_names:
            preference = table["e_above_hull"].to_numpy().astype(np.float64)
        return cls(table, element_volumes, np.nan_to_num(preference, nan=np.inf), buckets)

    def nearest(self, numbers: np.ndarray, count: int) -> list[Template]:
        """The ``count`` nearest templates for a cell with these atomic numbers, nearest first.

        Of the same pattern, so of the same number of atoms; those of the same reduced formula are left out.
        Distance: mean difference in Mendeleev number per atom, under the best assignment of elements.
        """
        pattern, wanted = slots(numbers)
        bucket = self.buckets.get(pattern)
        if bucket is None:
            return []
        # within one pattern, the same slots mean the same composition
        other = (bucket.elements != wanted).any(1)
        rows, elements = bucket.rows[other], bucket.elements[other]
        steps = np.abs(_MENDELEEV[elements] - _MENDELEEV[wanted])
        distance = (steps @ np.asarray(pattern)) / sum(pattern)
        order = np.lexsort((rows, self.preference[rows], distance))[:count]
        crystals = from_table(self.table.select(_COLUMNS).take(pa.array(rows[order])))
        return [
            Template(crystal, dict(zip(elements[i].tolist(), wanted.tolist(), strict=True)), float(distance[i]))
            for crystal, i in zip(crystals, order, strict=True)
        ]


@dataclass(frozen=True)
class Template:
    """A known crystal for one target: what replaces each of its elements, and how far they are apart."""

    crystal: Crystal
    replacement: dict[int, int]
    distance: float


def substituted(template: Template, name: str, element_volumes: np.ndarray) -> Crystal:
    """The template with its elements replaced, scaled by the ratio of the volumes expected of both."""
    old = template.crystal
    numbers = np.array([template.replacement[int(z)] for z in old.atomic_numbers])
    ratio = element_volumes[numbers].sum() / element_volumes[old.atomic_numbers].sum()
    return Crystal(
        id=name,
        source="substitution",
        atomic_numbers=numbers,
        frac_coords=old.frac_coords,
        lattice=old.lattice * ratio ** (1 / 3),
    )


@dataclass(frozen=True)
class Substitution:
    """A crystal made from a template."""

    crystal: Crystal
    template_id: str
    distance: float


def substitute(
    target_id: str,
    templates: Sequence[Template],
    element_volumes: np.ndarray,
    k: int,
    matcher: Matcher,
    symprec: float,
) -> list[Substitution]:
    """Up to ``k`` different crystals from ``templates``, in their order (nearest first).

    Many compounds share one structure type: a result that matches an earlier one with the same space group is
    passed over, so that k samples are k structures.
    """
    same = Sameness(matcher)
    kept: list[Substitution] = []
    seen: dict[int | None, list[object]] = {}
    for template in templates:
        if len(kept) == k:
            break
        crystal = substituted(template, f"substitution:{target_id}:{len(kept)}", element_volumes)
        group, reduced = spacegroup(crystal, symprec), same.reduce(crystal)
        alike = seen.setdefault(group, [])
        if any(same(earlier, reduced) for earlier in alike):
            continue
        alike.append(reduced)
        kept.append(Substitution(crystal, template.crystal.id, template.distance))
    return kept
