"""Stage evaluate: were the known crystals of the test split found, by the campaign and by two baselines?

Every candidate counts, valid or not; a target without candidates is a miss. The campaign's candidates are ranked
as the screening did, by probability or predicted energy; DAO-P ranks those of the baselines; template substitution
names its nearest template first instead, which needs no energy.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.candidates.compositions import campaign_compositions
from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.held_out import require_held_out, training_of
from dao_pipeline.crystals.schema import COLUMNS, EVALUATION
from dao_pipeline.crystals.table import provenance, read_about, read_table, table_files, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.evaluation.by_distance import by_distance
from dao_pipeline.evaluation.compare import Target, compare_methods
from dao_pipeline.evaluation.metrics import (
    AS_DRAWN,
    PROBABILITY,
    Sample,
    counts,
    methods_of,
    summarise,
    target_result,
)
from dao_pipeline.evaluation.substitution import plain_index
from dao_pipeline.evaluation.targets import Wanted, wanted
from dao_pipeline.templates.index import TemplateIndex

TARGETS_AT_ONCE = 200
"""Targets whose baselines are in memory at the same time."""

log = logging.getLogger(__name__)


def _schema(names: str) -> pa.Schema:
    return pa.schema([(name, (COLUMNS | EVALUATION)[name].type) for name in names.split()])


SAMPLES_SCHEMA = _schema(
    "id method target_id composition formula num_atoms sample order template_id template_distance status valid "
    "energy_pred probability rank place guess first matched rmse reason"
)
TARGETS_SCHEMA = _schema(
    "target_id composition formula num_atoms spacegroup method candidates compared valid_candidates matches found "
    "rmse rank1_by rank1_found rank1_rmse energy1_found energy1_rmse first_match_rank guesses guess_rmse "
    "template_distance"
)
SUMMARY_SCHEMA = _schema(
    "method k rank1_by match_rate low high rmse matches n match_rate_by_energy match_rate_single"
)

DISTANCE_SCHEMA = _schema("method nearest k match_rate low high rmse matches n nearest_from nearest_to")

_STRUCTURE = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]
_SCREENED = [*_STRUCTURE, "composition", "target_id", "sample", "status", "valid", "energy_pred", "group", "rank"]


def evaluate(campaign: Campaign, screened: Path, crysdb: Path, energy_model: Path | None, out: Path) -> None:
    """Write samples, targets, summary and by_distance.parquet into ``out``.

    energy_model: DAO-P, for the baselines; None where the campaign has none.

    Raises UserError when the candidates were made for other targets than the test split now has, and when the
    models may have been trained on it (unless ``evaluate.allow_leakage``).
    """
    settings = campaign.evaluate
    cells = campaign_compositions(campaign, crysdb) if campaign.generate.known else []
    asked = wanted(crysdb / "test.parquet", cells, settings.targets) if cells else []
    if not cells:
        log.warning("compositions are given: there are no known crystals to compare with")
    leaks = _require_held_out(campaign, screened, crysdb / "test.parquet", energy_model) if asked else []
    known = _read_known(crysdb / "test.parquet", asked)
    candidates = _read_candidates(screened, {str(cell.target_id) for cell in cells})
    targets = [
        Target(cell.composition, known[name], candidates.get(str(cell.target_id), [])) for name, cell in asked
    ]
    templates = read_templates(crysdb / "train.parquet")
    samples: list[Sample] = []
    for start in range(0, len(targets), TARGETS_AT_ONCE):
        piece = targets[start : start + TARGETS_AT_ONCE]
        samples += compare_methods(campaign, piece, templates, energy_model)
    methods = methods_of(samples, settings.baselines)
    ranked = "probability" in pq.read_schema(screened).names
    rank1_by = dict.fromkeys(("dao", "combined"), PROBABILITY) if ranked else {}
    if energy_model is None:
        rank1_by["random"] = AS_DRAWN
    results = target_rows(asked, known, samples, methods, rank1_by)
    most, ks = campaign.generate.samples, settings.k
    summary = summarise(results, most, settings.bootstrap, campaign.seed, ks)
    distances = by_distance(results, counts(ks, most), settings.bootstrap, campaign.seed)
    inputs = {"screened": screened, "train": crysdb / "train.parquet", "test": crysdb / "test.parquet"}
    if energy_model is not None:
        inputs["energy_model"] = energy_model
    about = provenance(
        "evaluate",
        campaign=campaign.name,
        settings=stage_settings(campaign, "evaluate"),
        inputs=inputs,
        protocol="all pairs: no filter on validity or charge neutrality",
        possible_leakage=leaks,
    )
    rows = [{**asdict(sample), "first": sample.first} for sample in samples]
    write_table(pa.Table.from_pylist(rows, schema=SAMPLES_SCHEMA), out / "samples.parquet", about)
    write_table(pa.Table.from_pylist(results, schema=TARGETS_SCHEMA), out / "targets.parquet", about)
    write_table(pa.Table.from_pylist(distances, schema=DISTANCE_SCHEMA), out / "by_distance.parquet", about)
    write_table(pa.Table.from_pylist(summary, schema=SUMMARY_SCHEMA), out / "summary.parquet", about)
    for row in summary:
        log.info("%s: %d of %d targets with k = %d", row["method"], row["matches"], row["n"], row["k"])


def _require_held_out(campaign: Campaign, screened: Path, test: Path, energy_model: Path | None) -> list[str]:
    """What speaks for the models having seen the test split; raises UserError for it unless that is allowed."""
    models = read_about(screened).get("training")
    if models is None:
        # candidates that say nothing about the models that made them: nobody knows what those have seen
        models = {"the generator": [{"stage": "generation", "campaign": str(screened), "held_out": None}]}
    if energy_model is not None:
        models = {**models, "energy_model": training_of(energy_model)}
    return require_held_out(test, models, campaign.evaluate.allow_leakage)


def _read_known(path: Path, asked: Sequence[Wanted]) -> dict[str, Crystal]:
    names = [*_STRUCTURE, *(n for n in ("spacegroup",) if n in pq.read_schema(path).names)]
    table = read_table(path, columns=names)
    ids = pa.array([target.id for target in asked], pa.string())
    return {crystal.id: crystal for crystal in from_table(table.filter(pc.is_in(table["id"], value_set=ids)))}


def _read_candidates(screened: Path, targets: set[str]) -> dict[str, list[dict[str, Any]]]:
    """Screened candidates by the crystal that their cell was asked for, as rows with a ``crystal`` (None where
    there is none)."""
    optional = _present_columns(screened, ("origin", "template_id", "template_distance", "probability"))
    table = read_table(screened, columns=[*_SCREENED, *optional])
    table = table.filter(pc.is_valid(table["target_id"]))
    crystals = {c.id: c for c in from_table(table.select(_STRUCTURE).filter(pc.is_valid(table["lattice"])))}
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table.drop_columns(["atomic_numbers", "frac_coords", "lattice"]).to_pylist():
        if row["target_id"] not in targets:
            raise UserError(
                f"{screened}: {row['id']} was made for {row['target_id']}, which is no target of the test split. "
                "Rerun plan_candidates and what follows."
            )
        found[row["target_id"]].append({**row, "crystal": crystals.get(row["id"])})
    return found


def _present_columns(path: Path, names: Sequence[str]) -> list[str]:
    present = set(pq.read_schema(table_files(path)[0]).names)
    return [name for name in names if name in present]


def read_templates(train: Path) -> TemplateIndex:
    """The relaxed training crystals as templates."""
    table = read_table(train)
    if "precursor_of" in table.column_names:
        table = table.filter(pc.is_null(table["precursor_of"]))
    return plain_index(table)


def target_rows(
    asked: Sequence[Wanted],
    known: dict[str, Crystal],
    samples: Sequence[Sample],
    methods: Sequence[str],
    rank1_by: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One row per target and method, for every target, with or without candidates.

    rank1_by: methods whose first candidate is not chosen as in ``RANK1_BY``.
    """
    own: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        own[sample.target_id, sample.method].append(sample)
    return [
        {
            "target_id": name,
            "composition": cell.composition,
            "formula": cell.formula,
            "num_atoms": cell.num_atoms,
            "spacegroup": known[name].extra.get("spacegroup"),
            **target_result(method, own[name, method], rank1_by.get(method)),
        }
        for name, cell in asked
        for method in methods
    ]
