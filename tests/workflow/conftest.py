"""A tiny campaign (rock salts and the like, networks of a few hundred weights, four training steps)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from tests.workflow.support import REPOSITORY, TINY, Finished, run_snakemake, write_crystals


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
    write_campaign(path, crystals)
    return path


def write_campaign(path: Path, crystals: Path) -> None:
    path.write_text(yaml.safe_dump(TINY | {"data": TINY["data"] | {"path": str(crystals)}}))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Finished:
    """The tiny campaign, run to its end once for all test processes. Not to be changed: tests ask what would run.

    It runs a copy of the package, which a developer's next edit does not touch.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny-campaign"
    done = Finished(folder, folder / "tiny.yaml", folder / "src")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            copy_package(REPOSITORY / "src", done.source)
            write_crystals(folder / "crystals.parquet")
            write_campaign(done.campaign, folder / "crystals.parquet")
            run = run_snakemake("--configfile", done.campaign, cwd=folder, PYTHONPATH=str(done.source))
            (folder / "code").write_text(str(run.code))
            (folder / "output").write_text(run.output)
    assert (folder / "code").read_text() == "0", (folder / "output").read_text()
    return done


def copy_package(source: Path, target: Path) -> None:
    shutil.copytree(
        source / "dao_pipeline", target / "dao_pipeline", ignore=shutil.ignore_patterns("__pycache__", "*.tmp")
    )


@pytest.fixture
def edited(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the package to edit."""
    copy_package(finished.source, tmp_path / "src")
    return tmp_path / "src"
