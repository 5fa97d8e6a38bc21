"""A campaign's plan: stages and jobs, candidates, hours, disk, and what cannot be predicted and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.candidates.asked import EXPLICIT, resolve
from dao_pipeline.candidates.compositions import known_elements
from dao_pipeline.config import Campaign
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, SYMBOLS
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.errors import UserError
from dao_pipeline.forecast.rates import Key, Rate, device, known_rates
from dao_pipeline.forecast.work import Amount, amounts, sizes
from dao_pipeline.preflight import problems_of, source_elements
from dao_pipeline.workflow_support import RULES, stage_files, stage_jobs

_NAMED = 20
_PRICED = 2_000
"""Compositions whose DFT calculations are priced one by one."""

_SAME_WORK = {"plan_shard": "plan_candidates"}
"""Rules that do what a stage does as well, which speaks for them until they are measured themselves."""

_LOOKED_AT = 10_000
"""Infeasible compositions among which examples are looked for."""

# Bytes of the tables of candidates: coordinates of generated crystals are noise to a compressor.
_PER_ATOM = 3 * 8
_PER_CRYSTAL = 9 * 8 + 40
_PER_SCREENED = 12 * 8
_PER_PLANNED = 16
_PER_CIF, _CIF_PER_ATOM = 500, 30


@dataclass(frozen=True)
class StagePlan:
    """One stage. done: of its jobs. hours: of one core or GPU, of those left to do; None: not measured."""

    stage: str
    jobs: int
    done: int
    work: float | None
    unit: str
    device: str
    hours: float | None
    measured: str


@dataclass(frozen=True)
class Infeasible:
    """One composition that will not be predicted, and why."""

    composition: str
    asked_by: str
    reason: str


@dataclass(frozen=True)
class Forecast:
    """Everything that is known about a campaign before it runs; see ``docs/campaigns.md``.

    compositions: cells that will be filled. infeasible: the first of those that will not; reasons: how many for
    each reason. problems: what stops the campaign, a line each.
    """

    campaign: str
    compositions: int
    candidates: int
    atoms: dict[str, float]
    stages: list[StagePlan]
    jobs: int
    cpu_hours: float
    gpu_hours: float
    not_measured: list[str]
    bounds: list[str]
    disk_bytes: int
    reasons: dict[str, int]
    infeasible: list[Infeasible]
    problems: list[str]

    @property
    def sound(self) -> bool:
        """Whether the campaign can start, and has something to predict."""
        return not self.problems and self.compositions > 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"sound": self.sound}


def forecast(campaign: Campaign, origin: str, results: Path) -> Forecast:
    """The plan of a campaign, with throughput measured by the campaigns under ``results`` where there is one.

    Reads nothing larger than the compositions that are asked for, and writes nothing.
    """
    folder = results / campaign.name
    problems = problems_of(campaign, origin)
    try:
        cells = None if campaign.generate.known else _feasible(campaign, folder, problems)
    except UserError:  # among the problems already; without compositions nothing follows
        return Forecast(campaign.name, 0, 0, {}, [], 0, 0.0, 0.0, [], [], 0, {}, [], problems)
    size = sizes(campaign, folder, None if cells is None else (len(cells.atoms), float(cells.atoms.sum())))
    rates = known_rates(results)
    work = amounts(campaign, size)
    dft = dft_hours(campaign, cells.names) if cells is not None and campaign.qe.enabled else None
    stages = [
        _stage(campaign, results, rule, work.get(rule), rates) for rule in RULES if stage_jobs(campaign, rule)
    ]
    if dft is not None:
        stages = [_priced(stage, dft) if stage.stage == "validate_qe" else stage for stage in stages]
    left = {of: sum(s.hours or 0.0 for s in stages if s.device == of) for of in ("cpu", "gpu")}
    return Forecast(
        campaign=campaign.name,
        compositions=size.compositions,
        candidates=size.compositions * campaign.generate.samples,
        atoms=_spread(cells.atoms) if cells is not None else {"mean": size.atoms / max(1, size.compositions)},
        stages=stages,
        jobs=sum(stage.jobs for stage in stages),
        cpu_hours=left["cpu"],
        gpu_hours=left["gpu"],
        not_measured=[s.stage for s in stages if s.hours is None],
        bounds=list(size.bounds),
        disk_bytes=_disk(campaign, size.compositions, size.atoms),
        reasons=cells.reasons if cells is not None else {},
        infeasible=cells.infeasible if cells is not None else [],
        problems=problems,
    )


@dataclass(frozen=True)
class _Feasible:
    """Names and atoms of each cell that can be filled, and the others."""

    names: list[str]
    atoms: np.ndarray
    reasons: dict[str, int]
    infeasible: list[Infeasible]


def _feasible(campaign: Campaign, folder: Path, problems: list[str]) -> _Feasible:
    found = resolve(campaign)
    reasons = Counter(found.dropped["reason"].to_pylist())
    reasons.pop("duplicate", None)
    lost = [row for row in found.dropped.slice(0, 10_000).to_pylist() if row["reason"] != "duplicate"]
    shown = [
        Infeasible(r["composition"], r["asked_by"], " ".join(filter(None, (r["reason"], r["detail"]))))
        for r in lost[:_NAMED]
    ]
    atoms = np.asarray(found.table["num_atoms"], dtype=np.int64)
    known, what = _elements(campaign, folder)
    if known is None or not len(atoms):
        return _Feasible(found.names, atoms, dict(reasons), shown)
    unseen = _unseen(found.table, known)
    told: set[str] = set()
    for row in found.table.take(pa.array(np.flatnonzero(unseen)[:_LOOKED_AT])).to_pylist():
        strange = [SYMBOLS[z] for z in dict.fromkeys(row["atomic_numbers"]) if z not in known]
        reason = f"no {what} contains {', '.join(strange)}"
        if reason not in told:  # one example of each
            told.add(reason)
            shown.append(Infeasible(row["composition"], row["asked_by"], reason))
        if row["asked_by"].startswith(EXPLICIT) and not problems:
            problems.append(f"{row['asked_by']}: {row['composition']}: {reason}; remove it.")
    if unseen.any():
        reasons["unseen_element"] = int(unseen.sum())
    names = [name for name, lost in zip(found.names, unseen.tolist(), strict=True) if not lost]
    return _Feasible(names, atoms[~unseen], dict(reasons), shown[:_NAMED])


def _elements(campaign: Campaign, folder: Path) -> tuple[set[int] | None, str]:
    """Atomic numbers that the models will know, as far as that is known; and of what."""
    train = folder / "crysdb" / "train.parquet"
    if train.is_file():
        return known_elements(train), "training crystal"
    symbols = source_elements(campaign)
    return None if symbols is None else {ATOMIC_NUMBERS[s] for s in symbols}, "crystal of the source"


def _unseen(cells: pa.Table, known: set[int]) -> np.ndarray:
    """(rows,) bool: cells with an element that is not in ``known``."""
    lists = cells["atomic_numbers"].combine_chunks()
    offsets, numbers = np.asarray(lists.offsets), np.asarray(lists.values)
    strange = ~np.isin(numbers[offsets[0] : offsets[-1]], list(known))
    return np.asarray(np.add.reduceat(strange, offsets[:-1] - offsets[0]) > 0)


def _spread(atoms: np.ndarray) -> dict[str, float]:
    if not len(atoms):
        return {}
    return {"min": int(atoms.min()), "mean": float(atoms.mean()), "max": int(atoms.max())}


def _stage(
    campaign: Campaign, results: Path, rule: str, amount: Amount | None, rates: dict[Key, Rate]
) -> StagePlan:
    jobs = stage_jobs(campaign, rule)
    files = stage_files(campaign, rule)
    there = sum((results / Path(file).relative_to("results")).is_file() for file in files)
    done = there * jobs // max(1, len(files))
    if amount is None:
        return StagePlan(rule, jobs, done, None, "", "cpu", None, "")
    of = device(campaign, amount)
    rate = rates.get((rule, amount.like, of)) or rates.get((_SAME_WORK.get(rule, rule), amount.like, of))
    hours = None
    if rate is not None and amount.value is not None:
        hours = rate.hours(amount.value * (jobs - done) / jobs, jobs - done)
    return StagePlan(
        rule, jobs, done, amount.value, amount.unit, of, hours, rate.where if rate is not None else ""
    )


def _priced(stage: StagePlan, hours: float) -> StagePlan:
    """The stage of DFT calculations with its hours, of those that are left."""
    left = (stage.jobs - stage.done) / stage.jobs
    return replace(stage, work=stage.jobs, hours=hours * left, measured="the cost model of qe/cost.py")


def dft_hours(campaign: Campaign, names: Sequence[str]) -> float | None:
    """Core hours of all DFT calculations as ``qe.cost`` expects them; None where pseudopotentials are missing.

    Of many compositions some, evenly chosen, stand for all.
    """
    from dao_pipeline.qe.cost import expected_core_hours

    some = names[:: ceil(len(names) / _PRICED)] if names else []
    budget = campaign.qe.budget_core_hours
    try:
        hours = expected_core_hours(
            campaign.qe.model_copy(update={"budget_core_hours": None}), [parse_formula(name) for name in some]
        )
    except UserError:  # among the problems
        return None
    if campaign.qe.candidates is None and some:
        hours *= len(names) / len(some)
    return hours if budget is None else min(hours, budget)


def _disk(campaign: Campaign, compositions: int, atoms: float) -> int:
    """Bytes of the tables of candidates and their CIF files at most: nothing but what repeats is compressed."""
    generate = campaign.generate
    candidates, all_atoms = compositions * generate.samples, atoms * generate.samples
    crystals = candidates * _PER_CRYSTAL + all_atoms * _PER_ATOM
    proposed = min(1.0, generate.templates / generate.samples) * crystals
    screened = 2 * (crystals + candidates * _PER_SCREENED)  # by shard, and gathered
    best = min(campaign.screen.top_k, generate.samples)
    files = best * (compositions * _PER_CIF + atoms * _CIF_PER_ATOM)
    return int(2 * candidates * _PER_PLANNED + proposed + crystals + screened + files)
