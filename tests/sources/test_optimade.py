"""OPTIMADE: the package's client against the package's reference server."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dao_pipeline.config import Campaign, Data, Network, Optimade
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.table import read_about, read_table
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.sources.download import download
from dao_pipeline.sources.kinds import OPTIMADE_NAMES
from dao_pipeline.sources.optimade_structures import DATABASES, database_of, page_of_crystals
from tests.make import binary
from tests.sources.optimade_server import Server, running, structure

COUNT = 13
FIELDS = {"formation_energy": "_oqmd_delta_e", "e_above_hull": "_oqmd_stability"}


@pytest.fixture
def server() -> Iterator[Server]:
    with running([structure(f"oqmd-{i:02d}", i) for i in range(COUNT)]) as started:
        yield started


def campaign(server: Server, columns: dict[str, str] | None = None, **data: Any) -> Campaign:
    query = Optimade(url=server.url, page=4, **data.pop("query", {}))
    network = Network(timeout=20, attempts=3, backoff=0.01)
    return Campaign(
        name="o",
        data=Data(
            source="optimade",
            optimade=query,
            network=network,
            columns=FIELDS if columns is None else columns,  # type: ignore[arg-type]
            **data,
        ),
    )


def test_crystals_energies_and_provenance(server: Server, tmp_path: Path) -> None:
    download(campaign(server, energy_method="PBE"), tmp_path / "raw.parquet")
    table, expected = read_table(tmp_path / "raw.parquet"), to_table([binary(i) for i in range(COUNT)])
    assert table["id"].to_pylist() == [f"oqmd-{i:02d}" for i in range(COUNT)]
    assert table["atomic_numbers"].to_pylist() == expected["atomic_numbers"].to_pylist()
    np.testing.assert_allclose(flatten(table).frac, flatten(expected).frac, atol=1e-12)
    np.testing.assert_array_equal(flatten(table).lattice, flatten(expected).lattice)
    np.testing.assert_allclose(table["formation_energy"].to_pylist(), [-1.0 - i for i in range(COUNT)])
    assert set(table["energy_method"].to_pylist()) == {"PBE"}
    assert len(set(table["source"].to_pylist())) == 1
    about = read_about(tmp_path / "raw.parquet")["sources"][0]["optimade"]
    assert about["pages"] == 4
    assert (about["ids"], about["announced"], about["steady"]) == (COUNT, [COUNT], True)
    assert about["fields"] == FIELDS
    assert about["checksum"]


def test_a_known_database_by_name(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATABASES, "oqmd", replace(DATABASES["oqmd"], url=server.url))
    asked = campaign(server, columns={})
    asked = asked.model_copy(
        update={"data": asked.data.model_copy(update={"optimade": Optimade(url="oqmd", page=20)})}
    )
    download(asked, tmp_path / "raw.parquet")
    table = read_table(tmp_path / "raw.parquet")
    assert set(table["source"].to_pylist()) == {"oqmd"}
    assert set(table["energy_method"].to_pylist()) == {"PBE"}
    np.testing.assert_allclose(table["e_above_hull"].to_pylist(), [max(0, 0.1 * i - 0.1) for i in range(COUNT)])


def test_databases_are_known_by_address() -> None:
    assert tuple(DATABASES) == OPTIMADE_NAMES
    assert database_of("https://oqmd.org/optimade/v1/") is DATABASES["oqmd"]
    assert database_of("https://jarvis.nist.gov/optimade/jarvisdft") is DATABASES["jarvis"]
    assert database_of("https://example.org/x/").url == "https://example.org/x"
    assert database_of("https://example.org/x").fields == {}


def test_no_known_energies_are_said(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    download(campaign(server, columns={}), tmp_path / "raw.parquet")
    table = read_table(tmp_path / "raw.parquet")
    assert table["formation_energy"].null_count == table["energy_method"].null_count == COUNT
    assert "no energies are known of" in caplog.text


def test_filter_and_limit(server: Server, tmp_path: Path) -> None:
    download(campaign(server, query={"filter": 'elements HAS "Li"'}), tmp_path / "raw.parquet")
    assert read_table(tmp_path / "raw.parquet")["formula"].to_pylist() == ["LiO"]
    before = len(server.requests)
    download(campaign(server, limit=5), tmp_path / "raw.parquet")
    assert read_table(tmp_path / "raw.parquet").num_rows == 5
    assert len(server.requests) == before + 2
    with pytest.raises(UserError, match=r"has no structure for the filter 'elements HAS .Xe.'"):
        download(campaign(server, query={"filter": 'elements HAS "Xe"'}), tmp_path / "raw.parquet")
    with pytest.raises(UserError, match=r"data.optimade.filter = 'elements HAVE"):
        download(campaign(server, query={"filter": 'elements HAVE "Xe"'}), tmp_path / "raw.parquet")


def test_what_is_no_ordered_crystal_is_rejected(tmp_path: Path) -> None:
    mixed = [{"name": "M", "chemical_symbols": ["Li", "Na"], "concentration": [0.5, 0.5]}]
    partial = [{"name": "M", "chemical_symbols": ["Li", "vacancy"], "concentration": [0.9, 0.1]}]
    unknown = [{"name": "M", "chemical_symbols": ["X"], "concentration": [1.0]}]
    documents = [
        structure("good"),
        structure("mixed", species=mixed, species_at_sites=["M", "M"], structure_features=["disorder"]),
        structure("mixed, not said", species=mixed, species_at_sites=["M", "M"]),
        structure("partial", species=partial, species_at_sites=["M", "M"]),
        structure("unknown", species=unknown, species_at_sites=["M", "M"]),
        structure("slab", dimension_types=[1, 1, 0], nperiodic_dimensions=2),
        structure("short", cartesian_site_positions=[[0, 0, 0]]),
        structure("flat", lattice_vectors=[[1, 0, 0], [2, 0, 0], [0, 0, 1]]),
        structure("water", structure_features=["site_attachments"]),
    ]
    with running(documents) as server:
        download(campaign(server), tmp_path / "raw.parquet")
    assert read_table(tmp_path / "raw.parquet")["id"].to_pylist() == ["good"]
    reasons = {row["id"]: row["reason"] for row in read_table(tmp_path / "rejected.parquet").to_pylist()}
    assert reasons == {
        "mixed": "disordered",
        "mixed, not said": "disordered",
        "partial": "disordered",
        "unknown": "unknown_element",
        "slab": "not_periodic",
        "short": "length_mismatch",
        "flat": "bad_structure",
        "water": "attached_atoms",
    }


def test_answers_that_no_server_should_give() -> None:
    """Numbers beyond floats, NaN, features that are none: only that entry is lost."""
    occupied = {"name": "M", "chemical_symbols": ["Li"], "concentration": [float("nan")]}
    documents = {
        "good": structure("good", _e=10**400),
        "huge": structure("huge", cartesian_site_positions=[[10**400, 0, 0], [0, 0, 0]]),
        "nan": structure("nan", species=[occupied], species_at_sites=["M", "M"]),
        "feature": structure("feature", structure_features=[{}]),
        "\ud800": structure("half a character"),
    }
    entries = [{"id": name, "attributes": about} for name, about in documents.items()]
    page = page_of_crystals(entries, "test", {"formation_energy": "_e"}, "PBE")
    assert page.table["id"].to_pylist() == ["good", "?"]
    assert page.table["formation_energy"].null_count == 2
    assert {row["id"]: row["reason"] for row in page.rejected} == {
        "huge": "bad_structure", "nan": "disordered", "feature": "bad_structure"
    }  # fmt: skip


def test_nested_energies() -> None:
    about = structure("a") | {"_mp_stability": {"gga_gga+u": {"energy_above_hull": 0.25}}}
    page = page_of_crystals([{"id": "a", "attributes": about}], "mp", DATABASES["mp"].fields, "GGA_GGA+U")
    assert page.table["e_above_hull"].to_pylist() == [0.25]
    assert page.table["formation_energy"].to_pylist() == [None]
    assert page.table["energy_method"].to_pylist() == ["GGA_GGA+U"]


def test_a_second_run_needs_no_network(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = campaign(server)
    download(asked, tmp_path / "raw.parquet", tmp_path / "work")

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished snapshot asks the network")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "create_connection", no_network)
        patched.setattr("requests.Session.send", no_network)
        download(asked, tmp_path / "again.parquet", tmp_path / "work")
    assert read_table(tmp_path / "again.parquet").equals(read_table(tmp_path / "raw.parquet"))


@pytest.mark.parametrize("fault", ["503 once", "429 once", "503 for good", "400", "signal"])
def test_faults_lose_nothing(server: Server, tmp_path: Path, fault: str) -> None:
    def spoil(number: int) -> int | None:
        if number < 3:
            return None
        if fault == "signal":
            if number == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return None
        return int(fault.split()[0]) if number == 3 or "once" not in fault else None

    server.fault = spoil
    asked = campaign(server)
    if "once" not in fault:
        expected = {"signal": ContinueLater, "400": UserError, "503 for good": UserError}[fault]
        with pytest.raises(expected, match=r"stopped by a signal|refused the request|cannot be reached"):
            download(asked, tmp_path / "raw.parquet", tmp_path / "work")
        assert not (tmp_path / "raw.parquet").exists()
        server.fault = None
        before = len(server.requests)
        download(asked, tmp_path / "raw.parquet", tmp_path / "work")
        assert len(server.requests) - before == 2, "the first two pages are there"
    else:
        download(asked, tmp_path / "raw.parquet", tmp_path / "work")
    assert read_table(tmp_path / "raw.parquet")["id"].to_pylist() == [f"oqmd-{i:02d}" for i in range(COUNT)]


def test_an_entry_that_vanishes_between_pages(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def vanish(number: int) -> None:
        if number == 3:
            server.docs.delete_one({"id": "oqmd-01"})

    server.fault = vanish
    download(campaign(server), tmp_path / "raw.parquet")
    found = read_table(tmp_path / "raw.parquet")["id"].to_pylist()
    assert len(set(found)) == len(found)
    assert set(found) == {f"oqmd-{i:02d}" for i in range(COUNT)} - {"oqmd-01"}
    assert "reading all pages again" in caplog.text
    assert read_about(tmp_path / "raw.parquet")["sources"][0]["optimade"]["announced"] == [COUNT - 1]


def test_no_such_server(server: Server, tmp_path: Path) -> None:
    asked = campaign(server)
    gone = asked.data.model_copy(update={"optimade": Optimade(url="http://127.0.0.1:9/x")})
    with pytest.raises(UserError, match="cannot be reached"):
        download(asked.model_copy(update={"data": gone}), tmp_path / "raw.parquet")
