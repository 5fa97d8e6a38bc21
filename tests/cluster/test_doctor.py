"""dao-pipeline doctor, with commands in Slurm's place that say what is to be understood."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dao_pipeline.cli import app
from dao_pipeline.cluster import machine, slurm
from dao_pipeline.cluster.node import look
from dao_pipeline.cluster.site import Partition, Site
from dao_pipeline.cluster.verdict import Verdict

SINFO = """\
standard*|1-00:00:00|190000+|48|(null)
standard*|1-00:00:00|380000|96|(null)
accel|2-12:30:00|500000|64|gpu:a100:4(S:0-1)
accel|2-12:30:00|500000|64|gpu:a100_80:2(S:0-1),gpu:v100:1
mixed|infinite|64000|16|gpu:2,tmpdisk:100
"""
ANSWERS = {
    "sinfo": f'if [ "$1" = --version ]; then echo slurm 23.11.4; else cat <<E\n{SINFO}E\nfi',
    "scontrol": "echo 'Slurmctld(primary) at login1 is UP'",
    "sacct": "true",
    "squeue": "true",
    "scancel": "true",
    "srun": "echo 'srun: error: Unable to allocate resources: Immediate execution impossible, insufficient"
    " priority' >&2; exit 1",
    "sbatch": 'case "$*" in *v100*) echo "sbatch: error: Requested node configuration is not available" >&2;'
    ' exit 1;; *) echo "sbatch: Job 7 to start at 2026-01-01T00:00:00" >&2;; esac',
}


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with commands of Slurm, in front of the path; nothing else of Slurm is on it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, answer in ANSWERS.items():
        answering(folder, name, answer)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def answering(folder: Path, name: str, answer: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{answer}\n")
    (folder / name).chmod(0o755)


def levels(found: list[Verdict]) -> dict[str, str]:
    return {verdict.subject: verdict.level for verdict in found}


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("30:00", 30),
        ("1:00:00", 60),
        ("2-12:30:00", 3630),
        ("0:30", 0.5),
        ("infinite", math.inf),
        ("n/a", math.inf),
    ],
)
def test_times_of_slurm(text: str, minutes: float) -> None:
    assert slurm.minutes(text) == minutes


def test_partitions_as_sinfo_shows_them(commands: Path) -> None:
    found = slurm.partitions()
    assert found["standard"] == slurm.Actual("standard", True, 1440, 380_000, 96, {})
    assert found["accel"].gpus == {"a100": 4, "a100_80": 2, "v100": 1}
    assert found["mixed"] == slurm.Actual("mixed", False, math.inf, 64_000, 16, {"": 2})


def test_limits_above_those_of_the_cluster_are_named(commands: Path) -> None:
    gpu = {"max_gpu": 4, "available_gpu_models": ["a100"]}
    site = Site(
        partitions={
            "standard": Partition(max_runtime=1440, max_mem_mb=380_000, max_threads=96),
            "accel": Partition(max_runtime=5000, max_mem_mb=600_000, **gpu),
            "mixed": Partition(max_runtime=5000, **gpu),
            "gone": Partition(),
        }
    )
    found = {v.subject: v for v in slurm.look_at_partitions(site, slurm.partitions())}
    assert levels(list(found.values())) == {
        "partition standard": "ok",
        "partition accel": "fail",
        "partition mixed": "fail",
        "partition gone": "fail",
    }
    assert "max_runtime is 5000, the partition has 3630 minutes" in found["partition accel"].found
    assert "max_mem_mb is 600000" in found["partition accel"].found
    assert "no GPU model a100" in found["partition mixed"].found
    assert "standard, accel, mixed" in found["partition gone"].remedy


def test_the_default_partition_is_there_or_not(commands: Path) -> None:
    [found] = slurm.look_at_partitions(Site(), slurm.partitions())
    assert found.level == "ok"
    answering(commands, "sinfo", "echo 'accel|1:00:00|1|1|(null)'")
    [found] = slurm.look_at_partitions(Site(), slurm.partitions())
    assert found.level == "fail"


def test_requests_are_tried_in_the_style_of_the_site(commands: Path) -> None:
    gpu = Partition(max_gpu=2, max_runtime=100)
    asked = slurm.request(Site(account="acc", gpu_request="gres", gpu_model="a100", qos="long"), "accel", gpu)
    expected = ["--partition", "accel", "--account", "acc", "--qos", "long", "--gres=gpu:a100:2", "--time=100"]
    assert asked == [*expected, "--ntasks=1"]
    [refused] = slurm.look_at_requests(Site(gpu_model="v100", partitions={"accel": gpu}))
    assert refused.level == "fail"
    assert refused.found == "Requested node configuration is not available"
    [taken] = slurm.look_at_requests(Site(gpu_model="a100", partitions={"accel": gpu}))
    assert taken.level == "ok"


def test_a_busy_cluster_is_no_fault(commands: Path, tmp_path: Path) -> None:
    [found] = slurm.look_at_nodes(Site(), tmp_path, "2.13.0", 1)
    assert (found.level, found.found) == ("warn", "none was free within 1 s")
    assert not list(tmp_path.glob(".doctor*"))


def test_a_node_is_asked_through_the_set_up_of_the_site(commands: Path, tmp_path: Path) -> None:
    """srun that runs its command here: a node that shares everything, as far as it can be seen."""
    answering(commands, "srun", 'while [ "$1" != bash ]; do shift; done; exec "$@"')
    from importlib.metadata import version

    found = list(slurm.look_at_nodes(Site(scratch=f"{tmp_path}/fast"), tmp_path, version("torch"), 5))
    assert {v.level for v in found} == {"ok"}, found
    assert any(v.found == f"{tmp_path}/fast" for v in found)
    broken = list(slurm.look_at_nodes(Site(setup=["module load nothing"]), tmp_path, version("torch"), 5))
    assert broken[0].level == "fail"
    assert "setup" in broken[0].remedy


def test_a_node_that_does_not_share_the_folder(tmp_path: Path) -> None:
    found = look(tmp_path / "elsewhere", "token")
    assert not found["sees_token"]
    assert "No such file" in found["write_error"]
    verdicts = list(slurm.judge_node(found, Partition(max_gpu=1), tmp_path, "token", "node", found["torch"], 0))
    assert levels(verdicts)["node: files"] == "fail"
    assert levels(verdicts)["node: GPU"] == ("ok" if found["gpus"] else "fail")


def test_no_slurm_is_said_and_ends_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MP_API_KEY", key := "k3y" * 10 + "xy")
    done = CliRunner().invoke(app, ["doctor", "--clone", str(tmp_path), "--json"])
    assert done.exit_code == 1
    found = {v["subject"]: v for v in json.loads(done.stdout)["verdicts"]}
    assert found["Slurm"]["level"] == "fail"
    assert "login node" in found["Slurm"]["remedy"]
    assert found["Materials Project key"]["level"] == "ok"
    assert key not in done.output


def test_a_sound_site_ends_with_0(commands: Path, tmp_path: Path) -> None:
    answering(commands, "dao-pipeline", "true")
    (tmp_path / "slurm").mkdir()
    site = {"partitions": {"accel": {"max_gpu": 4, "available_gpu_models": ["a100"], "max_mem_mb": 500_000}}}
    (tmp_path / "slurm/site.yaml").write_text(yaml.safe_dump(site))
    campaign = tmp_path / "c.yaml"
    campaign.write_text("name: c\ncompute: {training: {gpus: 4}}\n")
    options = ["doctor", str(campaign), "--clone", str(tmp_path), "--wait", "0"]
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "sound, and fits the site" in done.output
    campaign.write_text("name: c\ncompute: {training: {gpus: 8}}\n")
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 1
    assert "compute.training asks for 2 threads, 8 GPUs" in done.output
    (tmp_path / "slurm/site.yaml").write_text("acount: x\n")
    assert "acount: unknown key" in CliRunner().invoke(app, options).output


def test_versions_against_those_tested_together(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("snakemake==1.0\npyarrow==1\n")
    found = {v.subject: v for v in machine.look_at_versions(constraints)}
    assert (found["snakemake"].level, found["torch"].level) == ("warn", "ok")
    assert "tested with 1.0" in found["snakemake"].found


@pytest.mark.parametrize(("gb", "level"), [(0.5, "fail"), (5, "warn"), (100, "ok")])
def test_room(gb: float, level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    blocks = int(gb * 1e9 / real.f_frsize)
    fields = [*real[:4], blocks, *real[5:]]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    assert levels(list(machine.look_at_files(tmp_path)))["free space"] == level


def test_a_malformed_key_is_a_fault_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", "s3cret")
    found = machine.look_at_key()
    assert found.level == "fail"
    assert "s3cret" not in str(found)
