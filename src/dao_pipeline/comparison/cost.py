"""What a candidate costs by generation and by DFT, end to end as well as per step."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

GENERATION = ("plan_candidates", "propose_templates", "generate_candidates", "screen_shard", "screen_candidates")
"""Stages between a composition and its ranked candidates; training is not among them."""


@dataclass(frozen=True)
class Cost:
    """Core seconds of all ``jobs`` of some stages; None where a job left no measurement."""

    core_seconds: float
    jobs: int


def measured(timings: Path, stages: Iterable[str] = GENERATION) -> Cost | None:
    """CPU time by Snakemake's benchmark files ``<stage>.tsv`` and ``<stage>-<part>.tsv`` in ``timings``.

    Without a sum of CPU time (very short jobs) the wall time counts. None if there is no file.
    """
    seconds, jobs = 0.0, 0
    for stage in stages:
        for file in sorted([*timings.glob(f"{stage}.tsv"), *timings.glob(f"{stage}-*.tsv")]):
            with file.open(encoding="utf-8", newline="") as lines:
                for row in csv.DictReader(lines, delimiter="\t"):
                    seconds += _number(row.get("cpu_time")) or _number(row.get("s")) or 0.0
                    jobs += 1
    return Cost(seconds, jobs) if jobs else None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
