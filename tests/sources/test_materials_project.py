"""The real mp-api client against a small server that answers as the Materials Project does."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
from pymatgen.core import Lattice, Structure

from dao_pipeline.config import Campaign, Data, MaterialsProject
from dao_pipeline.crystals.table import read_about, read_table
from dao_pipeline.errors import UserError
from dao_pipeline.sources.download import download

KEY = "0123456789abcdefghijklmnopqrstuv"
ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
DISORDERED = Structure(Lattice.cubic(3.0), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])

SUMMARY = {
    "mp-22862": {"structure": ROCK_SALT.as_dict(), "symmetry": {"number": 225}},
    "mp-9": {"structure": ROCK_SALT.as_dict(), "symmetry": {"number": 225}},
    "mp-100": {"structure": DISORDERED.as_dict(), "symmetry": {"number": 221}},
    "mp-101": {"structure": {"lattice": "broken"}, "symmetry": None},
    "mp-102": {"structure": ROCK_SALT.as_dict(), "symmetry": {"number": 225}},
    "mp-103": {"structure": ROCK_SALT.as_dict(), "symmetry": {"number": 225}, "deprecated": True},
}
THERMO = {
    "GGA_GGA+U": {"mp-22862": 0.0, "mp-9": 0.3, "mp-100": 0.1, "mp-101": 0.1, "mp-102": 2.5, "mp-103": 0.0},
    "r2SCAN": {"mp-22862": 0.05},
}


class Server(ThreadingHTTPServer):
    """Answers /heartbeat, /materials/summary/ and /materials/thermo/; keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.accepted_key = KEY
        self.failure: int | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        address = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(address.query).items()}
        self.server.asked.append((address.path, query))
        if address.path.startswith("/heartbeat"):
            body = {"db_version": "2026.04.13", "version": "0.86.5", "access_controlled_batch_ids": []}
            self.answer(200, body)
        elif self.headers.get("x-api-key") != self.server.accepted_key:
            self.answer(401, {"detail": "Invalid authentication credentials"})
        elif self.server.failure:
            self.answer(self.server.failure, {"detail": "something broke"})
        elif address.path.startswith("/materials/summary"):
            self.documents(query, self.summary(query))
        elif address.path.startswith("/materials/thermo"):
            self.documents(query, self.thermo(query))
        else:
            self.answer(404, {"detail": "no such route"})

    def summary(self, query: dict[str, str]) -> list[dict[str, Any]]:
        wanted = query["material_ids"].split(",") if "material_ids" in query else list(SUMMARY)
        return [
            {"material_id": name, **SUMMARY[name]}
            for name in wanted
            if not (query.get("deprecated") == "False" and SUMMARY[name].get("deprecated"))
            and query.get("chemsys", "Cl-Na") == "Cl-Na"
        ]

    def thermo(self, query: dict[str, str]) -> list[dict[str, Any]]:
        hulls = THERMO[query["thermo_types"]]
        low, high = float(query["energy_above_hull_min"]), float(query["energy_above_hull_max"])
        return [
            {"material_id": name, "energy_above_hull": hulls[name], "formation_energy_per_atom": -2.0}
            for name in query["material_ids"].split(",")
            if name in hulls and low <= hulls[name] <= high
        ]

    def documents(self, query: dict[str, str], found: list[dict[str, Any]]) -> None:
        fields = query["_fields"].split(",")
        start, count = int(query.get("_skip", 0)), int(query.get("_limit", 100))
        page = [{name: d[name] for name in fields if name in d} for d in found[start : start + count]]
        self.answer(200, {"data": page, "meta": {"total_doc": len(found)}})

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


def campaign(server: Server, limit: int | None = None, **query: Any) -> Campaign:
    asked = MaterialsProject(endpoint=server.endpoint, **query)
    return Campaign(name="mp", data=Data(source="materials_project", materials_project=asked, limit=limit))


def test_crystals_energies_and_provenance(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MP_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    download(campaign(server, elements=["Na"], max_e_above_hull=1.0), tmp_path / "raw.parquet")

    table = read_table(tmp_path / "raw.parquet")
    assert table["id"].to_pylist() == ["mp-9", "mp-22862"]
    assert table["formula"].to_pylist() == ["NaCl", "NaCl"]
    assert table["e_above_hull"].to_pylist() == [0.3, 0.0]
    assert table["formation_energy"].to_pylist() == [-2.0, -2.0]
    assert set(table["energy_method"].to_pylist()) == {"GGA_GGA+U"}
    assert table["spacegroup"].to_pylist() == [225, 225]

    rejected = {row["id"]: row for row in read_table(tmp_path / "rejected.parquet").to_pylist()}
    reasons = {name: row["reason"] for name, row in rejected.items()}
    assert reasons == {"mp-100": "disordered", "mp-101": "bad_structure", "mp-102": "no_energy"}

    about = read_about(tmp_path / "raw.parquet")["materials_project"]
    assert about["database_version"] == "2026.04.13"
    assert about["thermo_type"] == "GGA_GGA+U"
    assert about["elements"] == ["Na"]
    assert about["ids"] == 2
    assert KEY not in json.dumps(read_about(tmp_path / "raw.parquet"))
    assert KEY not in caplog.text


def test_the_filters_are_sent(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", KEY)
    download(campaign(server, chemical_systems=["Cl-Na"]), tmp_path / "raw.parquet")
    summary = [query for path, query in server.asked if path.startswith("/materials/summary")]
    thermo = [query for path, query in server.asked if path.startswith("/materials/thermo")]
    assert summary[0]["chemsys"] == "Cl-Na"
    assert all(query["deprecated"] == "False" for query in summary)
    assert all(query["thermo_types"] == "GGA_GGA+U" for query in thermo)


def test_other_level_of_theory(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", KEY)
    download(campaign(server, thermo_type="R2SCAN"), tmp_path / "raw.parquet")
    table = read_table(tmp_path / "raw.parquet")
    assert table["id"].to_pylist() == ["mp-22862"]
    assert table["e_above_hull"].to_pylist() == [0.05]
    assert table["energy_method"].to_pylist() == ["R2SCAN"]


def test_limit_counts_usable_crystals(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", KEY)
    download(campaign(server, limit=1), tmp_path / "raw.parquet")
    assert read_table(tmp_path / "raw.parquet")["id"].to_pylist() == ["mp-9"]


def test_many_ids_go_in_several_queries(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.setattr("dao_pipeline.sources.materials_project._IDS_AT_ONCE", 2)
    download(campaign(server), tmp_path / "raw.parquet")
    assert read_table(tmp_path / "raw.parquet")["id"].to_pylist() == ["mp-9", "mp-22862"]
    assert sum(path.startswith("/materials/thermo") for path, _ in server.asked) == 3


def test_nothing_matches(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", KEY)
    with pytest.raises(UserError, match=r"no crystal for chemical_systems = \['Fe-O'\]"):
        download(campaign(server, chemical_systems=["Fe-O"]), tmp_path / "raw.parquet")


def test_no_key(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MP_API_KEY", raising=False)
    with pytest.raises(UserError, match="MP_API_KEY is not set"):
        download(campaign(server), tmp_path / "raw.parquet")
    assert server.asked == []


@pytest.mark.parametrize("key", ["too-short", "x" * 32])
def test_wrong_key(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MP_API_KEY", key)
    with pytest.raises(UserError, match="key in MP_API_KEY was refused") as caught:
        download(campaign(server), tmp_path / "raw.parquet")
    assert key not in str(caught.value)
    assert caught.value.__suppress_context__


def test_no_network(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", KEY)
    asked = campaign(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="cannot be reached"):
        download(asked, tmp_path / "raw.parquet")


def test_server_error(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", KEY)
    server.failure = 500
    with pytest.raises(UserError, match=r"answered with an error.*500"):
        download(campaign(server), tmp_path / "raw.parquet")
