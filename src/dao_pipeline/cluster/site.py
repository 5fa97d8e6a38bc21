"""What is peculiar to a cluster, in one file: account, partitions and their limits, style of GPU requests, set-up.

The file is ``slurm/site.yaml`` of the clone, or the one that the environment variable DAO_PIPELINE_SITE names.
Its section ``partitions`` is in the form that Snakemake's Slurm executor reads, and is given to it: the executor
chooses the partition of each job, and jobs ask for no more than one of them gives.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from dao_pipeline.config import Campaign, Resources
from dao_pipeline.config.read import describe, read_yaml
from dao_pipeline.config.section import Section
from dao_pipeline.errors import UserError

VARIABLE = "DAO_PIPELINE_SITE"
SITE_FILE = Path("slurm/site.yaml")
PLUGIN_VARIABLE = "SNAKEMAKE_SLURM_PARTITIONS"
"""Where the executor looks for partitions."""

_WORD = r"^[A-Za-z0-9_.+-]+$"


class Partition(Section):
    """Limits of a partition, under the executor's names for them. What is left out is not limited."""

    max_runtime: float = Field(math.inf, ge=1, description="minutes")
    max_mem_mb: float = Field(math.inf, ge=100, description="megabytes of one job on one node")
    max_threads: float = Field(math.inf, ge=1, description="cores of one job on one node")
    max_gpu: int = Field(0, ge=0, description="GPUs of one node; 0: a partition for CPUs")
    available_gpu_models: list[str] | None = Field(None, description="models of GPU, as sinfo -o %G names them")


class Site(Section):
    """A cluster. The defaults suit one that asks for nothing but sbatch."""

    account: str | None = Field(None, pattern=_WORD, description="account that is charged (sbatch -A)")
    qos: str | None = Field(None, pattern=_WORD, description="quality of service (sbatch --qos)")
    gpu_request: Literal["gpus", "gres"] = Field("gpus", description="how GPUs are asked for: --gpus or --gres")
    gpu_model: str | None = Field(None, pattern=r"^[A-Za-z0-9_.]+$", description="model of GPU that is asked for")
    warning: int = Field(
        300, ge=0, le=3600, description="seconds before the time limit at which jobs are told to save; 0: not told"
    )
    sbatch: list[str] = Field([], description="further options of sbatch, e.g. --mail-type=FAIL")
    setup: list[str] = Field([], description="shell lines run before each job's work, e.g. module load cuda")
    scratch: str | None = Field(None, description="folder for temporary files of a job, on its node")
    partitions: dict[str, Partition] = Field({}, description="by name; none: sinfo's default partition takes all")

    @field_validator("sbatch", "setup")
    @classmethod
    def _one_line_each(cls, lines: list[str]) -> list[str]:
        if any("\n" in line for line in lines):
            raise ValueError("a line each, without line breaks in it")
        return lines

    @model_validator(mode="after")
    def _some_partition_has_the_model(self) -> Site:
        known = [p.available_gpu_models for p in self.partitions.values() if p.max_gpu]
        if self.gpu_model and known and all(m is not None and self.gpu_model not in m for m in known):
            raise ValueError(f"gpu_model is {self.gpu_model}, which is in available_gpu_models of no partition")
        return self

    # what a job asks for

    def fitting(self, wanted: Resources) -> dict[str, Partition]:
        """The partitions with enough cores and GPUs; jobs without GPUs keep to those without, if they can."""
        enough = {
            name: partition
            for name, partition in self.partitions.items()
            if wanted.threads <= partition.max_threads
            and wanted.gpus <= partition.max_gpu
            and (not wanted.gpus or self._has_model(partition))
        }
        without = {name: partition for name, partition in enough.items() if not partition.max_gpu}
        return enough if wanted.gpus else without or enough

    def _has_model(self, partition: Partition) -> bool:
        models = partition.available_gpu_models
        return self.gpu_model is None or models is None or self.gpu_model in models

    def bounded(self, wanted: Resources, attempt: int) -> tuple[int, int]:
        """Megabytes and minutes of a job: in proportion to the attempt, as far as one partition gives both."""
        memory, minutes = wanted.mem_mb * attempt, wanted.runtime * attempt
        best = max(
            self.fitting(wanted).values(),
            key=lambda p: min(1.0, p.max_mem_mb / memory) * min(1.0, p.max_runtime / minutes),
            default=Partition(),
        )
        return int(min(memory, best.max_mem_mb)), int(min(minutes, best.max_runtime))

    def gpus(self, wanted: Resources) -> int | None:
        """GPUs asked for with --gpus; None, which is no resource at all, for 0."""
        return wanted.gpus or None if self.gpu_request == "gpus" else None

    def gres(self, wanted: Resources) -> str | None:
        """GPUs asked for with --gres."""
        if not wanted.gpus or self.gpu_request == "gpus":
            return None
        return ":".join(["gpu", *([self.gpu_model] if self.gpu_model else []), str(wanted.gpus)])

    def model(self, wanted: Resources) -> str | None:
        """Model of the GPUs asked for with --gpus."""
        return self.gpu_model if self.gpus(wanted) else None

    def defaults(self) -> dict[str, str]:
        """Resources of all jobs alike, under the executor's names."""
        options = list(self.sbatch)
        if self.warning:
            options.append(f"--signal=USR1@{self.warning}")  # to the job's steps, not to its shell
        found = {"slurm_account": self.account, "qos": self.qos, "slurm_extra": " ".join(options)}
        return {name: value for name, value in found.items() if value}

    def prefix(self) -> str:
        """What the shell of a job does first.

        It outlives SIGTERM, as Snakemake does, so that the stage can save its state: were either to end, Slurm
        would kill the rest. Set-up may use unset variables, as environment modules do.
        """
        scratch = [f'export TMPDIR="{self.scratch}"', 'mkdir -p "$TMPDIR"'] if self.scratch else []
        return "; ".join(["set -eo pipefail", *scratch, *self.setup, "set -u", "trap : TERM", ""])

    # whether a campaign fits

    def problems(self, campaign: Campaign, origin: str) -> list[str]:
        """What no partition can give."""
        found = []
        for kind, wanted in campaign.compute:
            if kind == "dft" and not campaign.qe.enabled:
                continue
            asked = f"{wanted.threads} threads, {wanted.gpus} GPUs and {wanted.mem_mb} MB"
            fitting = self.fitting(wanted).values()
            if self.partitions and not any(wanted.mem_mb <= partition.max_mem_mb for partition in fitting):
                found.append(
                    f"compute.{kind} asks for {asked}, which no partition of {origin} gives; ask for less, or "
                    "correct the limits there."
                )
        return found


def site_file(clone: Path) -> Path:
    """The file of the site, if the clone in ``clone`` has one or the environment names one."""
    return Path(os.environ.get(VARIABLE) or clone / SITE_FILE)


def load_site(path: Path) -> Site:
    """Read a site's file.

    Raises UserError with every problem.
    """
    return parse_site(read_yaml(path), str(path))


def parse_site(values: Mapping[str, Any], origin: str) -> Site:
    """Validate a site's values; ``origin`` is named in errors.

    Raises UserError with every problem.
    """
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        lines = [describe(problem, origin, whole="(site)", see="slurm/site.yaml") for problem in error.errors()]
        raise UserError("\n".join(lines)) from None
