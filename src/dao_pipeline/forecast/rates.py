"""How fast stages were: measured in campaigns that have run here, or else where the shipped numbers come from.

``data/throughput.json`` is written by ``benchmarks/throughput.py`` from the timings of a campaign.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dao_pipeline.config import Campaign
from dao_pipeline.config.read import load_campaign
from dao_pipeline.errors import UserError
from dao_pipeline.forecast.work import Amount, amounts, sizes

SHIPPED = Path(__file__).parent / "data" / "throughput.json"
SHIPPED_WITH = "the package"
"""Where the shipped numbers are from, in place of a campaign's name."""


_ONLY_START = 3.0
"""Seconds of a job below which nothing but its start was measured: what it did says nothing about its speed."""


class Rate(NamedTuple):
    """What jobs of a stage did, the core or GPU seconds that took with their start, and where it was."""

    work: float
    seconds: float
    jobs: int
    where: str

    def hours(self, work: float, jobs: int) -> float:
        """Core or GPU hours of so much work in so many jobs."""
        if self.seconds / self.jobs < _ONLY_START:
            return jobs * self.seconds / self.jobs / 3600
        return work * self.seconds / self.work / 3600


Key = tuple[str, str, str]
"""Stage, what it is like (``Amount.like``), and cpu or gpu."""


@cache
def shipped() -> dict[str, Any]:
    """The numbers that come with the package, and the hardware they were measured on."""
    values: dict[str, Any] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return values


def device(campaign: Campaign, amount: Amount) -> str:
    """What a stage runs on."""
    return "gpu" if getattr(campaign.compute, amount.kind).gpus else "cpu"


def known_rates(results: Path) -> dict[Key, Rate]:
    """The throughput of every stage that has been measured: by campaigns under ``results``, or else as shipped."""
    found: dict[Key, list[Rate]] = defaultdict(list)
    for config in sorted(results.glob("*/config.yaml")):
        try:
            measurements = list(measured(load_campaign(config), config.parent))
        except UserError:  # of an earlier version, or its files of formulas are gone
            continue
        for key, rate in measurements:
            found[key].append(rate)
    rates = {
        (row["stage"], row["like"], row["device"]): Rate(row["work"], row["seconds"], row["jobs"], SHIPPED_WITH)
        for row in shipped()["rates"]
    }
    return rates | {key: together(here) for key, here in found.items()}


def together(rates: Sequence[Rate]) -> Rate:
    """Measurements of one stage in several campaigns as one: large ones count for more."""
    where = ", ".join(dict.fromkeys(rate.where for rate in rates))
    return Rate(sum(r.work for r in rates), sum(r.seconds for r in rates), sum(r.jobs for r in rates), where)


def measured(campaign: Campaign, folder: Path) -> Iterator[tuple[Key, Rate]]:
    """What the jobs of a campaign that have run did, by stage."""
    timings = read_timings(folder / "timings")
    if not timings:
        return
    cells = _cells(folder) or (None if campaign.generate.known else (0, 0.0))
    for stage, amount in amounts(campaign, sizes(campaign, folder, cells)).items():
        rows = timings.get(stage, [])
        if not rows or not amount.value:
            continue
        of = device(campaign, amount)
        gpus = getattr(campaign.compute, amount.kind).gpus
        took = sum(row["s"] * gpus if of == "gpu" else row["cpu_time"] or row["s"] for row in rows)
        if took > 0:
            done = amount.value * _share(campaign, stage, len(rows))
            yield (stage, amount.like, of), Rate(done, took, len(rows), folder.name)


def _share(campaign: Campaign, stage: str, timed: int) -> float:
    """The part of a stage's work that its timed jobs did."""
    from dao_pipeline.workflow_support import stage_jobs

    return min(1.0, timed / max(1, stage_jobs(campaign, stage)))


def _cells(folder: Path) -> tuple[int, float] | None:
    """Number of cells and of atoms in them, of the plan that was made."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    plan = folder / "candidates" / "plan.parquet"
    if not plan.is_file():
        return None
    table = pq.read_table(plan, columns=["num_atoms", "sample"])
    first = table.filter(pc.equal(table["sample"], 0))
    return first.num_rows, float(pc.sum(first["num_atoms"]).as_py() or 0)


def read_timings(folder: Path) -> dict[str, list[Mapping[str, float]]]:
    """Snakemake's benchmark files by stage: wall and CPU seconds of each job, 0 where they were not measured."""
    found: dict[str, list[Mapping[str, float]]] = defaultdict(list)
    for path in sorted(folder.rglob("*.tsv")):
        stage = path.relative_to(folder).parts[0].removesuffix(".tsv").split("-")[0]
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                found[stage].append({name: _number(row.get(name)) for name in ("s", "cpu_time")})
    return dict(found)


def _number(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
