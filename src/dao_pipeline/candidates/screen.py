"""Stage screen_candidates: check, group, compare with known crystals, rank, export the best.

What is done to the candidates is in ``dao_pipeline.screening``.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.compute as pc

from dao_pipeline.candidates.export import write_top
from dao_pipeline.candidates.gather import gather_shards
from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crystals.held_out import training_of
from dao_pipeline.crystals.table import provenance, read_about, read_table, write_table
from dao_pipeline.screening.hull import passport_of
from dao_pipeline.screening.novelty import read_references
from dao_pipeline.screening.table import screen_table

log = logging.getLogger(__name__)


def screen_candidates(
    campaign: Campaign,
    plan: Path,
    generated: Path,
    crysdb: Path,
    energy_model: Path,
    out: Path,
    ranker: Path | None = None,
    work: Path | None = None,
) -> None:
    """Write the screened table, and ``top.zip`` with CIF files beside it.

    ranker: what ``train_ranker`` wrote; None: candidates are ranked by predicted energy. work: folder for finished
    pieces.

    Raises UserError where the shards in ``generated`` are not exactly the plan.
    """
    table = gather_shards(read_table(plan), generated)
    references = read_references(crysdb, set(table["formula"].to_pylist()))
    inputs = {"plan": plan, "generated": generated, "crysdb": crysdb, "energy_model": energy_model}
    training = read_about(generated).get("training")
    if ranker is not None:
        inputs["ranker"] = ranker
        training = None if training is None else {**training, "ranker": training_of(ranker)}
    table = screen_table(table, references, campaign, energy_model, ranker, crysdb, work)
    about = provenance(
        "screen_candidates",
        campaign=campaign.name,
        settings=stage_settings(campaign, "screen_candidates"),
        inputs=inputs,
        symprec=campaign.screen.symprec,
        training=training,
        hull=passport_of(table),
    )
    write_top(table, campaign.screen.top_k, out.parent / "top.zip")
    write_table(table, out, about)
    counts = {name: int(pc.sum(table[name]).as_py() or 0) for name in ("valid", "unique", "novel")}
    log.info("%d candidates: %s", table.num_rows, ", ".join(f"{n} {name}" for name, n in counts.items()))
