"""The Materials Project through mp-api's MPRester over a patient session: versions, ids, documents, phases.

Errors say what to do, and the key appears in none of them.
"""

from __future__ import annotations

import itertools
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pyarrow as pa

from dao_pipeline.config import MaterialsProject, Network
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.sources.http import Refused, Unreachable, open_session
from dao_pipeline.sources.keys import HOW_TO, materials_project_key
from dao_pipeline.sources.mp_documents import (
    ON_HULL,
    PHASE_FIELDS,
    PROVENANCE_FIELDS,
    SUMMARY_FIELDS,
    THERMO_FIELDS,
    by_id,
    check_thermo_type,
    format_changed,
    in_range,
    phase_rows,
)

log = logging.getLogger(__name__)

SERVER = "https://api.materialsproject.org/"

_PAGE = 1000
"""Documents per page of a list: what the server allows."""

_SYSTEMS_AT_ONCE = 100
"""Chemical systems per query, for the length of the address."""

_LISTINGS = 6
"""A list is read until two readings in a row agree, this often at most."""

_MANY_ATOMS = 100_000
"""Larger than any cell: the API wants both ends of a range."""

_CONNECT = 60.0
"""Seconds that the client may take to load and to connect, at least."""

_LOWEST = -10.0
"""eV/atom: lower than any hull distance, for the same reason."""

Result = TypeVar("Result")


class NewVersion(Exception):  # noqa: N818 - it says what the server has
    """The server has another database version than the snapshot: ``now``."""

    def __init__(self, now: str) -> None:
        super().__init__(now)
        self.now = now


class Client:
    """mp-api's MPRester over a patient session, opened at the first request."""

    def __init__(self, query: MaterialsProject, network: Network) -> None:
        self.query, self.network = query, network
        self.server = query.endpoint or SERVER
        self.requests = 0
        self._rester: Any = None
        self._session: Any = None
        self._key = ""

    def __enter__(self) -> Client:
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
        """Raise NewVersion unless the server still has this database version."""
        if (now := self.version()) != database:
            raise NewVersion(now)

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
        self._session = open_session(self.network, self._key)
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
