"""The real mp-api client against a small server that answers as the Materials Project does."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dao_pipeline.candidates.references import sort_references
from dao_pipeline.cli import app
from dao_pipeline.config import Campaign, Data, MaterialsProject, Network
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.table import read_about, read_table
from dao_pipeline.errors import UserError
from dao_pipeline.screening.entries import read_entries
from dao_pipeline.sources.download import download
from dao_pipeline.sources.keys import materials_project_key
from dao_pipeline.sources.mp_client import subsystems
from dao_pipeline.sources.mp_documents import first_year
from tests.sources.faults import COUNT, FAULTS, Fault, run
from tests.sources.mp_server import KEY, VERSION, Materials, Server, many, running, small_set

FAST = Network(timeout=20, attempts=2, backoff=0.01, longest_wait=5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MP_API_KEY", KEY)
    with running(small_set()) as started:
        yield started


def campaign(server: Server, limit: int | None = None, snapshot: str | None = None, **query: Any) -> Campaign:
    asked = MaterialsProject(endpoint=server.endpoint, **query)
    data = Data(source="materials_project", materials_project=asked, limit=limit, snapshot=snapshot, network=FAST)
    return Campaign(name="mp", data=data)


def ids(path: Path) -> list[str]:
    found: list[str] = read_table(path)["id"].to_pylist()
    return found


def test_crystals_energies_and_provenance(server: Server, tmp_path: Path) -> None:
    download(campaign(server, elements=["Na"], max_e_above_hull=1.0), tmp_path / "raw.parquet")

    table = read_table(tmp_path / "raw.parquet")
    assert table["id"].to_pylist() == ["mp-9", "mp-22862"]
    assert table["formula"].to_pylist() == ["NaCl", "NaCl"]
    assert table["e_above_hull"].to_pylist() == [0.3, 0.0]
    assert table["formation_energy"].to_pylist() == [-1.7, -2.0]
    assert set(table["energy_method"].to_pylist()) == {"GGA_GGA+U"}
    assert table["spacegroup"].to_pylist() == [225, 225]
    assert table["published"].to_pylist() == [None, "1953"]
    assert table["num_atoms"].to_pylist() == [8, 8]

    rejected = {row["id"]: row["reason"] for row in read_table(tmp_path / "rejected.parquet").to_pylist()}
    expected = {"mp-100": "disordered", "mp-101": "bad_structure", "mp-102": "e_above_hull", "mp-104": "no_energy"}
    assert rejected == expected

    about = read_about(tmp_path / "raw.parquet")
    snapshot = about["sources"][0]["materials_project"]
    assert snapshot["database_version"] == VERSION
    assert snapshot["thermo_type"] == "GGA_GGA+U"
    assert snapshot["elements"] == ["Na"]
    assert snapshot["ids"] == 6
    assert len(snapshot["checksum"]) == len(snapshot["ids_hash"]) == 16
    assert (about["rows"], about["examined"]) == (2, 6)


def test_the_hull_of_known_crystals_names_the_database(server: Server, tmp_path: Path) -> None:
    """From the download to what ``screen.hull.entries: crysdb`` says of its phases."""
    asked = campaign(server, elements=["Na"], max_e_above_hull=1.0)
    download(asked, tmp_path / "raw.parquet")
    crysdb = {"min_atoms": 1, "val_fraction": 0, "test_fraction": 0}
    build_crysdb(
        Campaign.model_validate(asked.model_dump() | {"crysdb": crysdb}), tmp_path / "raw.parquet", tmp_path
    )
    sort_references(tmp_path, tmp_path / "references.parquet")
    passport = read_entries(tmp_path / "references.parquet", {frozenset({"Na", "Cl"})}).passport
    assert (passport["database_version"], passport["thermo_type"]) == (VERSION, "GGA_GGA+U")
    assert passport["correction_scheme"] is None
    assert passport["levels_of_theory"] == ["GGA_GGA+U"]


def test_phases_on_the_hull(server: Server, tmp_path: Path) -> None:
    server.materials.add("mp-1", chemsys="Na")
    server.materials.add("mp-2", chemsys="K")
    download(campaign(server, chemical_systems=["Na-Cl"]), tmp_path / "raw.parquet")
    phases = read_table(tmp_path / "phases.parquet").to_pylist()
    assert [row["id"] for row in phases] == ["mp-1", "mp-103", "mp-22862"]
    assert phases[2] == {
        "id": "mp-22862",
        "formula": "NaCl",
        "chemical_system": "Cl-Na",
        "elements": ["Na", "Cl"],
        "amounts": [4.0, 4.0],
        "energy_per_atom": -3.4,
        "formation_energy": -2.0,
        "e_above_hull": 0.0,
        "energy_method": "GGA_GGA+U",
    }
    assert server.routes("thermo")[-1]["chemsys"] == "Cl,Cl-Na,Na"
    assert subsystems(["A-B-C"]) == ["A", "A-B", "A-B-C", "A-C", "B", "B-C", "C"]


def test_phases_of_an_earlier_source_go(server: Server, tmp_path: Path) -> None:
    download(campaign(server), tmp_path / "raw.parquet")
    assert (tmp_path / "phases.parquet").exists()
    download(campaign(server, phases=False), tmp_path / "raw.parquet")
    assert not (tmp_path / "phases.parquet").exists()


def test_the_filters_are_sent(server: Server, tmp_path: Path) -> None:
    query = {
        "chemical_systems": ["Cl-Na"],
        "exclude_elements": ["K", "O"],
        "min_sites": 2,
        "max_sites": 8,
        "theoretical": False,
    }
    download(campaign(server, **query), tmp_path / "raw.parquet")
    first = server.routes("summary")[0]
    assert first["chemsys"] == "Cl-Na"
    assert first["exclude_elements"] == "K,O"
    assert (first["nsites_min"], first["nsites_max"]) == ("2", "8")
    assert first["theoretical"] == "False"
    assert all(query["deprecated"] == "False" for query in server.routes("summary"))
    assert all(query["thermo_types"] == "GGA_GGA+U" for query in server.routes("thermo"))
    assert ids(tmp_path / "raw.parquet") == ["mp-22862"]


def test_range_above_the_hull(server: Server, tmp_path: Path) -> None:
    download(campaign(server, min_e_above_hull=0.2, max_e_above_hull=3), tmp_path / "raw.parquet")
    assert ids(tmp_path / "raw.parquet") == ["mp-9", "mp-102"]


def test_other_level_of_theory(server: Server, tmp_path: Path) -> None:
    download(campaign(server, thermo_type="R2SCAN"), tmp_path / "raw.parquet")
    table = read_table(tmp_path / "raw.parquet")
    assert table["id"].to_pylist() == ["mp-22862"]
    assert table["e_above_hull"].to_pylist() == [0.05]
    assert table["energy_method"].to_pylist() == ["R2SCAN"]


def test_energies_of_another_level_are_refused(server: Server, tmp_path: Path) -> None:
    server.materials.thermo["GGA_GGA+U"]["mp-9"]["thermo_type"] = "R2SCAN"
    with pytest.raises(UserError, match=r"mp-9 is R2SCAN, asked for GGA_GGA\+U"):
        download(campaign(server), tmp_path / "raw.parquet")


def test_limit_counts_usable_crystals_and_fetches_no_more(server: Server, tmp_path: Path) -> None:
    download(campaign(server, limit=1, chunk=1), tmp_path / "raw.parquet")
    assert ids(tmp_path / "raw.parquet") == ["mp-9"]
    assert sum("material_ids" in query for query in server.routes("thermo")) == 1


def test_chunks_give_the_same_table(server: Server, tmp_path: Path) -> None:
    download(campaign(server), tmp_path / "whole.parquet")
    for chunk in (1, 2, 5):
        download(campaign(server, chunk=chunk), tmp_path / "parts.parquet")
        assert read_table(tmp_path / "parts.parquet").equals(read_table(tmp_path / "whole.parquet"))


# --- the snapshot --------------------------------------------------------------------------------------


def test_a_second_run_needs_neither_network_nor_key(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download(campaign(server, chunk=2), tmp_path / "raw.parquet", tmp_path / "work")
    first = read_table(tmp_path / "raw.parquet")
    asked = campaign(server, chunk=2)

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished snapshot asks the network")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.delenv("MP_API_KEY")
    download(asked, tmp_path / "again.parquet", tmp_path / "work")
    assert read_table(tmp_path / "again.parquet").equals(first)
    assert read_table(tmp_path / "phases.parquet").num_rows == 2
    old, new = (
        read_about(tmp_path / f"{name}.parquet")["sources"][0]["materials_project"] for name in ("raw", "again")
    )
    assert new["requests"] == 0
    assert new["date"] == old["date"]
    assert new["checksum"] == old["checksum"]


def test_another_query_or_name_downloads_anew(server: Server, tmp_path: Path) -> None:
    for changed in ({}, {"max_e_above_hull": 0.2}, {"snapshot": "next"}):
        before = len(server.asked)
        download(campaign(server, **changed), tmp_path / "raw.parquet", tmp_path / "work")
        assert len(server.asked) > before
    assert len(list((tmp_path / "work").iterdir())) == 3


@pytest.mark.parametrize("damage", ["changed", "truncated", "removed", "rejected lost"])
def test_a_damaged_chunk_is_fetched_again(server: Server, tmp_path: Path, damage: str) -> None:
    download(campaign(server, chunk=2), tmp_path / "raw.parquet", tmp_path / "work")
    first = read_table(tmp_path / "raw.parquet")
    (chunk,) = (tmp_path / "work").glob("*/chunk-00001.parquet")
    if damage == "changed":
        chunk.write_bytes(chunk.with_name("chunk-00000.parquet").read_bytes())
    elif damage == "truncated":
        chunk.write_bytes(chunk.read_bytes()[:-20])
    elif damage == "removed":
        chunk.unlink()
    else:
        chunk.with_name("chunk-00001.rejected.parquet").unlink()
    before = len(server.asked)
    download(campaign(server, chunk=2), tmp_path / "raw.parquet", tmp_path / "work")
    assert read_table(tmp_path / "raw.parquet").equals(first)
    asked = [query for path, query in server.asked[before:] if path.startswith("/materials/thermo")]
    assert len(asked) == 1, "only the damaged chunk is fetched"


def test_a_database_that_never_rests(server: Server, tmp_path: Path) -> None:
    def ever_newer(number: int, route: str, handler: Any) -> bool:
        server.version = f"2026.05.{len(server.asked):02d}"
        return False

    server.fault = ever_newer
    with pytest.raises(UserError, match="the database changed 4 times during one download"):
        download(campaign(server), tmp_path / "raw.parquet")
    assert not (tmp_path / "raw.parquet").exists()


# --- faults --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_is_lost(fault: Fault, tmp_path: Path) -> None:
    outcome = run(fault, tmp_path)
    ended = [text.partition(":")[0] for text in outcome.runs]
    assert ended[: len(fault.runs)] == list(fault.runs)
    assert (outcome.missing, outcome.twice) == (0, 0)
    assert all(KEY not in text for text in outcome.runs)
    if fault.runs[-1] == "done":
        assert outcome.rows == COUNT - len(fault.gone)
        assert sum(outcome.rejected.values()) in (0, len(fault.gone))
    if fault.runs[0] != "done":
        assert not list(tmp_path.rglob("*.tmp")), "half a file is left"
    assert re.search(fault.said, "\n".join([*outcome.log, outcome.runs[0]]))
    if fault.name == "429 with Retry-After: 1":
        assert outcome.seconds >= 1
    if fault.runs[0] == "error" and fault.times == 1:
        assert outcome.requests[0] <= 11, "what will not pass is not repeated"
    if fault.runs[0] == "continue":
        assert outcome.requests[1] < 23, "what is there is not fetched again"
    assert outcome.restarts == (1 if "version" in fault.name else 0)


def test_nothing_matches(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no crystal for chemical_systems = \['Fe-O'\]"):
        download(campaign(server, chemical_systems=["Fe-O"]), tmp_path / "raw.parquet")


def test_no_server(server: Server, tmp_path: Path) -> None:
    asked = campaign(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match=r"cannot be reached.*compute nodes"):
        download(asked, tmp_path / "raw.parquet")


def test_heartbeat_in_an_unknown_format(server: Server, tmp_path: Path) -> None:
    server.version = None
    with pytest.raises(UserError, match=r"another format .*names no db_version"):
        download(campaign(server), tmp_path / "raw.parquet")


@pytest.mark.parametrize("target", ["http://192.0.2.1", "https://127.0.0.1:{port}"])
def test_redirect_to_another_server_is_not_followed(server: Server, tmp_path: Path, target: str) -> None:
    address = target.format(port=server.server_port)

    def redirect(number: int, route: str, handler: Any) -> bool:
        handler.answer(302, {}, Location=f"{address}/materials/summary/")
        return True

    server.fault = redirect
    with pytest.raises(UserError, match=rf"redirects to {address.rpartition(':')[0] or address}"):
        download(campaign(server), tmp_path / "raw.parquet")


def test_redirect_on_the_same_server_is_followed(server: Server, tmp_path: Path) -> None:
    moved: list[str] = []

    def redirect(number: int, route: str, handler: Any) -> bool:
        if route != "summary" or moved:
            return False
        moved.append(handler.path)
        handler.answer(307, {}, Location=handler.path)
        return True

    server.fault = redirect
    download(campaign(server), tmp_path / "raw.parquet")
    assert moved
    assert ids(tmp_path / "raw.parquet") == ["mp-9", "mp-22862"]


def test_too_long_an_address_is_split_by_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", KEY)

    def too_long(number: int, route: str, handler: Any) -> bool:
        if len(handler.path) < 2_000:
            return False
        handler.answer(414, {"detail": "URI too long"})
        return True

    with running(many(250)) as server:
        server.fault = too_long
        download(campaign(server), tmp_path / "raw.parquet")
        assert len(ids(tmp_path / "raw.parquet")) == 250


# --- the key -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["too-short", "x" * 32])
def test_wrong_key(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MP_API_KEY", key)
    with pytest.raises(UserError, match=r"key was refused|has 9 characters, not 32") as caught:
        download(campaign(server), tmp_path / "raw.parquet")
    assert key not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_key(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MP_API_KEY")
    for name in ("PMG_MAPI_KEY", "MAPI_KEY", "PMG_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="there is no key; set the environment variable MP_API_KEY"):
        download(campaign(server), tmp_path / "raw.parquet")
    assert server.asked == []


def test_key_of_pymatgens_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MP_API_KEY", "PMG_MAPI_KEY", "MAPI_KEY", "PMG_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert materials_project_key() == ""
    (tmp_path / ".config").mkdir()
    settings = tmp_path / ".config" / ".pmgrc.yaml"
    settings.write_text(f"PMG_MAPI_KEY: {KEY}\n")
    assert materials_project_key() == KEY
    settings.write_text(f"PMG_MAPI_KEY: [{KEY}\n")
    with pytest.raises(UserError, match="cannot be read as YAML") as caught:
        materials_project_key()
    assert KEY not in str(caught.value)
    (tmp_path / "other.yaml").write_text(f"PMG_MAPI_KEY: {'y' * 32}\n")
    monkeypatch.setenv("PMG_CONFIG_FILE", str(tmp_path / "other.yaml"))
    assert materials_project_key() == "y" * 32
    monkeypatch.setenv("PMG_MAPI_KEY", "z" * 32)
    assert materials_project_key() == "z" * 32


def echo(number: int, route: str, handler: Any) -> bool:
    """A server that repeats the key in all it says."""
    handler.answer(handler.server.echo_status, {"detail": f"your key {KEY} has expired", "db_version": KEY})
    return True


@pytest.mark.parametrize("status", [200, 400, 401, 404, 500])
def test_the_key_is_nowhere(
    server: Server,
    tmp_path: Path,
    status: int,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.echo_status = status  # type: ignore[attr-defined]
    file = tmp_path / "mp.yaml"
    file.write_text(json.dumps(campaign(server).model_dump(mode="json")))
    command = ["download", "--config", str(file), "--out", str(tmp_path / "raw.parquet")]
    command += ["--work", str(tmp_path / "work")]
    shown = [str(CliRunner().invoke(app, command).output)]  # as it should be
    server.fault = echo
    result = CliRunner().invoke(app, [*command, "--work", str(tmp_path / "work2")])
    assert result.exit_code == 2
    shown += [str(result.output), caplog.text, *capfd.readouterr()]
    assert all(KEY not in text for text in shown)
    assert any("error: Materials Project" in text for text in shown)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 5
    assert all(KEY.encode() not in path.read_bytes() for path in written)


def test_first_year_of_references() -> None:
    assert (
        first_year(["@article{a, year = {1998}}", "@misc{b,\n  Year=1953\n}", "@x{c, title={1850 ways}}"])
        == "1953"
    )
    assert first_year([]) is None
    assert first_year(["@misc{nothing}"]) is None


def test_a_chemical_system_with_any_element(server: Server, tmp_path: Path) -> None:
    server.materials = Materials()
    server.materials.add("mp-1", chemsys="*")
    server.materials.add("mp-7", chemsys="Na-*")
    download(campaign(server, chemical_systems=["Na-*"]), tmp_path / "raw.parquet")
    assert ids(tmp_path / "raw.parquet") == ["mp-7"]
    assert "chemsys" not in server.routes("thermo")[-1], "then all phases are fetched"


@pytest.mark.slow
def test_a_terminated_process_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself: exit code 75 on SIGTERM, and the rest of the chunks the next time."""
    with running(many(30)) as server:
        file = tmp_path / "mp.yaml"
        file.write_text(json.dumps(campaign(server, chunk=5).model_dump(mode="json")))
        command = [sys.executable, "-m", "dao_pipeline.cli", "download", "--config", str(file)]
        command += ["--out", str(tmp_path / "raw.parquet"), "--work", str(tmp_path / "work")]
        environment = os.environ | {"MP_API_KEY": KEY}

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

        process = start()

        def stop(number: int, route: str, handler: Any) -> bool:
            if number == 12:
                process.send_signal(signal.SIGTERM)
                handler.hang(5)
            return number >= 12

        server.fault = stop
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 75, said
        assert "interrupted: download stopped by a signal" in said
        server.fault = None
        before = len(server.asked)
        process = start()
        said += process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
        assert KEY not in said
        assert ids(tmp_path / "raw.parquet") == [f"mp-{i}" for i in range(1, 31)]
        chunks = [query for path, query in server.asked[before:] if path.startswith("/materials/thermo")]
        assert 0 < sum("material_ids" in query for query in chunks) < 6
