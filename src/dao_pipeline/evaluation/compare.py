"""All methods on the same targets: the campaign's candidates, random crystals, substituted templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.candidates.made import NO_TEMPLATE
from dao_pipeline.config import Campaign, Matcher
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.evaluation.baselines import random_crystals
from dao_pipeline.evaluation.matching import Match, match_target
from dao_pipeline.evaluation.metrics import RANK1_BY, Sample, ranks_by_energy
from dao_pipeline.evaluation.substitution import Substitution, substitutions
from dao_pipeline.parallel import parallel_map
from dao_pipeline.screening.geometry import check_geometry
from dao_pipeline.templates.index import TemplateIndex


@dataclass(frozen=True)
class Target:
    """One known crystal to be found, and DAO-G's candidates for it.

    candidates: rows of the screened table, each with its ``crystal`` (None where there is none).
    """

    composition: str
    known: Crystal
    candidates: list[dict[str, Any]]


def compare_methods(
    campaign: Campaign, targets: Sequence[Target], templates: TemplateIndex, energy_model: Path | None
) -> list[Sample]:
    """Every candidate of every method for every target, compared with the known crystal and ranked.

    energy_model: None: there are no energies, and random crystals count in the order in which they were drawn.
    """
    count = dict.fromkeys(campaign.evaluate.baselines, campaign.generate.samples)
    substituted = substitutions(templates, [target.known for target in targets], count.get("substitution", 0))
    tasks = [
        Task(
            known=target.known,
            dao=[row["crystal"] for row in target.candidates if row["crystal"] is not None],
            substitutions=made,
            element_volumes=templates.volume.elements,
            random=count.get("random", 0),
            seed=campaign.seed,
            matcher=campaign.evaluate.matcher,
        )
        for target, made in zip(targets, substituted, strict=True)
    ]
    compared = parallel_map(compare_target, tasks, campaign.compute.cpu.threads)
    predicted = _predicted(campaign, energy_model, compared)
    found: list[Sample] = []
    for target, result in zip(targets, compared, strict=True):
        found += _campaign_samples(target, result.dao)
        found += _baseline_samples(target, "random", result.random, result.random_matches, predicted)
        crystals = [made.crystal for made in result.substitutions]
        known = _baseline_samples(target, "substitution", crystals, result.substitution_matches, predicted)
        found += [
            replace(sample, template_id=made.template_id, template_distance=made.distance)
            for sample, made in zip(known, result.substitutions, strict=True)
        ]
    return found


@dataclass(frozen=True)
class Task:
    """One target with DAO-G's crystals for it, and what the baselines need."""

    known: Crystal
    dao: list[Crystal]
    substitutions: list[Substitution]
    element_volumes: np.ndarray
    random: int
    seed: int
    matcher: Matcher


@dataclass(frozen=True)
class Compared:
    """Baseline crystals for one target, and how they and DAO-G's compare with the known crystal."""

    dao: list[Match]
    random: list[Crystal]
    random_matches: list[Match]
    substitutions: list[Substitution]
    substitution_matches: list[Match]


def compare_target(task: Task) -> Compared:
    """Make the baselines' crystals for one target and compare all candidates with the known crystal."""
    target = task.known
    random = random_crystals(target.id, target.atomic_numbers, task.element_volumes, task.random, task.seed)

    def matches(crystals: list[Crystal]) -> list[Match]:
        return match_target(target, crystals, task.matcher)

    return Compared(
        dao=matches(task.dao),
        random=random,
        random_matches=matches(random),
        substitutions=task.substitutions,
        substitution_matches=matches([s.crystal for s in task.substitutions]),
    )


def _predicted(
    campaign: Campaign, energy_model: Path | None, compared: Sequence[Compared]
) -> dict[str, dict[str, Any]]:
    """Status, validity and DAO-P's energy of the baselines' crystals, by id."""
    from dao_pipeline.energy.predict import predict_energies

    crystals = [c for result in compared for c in (*result.random, *(s.crystal for s in result.substitutions))]
    if not crystals:
        return {}
    table = to_table(crystals).append_column("status", pa.array(["ok"] * len(crystals), COLUMNS["status"].type))
    table = check_geometry(table, campaign.screen)
    energies = np.full(table.num_rows, np.nan)
    if energy_model is not None:
        energies = predict_energies(energy_model, table, batch_atoms=campaign.generate.batch_atoms)
    return {
        row["id"]: {
            "status": row["status"],
            "valid": row["valid"],
            "energy_pred": float(energy) if isfinite(energy) else None,
        }
        for row, energy in zip(table.select(["id", "status", "valid"]).to_pylist(), energies, strict=True)
    }


def _outcome(found: Match | None, status: str) -> dict[str, Any]:
    """Columns matched, rmse and reason of one candidate; ``found`` is None where there is no crystal."""
    if found is None:
        return {"matched": False, "rmse": None, "reason": status}
    reason = None if found.rmse is not None else found.error or "no_match"
    return {"matched": found.rmse is not None, "rmse": found.rmse, "reason": reason}


def _campaign_samples(target: Target, matches: Sequence[Match]) -> list[Sample]:
    """The campaign's candidates of one target: those that DAO-G generated freely (``dao``), ranked among
    themselves, and if there are others too, from templates, all of them (``combined``)."""
    rows, found = target.candidates, iter(matches)
    pairs = [(row, next(found) if row["crystal"] is not None else None) for row in rows]
    free = [(row, match) for row, match in pairs if _is_free(row)]
    samples = _ranked_samples(target, "dao", _among_themselves([row for row, _ in free]), [m for _, m in free])
    if len(free) < len(rows):
        samples += _ranked_samples(target, "combined", rows, [match for _, match in pairs])
    return samples


def _is_free(row: dict[str, Any]) -> bool:
    """Whether a candidate was generated freely; one for which there was no template was not made at all."""
    return row.get("origin") in (None, "generated") and row["status"] != NO_TEMPLATE


def _among_themselves(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some of a target's candidates with ranks as if there were no others: groups in the order of all candidates,
    each led by its own best."""
    leaders: dict[int, int] = {}
    for i, row in enumerate(rows):
        if row["group"] is not None and row["energy_pred"] is not None:
            best = leaders.setdefault(row["group"], i)
            if (row["rank"] is None, row["energy_pred"]) < (rows[best]["rank"] is None, rows[best]["energy_pred"]):
                leaders[row["group"]] = i
    ranks = {leaders[group]: rank for rank, group in enumerate(sorted(leaders), start=1)}
    return [{**row, "rank": ranks.get(i)} for i, row in enumerate(rows)]


def _ranked_samples(
    target: Target, method: str, rows: Sequence[dict[str, Any]], matches: Sequence[Match | None]
) -> list[Sample]:
    """Candidates of one target, ranked by the screening; duplicates have their group's place.

    ``rank`` is by energy even if the screening ranked by probability.
    """
    ranks = [row["rank"] for row in rows]
    if any(row.get("probability") is not None for row in rows):
        ranks = ranks_by_energy([row["energy_pred"] for row in rows], [rank is not None for rank in ranks])
    place_of_group = {row["group"]: row["rank"] for row in rows if row["rank"] is not None}
    samples = []
    for order, (row, rank, match) in enumerate(zip(rows, ranks, matches, strict=True), start=1):
        samples.append(
            Sample(
                id=row["id"],
                method=method,
                target_id=target.known.id,
                composition=row["composition"],
                formula=row["formula"],
                num_atoms=target.known.num_atoms,
                sample=row["sample"],
                order=order,
                status=row["status"],
                valid=row["valid"],
                energy_pred=row["energy_pred"],
                rank=rank,
                place=place_of_group.get(row["group"]) if row["group"] is not None else None,
                guess=row["rank"],
                template_id=row.get("template_id"),
                template_distance=row.get("template_distance"),
                probability=row.get("probability"),
                **_outcome(match, row["status"]),
            )
        )
    return samples


def _baseline_samples(
    target: Target,
    method: str,
    crystals: Sequence[Crystal],
    matches: Sequence[Match],
    predicted: dict[str, dict[str, Any]],
) -> list[Sample]:
    """A baseline's candidates of one target in its own order, ranked by predicted energy among the valid."""
    about = [predicted[crystal.id] for crystal in crystals]
    ranks = ranks_by_energy([a["energy_pred"] for a in about], [a["valid"] for a in about])
    by_energy = RANK1_BY[method] == "predicted_energy" and any(rank is not None for rank in ranks)
    samples = []
    for i, (crystal, rank) in enumerate(zip(crystals, ranks, strict=True)):
        place = rank if by_energy else i + 1
        samples.append(
            Sample(
                id=crystal.id,
                method=method,
                target_id=target.known.id,
                composition=target.composition,
                formula=crystal.formula,
                num_atoms=crystal.num_atoms,
                sample=i,
                order=i + 1,
                rank=rank,
                place=place,
                guess=place,
                **about[i],
                **_outcome(matches[i], about[i]["status"]),
            )
        )
    return samples
