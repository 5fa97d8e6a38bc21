"""Crystals from any OPTIMADE server, page by page, as a snapshot.

Each page is kept with the address of the next one, so an interrupted download continues behind the last page.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pyarrow as pa
import requests

from dao_pipeline.config import DataSource, Network
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.sources.http import PatientAdapter, Refused, Unreachable
from dao_pipeline.sources.imported import Imported, Source
from dao_pipeline.sources.optimade_structures import STRUCTURE_FIELDS, database_of, page_of_crystals
from dao_pipeline.sources.parts import Parts

log = logging.getLogger(__name__)

_READINGS = 3
"""Readings from the first page on, when the number of structures changes while they are read, at most."""

_NO_LIMIT = 1_000_000_000
"""The client compares with it, and fails on None."""


def optimade(data: DataSource, work: Path) -> Source:
    """Crystals that a source's ``optimade`` asks for, in the server's order, from the snapshot in ``work``.

    What the snapshot lacks is fetched into it. Disordered structures, and those that are not periodic in three
    directions, are rejected with the reason. An entry that is sent twice counts once.

    Raises UserError when the filter is wrong, the server cannot be reached or answers in an unknown format;
    ContinueLater on a signal, or when the server asks for a long pause.
    """
    return _Download(data, work).source()


class _Download:
    def __init__(self, data: DataSource, work: Path) -> None:
        self.data, self.query = data, data.optimade
        self.database = database_of(self.query.url or "")
        named = {str(name): path for name, path in data.columns.items()}
        self.fields = dict(self.database.fields) | named
        given = data.energy_method if isinstance(data.energy_method, str) else None
        self.method = given or self.database.energy_method
        known = self.query.url if "://" not in (self.query.url or "") else urlsplit(self.database.url).netloc
        self.name = str(known)
        asked = self.query.model_dump(mode="json") | {
            "url": self.database.url,
            "snapshot": data.snapshot,
            "fields": self.fields,
            "energy_method": self.method,
        }
        self.parts = Parts(work, "optimade", asked)
        self.server = _Server(self.database.url, data.network)

    def source(self) -> Source:
        """All pages, read again from the first when the database changed meanwhile: pages shift then."""
        for reading in range(1, _READINGS + 1):
            pages = self._fetch()
            notes = [self.parts.about(name) or {} for name in pages]
            received = len(self._ids(pages))
            announced = sorted({note["announced"] for note in notes} - {None})
            whole = notes[-1]["next"] is None
            steady = len(announced) <= 1 and not (whole and announced and received < announced[0])
            if steady:
                break
            log.warning("%s announced %s structures and sent %d: it changes", self.name, announced, received)
            if reading < _READINGS:
                log.warning("reading all pages again")
                self.parts.clear()
        if received == 0:
            raise UserError(f"{self.name} has no structure for the filter {self.query.filter!r}; widen it.")
        if not self.fields.keys() & {"formation_energy", "e_above_hull"}:
            log.warning("%s: no energies are known of; if it has any, name them in data.columns", self.name)
        about = self._about(notes, received) | {"announced": announced, "steady": steady, "whole": whole}
        return Source(self._pieces(pages), snapshot=about)

    def _fetch(self) -> list[str]:
        """Names of the pages that are needed; those that are missing are fetched."""
        pages: list[str] = []
        following: str | None = None
        usable = 0
        seen: set[str] = set()
        while True:
            name = f"page-{len(pages):06d}"
            note = self.parts.about(name)
            if note is None:
                note = self._fetch_page(name, following)
            pages.append(name)
            usable += int(note["rows"])
            following = note["next"]
            if following is None or (self.data.limit is not None and usable >= self.data.limit):
                return pages
            if following in seen:
                raise UserError(f"{self.name}: the server's pages go in a circle; ask its maintainers.")
            seen.add(following)
            if len(pages) % 100 == 0:
                log.info("%s: %d pages, %d crystals of %s", self.name, len(pages), usable, note["announced"])

    def _fetch_page(self, name: str, following: str | None) -> dict[str, Any]:
        fields = sorted({path.split(".")[0] for path in self.fields.values()})
        answer = self.server.page(self.query.filter, [*STRUCTURE_FIELDS, *fields], self.query, following)
        page = page_of_crystals(answer["data"], self.name, self.fields, self.method, self.database.hull_below_zero)
        meta, links = answer["meta"], answer["links"]
        target = links.get("next")
        note = {
            "next": target.get("href") if isinstance(target, dict) else target or None,
            "announced": meta.get("data_returned"),
            "server": (meta.get("implementation") or {}).get("version"),
            "api_version": meta.get("api_version"),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.parts.keep(name, page, **note)
        return note | {"rows": page.table.num_rows}

    def _ids(self, pages: list[str]) -> set[str]:
        return {one for name in pages for one in self.parts.ids(name)}

    def _pieces(self, pages: list[str]) -> Iterator[Imported]:
        """The pages, with each entry once."""
        seen: set[str] = set()
        for name in pages:
            page = self.parts.read(name)
            ids = page.table["id"].to_pylist()
            fresh = [i for one, i in {one: i for i, one in reversed([*enumerate(ids)])}.items() if one not in seen]
            fresh.sort()
            seen.update(ids)
            rejected = [row for row in page.rejected if row["id"] not in seen]
            seen.update(row["id"] for row in rejected)
            table = page.table if len(fresh) == len(ids) else page.table.take(pa.array(fresh, pa.int64()))
            yield Imported(table, rejected, len(fresh) + len(rejected))

    def _about(self, notes: list[dict[str, Any]], received: int) -> dict[str, Any]:
        return self.query.model_dump(mode="json") | {
            "url": self.database.url,
            "database": self.name,
            "server_version": notes[0].get("server"),
            "api_version": notes[0].get("api_version"),
            "date": notes[0].get("date"),
            "fields": self.fields,
            "energy_method": self.method,
            "pages": len(notes),
            "ids": received,
            "checksum": self.parts.seal(),
            "optimade": _client_version(),
        }


class _Server:
    """One OPTIMADE server through the optimade package's client."""

    def __init__(self, url: str, network: Network) -> None:
        self.url = url
        adapter = PatientAdapter(network)
        self._adapter = adapter

        class PatientSession(requests.Session):
            def __init__(self) -> None:
                super().__init__()
                self.mount("https://", adapter)
                self.mount("http://", adapter)

        self._session = PatientSession
        self._client: Any = None

    def page(self, wanted: str, fields: list[str], query: Any, following: str | None) -> dict[str, Any]:
        """One page of structures: the first, or the one at the address ``following``."""
        if self._client is None:
            self._client = _client(self.url, self._session)
            _check_filter(wanted)
        self._adapter.failure = None
        result = self._client.get_one(
            "structures",
            quote(wanted),
            self.url,
            response_fields=fields,
            sort=query.sort,
            page_limit=query.page,
            paginate=False,
            override_url=following,
        )[self.url].asdict()
        self._raise(result["errors"])
        if not isinstance(result["data"], list) or not all(_is_entry(entry) for entry in result["data"]):
            raise UserError(
                f"{self.url}: the answer has another format than OPTIMADE 1 (entries need id and attributes); "
                "correct data.optimade.url."
            )
        return dict(result)

    def _raise(self, errors: list[Any]) -> None:
        """The client reports every error as text, signals included."""
        failure = self._adapter.failure
        if isinstance(failure, ContinueLater):
            raise failure
        if isinstance(failure, Unreachable):
            raise UserError(
                f"{self.url}: cannot be reached: {failure}. Check the network (compute nodes often have none: run "
                "the download where there is one) or data.optimade.url. What has arrived is kept; the same "
                "command continues."
            )
        if isinstance(failure, Refused):
            raise UserError(f"{self.url}: refused the request: {failure}. Correct data.optimade.filter or url.")
        if errors and str(errors[0]).startswith(ContinueLater.__name__):
            raise ContinueLater(str(errors[0]).partition(": ")[2])
        if errors:
            raise UserError(f"{self.url}: answered with an error: {str(errors[0])[:300]}. Correct data.optimade.")


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and bool(entry.get("id")) and isinstance(entry.get("attributes"), dict)


def _client(url: str, session: type[requests.Session]) -> Any:
    try:
        from optimade.client import OptimadeClient
    except ImportError:
        raise UserError(
            "data.source optimade needs the optimade package: pip install 'dao-pipeline[optimade]'."
        ) from None
    return OptimadeClient(
        base_urls=url, use_async=False, http_client=session, silent=True, max_results_per_provider=_NO_LIMIT
    )


def _check_filter(text: str) -> None:
    from optimade.exceptions import BadRequest
    from optimade.filterparser import LarkParser

    try:
        if text:
            LarkParser().parse(text)
    except BadRequest as error:
        raise UserError(f"data.optimade.filter = {text!r}: {str(error)[:300]}. Correct the filter.") from None


def _client_version() -> str:
    try:
        return version("optimade")
    except PackageNotFoundError:
        return "not installed"
