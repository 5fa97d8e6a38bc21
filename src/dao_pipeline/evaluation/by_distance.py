"""Match rates by how far the nearest template is: what the known crystals around a target are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dao_pipeline.evaluation.metrics import rate_row

QUARTERS = ("nearest quarter", "second quarter", "third quarter", "farthest quarter")
WITHOUT = "no template"


def by_distance(
    results: Sequence[dict[str, Any]], ks: Sequence[int], bootstrap: int, seed: int
) -> list[dict[str, Any]]:
    """Match rates of a campaign's candidates (method ``combined``) in quarters of the targets by the distance to
    their nearest template, and for those without any, with the first k of each of ``ks`` and with all candidates
    (k null).

    results: rows of ``metrics.target_result`` with ``formula``. Nothing where nothing was made from a template.
    """
    own = [result for result in results if result["method"] == "combined"]
    distance = np.array([result["template_distance"] for result in own], dtype=np.float64)
    some = np.flatnonzero(np.isfinite(distance))
    rank = np.empty(len(some), dtype=np.int64)
    rank[np.argsort(distance[some], kind="stable")] = np.arange(len(some))
    quarter = np.full(len(own), len(QUARTERS))
    quarter[some] = len(QUARTERS) * rank // max(1, len(some))
    rows = []
    for number, name in enumerate((*QUARTERS, WITHOUT)):
        members = np.flatnonzero(quarter == number)
        if not len(members):
            continue
        ends = (None, None) if name == WITHOUT else (distance[members].min(), distance[members].max())
        for k in (*ks, None):
            row = rate_row([own[i] for i in members], k, bootstrap, seed)
            rows.append(
                {
                    "method": "combined",
                    "nearest": name,
                    "nearest_from": ends[0],
                    "nearest_to": ends[1],
                    "k": k,
                    **row,
                }
            )
    return rows
