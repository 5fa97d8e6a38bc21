"""Stage propose_templates: known structures as candidates for what is planned."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.candidates.plan import PLAN_COLUMNS
from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crystals.flat import FlatCrystals, list_values, structure_columns
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import provenance, read_table, write_table
from dao_pipeline.templates.files import load
from dao_pipeline.templates.index import TemplateIndex
from dao_pipeline.templates.proposals import Proposals

log = logging.getLogger(__name__)

AT_ONCE = 1_000
"""Compositions whose proposals are in memory at the same time."""


def propose_templates(campaign: Campaign, plan: Path, index: Path, out: Path) -> None:
    """Write the template of each row of ``plan`` whose origin is to be one; rows without any are left out.

    The metadata say which shards and rounds the plan has (``covers``): a candidate without a row may be one of
    another shard. For targets of the test split crystals of their own composition are no templates, whatever
    ``templates.exclude`` says: that would be the answer.
    """
    rows = read_table(plan, list(PLAN_COLUMNS))
    blocks = rows.group_by(["shard", "round"]).aggregate([])
    covers = sorted(zip(*(blocks[name].to_pylist() for name in ("shard", "round")), strict=True))
    rows = rows.filter(pc.equal(rows["origin"], "template")).combine_chunks()
    templates = load(index)
    known = pc.is_valid(rows["target_id"])
    parts = [
        proposal_table(templates, rows.filter(of_targets), exclude)
        for of_targets, exclude in ((known, "composition"), (pc.invert(known), campaign.templates.exclude))
    ]
    table = pa.concat_tables(parts)
    about = provenance(
        "propose_templates",
        campaign=campaign.name,
        settings=stage_settings(campaign, "propose_templates"),
        inputs={"plan": plan, "index": index},
        covers=covers,
    )
    write_table(table, out, about)
    log.info("%d of %d candidates have a template", table.num_rows, rows.num_rows)


def proposal_table(index: TemplateIndex, rows: pa.Table, exclude: str) -> pa.Table:
    """Rows of a plan with the template of their ``template_rank``; those that find none are left out.

    Atoms are in the order of the plan. Columns: id, source, the structure, origin (``template``, or ``known`` for
    a known crystal of this composition), template_id, template_distance.
    """
    names = pc.binary_join_element_wise(rows["composition"], pc.fill_null(rows["target_id"], ""), "\n").to_pylist()
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    group = np.array([number[name] for name in names], dtype=np.int64)
    example = np.unique(group, return_index=True)[1]
    asked = flat_numbers(rows)
    ranks = pc.fill_null(rows["template_rank"], -1).to_pylist()
    place = dict(zip(zip(group.tolist(), ranks, strict=True), range(len(group)), strict=True))
    count = 1 + max([0, *ranks])
    tables = []
    for start in range(0, max(1, len(example)), AT_ONCE):  # once for an empty plan: a table with the same columns
        chosen = example[start : start + AT_ONCE]
        found = index.propose([asked[i] for i in chosen], count, exclude=exclude)
        keys = zip((found.composition + start).tolist(), found.rank.tolist(), strict=True)
        wanted = np.array([place.get(key, -1) for key in keys], dtype=np.int64)
        tables.append(_rows(rows.take(pa.array(wanted[wanted >= 0])), found.select(wanted >= 0)))
    return pa.concat_tables(tables)


def flat_numbers(rows: pa.Table) -> list[np.ndarray]:
    """Atomic numbers of each row of a plan."""
    numbers = list_values(rows["atomic_numbers"]).astype(np.int64)
    ends = np.cumsum(rows["num_atoms"].to_numpy().astype(np.int64))
    return np.split(numbers, ends[:-1]) if rows.num_rows else []


def _rows(rows: pa.Table, found: Proposals) -> pa.Table:
    """Rows of a plan with their proposals, whose atoms are put into the order of the plan."""
    crystals = found.crystals
    asked = list_values(rows["atomic_numbers"]).astype(np.int64) if rows.num_rows else crystals.numbers
    order = np.empty(len(asked), dtype=np.int64)
    owner = crystals.crystal_of_atom
    order[np.lexsort((asked, owner))] = np.lexsort((crystals.numbers, owner))
    ordered = FlatCrystals(
        numbers=crystals.numbers[order],
        frac=crystals.frac[order],
        lattice=crystals.lattice,
        counts=crystals.counts,
    )
    if not np.array_equal(ordered.numbers, asked):
        raise RuntimeError("a proposal has another composition than its row of the plan")
    return pa.table(
        {
            "id": rows["id"].combine_chunks(),
            "source": pa.array(["template"] * rows.num_rows, pa.string()),
            **structure_columns(ordered, rows["formula"].to_pylist()),
            "origin": pa.array(np.where(found.known, "known", "template").tolist(), pa.string()),
            "template_id": pa.array(found.template_id.tolist(), pa.string()),
            "template_distance": pa.array(found.distance, COLUMNS["template_distance"].type),
        }
    )
