"""Crystals from the Materials Project, with energies of one named level of theory, as a snapshot.

The summary documents carry energies of whatever level of theory the server holds to be the best; so ids and
structures come from them, energies from the thermo documents of the level that was asked for. First the ids are
listed, then their documents come in chunks, each of which is kept. All of a snapshot is of one database version.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from dao_pipeline.config import Data, MaterialsProject, Network
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.progress import Reporter
from dao_pipeline.sources.http import PatientAdapter, Refused, Unreachable, open_session
from dao_pipeline.sources.imported import Source
from dao_pipeline.sources.keys import HOW_TO, materials_project_key
from dao_pipeline.sources.mp_documents import (
    ON_HULL,
    PHASE_FIELDS,
    PROVENANCE_FIELDS,
    SUMMARY_FIELDS,
    THERMO_FIELDS,
    by_id,
    check_thermo_type,
    chunk_of_crystals,
    format_changed,
    in_range,
    phase_rows,
)
from dao_pipeline.sources.parts import Parts

log = logging.getLogger(__name__)

SERVER = "https://api.materialsproject.org/"

_PAGE = 1000
"""Documents per page of a list: what the server allows."""

_SYSTEMS_AT_ONCE = 100
"""Chemical systems per query, for the length of the address."""

_LISTINGS = 6
"""A list is read until two readings in a row agree, this often at most."""

_RESTARTS = 3
"""New database versions in the midst of one download, at most."""

_MANY_ATOMS = 100_000
"""Larger than any cell: the API wants both ends of a range."""

_CONNECT = 60.0
"""Seconds that the client may take to load and to connect, at least."""

_LOWEST = -10.0
"""eV/atom: lower than any hull distance, for the same reason."""

Result = TypeVar("Result")


class _NewVersion(Exception):  # noqa: N818 - it says what the server has
    def __init__(self, now: str) -> None:
        super().__init__(now)
        self.now = now


def materials_project(data: Data, work: Path) -> Source:
    """Crystals that ``data.materials_project`` asks for, in order of their number, from the snapshot in ``work``.

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
        self.client = _Client(query, network)
        self.restarts: list[dict[str, str]] = []

    def complete(self) -> Source:
        """Fetch what is missing; a new database version in between means to begin again."""
        for _ in range(_RESTARTS + 1):
            try:
                return self._source(*self._fetch())
            except _NewVersion as changed:
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
        return Source((self.parts.read(name) for name in chunks), {"materials_project": about}, tables)


class _Client:
    """mp-api's MPRester over a patient session, opened at the first request."""

    def __init__(self, query: MaterialsProject, network: Network) -> None:
        self.query, self.network = query, network
        self.server = query.endpoint or SERVER
        self.requests = 0
        self._rester: Any = None
        self._adapter: PatientAdapter | None = None
        self._session: Any = None
        self._key = ""

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        if self._session is not None:
            self._session.close()

    def version(self) -> str:
        """The server's database version now."""
        self._open_session()
        address = f"{self.server.rstrip('/')}/heartbeat"
        heartbeat = self._ask(lambda: self._session.get(address).json())
        found = heartbeat.get("db_version") if isinstance(heartbeat, dict) else None
        if not isinstance(found, str) or not found:
            raise UserError(format_changed("/heartbeat names no db_version"))
        return found

    def require_version(self, database: str) -> None:
        """Raise _NewVersion unless the server still has this database version."""
        if (now := self.version()) != database:
            raise _NewVersion(now)

    def ids(self) -> list[str]:
        """Ids of the crystals that match, in order of their number."""
        query = self.query
        limits: dict[str, Any] = {"elements": query.elements, "exclude_elements": query.exclude_elements}
        limits["theoretical"] = query.theoretical
        if query.min_sites is not None or query.max_sites is not None:
            limits["num_sites"] = (query.min_sites or 1, query.max_sites or _MANY_ATOMS)

        def read() -> list[str]:
            # deprecated=False is a filter as well: without any, the client would read a public object store
            found: list[str] = []
            for systems in _groups(query.chemical_systems):
                documents = self._search(
                    "summary",
                    chemsys=systems,
                    deprecated=False,
                    fields=["material_id"],
                    chunk_size=_PAGE,
                    _sort_fields="material_id",
                    **limits,
                )
                found += by_id(documents, "summary", ())
            return sorted(set(found), key=_natural)

        return _agreed(read, "ids")

    def documents(
        self, ids: list[str]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Thermo, summary and provenance documents of ``ids``; the last two within the energy limits only."""
        found = self._search(
            "thermo",
            material_ids=ids,
            thermo_types=[self.query.thermo_type],
            fields=THERMO_FIELDS,
            chunk_size=_PAGE,
        )
        thermo = by_id(found, "thermo", ("energy_above_hull", "formation_energy_per_atom"))
        check_thermo_type(thermo, self.query)
        wanted = [name for name in ids if in_range(thermo.get(name), self.query)]
        if not wanted:
            return thermo, {}, {}
        found = self._search(
            "summary", material_ids=wanted, deprecated=False, fields=SUMMARY_FIELDS, chunk_size=_PAGE
        )
        summary = by_id(found, "summary", ("structure", "symmetry"))
        if not self.query.published:
            return thermo, summary, {}
        found = self._search(
            "provenance", material_ids=wanted, deprecated=False, fields=PROVENANCE_FIELDS, chunk_size=_PAGE
        )
        return thermo, summary, by_id(found, "provenance", ("references",))

    def phases(self) -> pa.Table:
        """Phases on the hull: of the chemical systems asked for and their parts, or of all."""
        named = self.query.chemical_systems
        systems = subsystems(named) if named and not any("*" in name for name in named) else None

        def read() -> dict[str, dict[str, Any]]:
            found: dict[str, dict[str, Any]] = {}
            for group in _groups(systems):
                documents = self._search(
                    "thermo",
                    chemsys=group,
                    thermo_types=[self.query.thermo_type],
                    energy_above_hull=(_LOWEST, ON_HULL),
                    fields=PHASE_FIELDS,
                    chunk_size=_PAGE,
                )
                found |= by_id(documents, "thermo", ("composition", "energy_per_atom"))
            return dict(sorted(found.items()))

        documents = _agreed(read, "phases")
        check_thermo_type(documents, self.query)
        return phase_rows(documents, self.query)

    def _search(self, route: str, **query: Any) -> list[Any]:
        self._open()
        return self._ask(lambda: getattr(self._rester.materials, route).search(**query))

    def _open_session(self) -> None:
        if self._session is not None:
            return
        self._key = materials_project_key()
        if not self._key:
            raise UserError(f"data.source materials_project: there is no key; {HOW_TO}.")
        self._session, self._adapter = open_session(self.network, self._key)
        self._session.headers["user-agent"] += f" mp-api/{version('mp-api')}"

    def _open(self) -> None:
        if self._rester is not None:
            return
        self._open_session()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mp_api.client import MPRester

        def connect() -> Any:
            return MPRester(
                api_key=self._key,
                endpoint=self.server,
                session=self._session,
                use_document_model=False,
                mute_progress_bars=True,
            )

        # the client asks for a heartbeat of its own, outside the session and without a time limit
        limit = max(_CONNECT, 2 * self.network.timeout)
        self._rester = self._ask(lambda: _within(limit, connect))

    def _ask(self, request: Callable[[], Result]) -> Result:
        self.requests += 1
        with _clear_errors(self.server, self._key), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the client warns about pandas, progress bars and its own defaults
            return request()


def subsystems(systems: Sequence[str]) -> list[str]:
    """Every chemical system that is part of one of ``systems``: what their hulls are made of."""
    found: set[str] = set()
    for system in systems:
        symbols = sorted(set(system.split("-")))
        for size in range(1, len(symbols) + 1):
            found.update("-".join(some) for some in itertools.combinations(symbols, size))
    return sorted(found)


def _groups(systems: Sequence[str] | None) -> Iterator[list[str] | None]:
    if systems is None:
        yield None
        return
    # a system is written in alphabetical order there
    ordered = [name if "*" in name else "-".join(sorted(name.split("-"))) for name in systems]
    for start in range(0, len(ordered), _SYSTEMS_AT_ONCE):
        yield ordered[start : start + _SYSTEMS_AT_ONCE]


def _agreed(read: Callable[[], Result], what: str) -> Result:
    """What two readings in a row agree on: an entry that goes while pages are read shifts the pages after it."""
    last = read()
    for _ in range(_LISTINGS - 1):
        now = read()
        if now == last:
            return now
        log.warning("Materials Project: the list of %s changed while it was read; reading it again", what)
        last = now
    raise UserError(
        f"Materials Project: the list of {what} differed in {_LISTINGS} readings; the database is being changed, "
        "try again later."
    )


def _within(seconds: float, function: Callable[[], Result]) -> Result:
    """``function()``, given up after ``seconds``. Raises Unreachable then."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not outcome:
        raise Unreachable(f"no answer within {seconds:g} s")
    return outcome[0]


def _natural(material_id: str) -> tuple[str, int, str]:
    prefix, _, number = material_id.partition("-")
    return (prefix, int(number), "") if number.isdigit() else (prefix, -1, number)


def _words(query: MaterialsProject) -> str:
    filters = {"elements", "exclude_elements", "chemical_systems", "min_sites", "max_sites", "theoretical"}
    values = query.model_dump(mode="json", exclude_none=True, include=filters)
    return ", ".join(f"{name} = {value}" for name, value in values.items()) or "an open query"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def _clear_errors(server: str, key: str) -> Iterator[None]:
    """Turn errors of client and session into one that says what to do; the key never appears in it."""
    from mp_api.client.core.exceptions import MPRestError
    from requests.exceptions import RequestException

    name = urlsplit(server).netloc
    try:
        yield
    except (UserError, ContinueLater):
        raise
    except Unreachable as error:
        problem = (
            f"cannot be reached: {error}. Check the network (compute nodes often have none: run the download "
            "where there is one) or data.materials_project.endpoint. What has arrived is kept; the same command "
            "continues"
        )
    except Refused as error:
        if error.status in (401, 403):
            problem = "the key was refused; copy it anew from your Materials Project dashboard"
        else:
            problem = f"refused the request: {error}. Correct the query, or data.materials_project.endpoint"
    except RequestException as error:
        problem = f"cannot be reached: {_clean(error, key)}. Check the network or data.materials_project.endpoint"
    except MPRestError as error:
        problem = f"answered with an error: {_clean(error, key)}. Correct the query, or try again later"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(format_changed(f"{type(error).__name__}: {_clean(error, key)}")) from None
    else:
        return
    # the client's own error is left out on purpose: its frames hold the key
    raise UserError(f"Materials Project ({name}): {problem}.") from None


def _clean(error: Exception, key: str) -> str:
    text = re.sub(r"\s+", " ", str(error))
    return (text.replace(key, "(key)") if key else text)[:300]
