"""The tiny campaign through ``snakemake --profile slurm`` on a real Slurm, undisturbed and with faults."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from dao_pipeline.workflow_support import STAGES, stage_files
from tests.slurm.campaign import LOCAL, Clone
from tests.slurm.cluster import ACCOUNT, GPU_PARTITION, PARTITION
from tests.workflow.test_kill import same_content

pytestmark = pytest.mark.slurm
long = pytest.mark.slurm_long

AGAIN = tuple(s for s in STAGES if s in ("generate_candidates", "screen_shard", "screen_candidates"))
"""Stages that run again in the tests with faults: three shards of candidates, and what is made of them."""


def disturbed(finished: Clone, folder: Path) -> Clone:
    """A copy of the finished campaign in which these stages are to run again."""
    clone = finished.copy(folder / "clone")
    clone.made_again(AGAIN)
    return clone


def test_the_campaign_completes_and_gpu_rules_alone_ask_for_gpus(finished: Clone) -> None:
    jobs = finished.jobs()
    assert {job.state for job in jobs} == {"COMPLETED"}
    assert (finished.folder / "results/tiny/report/index.html").stat().st_size > 10_000
    rules = [job.rule.partition("_wildcards")[0] for job in jobs]
    assert len({job.rule for job in jobs}) == len(jobs)  # none was submitted twice
    assert rules.count("generate_candidates") == 3  # shards
    assert not set(rules) & LOCAL
    on_gpus = {"train_energy_model", "pretrain_generator_stage1", "finetune_generator", "generate_candidates"}
    for job, rule in zip(jobs, rules, strict=True):
        gpu = rule in on_gpus
        assert job.asked.get("gres/gpu") == ("1" if gpu else None), job
        assert job.partition == (GPU_PARTITION if gpu else PARTITION), job
        assert (job.account, job.asked["cpu"], job.asked["mem"]) == (ACCOUNT, "1", "1500M"), job
        assert job.minutes == "00:10:00", job


def test_doctor_finds_what_is_there_and_what_is_wrong(finished: Clone, tmp_path: Path) -> None:
    """No GPU stands behind those that can be asked for, and torch of the tests is one for CPUs."""
    clone = finished.copy(tmp_path / "clone")
    found = clone.doctor("tiny.yaml")
    assert "sound, and fits the site" in found["campaign tiny.yaml"]["found"]
    for subject in ("Slurm", "sacct", "partition gpu", "sbatch to gpu", "node of gpu", "node of gpu: files"):
        assert found[subject]["level"] == "ok", found[subject]
    assert found["node of gpu: scratch"]["found"] == str(clone.folder / "scratch")
    assert [s for s, verdict in found.items() if verdict["level"] == "fail"] == ["node of gpu: GPU"]
    wrong = {"max_runtime": 500, "max_gpu": 3, "available_gpu_models": ["a100"]}
    clone.change_site(gpu_model="a100", account="nobody", partitions={"gpu": wrong, "none": {}})
    found = clone.doctor("--wait", "0")
    assert "max_runtime is 500, the partition has 20 minutes" in found["partition gpu"]["found"]
    assert "no GPU model a100, but fake" in found["partition gpu"]["found"]
    assert "no such partition" in found["partition none"]["found"]
    assert found["sbatch to gpu"]["level"] == "fail"


@long
def test_memory_grows_after_a_kill_for_memory(finished: Clone, tmp_path: Path) -> None:
    """Snakemake and torch together do not fit into the 250 MB of the first attempt."""
    clone = finished.copy(tmp_path / "clone", compute={"sampling": {"mem_mb": 250}})
    shard = clone.folder / stage_files(clone.campaign, "generate_candidates")[1]
    shard.unlink()
    run = clone.run(str(shard.relative_to(clone.folder)))
    assert run.code == 0, run.output
    jobs = clone.jobs()
    assert [job.asked["mem"] for job in jobs] == [f"{250 * n}M" for n in range(1, len(jobs) + 1)]
    assert len(jobs) > 1
    assert all(job.state in ("FAILED", "OUT_OF_MEMORY", "CANCELLED") for job in jobs[:-1]), jobs
    assert "exceeded" in (clone.cluster.folder / "log/slurmd.log").read_text().lower()
    assert jobs[-1].state == "COMPLETED"
    same_content(shard, finished.folder / shard.relative_to(clone.folder))


@long
def test_cancelled_jobs_are_submitted_again(finished: Clone, tmp_path: Path) -> None:
    clone = disturbed(finished, tmp_path)
    chance = random.Random(10)
    process = clone.start("screen_candidates")
    cancelled: set[int] = set()
    for _ in range(3):
        job = chance.choice(clone.wait_for(lambda: sorted({*clone.running("")} - cancelled), process))
        time.sleep(chance.uniform(0, 8))
        clone.cluster.run("scancel", str(job), check=False)
        cancelled.add(job)
    run = clone.end(process)
    assert run.code == 0, run.output
    assert any(job.state == "CANCELLED" for job in clone.jobs())
    clone.check(finished, AGAIN)


@long
def test_a_node_that_fails_and_comes_back(finished: Clone, tmp_path: Path) -> None:
    """Slurm itself requeues what ran there. Snakemake submits no more to a node that failed, here the only one."""
    clone = disturbed(finished, tmp_path)
    process = clone.start("generate_candidates")
    clone.wait_for(lambda: clone.submitted == 3, process)
    struck = clone.wait_for(lambda: clone.running("generate_candidates"), process)
    node = clone.cluster.run("sinfo", "-h", "-o", "%n").strip()
    clone.cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    time.sleep(5)
    # it may be back by itself
    clone.cluster.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
    run = clone.end(process)
    assert run.code == 0, run.output
    assert all(clone.restarts(job) == 1 for job in struck)
    clone.check(finished, AGAIN[:1])


@long
def test_a_controller_that_restarts(finished: Clone, tmp_path: Path) -> None:
    clone = disturbed(finished, tmp_path)
    process = clone.start("screen_candidates")
    clone.wait_for(lambda: clone.running("generate_candidates"), process)
    clone.cluster.stop_daemon("slurmctld")
    time.sleep(5)
    clone.cluster.start_controller()
    run = clone.end(process)
    assert run.code == 0, run.output
    clone.check(finished, AGAIN)


@long
def test_a_killed_snakemake_starts_again(finished: Clone, tmp_path: Path) -> None:
    """Jobs that it left behind are ended first, so that none works beside its successor."""
    clone = disturbed(finished, tmp_path)
    process = clone.start("screen_candidates")
    left = clone.wait_for(lambda: clone.running("generate_candidates"), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert clone.running("generate_candidates")
    assert clone.run("--unlock").code == 0
    run = clone.run("screen_candidates")
    assert run.code == 0, run.output
    assert "cancelling jobs of an earlier run here" in run.output
    states = {job.number: job.state for job in clone.jobs()}
    assert all(states[job] in ("CANCELLED", "COMPLETED") for job in left), states
    clone.check(finished, AGAIN, max(left))


STEPS = 2400
"""About a minute on a quiet core."""


@long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_reaches_its_time_limit_goes_on(finished: Clone, tmp_path: Path, processes: int) -> None:
    """Slurm warns it, it saves its state and ends; the next attempt goes on from there, to the same weights.

    The limit is lowered while the training runs, so that a slow start on a busy machine does not matter.
    """
    training = {"steps": STEPS, "validate_every": STEPS, "checkpoint_every": STEPS // 10}
    resources = {"threads": processes, "processes": processes, "gpus": 0}
    changes = {"energy_model": {"training": training}, "compute": {"training": resources}}
    clone = finished.copy(tmp_path / "clone", **changes)
    clone.change_site(warning=120)
    process = clone.start("train_energy_model")
    [job] = clone.wait_for(lambda: clone.running("train_energy_model"), process)
    start = time.monotonic()
    clone.wait_for(lambda: [*clone.folder.glob("work/tiny/train_energy_model/*.safetensors")], process)
    limit = int(time.monotonic() - start) // 60 + 2
    clone.cluster.run("scontrol", "update", f"jobid={job}", f"timelimit={limit}")
    run = clone.end(process)
    assert run.code == 0, run.output
    jobs = clone.jobs()
    assert [job.state for job in jobs] == ["FAILED", "COMPLETED"]  # warned and gone, not TIMEOUT
    assert [job.asked["cpu"] for job in jobs] == [str(processes)] * 2
    assert "interrupted: " in run.output  # the end of the stage's log
    log = (clone.folder / "logs/tiny/train_energy_model.log").read_text()
    began = int(log.partition("starts at ")[2].split()[0])
    assert 0 < began < STEPS
    assert began % (STEPS // 10), "the state was saved by the clock, not on the warning"
    undisturbed = clone.copy(tmp_path / "undisturbed")
    undisturbed.train_here()
    weights = "results/tiny/models/dao_p/model.safetensors"
    assert (clone.folder / weights).read_bytes() == (undisturbed.folder / weights).read_bytes()
