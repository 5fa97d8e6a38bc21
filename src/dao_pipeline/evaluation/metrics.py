"""From candidates to match rates: per-candidate results first, everything else is an aggregate of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PREDICTED_ENERGY, NEAREST_TEMPLATE, PROBABILITY = "predicted_energy", "nearest_template", "probability"

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
    first: bool = False
    rmse: float | None = None
    reason: str | None = None
    template_id: str | None = None
    template_distance: float | None = None
    probability: float | None = None


def methods_of(samples: Sequence[Sample], baselines: bool = True) -> list[str]:
    """Methods of the tables: ``combined`` only where there are candidates from templates, and then ``dao`` only
    if there are others; without ``baselines`` no more than these two."""
    present = {sample.method for sample in samples}
    absent = {"combined"} if "combined" not in present else {"dao"} - present
    wanted = RANK1_BY if baselines else ("combined", "dao")
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
    first = [s for s in hits if s.first]
    lowest = [s for s in hits if s.rank == 1]
    best = min((s.rmse for s in hits if s.rmse is not None), default=None)
    places = [s.place for s in hits if s.place is not None]
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
    }


def summarise(results: Sequence[dict[str, Any]], samples: int, bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """Match rates of every method for its first candidate and for all ``samples`` of them.

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
        for k, found, rmse in ((1, "rank1_found", "rank1_rmse"), (most, "found", "rmse")):
            hits = [r[found] for r in own]
            low, high = interval(hits, bootstrap, seed)
            errors = [r[rmse] for r in own if r[rmse] is not None]
            rows.append(
                {
                    "method": method,
                    "k": k,
                    "rank1_by": own[0]["rank1_by"],
                    "match_rate": rate(hits),
                    "low": low,
                    "high": high,
                    "rmse": float(np.mean(errors)) if errors else None,
                    "matches": sum(hits),
                    "n": len(own),
                    **(single if found == "rank1_found" else {}),
                }
            )
            if most == 1:
                break
    return rows


def rate(values: Sequence[float]) -> float:
    """Mean of flags or shares."""
    return float(np.mean(values))


def interval(values: Sequence[float], resamples: int, seed: int) -> tuple[float | None, float | None]:
    """95 % percentile bootstrap interval of the mean of hits; None without resamples.

    All hit or all missed leaves nothing to resample; the Wilson score interval then says how much so few targets
    tell about targets unseen.
    """
    if not resamples or not len(values):
        return None, None
    rng = np.random.default_rng(seed)
    data = np.asarray(values, dtype=np.float64)
    if data.min() == data.max():
        return _wilson(float(data.mean()), len(data))
    means = [float(data[rng.integers(len(data), size=len(data))].mean()) for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share among ``count`` trials."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))
