"""Stage download: crystals from the campaign's source as one crystal table, in bounded memory."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Campaign, expand_path, stage_settings
from dao_pipeline.crystals.schema import REJECTED_SCHEMA
from dao_pipeline.crystals.table import provenance, replacing
from dao_pipeline.errors import UserError
from dao_pipeline.sources.files import file_source
from dao_pipeline.sources.imported import RAW_SCHEMA, Source, cut, raw_columns
from dao_pipeline.sources.parts import Leaving
from dao_pipeline.sources.writer import TableWriter

log = logging.getLogger(__name__)

FURTHER_TABLES = ("phases",)
"""Tables that some sources write beside the crystals."""


def download(campaign: Campaign, out: Path, work: Path | None = None) -> None:
    """Write the source's crystals to ``out`` and the unusable ones to ``rejected.parquet`` beside it.

    The Materials Project also gives ``phases.parquet``: what lies on its convex hull. Pieces that took long to get
    are kept in ``work``, where an interrupted download continues; without one, nothing is kept.

    Raises UserError when the source cannot be read or holds no usable crystal, and ContinueLater on a signal.
    """
    with Leaving(), _work_folder(work) as folder:
        source = _open(campaign, folder)
        counts = _write(campaign, source, out)
    for name in FURTHER_TABLES:
        beside = out.with_name(f"{name}.parquet")
        if name not in source.tables:
            beside.unlink(missing_ok=True)  # of an earlier source
    log.info("%d crystals from %s, %d rejected", counts["rows"], campaign.data.source, counts["rejected"])


@contextmanager
def _work_folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="dao-download-") as folder:
        yield Path(folder)


def _open(campaign: Campaign, work: Path) -> Source:
    data, processes = campaign.data, campaign.compute.cpu.threads
    if data.source == "materials_project":
        from dao_pipeline.sources.materials_project import materials_project

        return materials_project(data, work)
    if data.source == "optimade":
        from dao_pipeline.sources.optimade import optimade

        return optimade(data, work)
    if data.source == "embedded":
        from dao_pipeline.sources.embedded import EMBEDDED_PATH

        path = EMBEDDED_PATH
    else:
        path = expand_path(data.path or "")
    return file_source(path, data, processes=processes, work=work)


def _write(campaign: Campaign, source: Source, out: Path) -> dict[str, int]:
    """Stream the source into the output files; they appear together at the end."""
    limit = campaign.data.limit
    reasons: Counter[str] = Counter()
    examined = unknown = 0
    with ExitStack() as stack:
        crystals = TableWriter(stack.enter_context(replacing(out)), RAW_SCHEMA)
        rejected = TableWriter(stack.enter_context(replacing(out.with_name("rejected.parquet"))), REJECTED_SCHEMA)
        stack.callback(rejected.abandon)
        stack.callback(crystals.abandon)
        for part in source.parts:
            if limit is not None and crystals.rows + part.table.num_rows >= limit:
                part = cut(part, limit - crystals.rows)
            crystals.write(raw_columns(part.table))
            rejected.write(pa.Table.from_pylist(part.rejected, schema=REJECTED_SCHEMA))
            reasons.update(row["reason"] for row in part.rejected)
            examined += part.examined
            unknown += _unknown_methods(part.table)
            if crystals.rows == limit:
                break
        if crystals.rows == 0:
            raise UserError(_nothing(campaign, reasons, examined))
        if unknown:
            log.warning("%d energies have no known level of theory; name it in data.energy_method", unknown)
        note = _note(campaign, source, reasons, examined)
        rejected.close(note)
        crystals.close(note)
        for name, path in source.tables.items():
            with replacing(out.with_name(f"{name}.parquet")) as copy:
                shutil.copyfile(path, copy)
    return {"rows": crystals.rows, "rejected": rejected.rows}


def _nothing(campaign: Campaign, reasons: Counter[str], examined: int) -> str:
    lost = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    return f"data.source {campaign.data.source}: none of {examined} crystals is usable ({lost}). Mend the source."


def _note(campaign: Campaign, source: Source, reasons: Counter[str], examined: int) -> dict[str, Any]:
    note = provenance(
        "download", campaign=campaign.name, settings=stage_settings(campaign, "download"), **source.about
    )
    return note | {"examined": examined, "rejected": dict(reasons.most_common())}


def _unknown_methods(table: pa.Table) -> int:
    """How many energies have no known level of theory: it is recorded as unknown, not guessed."""
    has_energy = pc.or_(pc.is_valid(table["formation_energy"]), pc.is_valid(table["e_above_hull"]))
    return pc.sum(pc.and_(has_energy, pc.is_null(table["energy_method"]))).as_py() or 0
