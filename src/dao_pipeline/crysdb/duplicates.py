"""The same crystal more than once: which is kept, and which are its copies.

Only crystals of one reduced formula, of similar volume per atom and with similar distances between neighbours are
compared at all: none of these depends on the choice of the cell. So the work grows with the number of crystals,
not with its square, unless very many have one formula and one volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dao_pipeline.config import Dedup
from dao_pipeline.crysdb.fingerprint import fingerprints
from dao_pipeline.crysdb.store import Store
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.crystals.geometry import nearest_image_distances
from dao_pipeline.parallel import parallel_map

if TYPE_CHECKING:
    from dao_pipeline.crystals.match_search import Reduced
    from dao_pipeline.crystals.matching import Sameness

SAME_VOLUME = 1e-3
"""Relative difference of volume up to which two cells may be the same ``exact``ly."""

SAME_DISTANCE = 0.01
"""Angstrom: exact copies agree in every interatomic distance to this."""

SIMILAR = 0.25
"""Largest difference of fingerprints at which crystals are compared. It is no part of what the same means: of
3,709 pairs of published crystals that StructureMatcher accepts with pymatgen's tolerances, none differ by more."""

_CRYSTALS_AT_ONCE = 2_000
_WORTH_PROCESSES = 1_000


@dataclass(frozen=True)
class Question:
    """n crystals of a store, among which copies are sought.

    rows: numbers in the store, ordered by ``chain``, and inside a chain from best to worst. chain: crystals of
    different chains cannot be the same. volume: angstrom^3 per atom. loose: whether the matcher may decide; else a
    crystal is only compared exactly. benchmark: crystals that must not be trained on, which are always kept, and
    with which all others are compared loosely.
    """

    store: Path
    rows: np.ndarray
    chain: np.ndarray
    volume: np.ndarray
    loose: np.ndarray
    benchmark: np.ndarray
    settings: Dedup


def find_duplicates(
    store: Path,
    rows: np.ndarray,
    formula: np.ndarray,
    volume: np.ndarray,
    rank: np.ndarray,
    precursor: np.ndarray,
    benchmark: np.ndarray,
    settings: Dedup,
    workers: int,
) -> np.ndarray:
    """For each of n crystals the one it is a copy of: its place among them (n,), -1 for those that are kept.

    All arguments (n,): rows of the store, formula (number), volume per atom, rank (of equal crystals the lowest is
    kept), precursor, benchmark. Crystals are taken from best to worst: one that equals a crystal kept before is a
    copy of it, and keeps no other from being kept. So no two that are kept are the same, and the order of the rows
    does not matter.

    An unrelaxed precursor is a copy only of what it equals exactly: by the matcher's tolerances most precursors
    are their relaxed crystals, and the unstable half of the data would go.
    """
    copy_of = np.full(len(rows), -1, dtype=np.int64)
    order, chain = _chains(formula, volume, rank, settings.max_volume_difference)
    if settings.mode == "off":
        # only chains with a benchmark crystal matter
        keep = np.isin(chain, chain[benchmark[order]])
        order, chain = order[keep], chain[keep]
    loose = ~precursor & (settings.mode == "structure")
    questions = [
        Question(store, rows[part], chain[cut], volume[part], loose[part], benchmark[part], settings)
        for cut in _pieces(chain, _CRYSTALS_AT_ONCE)
        for part in [order[cut]]
    ]
    slow = settings.mode == "structure" or benchmark.any()  # exact comparisons take less than starting a process
    answers = parallel_map(_copies, questions, workers if slow and len(order) >= _WORTH_PROCESSES else 1)
    done = 0
    for answer in answers:
        part = order[done : done + len(answer)]
        copy = answer >= 0
        copy_of[part[copy]] = part[answer[copy]]
        done += len(answer)
    return copy_of


def _chains(
    formula: np.ndarray, volume: np.ndarray, rank: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Crystals that may have a copy, by chain and rank, and the chain of each.

    A chain holds crystals of one formula whose volumes follow each other within the tolerance: no crystal can be
    the same as one of another chain. Chains of one crystal are left out.
    """
    order = np.lexsort((volume, formula))
    if not len(order):
        return order, order
    near = (formula[order[1:]] == formula[order[:-1]]) & (
        volume[order[1:]] <= volume[order[:-1]] * (1 + tolerance)
    )
    chain = np.concatenate([[0], np.cumsum(~near)])
    several = np.bincount(chain)[chain] > 1
    order, chain = order[several], chain[several]
    best_first = np.lexsort((rank[order], chain))
    return order[best_first], chain[best_first]


def _pieces(chain: np.ndarray, size: int) -> Iterator[slice]:
    """Pieces of some ``size`` crystals that divide no chain."""
    begin = 0
    for end in [*np.flatnonzero(np.diff(chain)) + 1, len(chain)]:
        if end - begin >= size or end == len(chain) > begin:
            yield slice(begin, int(end))
            begin = int(end)


def _copies(question: Question) -> np.ndarray:
    """The answer: place among the crystals of the question that each is a copy of, or -1."""
    flat = Store(question.store).take(question.rows)
    prints = fingerprints(flat)
    copy_of = np.full(len(flat), -1, dtype=np.int64)
    log_volume, width = np.log(question.volume), np.log1p(question.settings.max_volume_difference) + 1e-12
    starts = np.flatnonzero(np.diff(question.chain, prepend=-1))
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(flat)], strict=True):
        compare = _Comparison(flat, question)
        kept = np.zeros(0, dtype=np.int64)
        for i in range(start, end):
            near = kept[np.abs(log_volume[kept] - log_volume[i]) <= width]
            distance = np.abs(prints[near] - prints[i]).max(1)
            likely = np.lexsort((distance, ~question.benchmark[near]))
            for j in near[likely[distance[likely] <= SIMILAR]].tolist():
                if compare(i, j):
                    copy_of[i] = j
                    break
            if copy_of[i] < 0:
                kept = np.append(kept, i)
    return copy_of


class _Comparison:
    """Whether crystals of one chain are the same; what a comparison needs of a crystal is made when first asked
    for."""

    def __init__(self, flat: FlatCrystals, question: Question) -> None:
        self._flat, self._question, self._ptr = flat, question, flat.ptr
        self._distances: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._reduced: dict[int, Reduced | None] = {}
        self._matcher: Sameness | None = None

    def __call__(self, i: int, j: int) -> bool:
        benchmark, loose = self._question.benchmark, self._question.loose
        if benchmark[i] and benchmark[j]:
            return False
        against_benchmark = bool(benchmark[i] or benchmark[j])
        if not against_benchmark and self._question.settings.mode == "off":
            return False
        if self._exact(i, j):
            return True
        return (against_benchmark or bool(loose[i] and loose[j])) and self._match(i, j)

    def _match(self, i: int, j: int) -> bool:
        if self._matcher is None:
            from dao_pipeline.crystals.matching import Sameness

            self._matcher = Sameness(self._question.settings.matcher)
        first, second = (self._structure(k, self._matcher) for k in (i, j))
        if first is None or second is None or len(first) != len(second):
            return False  # primitive cells of unequal size never match
        return self._matcher(first, second)

    def _structure(self, k: int, matcher: Sameness) -> Reduced | None:
        if k not in self._reduced:
            atoms = slice(self._ptr[k], self._ptr[k + 1])
            crystal = Crystal(
                id="",
                atomic_numbers=self._flat.numbers[atoms],
                frac_coords=self._flat.frac[atoms],
                lattice=self._flat.lattice[k],
            )
            self._reduced[k] = matcher.reduce(crystal)
        return self._reduced[k]

    def _exact(self, i: int, j: int) -> bool:
        """The same atoms in cells of the same volume, and all interatomic distances, sorted by pair of elements.

        That does not depend on the order of the atoms, the origin, or the choice among equivalent cells; mirror
        images count as the same. Cells must be Niggli-reduced.
        """
        counts, volume = self._flat.counts, self._question.volume
        if counts[i] != counts[j] or abs(volume[i] - volume[j]) > SAME_VOLUME * max(volume[i], volume[j]):
            return False
        (pairs_i, distances_i), (pairs_j, distances_j) = self._sorted(i), self._sorted(j)
        return bool(
            np.array_equal(pairs_i, pairs_j) and np.allclose(distances_i, distances_j, rtol=0, atol=SAME_DISTANCE)
        )

    def _sorted(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k not in self._distances:
            atoms = slice(self._ptr[k], self._ptr[k + 1])
            numbers, frac, lattice = self._flat.numbers[atoms], self._flat.frac[atoms], self._flat.lattice[k]
            distances = nearest_image_distances(lattice[None], frac[None])[0]
            first, second = np.triu_indices(len(numbers), 1)
            low, high = np.minimum(numbers[first], numbers[second]), np.maximum(numbers[first], numbers[second])
            order = np.lexsort((distances, high, low))
            self._distances[k] = (
                (low * 1000 + high)[order],
                np.concatenate([distances[order], _cell_lengths(lattice)]),
            )
        return self._distances[k]


def _cell_lengths(lattice: np.ndarray) -> np.ndarray:
    """(6,) angstrom: edges and shorter face diagonals; a crystal of one atom has nothing else to compare."""
    pairs = [(lattice[i], lattice[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    diagonals = [min(np.linalg.norm(v + w), np.linalg.norm(v - w)) for v, w in pairs]
    return np.concatenate([np.sort(np.linalg.norm(lattice, axis=1)), np.sort(diagonals)])
