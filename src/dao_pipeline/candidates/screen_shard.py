"""Stage screen_shard: all candidates of one shard, checked, compared and ranked."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.compute as pc

from dao_pipeline.candidates.gather import gather_shard, read_plan
from dao_pipeline.candidates.plan import shard_files
from dao_pipeline.candidates.references import read_references
from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crystals.held_out import training_of
from dao_pipeline.crystals.table import provenance, read_about, write_table
from dao_pipeline.screening.hull import passport_of
from dao_pipeline.screening.table import screen_table

log = logging.getLogger(__name__)


def screen_shard(
    campaign: Campaign,
    planned: Path,
    generated: Path,
    shard: int,
    references: Path,
    energy_model: Path | None,
    out: Path,
    ranker: Path | None = None,
    work: Path | None = None,
) -> None:
    """Write the screened table of a shard: all rounds together, as every composition is whole in it.

    planned, generated: folders of the rounds' files. references: by ``sort_references``. energy_model: DAO-P;
    None: there are no energies. ranker: what ``train_ranker`` wrote; None: candidates are ranked by predicted
    energy. work: folder for finished pieces of what takes long. A shard without candidates has an empty table,
    without the columns of screening.

    Raises UserError where the generated candidates are not exactly the planned ones.
    """
    made = shard_files(generated, shard)
    table = gather_shard(read_plan(shard_files(planned, shard)), made)
    if table.num_rows:
        known = read_references(references, set(table["formula"].to_pylist()))
        table = screen_table(table, known, campaign, energy_model, ranker, references, work)
    training = read_about(made[0]).get("training")
    inputs = {f"generated_{number}": file for number, file in enumerate(made)}
    if energy_model is not None:
        inputs["energy_model"] = energy_model
    if ranker is not None:
        inputs["ranker"] = ranker
        training = None if training is None else {**training, "ranker": training_of(ranker)}
    about = provenance(
        "screen_shard",
        campaign=campaign.name,
        settings=stage_settings(campaign, "screen_shard"),
        inputs=inputs,
        references=read_about(references).get("inputs"),
        symprec=campaign.screen.symprec,
        training=training,
        hull=passport_of(table),
    )
    write_table(table, out, about)
    if table.num_rows:
        counts = {name: int(pc.sum(table[name]).as_py() or 0) for name in ("valid", "unique", "novel")}
        log.info("%d candidates: %s", table.num_rows, ", ".join(f"{n} {name}" for name, n in counts.items()))
