"""Stage download: crystals from the campaign's sources as one crystal table, in bounded memory."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Campaign, DataSource, expand_path, stage_settings
from dao_pipeline.crystals.schema import REJECTED_SCHEMA
from dao_pipeline.crystals.table import TableWriter, provenance, read_table, write_table, writing
from dao_pipeline.errors import UserError
from dao_pipeline.sources.clashes import Ids
from dao_pipeline.sources.files import file_source
from dao_pipeline.sources.imported import RAW_SCHEMA, Imported, Source, cut, raw_columns
from dao_pipeline.sources.parts import Leaving

log = logging.getLogger(__name__)

FURTHER_TABLES = ("phases",)
"""Tables that some sources write beside the crystals."""


def download(campaign: Campaign, out: Path, work: Path | None = None) -> None:
    """Write all sources' crystals to ``out``, in order, and the unusable ones to ``rejected.parquet`` beside it.

    The Materials Project also gives ``phases.parquet``: what lies on its convex hull. Pieces that took long to get
    are kept in ``work``, in a folder for each source that is named after what was asked of it; an interrupted
    download continues there. Without ``work``, nothing is kept.

    Raises UserError when a source cannot be read or holds no usable crystal, and when two sources give one id to
    different crystals; ContinueLater on a signal.
    """
    with Leaving(), _work_folder(work) as folder:
        taken = _write(campaign, out, folder)
        _write_further(campaign, taken, out)
        for one in taken:
            one.opened.done()
    for one in taken:
        where = f" ({one.opened.file.name})" if one.opened.file else ""
        log.info("%d crystals from %s%s, %d rejected", one.crystals, one.name, where, one.rejected.total())


@contextmanager
def _work_folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="dao-download-") as folder:
        yield Path(folder)


@dataclass
class _Taken:
    """What was taken from one source. key: where the campaign names it."""

    key: str
    source: DataSource
    opened: Source
    crystals: int = 0
    examined: int = 0
    unknown_methods: int = 0
    rejected: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The source's name; without one, its place among several, or its kind."""
        return self.source.name or (self.source.source if self.key == "data" else self.key.removeprefix("data."))

    def parts(self) -> Iterator[Imported]:
        """Its pieces, up to the limit, with its name; counts them."""
        limit = self.source.limit
        for part in self.opened.parts:
            if limit is not None and self.crystals + part.table.num_rows >= limit:
                part = cut(part, limit - self.crystals)
            part.table = raw_columns(part.table)
            self.crystals += part.table.num_rows
            self.examined += part.examined
            self.unknown_methods += _unknown_methods(part.table)
            self.rejected.update(row["reason"] for row in part.rejected)
            yield _named(part, self.source) if self.source.name else part
            if self.crystals == limit:
                break
        if self.crystals == 0:
            lost = ", ".join(f"{n} {reason}" for reason, n in self.rejected.most_common())
            raise UserError(
                f"{self.key}.source {self.source.source}: none of {self.examined} crystals is usable ({lost}). "
                "Mend the source."
            )
        if self.unknown_methods:
            log.warning(
                "%d energies have no known level of theory; name it in %s.energy_method",
                self.unknown_methods,
                self.key,
            )

    def about(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Name, kind, hash of the file or the snapshot, and counts."""
        snapshot = self.opened.snapshot
        return {
            "name": self.name,
            "source": self.source.source,
            "hash": inputs[self.name]["hash"] if self.name in inputs else snapshot["checksum"],
            "examined": self.examined,
            "crystals": self.crystals,
            "rejected": dict(self.rejected.most_common()),
        } | ({self.source.source: snapshot} if snapshot else {})


def _write(campaign: Campaign, out: Path, work: Path) -> list[_Taken]:
    """Stream the sources into the output files; they appear together at the end."""
    taken: list[_Taken] = []
    ids = Ids()
    with (
        writing(out, RAW_SCHEMA) as crystals,
        writing(out.with_name("rejected.parquet"), REJECTED_SCHEMA) as rejected,
    ):
        for key, source in campaign.data.each():
            with _naming(key):
                one = _Taken(key, source, _open(source, work, campaign.compute.cpu.threads))
                for part in one.parts():
                    crystals.write(part.table)
                    rejected.write(pa.Table.from_pylist(part.rejected, schema=REJECTED_SCHEMA))
                    if campaign.data.sources:
                        ids.add(part.table)
                if campaign.data.sources:
                    ids.close(one.name, key)
                taken.append(one)
        for written in (crystals, rejected):
            _describe(written, campaign, taken)
    return taken


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Of several sources, name the one that an error is about."""
    try:
        yield
    except UserError as error:
        if key == "data" or str(error).startswith(key):
            raise
        raise UserError(f"{key}: {error}") from error


def _open(source: DataSource, work: Path, processes: int) -> Source:
    if source.source == "materials_project":
        from dao_pipeline.sources.materials_project import materials_project

        return materials_project(source, work)
    if source.source == "optimade":
        from dao_pipeline.sources.optimade import optimade

        return optimade(source, work)
    if source.source == "embedded":
        from dao_pipeline.sources.embedded import EMBEDDED_PATH

        path = EMBEDDED_PATH
    else:
        path = expand_path(source.path or "")
    return file_source(path, source, processes=processes, work=work)


def _named(part: Imported, source: DataSource) -> Imported:
    """A piece with the source's name before its ids, and as the source of what comes from a server."""
    prefix, table = f"{source.name}:", part.table
    new = {name: pc.binary_join_element_wise(prefix, table[name], "") for name in ("id", "precursor_of")}
    if source.source in ("materials_project", "optimade"):
        new["source"] = pa.array([source.name] * table.num_rows, pa.string())
    columns = [new.get(name, table[name]) for name in table.column_names]
    rejected = [row | {"id": prefix + row["id"]} for row in part.rejected]
    return Imported(pa.table(columns, schema=table.schema), rejected, part.examined)


def _describe(written: TableWriter, campaign: Campaign, taken: list[_Taken]) -> None:
    """What both tables say about themselves."""
    files = {one.name: one.opened.file for one in taken if one.opened.file is not None}
    settings = stage_settings(campaign, "download")
    note = provenance("download", campaign=campaign.name, settings=settings, inputs=files)
    reasons = sum((one.rejected for one in taken), Counter[str]())
    written.about |= note | {
        "sources": [one.about(note["inputs"]) for one in taken],
        "examined": sum(one.examined for one in taken),
        "rejected": dict(reasons.most_common()),
    }


def _write_further(campaign: Campaign, taken: list[_Taken], out: Path) -> None:
    """The further tables of all sources, each as one; those of an earlier download go."""
    for name in FURTHER_TABLES:
        path = out.with_name(f"{name}.parquet")
        tables = [read_table(one.opened.tables[name]) for one in taken if name in one.opened.tables]
        if not tables:
            path.unlink(missing_ok=True)
            continue
        settings = stage_settings(campaign, "download")
        about = provenance("download", campaign=campaign.name, settings=settings)
        write_table(pa.concat_tables(tables), path, about)


def _unknown_methods(table: pa.Table) -> int:
    """How many energies have no known level of theory: it is recorded as unknown, not guessed."""
    has_energy = pc.or_(pc.is_valid(table["formation_energy"]), pc.is_valid(table["e_above_hull"]))
    return pc.sum(pc.and_(has_energy, pc.is_null(table["energy_method"]))).as_py() or 0
