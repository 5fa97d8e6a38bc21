"""A clone of the project with a tiny campaign, run with ``snakemake --profile slurm`` on the tests' cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dao_pipeline.config import Campaign
from dao_pipeline.config.read import deep_merge, load_campaign
from dao_pipeline.workflow_support import stage_files
from tests.slurm.cluster import (
    ACCOUNT,
    GPU_MAX_MINUTES,
    GPU_MODEL,
    GPU_PARTITION,
    GPUS,
    MAX_MINUTES,
    PARTITION,
    Cluster,
)
from tests.workflow.support import REPOSITORY, TINY, Run, environment, write_crystals
from tests.workflow.test_kill import same_content

PATIENCE = 900.0
"""Seconds that a campaign may take on a busy machine."""

SITE: dict[str, Any] = {
    "account": ACCOUNT,
    "gpu_model": GPU_MODEL,
    "warning": 10,
    "scratch": "$PWD/scratch",
    "setup": ["export DAO_SET_UP=yes"],
    "partitions": {
        PARTITION: {"max_runtime": MAX_MINUTES, "max_mem_mb": 4000, "max_threads": 2},
        GPU_PARTITION: {"max_runtime": GPU_MAX_MINUTES, "max_mem_mb": 4000, "max_threads": 2}
        | {"max_gpu": GPUS, "available_gpu_models": [GPU_MODEL]},
    },
}
_JOB = {"threads": 1, "mem_mb": 1500, "runtime": 10}
CHANGES: dict[str, Any] = {
    "generator": {"template_paths": 0},
    "generate": {"template_share": 0, "template_refinement": "none", "test_split": {"limit": 3}},
    "pretrain": {"stages": 1},
    "evaluate": {"baselines": []},
    "compute": {"cpu": _JOB, "training": _JOB | {"gpus": 1}, "sampling": _JOB | {"gpus": 1}},
}
"""Fewer stages, and all that is asked of a cluster."""

QUICK = ("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2")
LOCAL = {"download", "plan_candidates", "plan_shard"}


@dataclass(frozen=True)
class Job:
    """A job in Slurm's accounts."""

    number: int
    rule: str
    """Name and wildcards of the rule, e.g. generate_candidates_wildcards_tiny_0001."""
    state: str
    asked: dict[str, str]
    """Trackable resources, e.g. cpu, mem, gres/gpu."""
    partition: str
    account: str
    minutes: str


@dataclass(frozen=True)
class Clone:
    """A copy of the project's tracked folders, with a campaign in tiny.yaml."""

    cluster: Cluster
    folder: Path

    @staticmethod
    def make(cluster: Cluster, folder: Path, **changes: Any) -> Clone:
        """A new clone, with nothing made in it yet."""
        folder.mkdir(parents=True)
        for name in ("workflow", "src", "config", "envs"):
            ignored = shutil.ignore_patterns("__pycache__", "*.tmp", "*.egg-info")
            shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
        shutil.copy(REPOSITORY / "Snakefile", folder)
        for link in ("slurm", "profiles"):
            (folder / link).symlink_to((REPOSITORY / link).readlink())
        (folder / "slurm/site.yaml").write_text(yaml.safe_dump(SITE, sort_keys=False))
        write_crystals(folder / "crystals.parquet")
        clone = Clone(cluster, folder)
        clone.be_born()
        clone.change(
            deep_merge(deep_merge(TINY | {"data": TINY["data"] | {"path": "crystals.parquet"}}, CHANGES), changes)
        )
        return clone

    def copy(self, folder: Path, **changes: Any) -> Clone:
        """This clone with all that it has made, and other values of some keys."""
        shutil.copytree(
            self.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("output.txt", "__pycache__")
        )
        clone = Clone(self.cluster, folder)
        clone.be_born()
        clone.change(deep_merge(yaml.safe_load((self.folder / "tiny.yaml").read_text()), changes))
        return clone

    def change(self, values: dict[str, Any]) -> None:
        """Write the campaign."""
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    def change_site(self, **values: Any) -> None:
        """Write other values of the site's file."""
        (self.folder / "slurm/site.yaml").write_text(yaml.safe_dump(SITE | values, sort_keys=False))

    def be_born(self) -> None:
        """Jobs up to now are not this clone's, whatever folder they ran in."""
        numbers = self.cluster.run("sacct", "-X", "-n", "-P", "-a", "-S", "now-1day", "-o", "JobIDRaw").split()
        (self.folder / "born").write_text(str(max(map(int, numbers), default=0)))

    @property
    def born(self) -> int:
        """The last job before this clone was made."""
        return int((self.folder / "born").read_text())

    @property
    def campaign(self) -> Campaign:
        return load_campaign(self.folder / "tiny.yaml")

    @property
    def variables(self) -> dict[str, str]:
        """Environment of a user who has opened a shell on the login node."""
        mine = environment(PYTHONPATH=str(self.folder / "src"))
        return self.cluster.environment | {k: mine[k] for k in ("PYTHONPATH", "OMP_NUM_THREADS")}

    # running

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """``snakemake --profile slurm`` as typed in the clone; only looks at jobs more often."""
        command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--configfile", "tiny.yaml"]
        with (self.folder / "output.txt").open("a") as output:
            return subprocess.Popen(
                [*command, *QUICK, *arguments],
                cwd=self.folder,
                env=self.variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, *arguments: str) -> Run:
        """Start Snakemake and wait for its end."""
        return self.end(self.start(*arguments))

    def end(self, process: subprocess.Popen[str]) -> Run:
        """Wait for Snakemake's end."""
        try:
            code = process.wait(PATIENCE)
        finally:
            process.kill()
        return Run(code, self.output)

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def wait_for(self, ready: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
        """Wait until something happens while Snakemake runs; what it is."""
        start = time.monotonic()
        while not (found := ready()):
            assert process.poll() is None, f"Snakemake ended before that: {self.output}"
            assert time.monotonic() - start < PATIENCE, self.output
            time.sleep(0.3)
        return found

    # jobs

    def jobs(self) -> list[Job]:
        """Jobs that were submitted from this clone, by number; of requeued jobs the last run."""
        names = "JobIDRaw,Comment,State,ReqTRES,Partition,Account,Timelimit,WorkDir"
        text = self.cluster.run("sacct", "-X", "-n", "-P", "-a", "-S", "now-3hours", "-o", names)
        found = []
        for line in text.splitlines():
            number, comment, state, asked, partition, account, minutes, where = line.split("|")
            if Path(where) == self.folder and int(number) > self.born:
                tres = dict(item.split("=") for item in asked.split(",") if item)
                rule = comment.removeprefix("rule_")
                found.append(Job(int(number), rule, state.split()[0], tres, partition, account, minutes))
        return sorted(found, key=lambda job: job.number)

    def running(self, rule: str) -> list[int]:
        """Numbers of the jobs of a rule that run now. The accounts do not know their rules before they end."""
        text = self.cluster.run("squeue", "-h", "-t", "R", "-o", "%A|%k|%Z")
        rows = [line.split("|", 2) for line in text.splitlines()]
        return [
            int(n)
            for n, comment, where in rows
            if comment.startswith(f"rule_{rule}") and Path(where) == self.folder
        ]

    def doctor(self, *arguments: str) -> dict[str, dict[str, str]]:
        """Verdicts of ``dao-pipeline doctor`` by subject."""
        done = subprocess.run(
            [sys.executable, "-m", "dao_pipeline.cli", "doctor", *arguments, "--json"],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode in (0, 1), done.stderr
        return {verdict["subject"]: verdict for verdict in json.loads(done.stdout)["verdicts"]}

    def train_here(self) -> None:
        """Train DAO-P without Slurm and Snakemake, undisturbed, from what this clone has made before."""
        results = self.folder / "results/tiny"
        shutil.rmtree(results / "models/dao_p")
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        options = {
            "config": "tiny.yaml",
            "crysdb": results / "crysdb",
            "out": results / "models/dao_p",
            "work": "work",
        }
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        subprocess.run(
            [sys.executable, "-m", "dao_pipeline.cli", "train-energy-model", *arguments],
            cwd=self.folder,
            env=self.variables,
            check=True,
            timeout=PATIENCE,
        )

    @property
    def submitted(self) -> int:
        """Jobs that Snakemake has submitted."""
        return self.output.count("has been submitted with SLURM jobid")

    def restarts(self, job: int) -> int:
        """How often Slurm has requeued a job."""
        text = self.cluster.run("scontrol", "show", "job", str(job))
        return int(text.partition("Restarts=")[2].split()[0])

    # judging

    def made_again(self, stages: tuple[str, ...]) -> None:
        """Remove what these stages have made, so that they must run again."""
        for stage in stages:
            for name in stage_files(self.campaign, stage):
                (self.folder / name).unlink()

    def check(self, reference: Clone, stages: tuple[str, ...], since: int = 0) -> None:
        """All files of these stages are there, whole and as in ``reference``; each job ended well once."""
        for stage in stages:
            for name in stage_files(self.campaign, stage):
                same_content(self.folder / name, reference.folder / name)
        assert not list((self.folder / "results").rglob("*.tmp*"))
        done = Counter(job.rule for job in self.jobs() if job.state == "COMPLETED" and job.number > since)
        assert set(done.values()) == {1}, done
        expected = sum(
            len(stage_files(self.campaign, stage)) for stage in stages if stage == "generate_candidates"
        )
        assert sum(rule.startswith("generate_candidates") for rule in done) == expected
