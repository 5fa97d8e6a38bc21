"""The reference server of the optimade package on loopback, with our structures in its mock database."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dao_pipeline.crystals.elements import SYMBOLS
from tests.make import binary

pytest.importorskip("optimade.client")


def structure(name: str, index: int = 0, **changes: Any) -> dict[str, Any]:
    """An ordered AB crystal as the server's database holds it, with OQMD's energies."""
    crystal = binary(index)
    symbols = [SYMBOLS[int(z)] for z in crystal.atomic_numbers]
    elements = sorted(symbols)
    return {
        "id": name,
        "elements": elements,
        "nelements": len(elements),
        "elements_ratios": [0.5, 0.5],
        "chemical_formula_descriptive": "".join(elements),
        "chemical_formula_reduced": "".join(elements),
        "chemical_formula_anonymous": "AB",
        "dimension_types": [1, 1, 1],
        "nperiodic_dimensions": 3,
        "lattice_vectors": crystal.lattice.tolist(),
        "cartesian_site_positions": (crystal.frac_coords @ crystal.lattice).tolist(),
        "nsites": 2,
        "species": [{"name": s, "chemical_symbols": [s], "concentration": [1.0]} for s in symbols],
        "species_at_sites": symbols,
        "structure_features": [],
        "last_modified": "2026-01-01T00:00:00Z",
        "delta_e": -1.0 - index,
        "stability": 0.1 * index - 0.1,
    } | changes


class Server:
    """The running server: ``docs`` is its collection, ``fault`` may answer a request in its place (a status)."""

    def __init__(self, url: str, docs: Any) -> None:
        self.url, self.docs = url, docs
        self.requests: list[str] = []
        self.fault: Callable[[int], int | None] | None = None


@contextmanager
def running(documents: list[dict[str, Any]]) -> Iterator[Server]:
    """Start it with these structures; its prefix is OQMD's."""
    import uvicorn
    from optimade.server.config import ServerConfig
    from optimade.server.create_app import create_app

    config = ServerConfig(
        config_file="/nowhere",
        insert_test_data=False,
        mongo_database=f"test_{time.monotonic_ns()}",
        provider={"prefix": "oqmd", "name": "test", "description": "test"},
        provider_fields={"structures": ["delta_e", "stability"]},
        page_limit=20,
    )
    app = create_app(config)
    collection = app.state.entry_collections["structures"]
    collection.insert([dict(document) for document in documents])
    state = Server("", collection.collection)

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            state.requests.append(scope["path"] + "?" + scope["query_string"].decode())
            status = state.fault(len(state.requests)) if state.fault else None
            if status:
                await send({"type": "http.response.start", "status": status, "headers": []})
                await send({"type": "http.response.body", "body": b'{"errors": [{"title": "a", "detail": "b"}]}'})
                return
        await app(scope, receive, send)

    logging.getLogger("optimade").setLevel(logging.ERROR)
    server = uvicorn.Server(uvicorn.Config(guarded, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    state.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield state
    finally:
        server.should_exit = True
        thread.join(5)
