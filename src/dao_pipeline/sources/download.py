"""Stage download: crystals from the campaign's source as one crystal table."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from dao_pipeline.config import Campaign, expand_path, stage_settings
from dao_pipeline.crystals.table import provenance, write_rejected, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.sources.files import Imported, read_crystals

log = logging.getLogger(__name__)


def download(campaign: Campaign, out: Path) -> None:
    """Write the source's crystals to ``out`` and the unusable ones to ``rejected.parquet`` beside it.

    Raises UserError when the source cannot be read or holds no usable crystal.
    """
    imported, about = _fetch(campaign)
    reasons = Counter(row["reason"] for row in imported.rejected)
    if imported.table.num_rows == 0:
        raise UserError(
            f"data.source {campaign.data.source}: none of {imported.examined} crystals is usable "
            f"({', '.join(f'{n} {reason}' for reason, n in reasons.most_common())}). Mend the source."
        )
    _note_unknown_methods(imported)
    settings = stage_settings(campaign, "download")
    note = provenance("download", campaign=campaign.name, settings=settings, **about)
    note |= {"examined": imported.examined, "rejected": dict(reasons)}
    write_table(imported.table, out, note)
    write_rejected(imported.rejected, out.with_name("rejected.parquet"), note)
    log.info(
        "%d crystals from %s, %d rejected", imported.table.num_rows, campaign.data.source, sum(reasons.values())
    )


def _fetch(campaign: Campaign) -> tuple[Imported, dict[str, Any]]:
    """The source's crystals, and what provenance should say about the source."""
    data, processes = campaign.data, campaign.compute.cpu.threads
    if data.source == "materials_project":
        from dao_pipeline.sources.materials_project import fetch

        return fetch(data.materials_project, limit=data.limit)
    if data.source == "embedded":
        from dao_pipeline.sources.embedded import EMBEDDED_PATH

        path = EMBEDDED_PATH
    else:
        path = expand_path(data.path or "")
    imported = read_crystals(path, energy_method=data.energy_method, limit=data.limit, processes=processes)
    return imported, {"inputs": {data.source: path}}


def _note_unknown_methods(imported: Imported) -> None:
    """Log how many energies have no known level of theory: it is recorded as unknown, not guessed."""
    table = imported.table
    has_energy = pc.or_(pc.is_valid(table["formation_energy"]), pc.is_valid(table["e_above_hull"]))
    unknown = pc.sum(pc.and_(has_energy, pc.is_null(table["energy_method"]))).as_py()
    if unknown:
        log.warning("%d energies have no known level of theory; name it in data.energy_method", unknown)
