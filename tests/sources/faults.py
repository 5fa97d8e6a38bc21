"""Faults of a server in the midst of a download, and what became of the crystals."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from unittest import mock

from dao_pipeline.config import Campaign, Data, MaterialsProject, Network
from dao_pipeline.crystals.table import read_about, read_table
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.sources.download import download
from tests.sources.mp_server import KEY, Handler, Server, many, running

COUNT = 45
"""Crystals of the server; chunks of 10, lists in pages of 20."""

_FAST = Network(timeout=1.0, attempts=4, backoff=0.01, longest_wait=5)


@dataclass
class Outcome:
    """What a download came to.

    runs: how each command ended: done, continue (exit code 75) or error, with its message.
    log: warnings of the first command.
    requests: requests for data that the server saw, by run.
    missing, twice: crystals that should be in the table and are not, and that are there more than once.
    """

    runs: list[str]
    log: list[str]
    requests: list[int]
    seconds: float
    rows: int = 0
    missing: int = 0
    twice: int = 0
    restarts: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass
class Fault:
    """One fault: how the server misbehaves, and what should come of it.

    said: pattern of a warning or message of the first command.
    at: number of the request for data from which on it does. times: how many requests it spoils.
    runs: how the commands should end, one after the other; the fault is over after the first.
    """

    name: str
    spoil: Callable[[Handler], bool]
    said: str
    at: int = 9
    times: int = 1
    runs: tuple[str, ...] = ("done",)
    gone: tuple[str, ...] = ()


def _status(code: int, **headers: str) -> Callable[[Handler], bool]:
    def spoil(handler: Handler) -> bool:
        handler.answer(code, {"detail": f"no, {handler.headers.get('x-api-key')}"}, **headers)
        return True

    return spoil


def _retry_at(handler: Handler) -> bool:
    moment = datetime.now(UTC) + timedelta(seconds=1)
    return _status(429, Retry_After=format_datetime(moment, usegmt=True))(handler)


def _hang(handler: Handler) -> bool:
    handler.hang(1.5)
    return True


def _cut(handler: Handler) -> bool:
    handler.answer(200, {"data": [{"material_id": "mp-1"}] * 50, "meta": {"total_doc": 50}}, cut=300)
    return True


def _text(text: str) -> Callable[[Handler], bool]:
    def spoil(handler: Handler) -> bool:
        handler.answer(200, text)
        return True

    return spoil


def _hang_up(handler: Handler) -> bool:
    handler.close_connection = True
    return True


def _change(change: Callable[[Server], None]) -> Callable[[Handler], bool]:
    def spoil(handler: Handler) -> bool:
        change(handler.server)
        return False  # and answer as usual

    return spoil


def _new_release(server: Server) -> None:
    server.version = "2026.05.01"
    server.materials.remove("mp-40")


def _renamed_field(server: Server) -> None:
    for document in server.materials.summary.values():
        document["crystal"] = document.pop("structure", None)


def _stop_this_process(handler: Handler) -> bool:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.3)
    return False


FAULTS = [
    Fault("none", lambda handler: False, ""),
    Fault("429 with Retry-After: 1", _status(429, Retry_After="1"), r"failed: status 429.*again in 1 s"),
    Fault("429 with Retry-After as a date", _retry_at, r"failed: status 429.*again in"),
    Fault(
        "429 with Retry-After: 3600",
        _status(429, Retry_After="3600"),
        r"asks for a pause of 3600 s",
        runs=("continue", "done"),
    ),
    Fault("500, twice", _status(500), r"try 2 failed: status 500", times=2),
    Fault("500 in a list", _status(500), r"try 1 failed: status 500", at=2),
    Fault(
        "503 for good", _status(503), r"cannot be reached: status 503.*4 tries", times=99, runs=("error", "done")
    ),
    Fault("no answer", _hang, r"no answer within 1 s"),
    Fault("connection closed without an answer", _hang_up, r"connection failed"),
    Fault("connection cut in mid-body", _cut, r"connection failed"),
    Fault("broken JSON", _text('{"data": [{"material_id": "mp-'), r"broken JSON"),
    Fault(
        "a web page instead of JSON",
        _text("<html>log in</html>"),
        r"answered with a web page",
        runs=("error", "done"),
    ),
    Fault("401: key refused", _status(401), r"the key was refused", runs=("error", "done")),
    Fault("400: bad request", _status(400), r"refused the request: status 400", runs=("error", "done")),
    Fault("answer without data", _text('{"results": []}'), r"another format", runs=("error", "done")),
    Fault(
        "field renamed in all documents",
        _change(_renamed_field),
        r"no summary document has structure",
        runs=("error",),
    ),
    Fault(
        "one document without structure",
        _change(lambda server: server.materials.summary["mp-40"].pop("structure")),
        "",
        gone=("mp-40",),
    ),
    Fault(
        "entry vanishes between two pages of the list",
        _change(lambda server: server.materials.remove("mp-11")),
        r"the list of ids changed while it was read",
        at=2,
        gone=("mp-11",),
    ),
    Fault(
        "entry vanishes between list and documents",
        _change(lambda server: server.materials.remove("mp-40")),
        "",
        gone=("mp-40",),
    ),
    Fault(
        "new database version in between",
        _change(_new_release),
        r"database 2026.04.13 became 2026.05.01",
        gone=("mp-40",),
    ),
    Fault("SIGTERM", _stop_this_process, r"stopped by a signal", runs=("continue", "done")),
]


def run(fault: Fault, folder: Path) -> Outcome:
    """Download from a server with the fault, again after an early end, and count."""
    small_pages = mock.patch("dao_pipeline.sources.mp_client._PAGE", 20)
    with running(many(COUNT)) as server, mock.patch.dict(os.environ, {"MP_API_KEY": KEY}), small_pages:
        return _run(fault, folder, server)


def _run(fault: Fault, folder: Path, server: Server) -> Outcome:
    query = MaterialsProject(endpoint=server.endpoint, chunk=10)
    campaign = Campaign(name="mp", data=Data(source="materials_project", materials_project=query, network=_FAST))
    spoiled = 0
    lock = threading.Lock()

    def misbehave(number: int, route: str, handler: Handler) -> bool:
        nonlocal spoiled
        with lock:
            if route == "heartbeat" or number < fault.at or spoiled >= fault.times:
                return False
            spoiled += 1
        return fault.spoil(handler)

    server.fault = misbehave
    out = folder / "raw" / "crystals.parquet"
    runs: list[str] = []
    requests: list[int] = []
    log = _Log()
    logging.getLogger("dao_pipeline").addHandler(log)
    start = time.monotonic()
    for _ in range(2):
        before = len(server.asked)
        try:
            download(campaign, out, folder / "work")
            runs.append("done")
        except ContinueLater as request:
            runs.append(f"continue: {request}")
        except UserError as error:
            runs.append(f"error: {error}")
        requests.append(sum(path.startswith("/materials") for path, _ in server.asked[before:]))
        if runs[-1] == "done":
            break
        server.fault = None
        logging.getLogger("dao_pipeline").removeHandler(log)
    logging.getLogger("dao_pipeline").removeHandler(log)
    return _count(fault, out, Outcome(runs, log.lines, requests, time.monotonic() - start))


class _Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _count(fault: Fault, out: Path, outcome: Outcome) -> Outcome:
    """Compare what was written with what should be there."""
    if not out.exists():
        return outcome
    ids: list[str] = read_table(out)["id"].to_pylist()
    expected = {f"mp-{i}" for i in range(1, COUNT + 1)} - set(fault.gone)
    about = read_about(out)
    outcome.rows = len(ids)
    outcome.missing = len(expected - set(ids))
    outcome.twice = len(ids) - len(set(ids))
    outcome.restarts = len(about["sources"][0]["materials_project"]["restarts"])
    outcome.rejected = about["rejected"]
    return outcome
