"""Stage plan_candidates: one row per candidate to generate, and the shard that generates it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.candidates.asked import EXPLICIT
from dao_pipeline.candidates.compositions import (
    Requested,
    campaign_compositions,
    count_compositions,
    infeasible,
    known_elements,
)
from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import provenance, write_table
from dao_pipeline.errors import UserError

log = logging.getLogger(__name__)

PLAN_COLUMNS = (
    "id",
    "composition",
    "formula",
    "num_atoms",
    "atomic_numbers",
    "target_id",
    "sample",
    "shard",
    "origin",
)
"""Columns of the plan; generated shards carry them on, ``origin`` as it came out."""

_NAMED = 20
"""Compositions that the log names where many cannot be planned."""

PLAN_SCHEMA = pa.schema([(name, COLUMNS[name].type) for name in PLAN_COLUMNS])


def planned_shards(campaign: Campaign) -> int:
    """Number of shards, before there is any crystal (Snakemake needs it before the test split exists).

    The plan may need fewer, when the test split is small or compositions are infeasible: the last shards are then
    empty.
    """
    generate = campaign.generate
    return max(1, ceil(count_compositions(campaign) * generate.samples / generate.shard_size))


def plan_table(compositions: Sequence[Requested], samples: int, shard_size: int, templates: int = 0) -> pa.Table:
    """Candidates to generate: ``samples`` rows per composition, cut into shards of ``shard_size`` rows.

    The first ``templates`` of each composition have the origin ``template``: sample s is to be made from the
    template of rank s, if there is one.

    Row ``c * samples + s`` is ``cand:<c>:<s>``; so compositions that are appended append rows, and leave all
    others (but for a last shard that was not full) in their shards.
    """
    which = np.repeat(np.arange(len(compositions)), samples)
    sample = np.tile(np.arange(samples), len(compositions))
    of_composition = {
        "composition": [c.composition for c in compositions],
        "formula": [c.formula for c in compositions],
        "num_atoms": [c.num_atoms for c in compositions],
        "atomic_numbers": [c.atomic_numbers for c in compositions],
        "target_id": [c.target_id for c in compositions],
    }
    columns = {
        name: pa.array(values, COLUMNS[name].type).take(pa.array(which)) for name, values in of_composition.items()
    }
    columns["id"] = pa.array([f"cand:{c}:{s}" for c, s in zip(which, sample, strict=True)], pa.string())
    columns["sample"] = pa.array(sample, COLUMNS["sample"].type)
    columns["origin"] = pa.array(np.where(sample < templates, "template", "generated").tolist(), pa.string())
    columns["shard"] = pa.array(np.arange(len(which)) // shard_size, COLUMNS["shard"].type)
    return pa.table({name: columns[name] for name in PLAN_COLUMNS}, schema=PLAN_SCHEMA)


def plan_candidates(campaign: Campaign, crysdb: Path, out: Path, *, shard: int | None = None) -> None:
    """Write one row per candidate to generate; with ``shard``, the rows of that shard only.

    Compositions that cannot be generated are left out, named in the log and in the file's metadata; the evaluation
    counts those of the test split as misses. Raises UserError for compositions that stand in the campaign itself
    and cannot be generated, naming all of them, and where nothing is left.
    """
    train = crysdb / "train.parquet"
    compositions = campaign_compositions(campaign, crysdb)
    known = known_elements(train)
    reasons = {c: infeasible(c, known, campaign.generate.max_atoms) for c in compositions}
    refused = {c: reason for c, reason in reasons.items() if reason}
    explicit = [c for c in refused if (c.asked_by or "").startswith(EXPLICIT)]
    if explicit:
        lines = [f"{c.asked_by}: {c.composition}: {refused[c]}." for c in explicit]
        raise UserError(
            "\n".join(lines) + f"\nRemove these compositions, or add crystals with the elements to {train.name} "
            "(section data)."
        )
    for composition, reason in islice(refused.items(), _NAMED):
        log.warning("%s not planned: %s", _label(composition), reason)
    if len(refused) > _NAMED:
        log.warning("%d compositions in all not planned; the plan's metadata names them", len(refused))
    feasible = [c for c in compositions if c not in refused]
    if not feasible:
        raise UserError(
            f"no composition that campaign {campaign.name} asks for can be generated, e.g. "
            f"{_label(compositions[0])}: {reasons[compositions[0]]}. Ask for others in section generate."
        )
    generate = campaign.generate
    table = plan_table(feasible, generate.samples, generate.shard_size, generate.templates)
    if shard is not None:
        table = table.filter(pc.equal(table["shard"], shard))
    inputs = ("train", "test") if generate.known else ("train",)
    about = provenance(
        "plan_candidates",
        campaign=campaign.name,
        settings=stage_settings(campaign, "plan_candidates"),
        inputs={name: crysdb / f"{name}.parquet" for name in inputs},
        not_planned={c.target_id or c.composition: reason for c, reason in refused.items()},
    )
    write_table(table, out, about)
    log.info("%d candidates of %d compositions planned", table.num_rows, len(feasible))


def _label(asked: Requested) -> str:
    return f"test crystal {asked.target_id} ({asked.composition})" if asked.target_id else asked.composition
