"""Crystals from the Materials Project, with energies of one named level of theory, as a snapshot.

The summary documents carry energies of whatever level of theory the server holds to be the best; so ids and
structures come from them, energies from the thermo documents of the level that was asked for. First the ids are
listed, then their documents come in chunks, each of which is kept. All of a snapshot is of one database version.
"""

from __future__ import annotations

import hashlib
import logging
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa

from dao_pipeline.config import DataSource, MaterialsProject, Network
from dao_pipeline.errors import UserError
from dao_pipeline.progress import Reporter
from dao_pipeline.sources.imported import Source
from dao_pipeline.sources.mp_client import Client, NewVersion
from dao_pipeline.sources.mp_documents import chunk_of_crystals
from dao_pipeline.sources.parts import Parts

log = logging.getLogger(__name__)

_RESTARTS = 3
"""New database versions in the midst of one download, at most."""


def materials_project(data: DataSource, work: Path) -> Source:
    """Crystals that a source's ``materials_project`` asks for, in order of their number, from the snapshot.

    What the snapshot lacks is fetched into it; a complete one needs no network and no key. Deprecated entries are
    left out. Crystals without an energy of the thermo_type, or outside the limits above the hull, are rejected.

    Raises UserError when the key is missing or refused, the server cannot be reached or answers in an unknown
    format, or nothing matches; ContinueLater when the server asks for a long pause.
    """
    query = data.materials_project
    snapshot = _Snapshot(query, data.network, data.snapshot, data.limit, work)
    with snapshot.client:
        return snapshot.complete()


class _Snapshot:
    def __init__(
        self, query: MaterialsProject, network: Network, name: str | None, limit: int | None, work: Path
    ) -> None:
        self.query, self.limit = query, limit
        asked = query.model_dump(mode="json") | {"snapshot": name}
        self.parts = Parts(work, "materials_project", asked)
        self.client = Client(query, network)
        self.restarts: list[dict[str, str]] = []

    def complete(self) -> Source:
        """Fetch what is missing; a new database version in between means to begin again."""
        for _ in range(_RESTARTS + 1):
            try:
                return self._source(*self._fetch())
            except NewVersion as changed:
                note = self.parts.about("ids") or {}
                old, now = note.get("database_version", ""), changed.now
                self.restarts = [*note.get("restarts", []), {"from": old, "to": now, "date": _now()}]
                log.warning("Materials Project: database %s became %s; beginning again", old, now)
                self.parts.clear()
        raise UserError(
            f"Materials Project: the database changed {_RESTARTS + 1} times during one download, last to {now}; "
            "try again when it is at rest."
        )

    def _fetch(self) -> tuple[str, list[str], list[str]]:
        """Database version, all ids, and the names of the chunks that are needed and there."""
        if self.parts.about("ids") is None:
            self._list()
        note = self.parts.about("ids") or {}
        database = str(note["database_version"])
        ids: list[str] = self.parts.read_table("ids")["id"].to_pylist()
        chunks: list[str] = []
        usable = 0
        with Reporter("download from the Materials Project", len(ids)) as progress:
            for start in range(0, len(ids), self.query.chunk):
                name = f"chunk-{len(chunks):05d}"
                some = ids[start : start + self.query.chunk]
                if (self.parts.about(name) or {}).get("database_version") != database:
                    self.client.require_version(database)
                    chunk = chunk_of_crystals(some, *self.client.documents(some), self.query)
                    self.client.require_version(database)
                    self.parts.keep(name, chunk, database_version=database, date=_now())
                chunks.append(name)
                progress.advance(len(some))
                usable += self._rows(name)
                if self.limit is not None and usable >= self.limit:
                    break
        if self.query.phases and (self.parts.about("phases") or {}).get("database_version") != database:
            self.client.require_version(database)
            phases = self.client.phases()
            self.client.require_version(database)
            self.parts.keep_table("phases", phases, database_version=database, thermo_type=self.query.thermo_type)
        return database, ids, chunks

    def _rows(self, name: str) -> int:
        return int((self.parts.about(name) or {})["rows"])

    def _list(self) -> None:
        database = self.client.version()
        ids = self.client.ids()
        self.client.require_version(database)
        if not ids:
            raise UserError(f"the Materials Project has no crystal for {_words(self.query)}; widen the query.")
        log.info("Materials Project %s: %d crystals match", database, len(ids))
        note: dict[str, Any] = {"database_version": database, "date": _now(), "mp_api": version("mp-api")}
        note |= {"restarts": self.restarts}
        self.parts.keep_table("ids", pa.table({"id": pa.array(ids, pa.string())}), **note)

    def _source(self, database: str, ids: list[str], chunks: list[str]) -> Source:
        note = self.parts.about("ids") or {}
        about = self.query.model_dump(mode="json") | {
            "database_version": database,
            "date": note["date"],
            "mp_api": note["mp_api"],
            "ids": len(ids),
            "ids_hash": hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16],
            "chunks": len(chunks),
            "checksum": self.parts.seal(),
            "requests": self.client.requests,
            "restarts": note["restarts"],
        }
        tables = {"phases": self.parts.path("phases")} if self.query.phases else {}
        return Source((self.parts.read(name) for name in chunks), snapshot=about, tables=tables)


def _words(query: MaterialsProject) -> str:
    filters = {"elements", "exclude_elements", "chemical_systems", "min_sites", "max_sites", "theoretical"}
    values = query.model_dump(mode="json", exclude_none=True, include=filters)
    return ", ".join(f"{name} = {value}" for name, value in values.items()) or "an open query"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
