"""A small server that answers as the Materials Project does to mp-api, and misbehaves on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlparse

from mp_api.client.core.client import BaseRester
from pymatgen.core import Lattice, Structure

KEY = "0123456789abcdefghijklmnopqrstuv"
VERSION = "2026.04.13"

ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
DISORDERED = Structure(Lattice.cubic(3.0), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


class Materials:
    """The server's database: documents by id."""

    def __init__(self) -> None:
        self.summary: dict[str, dict[str, Any]] = {}
        self.thermo: dict[str, dict[str, dict[str, Any]]] = {"GGA_GGA+U": {}, "r2SCAN": {}}
        self.references: dict[str, list[str]] = {}

    def add(
        self,
        name: str,
        e_above_hull: float | None = 0.0,
        structure: Any = None,
        method: str = "GGA_GGA+U",
        references: tuple[str, ...] = (),
        **summary: Any,
    ) -> None:
        """One material, by default rock salt on the hull."""
        self.summary[name] = {
            "material_id": name,
            "structure": ROCK_SALT.as_dict() if structure is None else structure,
            "symmetry": {"number": 225},
            "chemsys": "Cl-Na",
            "nsites": 8,
            "theoretical": not references,
            "deprecated": False,
        } | summary
        self.references[name] = list(references)
        if e_above_hull is not None:
            self.thermo[method][name] = {
                "material_id": name,
                "thermo_type": "R2SCAN" if method == "r2SCAN" else method,
                "chemsys": self.summary[name]["chemsys"],
                "composition": {"Na": 4.0, "Cl": 4.0},
                "energy_per_atom": -3.4 + e_above_hull,
                "formation_energy_per_atom": -2.0 + e_above_hull,
                "energy_above_hull": e_above_hull,
            }

    def remove(self, name: str) -> None:
        """As when a new release of the database lacks it."""
        self.summary.pop(name)
        for documents in self.thermo.values():
            documents.pop(name, None)


def small_set() -> Materials:
    """One of each kind."""
    materials = Materials()
    bibtex = ("@article{a, year = {1998}, title={x}}", "@misc{b,\n year = 1953\n}")
    materials.add("mp-22862", references=bibtex)
    materials.add("mp-9", 0.3)
    materials.add("mp-100", 0.1, structure=DISORDERED.as_dict())
    materials.add("mp-101", 0.1, structure={"lattice": "broken"}, symmetry=None)
    materials.add("mp-102", 2.5)
    materials.add("mp-103", deprecated=True)
    materials.add("mp-104", None)
    materials.thermo["r2SCAN"]["mp-22862"] = materials.thermo["GGA_GGA+U"]["mp-22862"] | {
        "thermo_type": "R2SCAN",
        "energy_above_hull": 0.05,
    }
    return materials


def many(count: int) -> Materials:
    """So many rock salts, every tenth on the hull."""
    materials = Materials()
    for i in range(1, count + 1):
        materials.add(f"mp-{i}", 0.0 if i % 10 == 0 else 0.01 * (i % 9 + 1))
    return materials


class Server(ThreadingHTTPServer):
    """Answers /heartbeat and the summary, thermo and provenance routes; keeps what it was asked.

    faults: called with the number of requests to data so far, the route and the handler; true when it answered in
    place of the server.
    """

    daemon_threads = True

    def __init__(self, materials: Materials) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.materials = materials
        self.version: Any = VERSION
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.accepted_key = KEY
        self.fault: Callable[[int, str, Handler], bool] | None = None
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.server_port}/"

    def routes(self, name: str) -> list[dict[str, str]]:
        """Queries to one route."""
        return [query for path, query in self.asked if path.startswith(f"/materials/{name}")]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        address = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        route = address.path.strip("/").rpartition("/")[2]
        with self.server.lock:
            self.server.asked.append((address.path, query))
            number = sum(path.startswith("/materials") for path, _ in self.server.asked)
        if self.server.fault is not None and self.server.fault(number, route, self):
            return
        if route == "heartbeat":
            self.answer(
                200, {"db_version": self.server.version, "version": "0.86.5", "access_controlled_batch_ids": []}
            )
        elif self.headers.get("x-api-key") != self.server.accepted_key:
            self.answer(401, {"detail": f"Invalid authentication credentials {self.headers.get('x-api-key')}"})
        elif route in ("summary", "thermo", "provenance"):
            self.documents(query, getattr(self, route)(query))
        else:
            self.answer(404, {"detail": "no such route"})

    def summary(self, query: dict[str, str]) -> list[dict[str, Any]]:
        found = self.server.materials.summary
        wanted = query["material_ids"].split(",") if "material_ids" in query else sorted(found)
        low, high = int(query.get("nsites_min", 0)), int(query.get("nsites_max", 10**6))
        return [
            found[name]
            for name in wanted
            if name in found
            and not (query.get("deprecated") == "False" and found[name]["deprecated"])
            and low <= found[name]["nsites"] <= high
            and query.get("chemsys", found[name]["chemsys"]) == found[name]["chemsys"]
            and query.get("theoretical", str(found[name]["theoretical"])) == str(found[name]["theoretical"])
            and not set(query.get("exclude_elements", "").split(",")) & set(found[name]["chemsys"].split("-"))
        ]

    def thermo(self, query: dict[str, str]) -> list[dict[str, Any]]:
        hulls = self.server.materials.thermo[query["thermo_types"]]
        wanted = query["material_ids"].split(",") if "material_ids" in query else list(hulls)
        low, high = float(query.get("energy_above_hull_min", -99)), float(query.get("energy_above_hull_max", 99))
        systems = query["chemsys"].split(",") if "chemsys" in query else None
        return [
            hulls[name]
            for name in wanted
            if name in hulls
            and low <= hulls[name].get("energy_above_hull", 0) <= high
            and (systems is None or hulls[name]["chemsys"] in systems)
        ]

    def provenance(self, query: dict[str, str]) -> list[dict[str, Any]]:
        known = self.server.materials.references
        names = [name for name in query["material_ids"].split(",") if name in known]
        return [{"material_id": name, "references": known[name]} for name in names]

    def documents(self, query: dict[str, str], found: list[dict[str, Any]]) -> None:
        fields = query["_fields"].split(",")
        start, count = int(query.get("_skip", 0)), int(query.get("_limit", 100))
        page = [{name: d[name] for name in fields if name in d} for d in found[start : start + count]]
        self.answer(200, {"data": page, "meta": {"total_doc": len(found)}})

    def answer(self, status: int, body: Any, cut: int | None = None, **headers: str) -> None:
        """Send JSON (or text as it is); ``cut`` closes the connection after so many bytes of it."""
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True

    def hang(self, seconds: float) -> None:
        """Say nothing for a while, then hang up."""
        time.sleep(seconds)
        self.close_connection = True


@cache
def _fields(document_model: Any) -> list[str]:
    return list(document_model.model_json_schema()["properties"])


@contextmanager
def running(materials: Materials) -> Iterator[Server]:
    """The server in a thread.

    The client builds a document's schema anew for each field that it is asked for, some 0.1 s each; here once.
    """
    fields = property(lambda rester: _fields(rester.document_model))
    with mock.patch.object(BaseRester, "available_fields", fields), Server(materials) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
