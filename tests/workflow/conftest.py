"""A tiny campaign (rock salts and the like, networks of a few hundred weights, four training steps)."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.workflow.support import TINY, run_snakemake, write_crystals


@pytest.fixture(scope="session")
def crystals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of crystals to start from."""
    path = tmp_path_factory.mktemp("source") / "crystals.parquet"
    write_crystals(path)
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, crystals: Path) -> Path:
    """The tiny campaign's file."""
    path = tmp_path_factory.mktemp("campaign") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {"path": str(crystals)}}))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A working directory in which the tiny campaign has run to its end. Tests only ask what would run."""
    folder = tmp_path_factory.mktemp("finished")
    run = run_snakemake("--configfile", tiny, cwd=folder)
    assert run.code == 0, run.output
    return folder
