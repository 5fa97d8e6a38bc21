"""From candidates to match rates: per-candidate results first, everything else is an aggregate of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PREDICTED_ENERGY, NEAREST_TEMPLATE, PROBABILITY = "predicted_energy", "nearest_template", "probability"
AS_DRAWN = "as_drawn"

RANK1_BY = {
    "dao": PREDICTED_ENERGY,
    "combined": PREDICTED_ENERGY,
    "random": PREDICTED_ENERGY,
    "substitution": NEAREST_TEMPLATE,
}
"""How each method chooses its first candidate, without a ranker; methods in the order of all tables.

dao: what DAO-G generated freely. combined: all candidates of the campaign, those from templates included.
"""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One candidate of one method; columns as in ``schema.STAGES`` and ``schema.EVALUATION``."""

    id: str
    method: str
    target_id: str
    composition: str
    formula: str
    num_atoms: int
    sample: int
    order: int
    status: str
    valid: bool
    matched: bool
    energy_pred: float | None = None
    rank: int | None = None
    place: int | None = None
    guess: int | None = None
    rmse: float | None = None
    reason: str | None = None
    template_id: str | None = None
    template_distance: float | None = None
    probability: float | None = None

    @property
    def first(self) -> bool:
        """Whether the method would name this candidate if only one were allowed."""
        return self.guess == 1


def methods_of(samples: Sequence[Sample], baselines: Sequence[str] = ("random", "substitution")) -> list[str]:
    """Methods of the tables: ``combined`` only where there are candidates from templates, and then ``dao`` only
    if there are others; and the ``baselines``."""
    present = {sample.method for sample in samples}
    absent = {"combined"} if "combined" not in present else {"dao"} - present
    wanted = ("combined", "dao", *baselines)
    return [method for method in RANK1_BY if method in wanted and method not in absent]


def ranks_by_energy(energies: Sequence[float | None], valid: Sequence[bool]) -> list[int | None]:
    """Rank from 1 by rising energy among valid candidates with an energy; ties in order of the list."""
    ranks: list[int | None] = [None] * len(energies)
    ranked = [i for i, (energy, ok) in enumerate(zip(energies, valid, strict=True)) if ok and energy is not None]
    for rank, i in enumerate(sorted(ranked, key=lambda i: (energies[i], i)), start=1):
        ranks[i] = rank
    return ranks


def target_result(method: str, samples: Sequence[Sample], rank1_by: str | None = None) -> dict[str, Any]:
    """What one method achieved for one target; ``samples`` are its candidates, possibly none.

    rank1_by: how its first candidate was chosen, where that is not as in ``RANK1_BY``.
    """
    hits = [s for s in samples if s.matched]
    first = [s for s in hits if s.guess == 1]
    lowest = [s for s in hits if s.rank == 1]
    best = min((s.rmse for s in hits if s.rmse is not None), default=None)
    places = [s.place for s in hits if s.place is not None]
    guesses = sorted((s.guess, s.rmse) for s in hits if s.guess is not None)
    return {
        "method": method,
        "candidates": len(samples),
        "compared": sum(s.matched or s.reason == "no_match" for s in samples),
        "valid_candidates": sum(s.valid for s in samples),
        "matches": len(hits),
        "found": bool(hits),
        "rmse": best,
        "rank1_by": rank1_by or RANK1_BY[method],
        "rank1_found": bool(first),
        "rank1_rmse": first[0].rmse if first else None,
        "energy1_found": bool(lowest),
        "energy1_rmse": lowest[0].rmse if lowest else None,
        "first_match_rank": min(places, default=None),
        "guesses": [guess for guess, _ in guesses],
        "guess_rmse": [rmse for _, rmse in guesses],
        "template_distance": min(
            (s.template_distance for s in samples if s.template_distance is not None), default=None
        ),
    }


def outcome_at(result: Mapping[str, Any], k: int | None) -> tuple[bool, float | None]:
    """Whether the first k guesses of a method find a target, and the smallest RMSE of those that do.

    result: as ``target_result`` gives it. None: any of its candidates, those that are no guess of their own
    (because they are like a better one, or not valid) included.
    """
    if k is None:
        return bool(result["found"]), result["rmse"]
    errors = [rmse for n, rmse in zip(result["guesses"], result["guess_rmse"], strict=True) if n <= k]
    return bool(errors), min(errors, default=None)


def rate_row(results: Sequence[Mapping[str, Any]], k: int | None, bootstrap: int, seed: int) -> dict[str, Any]:
    """Match rate of one method over all ``results`` with its interval, and the mean RMSE of what was found.

    Targets of one composition have the same candidates: they are resampled together.
    """
    outcomes = [outcome_at(result, k) for result in results]
    hits = [found for found, _ in outcomes]
    errors = [rmse for _, rmse in outcomes if rmse is not None]
    low, high = interval(hits, bootstrap, seed, [result.get("formula") for result in results])
    return {
        "match_rate": rate(hits),
        "low": low,
        "high": high,
        "rmse": float(np.mean(errors)) if errors else None,
        "matches": sum(hits),
        "n": len(hits),
    }


def summarise(
    results: Sequence[Mapping[str, Any]], samples: int, bootstrap: int, seed: int, ks: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Match rates of every method for its first candidate, its first k of ``ks``, and for all ``samples`` of them.

    results: rows of ``target_result``, every target for every method: the rate is over all of them.
    """
    rows = []
    shared = any(r["method"] == "combined" for r in results)
    for method in RANK1_BY:
        own = [r for r in results if r["method"] == method]
        if not own:
            continue
        single = {
            "match_rate_by_energy": rate([r["energy1_found"] for r in own]),
            "match_rate_single": rate([r["matches"] / r["candidates"] if r["candidates"] else 0.0 for r in own]),
        }
        # with templates in the budget, DAO-G's own candidates are fewer
        most = max(r["candidates"] for r in own) if shared and method == "dao" else samples
        about = {"method": method, "rank1_by": own[0]["rank1_by"]}
        rows += [
            {**about, "k": k, **rate_row(own, k, bootstrap, seed), **(single if k == 1 else {})}
            for k in counts(ks, most)
        ]
        if most > 1:
            rows.append({**about, "k": most, **rate_row(own, None, bootstrap, seed)})
    return rows


def counts(ks: Sequence[int], most: int) -> list[int]:
    """1 and the numbers of candidates below ``most``, rising; 1 alone where there is one."""
    return sorted({1, *(k for k in ks if k < most)})


def rate(values: Sequence[float]) -> float:
    """Mean of flags or shares."""
    return float(np.mean(values))


def interval(
    values: Sequence[float], resamples: int, seed: int, groups: Sequence[Hashable] | None = None
) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of the mean of hits; None without resamples.

    groups: values of one group are resampled together; None, in place of them or of one, stands by itself.

    All hit or all missed leaves nothing to resample; the Wilson score interval then says how much so few targets
    tell about targets unseen.
    """
    if not resamples or not len(values):
        return None, None
    rng = np.random.default_rng(seed)
    data = np.asarray(values, dtype=np.float64)
    if data.min() == data.max():
        return _wilson(float(data.mean()), len(data))
    group = group_numbers(groups or [None] * len(data))
    hits, sizes = np.bincount(group, weights=data), np.bincount(group)
    means = []
    for _ in range(resamples):
        chosen = rng.integers(len(sizes), size=len(sizes))
        means.append(hits[chosen].sum() / sizes[chosen].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def group_numbers(names: Sequence[Hashable]) -> np.ndarray:
    """Number of each one's group, (n,) from 0 in order of appearance; None is a group of its own each time."""
    numbers: dict[Hashable, int] = {}
    named = ((i,) if name is None else name for i, name in enumerate(names))
    return np.array([numbers.setdefault(name, len(numbers)) for name in named], dtype=np.int64)


def _wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share among ``count`` trials."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
