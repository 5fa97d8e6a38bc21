"""A cluster for the tests, and a campaign that has run to its end on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.campaign import Clone
from tests.slurm.cluster import Cluster, Unavailable


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster; one that the tests started is stopped after them."""
    cluster = Cluster()
    ran = all(cluster.status().values())
    try:
        cluster.start()
    except Unavailable as reason:
        pytest.skip(f"no Slurm: {reason}")
    yield cluster
    if not ran:
        cluster.stop()


@pytest.fixture(scope="session")
def finished(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which the tiny campaign has run to its end through ``snakemake --profile slurm``."""
    clone = Clone.make(cluster, tmp_path_factory.mktemp("slurm") / "clone")
    run = clone.run()
    assert run.code == 0, run.output
    return clone
