"""Of a composition with several known structures: how many of them are among k samples?

A match rate asks for one given structure; a generator that always finds the most stable one passes. Here every
known structure of the cell's composition has to be matched by some sample (match everyone to the references).
The field's tolerances take rock salt and zinc blende for one structure. So polymorphs are told apart by pymatgen's
own, which are tighter, and a sample finds only the structure that it is nearest to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from pymatgen.core import Structure

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.matching import Sameness
from dao_pipeline.evaluation.matching import match_target

APART = Matcher(ltol=0.2, stol=0.3, angle_tol=5.0)
"""Decides whether two structures are two: pymatgen's defaults."""


def distinct(crystals: Sequence[Crystal], matcher: Matcher = APART) -> list[Crystal]:
    """The crystals without those that match an earlier one."""
    same = Sameness(matcher)
    kept: list[Crystal] = []
    reduced: list[Structure | None] = []
    for crystal in crystals:
        candidate = same.reduce(crystal)
        if any(same(other, candidate) for other in reduced):
            continue
        kept.append(crystal)
        reduced.append(candidate)
    return kept


def polymorphs(crystals: Sequence[Crystal], matcher: Matcher = APART, most: int = 4) -> list[list[Crystal]]:
    """Known structures of each cell composition that has 2 to ``most`` different ones, in the order of the first.

    Structures of one composition whose cells have different numbers of atoms are apart: a sample has the atoms
    that it was asked for.
    """
    by_cell: dict[tuple[int, ...], list[Crystal]] = defaultdict(list)
    for crystal in crystals:
        by_cell[tuple(sorted(crystal.atomic_numbers.tolist()))].append(crystal)
    found = (distinct(members, matcher) for members in by_cell.values() if len(members) > 1)
    return [members for members in found if 2 <= len(members) <= most]


@dataclass(frozen=True)
class Recall:
    """Which of m known structures the n samples of a composition find.

    hits: (m, n) bool, at most one in a column: a sample that matches several finds the one with the least RMSE.
    rmse: (m,) of each structure's best match in units of (V/n)^(1/3), NaN where there is none.
    """

    hits: np.ndarray
    rmse: np.ndarray

    @classmethod
    def of(cls, known: Sequence[Crystal], samples: Sequence[Crystal | None], matcher: Matcher) -> Recall:
        """Compare every sample (None: it is no crystal) with every known structure."""
        rmse = np.full((len(known), len(samples)), np.nan)
        sound = [i for i, sample in enumerate(samples) if sample is not None]
        for row, structure in zip(rmse, known, strict=True):
            matches = match_target(structure, [c for c in samples if c is not None], matcher)
            row[sound] = [np.nan if match.rmse is None else match.rmse for match in matches]
        distance = np.where(np.isnan(rmse), np.inf, rmse)
        nearest = np.arange(len(known))[:, None] == distance.argmin(0)
        distance = np.where(nearest, distance, np.inf)
        best = distance.min(1, initial=np.inf)
        return cls(np.isfinite(distance), np.where(np.isfinite(best), best, np.nan))

    def found(self, k: int) -> float:
        """Expected share of the known structures that k of the samples, drawn at random, find."""
        return float(np.mean([1 - self._all_miss(row, k) for row in self.hits]))

    def all_found(self, k: int) -> float:
        """Probability that k of the samples find every known structure (inclusion and exclusion)."""
        rows = range(len(self.hits))
        chosen = (list(subset) for size in range(len(self.hits) + 1) for subset in combinations(rows, size))
        terms = (
            (-1) ** len(subset) * self._all_miss(np.asarray(self.hits[subset].any(0)), k) for subset in chosen
        )
        return max(0.0, float(sum(terms)))  # not -1e-17

    def _all_miss(self, hits: np.ndarray, k: int) -> float:
        """Probability that k of the n samples have none of these hits (n,)."""
        n = self.hits.shape[1]
        return comb(n - int(hits.sum()), k) / comb(n, k)


def bootstrap_mean(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % percentile interval over compositions."""
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(data), size=(resamples, len(data)))
    low, high = np.quantile(data[draws].mean(1), [0.025, 0.975])
    return float(data.mean()), float(low), float(high)
