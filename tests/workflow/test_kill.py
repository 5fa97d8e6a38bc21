"""A machine that loses power: a campaign killed again and again ends like one that was left alone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from dao_pipeline.crystals.table import read_table
from dao_pipeline.workflow_support import load_campaigns, stage_files
from tests.workflow.support import STAGES, Finished, command, dry_run, environment, run_snakemake

LOGS = (
    "train_energy_model",
    "relax_dataset-001",
    "finetune_generator",
    "generate_candidates-00001-000",
)
"""Stages, by name of their log, during which the machine dies."""

MEASURED = {"seconds", "memory_mb", "crystals_per_second", "atoms_per_second"}
"""Columns that differ from run to run."""


def run_and_kill(folder: Path, log: str, delay: float, options: tuple[object, ...], source: Path) -> None:
    """Start Snakemake and kill it with all its jobs, ``delay`` seconds after a job has opened its log."""
    process = subprocess.Popen(
        command(*options, cwd=folder),
        env=environment(PYTHONPATH=str(source)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    path = folder / f"logs/tiny/{log}.log"
    start = time.time()
    while process.poll() is None and not (path.exists() and path.stat().st_mtime >= start):
        assert time.time() - start < 300, f"{log} did not start"
        time.sleep(0.05)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_campaigns_end_like_others(finished: Finished, tmp_path: Path) -> None:
    chance = random.Random(20)
    folder = tmp_path
    stages = STAGES - {"evaluate", "report"}
    options = ("screen_candidates", "--configfile", finished.campaign)
    [campaign] = load_campaigns({}, [finished.campaign]).values()
    remaining = set(stages)
    kept: dict[Path, int] = {}
    for log in LOGS:
        run_and_kill(folder, log, chance.uniform(0, 4), options, finished.source)
        assert run_snakemake("--unlock", *options, cwd=folder, PYTHONPATH=str(finished.source)).code == 0
        left = dry_run(*options, cwd=folder, PYTHONPATH=str(finished.source)).stages
        assert left <= remaining, f"killed in {log}: finished stages would run again"
        remaining = left
        for stage in stages - left:
            for name in stage_files(campaign, stage):
                kept.setdefault(folder / name, (folder / name).stat().st_mtime_ns)
    done = run_snakemake(*options, cwd=folder, PYTHONPATH=str(finished.source))
    assert done.code == 0, done.output
    assert kept
    for path, mtime in kept.items():
        assert path.stat().st_mtime_ns == mtime, f"{path} was made twice"
    assert not dry_run(*options, cwd=folder, PYTHONPATH=str(finished.source)).stages
    for stage in stages:
        for name in stage_files(campaign, stage):
            same_content(folder / name, finished.folder / name)
    assert not list((folder / "work").rglob("*.parquet")), "parts of finished shards are left behind"


def same_content(path: Path, reference: Path) -> None:
    """Tables: same rows and columns; weights: same bytes; the rest only has to be there."""
    assert path.stat().st_size > 0
    if path.suffix == ".parquet":
        names = [name for name in pq.read_schema(path).names if name not in MEASURED]
        table = read_table(path, names).to_pandas()  # checks the number of rows against the metadata
        pd.testing.assert_frame_equal(table, read_table(reference, names).to_pandas())
    elif path.suffix == ".safetensors":
        assert path.read_bytes() == reference.read_bytes(), path
