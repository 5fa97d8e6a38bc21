"""Stage index_templates: the training crystals as templates."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.compute as pc

from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crystals.table import provenance, read_table
from dao_pipeline.templates.files import save
from dao_pipeline.templates.index import TemplateIndex

log = logging.getLogger(__name__)


def index_templates(campaign: Campaign, crysdb: Path, out: Path) -> None:
    """Write the index of the relaxed training crystals into the folder ``out``."""
    source = crysdb / "train.parquet"
    table = read_table(source)
    if "precursor_of" in table.column_names:
        table = table.filter(pc.is_null(table["precursor_of"]))
    index = TemplateIndex.build(table, campaign.templates)
    about = provenance(
        "index_templates",
        campaign=campaign.name,
        settings=stage_settings(campaign, "index_templates"),
        inputs={"train": source},
    )
    save(index, out, about)
    log.info("%d templates", table.num_rows)
