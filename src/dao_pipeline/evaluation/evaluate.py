"""Stage evaluate: were the known crystals of the test split found, by DAO-G and by two baselines?

Every candidate counts, valid or not; a target without candidates is a miss. DAO-P ranks the candidates of
all methods; template substitution names its nearest template first instead, which needs no energy.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.candidates.compositions import Requested, campaign_compositions
from dao_pipeline.candidates.screen import check_geometry
from dao_pipeline.config import Campaign, Matcher, stage_settings
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.schema import COLUMNS, EVALUATION
from dao_pipeline.crystals.table import provenance, read_table, write_table
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.errors import UserError
from dao_pipeline.evaluation.baselines import random_crystals
from dao_pipeline.evaluation.matching import Match, match_target
from dao_pipeline.evaluation.metrics import RANK1_BY, Sample, ranks_by_energy, summarise, target_result
from dao_pipeline.evaluation.templates import MAX_TRIED, Substitution, Template, Templates, substitute
from dao_pipeline.parallel import parallel_map

log = logging.getLogger(__name__)


def _schema(names: str) -> pa.Schema:
    return pa.schema([(name, (COLUMNS | EVALUATION)[name].type) for name in names.split()])


SAMPLES_SCHEMA = _schema(
    "id method target_id composition formula num_atoms sample order template_id template_distance status valid "
    "energy_pred rank place first matched rmse reason"
)
TARGETS_SCHEMA = _schema(
    "target_id composition formula num_atoms spacegroup method candidates compared valid_candidates matches found "
    "rmse rank1_by rank1_found rank1_rmse energy1_found energy1_rmse first_match_rank"
)
SUMMARY_SCHEMA = _schema(
    "method k rank1_by match_rate low high rmse matches n match_rate_by_energy match_rate_single"
)

_STRUCTURE = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]
_SCREENED = [*_STRUCTURE, "composition", "target_id", "sample", "status", "valid", "energy_pred", "group", "rank"]


def evaluate(campaign: Campaign, screened: Path, crysdb: Path, energy_model: Path, out: Path) -> None:
    """Write samples.parquet, targets.parquet and summary.parquet into ``out``.

    Raises UserError when the candidates were made for other targets than the test split now has.
    """
    asked = [] if campaign.generate.compositions is not None else campaign_compositions(campaign, crysdb)
    if not asked:
        log.warning("generate.compositions is set: there are no known crystals to compare with")
    known = _read_known(crysdb / "test.parquet", asked)
    candidates = _read_candidates(screened, set(known))
    tasks = _tasks(campaign, asked, known, candidates, crysdb / "train.parquet")
    compared = parallel_map(compare_target, tasks, campaign.compute.cpu.threads)
    baselines = _predicted(campaign, energy_model, compared)
    samples: list[Sample] = []
    for task, result in zip(tasks, compared, strict=True):
        own = candidates.get(task.known.id, [])
        samples += _dao_samples(task, own, result.dao)
        samples += _baseline_samples(task, "random", result.random, result.random_matches, baselines)
        crystals = [s.crystal for s in result.substitutions]
        made = _baseline_samples(task, "substitution", crystals, result.substitution_matches, baselines)
        samples += [
            _with_template(sample, made_from) for sample, made_from in zip(made, result.substitutions, strict=True)
        ]
    targets = target_rows(asked, known, samples)
    summary = summarise(targets, campaign.generate.samples, campaign.evaluate.bootstrap, campaign.seed)
    about = provenance(
        "evaluate",
        campaign=campaign.name,
        settings=stage_settings(campaign, "evaluate"),
        inputs={
            "screened": screened,
            "train": crysdb / "train.parquet",
            "test": crysdb / "test.parquet",
            "energy_model": energy_model,
        },
        protocol="all pairs: no filter on validity or charge neutrality",
    )
    rows = [asdict(sample) for sample in samples]
    write_table(pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA), out / "samples.parquet", about)
    write_table(pa.Table.from_pylist(targets, schema=TARGETS_SCHEMA), out / "targets.parquet", about)
    write_table(pa.Table.from_pylist(summary, schema=SUMMARY_SCHEMA), out / "summary.parquet", about)
    for row in summary:
        log.info("%s: %d of %d targets with k = %d", row["method"], row["matches"], row["n"], row["k"])


def _read_known(path: Path, asked: Sequence[Requested]) -> dict[str, Crystal]:
    names = [*_STRUCTURE, *(n for n in ("spacegroup",) if n in pq.read_schema(path).names)]
    table = read_table(path, columns=names)
    ids = pa.array([target.target_id for target in asked], pa.string())
    return {crystal.id: crystal for crystal in from_table(table.filter(pc.is_in(table["id"], value_set=ids)))}


def _read_candidates(screened: Path, targets: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Screened candidates by target, as rows with a ``crystal`` (None where there is none)."""
    table = read_table(screened, columns=_SCREENED)
    table = table.filter(pc.is_valid(table["target_id"]))
    crystals = {c.id: c for c in from_table(table.select(_STRUCTURE).filter(pc.is_valid(table["lattice"])))}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.drop_columns(["frac_coords", "lattice"]).to_pylist():
        if row["target_id"] not in targets:
            raise UserError(
                f"{screened}: {row['id']} was made for {row['target_id']}, which is no target of the test split. "
                "Rerun plan_candidates and what follows."
            )
        found[row["target_id"]].append({**row, "crystal": crystals.get(row["id"])})
    return found


@dataclass(frozen=True)
class Task:
    """One target with DAO-G's crystals for it, and what the baselines need."""

    composition: str
    known: Crystal
    dao: list[Crystal]
    templates: list[Template]
    element_volumes: np.ndarray
    samples: int
    seed: int
    matcher: Matcher
    duplicates: Matcher
    symprec: float


@dataclass(frozen=True)
class Compared:
    """Baseline crystals for one target, and how they and DAO-G's compare with the known crystal."""

    dao: list[Match]
    random: list[Crystal]
    random_matches: list[Match]
    substitutions: list[Substitution]
    substitution_matches: list[Match]


def _tasks(
    campaign: Campaign,
    asked: Sequence[Requested],
    known: dict[str, Crystal],
    candidates: dict[str, list[dict[str, Any]]],
    train: Path,
) -> list[Task]:
    table = read_table(train)
    if "precursor_of" in table.column_names:
        table = table.filter(pc.is_null(table["precursor_of"]))
    volumes = fit_element_volumes(table)
    templates = Templates.build(table, volumes)
    samples = campaign.generate.samples
    tasks = []
    for target in asked:
        crystal = known[str(target.target_id)]
        rows = candidates.get(crystal.id, [])
        tasks.append(
            Task(
                composition=target.composition,
                known=crystal,
                dao=[row["crystal"] for row in rows if row["crystal"] is not None],
                templates=templates.nearest(crystal.atomic_numbers, MAX_TRIED * samples),
                element_volumes=volumes,
                samples=samples,
                seed=campaign.seed,
                matcher=campaign.evaluate.matcher,
                duplicates=campaign.screen.matcher,
                symprec=campaign.screen.symprec,
            )
        )
    return tasks


def compare_target(task: Task) -> Compared:
    """Make the baselines' crystals for one target and compare all candidates with the known crystal."""
    target = task.known
    random = random_crystals(target.id, target.atomic_numbers, task.element_volumes, task.samples, task.seed)
    made = substitute(target.id, task.templates, task.element_volumes, task.samples, task.duplicates, task.symprec)

    def matches(crystals: list[Crystal]) -> list[Match]:
        return match_target(target, crystals, task.matcher)

    return Compared(
        dao=matches(task.dao),
        random=random,
        random_matches=matches(random),
        substitutions=made,
        substitution_matches=matches([s.crystal for s in made]),
    )


def _predicted(campaign: Campaign, energy_model: Path, compared: Sequence[Compared]) -> dict[str, dict[str, Any]]:
    """Status, validity and DAO-P's energy of the baselines' crystals, by id."""
    from dao_pipeline.energy.predict import predict_energies

    crystals = [c for result in compared for c in (*result.random, *(s.crystal for s in result.substitutions))]
    if not crystals:
        return {}
    table = to_table(crystals).append_column("status", pa.array(["ok"] * len(crystals), COLUMNS["status"].type))
    table = check_geometry(table, campaign.screen)
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


def _dao_samples(task: Task, rows: Sequence[dict[str, Any]], matches: Sequence[Match]) -> list[Sample]:
    """DAO-G's candidates of one target, ranked by the screening; duplicates have their group's place."""
    place_of_group = {row["group"]: row["rank"] for row in rows if row["rank"] is not None}
    found = iter(matches)
    samples = []
    for order, row in enumerate(rows, start=1):
        match = next(found) if row["crystal"] is not None else None
        samples.append(
            Sample(
                id=row["id"],
                method="dao",
                target_id=task.known.id,
                composition=row["composition"],
                formula=row["formula"],
                num_atoms=task.known.num_atoms,
                sample=row["sample"],
                order=order,
                status=row["status"],
                valid=row["valid"],
                energy_pred=row["energy_pred"],
                rank=row["rank"],
                place=place_of_group.get(row["group"]) if row["group"] is not None else None,
                first=row["rank"] == 1,
                **_outcome(match, row["status"]),
            )
        )
    return samples


def _baseline_samples(
    task: Task,
    method: str,
    crystals: Sequence[Crystal],
    matches: Sequence[Match],
    predicted: dict[str, dict[str, Any]],
) -> list[Sample]:
    """A baseline's candidates of one target in its own order, ranked by predicted energy among the valid."""
    about = [predicted[crystal.id] for crystal in crystals]
    ranks = ranks_by_energy([a["energy_pred"] for a in about], [a["valid"] for a in about])
    by_energy = RANK1_BY[method] == "predicted_energy"
    samples = []
    for i, (crystal, rank) in enumerate(zip(crystals, ranks, strict=True)):
        place = rank if by_energy else i + 1
        samples.append(
            Sample(
                id=crystal.id,
                method=method,
                target_id=task.known.id,
                composition=task.composition,
                formula=crystal.formula,
                num_atoms=crystal.num_atoms,
                sample=i,
                order=i + 1,
                rank=rank,
                place=place,
                first=place == 1,
                **about[i],
                **_outcome(matches[i], about[i]["status"]),
            )
        )
    return samples


def _with_template(sample: Sample, made: Substitution) -> Sample:
    return Sample(**{**asdict(sample), "template_id": made.template_id, "template_distance": made.distance})


def target_rows(
    asked: Sequence[Requested], known: dict[str, Crystal], samples: Sequence[Sample]
) -> list[dict[str, Any]]:
    """One row per target and method, for every target, with or without candidates."""
    own: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        own[sample.target_id, sample.method].append(sample)
    return [
        {
            "target_id": target.target_id,
            "composition": target.composition,
            "formula": target.formula,
            "num_atoms": target.num_atoms,
            "spacegroup": known[str(target.target_id)].extra.get("spacegroup"),
            **target_result(method, own[str(target.target_id), method]),
        }
        for target in asked
        for method in RANK1_BY
    ]
