"""What stages ask of the machine."""

from __future__ import annotations

from pydantic import Field, model_validator

from dao_pipeline.config.section import Section


class Resources(Section):
    """What a rule asks of Snakemake and Slurm."""

    threads: int = Field(2, ge=1, description="CPU cores")
    gpus: int = Field(0, ge=0, description="GPUs of one node")
    mem_mb: int = Field(4_000, ge=100, description="megabytes; multiplied by the attempt")
    runtime: int = Field(60, ge=1, description="minutes; multiplied by the attempt")


class TrainingResources(Resources):
    """Resources of training, and how its steps are computed: that changes results by rounding only."""

    processes: int | None = Field(None, ge=1, description="processes of one training; null: one per GPU, else 1")
    chunk_atoms: int | None = Field(
        None,
        ge=1,
        description="atoms computed at once, which bounds memory; null: 1024 on CPUs, where that fits the caches, "
        "and a process's whole share of the step on GPUs. Halved by itself where memory runs out",
    )

    @property
    def num_processes(self) -> int:
        """Processes of one training."""
        return self.processes or max(1, self.gpus)

    @model_validator(mode="after")
    def _one_gpu_each(self) -> TrainingResources:
        if self.gpus and self.num_processes > self.gpus:
            raise ValueError(
                f"processes ({self.processes}) exceeds gpus ({self.gpus}): each process needs its own"
            )
        return self


class Compute(Section):
    """Resources by kind of stage; changing them reruns nothing."""

    cpu: Resources = Resources()
    training: TrainingResources = TrainingResources(mem_mb=8_000, runtime=720)
    sampling: Resources = Resources(mem_mb=8_000, runtime=240)
    dft: Resources = Resources(mem_mb=8_000, runtime=720)
