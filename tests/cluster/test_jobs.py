"""What a Snakemake that submits jobs does first, with commands in Slurm's place."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dao_pipeline.cluster import jobs
from dao_pipeline.errors import UserError


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A squeue that shows the file ``queue``, and a scancel that empties it and notes what it ended."""
    folder = tmp_path / "bin"
    folder.mkdir()
    queue, ended = folder / "queue", folder / "ended"
    queue.touch()
    for name, script in {"squeue": f"cat {queue}", "scancel": f'echo "$@" >> {ended}; : > {queue}'}.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def test_jobs_left_here_by_a_killed_run_are_ended(slurm: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(here := tmp_path / "here")
    here.mkdir()
    lines = [
        f"7|dao_a1|{here}",
        f"8|dao_a1|{tmp_path}/link",
        "9|dao_b2|/other/clone",
        f"10|mine|{here}",
        "slurm_load_jobs error",
    ]
    (slurm / "queue").write_text("\n".join(lines) + "\n")
    jobs.end_orphans(here)
    assert (slurm / "ended").read_text() == "7 8\n"


def test_a_queue_without_such_jobs_is_left_alone(slurm: Path, tmp_path: Path) -> None:
    (slurm / "queue").write_text(f"9|dao_b2|/other/clone\n10|mine|{tmp_path}\n")
    jobs.end_orphans(tmp_path)
    assert not (slurm / "ended").exists()


def test_jobs_that_do_not_end_are_named(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", 0.5)
    (slurm / "scancel").write_text("#!/bin/bash\n")
    (slurm / "queue").write_text(f"7|dao_a1|{tmp_path}\n")
    with pytest.raises(UserError, match="jobs 7 of an earlier run here do not end; end them with scancel"):
        jobs.end_orphans(tmp_path)


def test_the_names_of_jobs_are_those_of_the_profile() -> None:
    import yaml

    from tests.workflow.support import REPOSITORY

    profile = yaml.safe_load((REPOSITORY / "slurm/config.yaml").read_text())
    assert profile["slurm-jobname-prefix"] + "_" == jobs.JOB_NAME


def test_the_executor_sees_that_a_job_was_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm")

    async def sacct(command: str, logger: Any) -> tuple[dict[str, str] | None, float | None]:
        return (None, None) if command == "fails" else ({"1": "CANCELLED by 1000", "2": "RUNNING", "3": ""}, 0.1)

    monkeypatch.setattr(plugin, "query_job_status", sacct)
    jobs.read_states_in_full()
    states, _ = asyncio.run(plugin.query_job_status("sacct", None))
    assert states == {"1": "CANCELLED", "2": "RUNNING", "3": ""}
    assert asyncio.run(plugin.query_job_status("fails", None)) == (None, None)


def test_a_job_is_not_tried_again_inside_itself() -> None:
    rules = [SimpleNamespace(restart_times=2), SimpleNamespace(restart_times=None)]
    jobs.retry_outside(SimpleNamespace(rules=rules))
    assert [rule.restart_times for rule in rules] == [0, 0]
