"""Running Snakemake on tiny campaigns, and reading what it says."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.schema import CRYSTAL_SCHEMA

REPOSITORY = Path(__file__).parents[2]

_BACKBONE = {"preset": "tiny", "layers": 1, "width": 16, "heads": 2, "frequencies": 2}
_TRAINING = {"steps": 4, "batch_atoms": 100, "warmup_steps": 1, "validate_every": 2, "checkpoint_every": 2}
TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "file", "energy_method": "made up"},
    "crysdb": {"min_atoms": 1, "val_fraction": 0.1, "test_fraction": 0.2},
    "process": {"timesteps": 10},
    "energy_model": {"backbone": _BACKBONE, "training": _TRAINING},
    "relax": {"steps": 2, "shard_size": 20, "jobs": 2},
    "generator": {"backbone": _BACKBONE, "template_paths": 0.5},
    "templates": {"distance": "mendeleev"},
    "pretrain": {"stage1": _TRAINING, "stage2": _TRAINING},
    "finetune": {"training": _TRAINING},
    "generate": {"test_split": {"limit": 2}, "samples": 4, "steps": 4, "shard_compositions": 1, "round_samples": 4}
    | {"template_share": 0.5, "template_refinement": "path", "template_steps": 2},
    "evaluate": {"bootstrap": 10},
    "compute": {"cpu": {"threads": 1}, "training": {"threads": 1}, "sampling": {"threads": 1}},
}

NEXT: dict[str, tuple[str, ...]] = {
    "download": ("build_crysdb",),
    "build_crysdb": (
        "index_templates",
        "train_energy_model",
        "relax_dataset",
        "pretrain_generator_stage1",
        "pretrain_generator_stage2",
        "finetune_generator",
        "plan_candidates",
        "train_ranker",
        "sort_references",
        "evaluate",
    ),
    "index_templates": ("pair_templates", "propose_templates", "train_ranker"),
    "train_ranker": ("screen_shard",),
    "pair_templates": ("pretrain_generator_stage1", "pretrain_generator_stage2", "finetune_generator"),
    "propose_templates": ("generate_candidates",),
    "train_energy_model": ("relax_dataset", "generate_candidates", "screen_shard", "evaluate"),
    "relax_dataset": ("pretrain_generator_stage2",),
    "pretrain_generator_stage1": ("pretrain_generator_stage2",),
    "pretrain_generator_stage2": ("finetune_generator",),
    "finetune_generator": ("generate_candidates",),
    "plan_candidates": ("propose_templates", "generate_candidates", "screen_shard", "screen_candidates"),
    "generate_candidates": ("screen_shard",),
    "sort_references": ("screen_shard",),
    "screen_shard": ("screen_candidates",),
    "screen_candidates": ("evaluate", "validate_qe"),
    "evaluate": (),
    "validate_qe": (),
    "report": (),
}
"""Which stages read what a stage writes; the report reads everything."""

STAGES = frozenset(NEXT) - {"validate_qe"}
"""Stages of the tiny campaign."""


def follow(*stages: str) -> set[str]:
    """These stages of the tiny campaign, and all that must run after them."""
    found: set[str] = set()
    waiting = list(stages)
    while waiting:
        stage = waiting.pop()
        if stage not in found:
            found.add(stage)
            waiting += [*NEXT[stage], "report"]
    return found & STAGES


def before(stage: str) -> set[str]:
    """A stage of the tiny campaign, and all that it needs."""
    return {other for other in STAGES if stage in follow(other) - {"report"} or other == stage}


@dataclass(frozen=True)
class Finished:
    """A campaign that has run to its end."""

    folder: Path
    campaign: Path
    source: Path

    def dry_run(self, *arguments: object, source: Path | None = None) -> Run:
        """What would run now, with the code that it ran with or another."""
        options = (*arguments, "--configfile", self.campaign)
        return dry_run(*options, cwd=self.folder, PYTHONPATH=str(source or self.source))


@dataclass(frozen=True)
class Run:
    """A finished Snakemake process."""

    code: int
    output: str

    @property
    def jobs(self) -> Counter[str]:
        """Jobs that ran or would run, by rule."""
        lines = self.output.splitlines()
        starts = [i for i, line in enumerate(lines) if line.startswith("job ") and line.split()[-1] == "count"]
        counts: Counter[str] = Counter()
        for line in lines[starts[0] + 2 :] if starts else []:
            rule, count = line.split()
            if rule == "total":
                break
            counts[rule] = int(count)
        return counts

    @property
    def stages(self) -> set[str]:
        """Stages that ran or would run."""
        return set(self.jobs) - {"all", "plan_shard"}


def environment(**extra: str) -> dict[str, str]:
    """Of a plain shell: the interpreter's folder is not on the path, threads do not multiply."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SNAKEMAKE", "PYTEST", "COV"))}
    folders = [p for p in inherited["PATH"].split(os.pathsep) if Path(p) != Path(sys.executable).parent]
    return inherited | {"PATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"} | extra


def command(*arguments: object, cwd: Path) -> list[str]:
    """Snakemake's command line for results in ``cwd``."""
    base = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--directory", cwd]
    return [str(part) for part in (*base, *arguments)]


def run_snakemake(*arguments: object, cwd: Path, started_in: Path | None = None, **extra: str) -> Run:
    """Run Snakemake from a clone's Snakefile with results in ``cwd``; ``extra`` goes into the environment."""
    done = subprocess.run(
        command(*arguments, cwd=cwd),
        cwd=started_in or cwd,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return Run(done.returncode, done.stdout)


def dry_run(*arguments: object, cwd: Path, started_in: Path | None = None, **extra: str) -> Run:
    """What would run: no job does."""
    run = run_snakemake(*arguments, "-n", "-q", "rules", cwd=cwd, started_in=started_in, **extra)
    assert run.code == 0, run.output
    return run


def write_crystals(path: Path) -> None:
    """Binary crystals of three prototypes, 2 atoms each, with energies that depend on prototype and elements."""
    rng = np.random.default_rng(0)
    cubic, face_centred = np.eye(3), np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    prototypes = {
        "rocksalt": (face_centred, 0.5, 5.4, 0.0, 225),
        "cscl": (cubic, 0.5, 3.4, 0.15, 221),
        "zincblende": (face_centred, 0.25, 5.9, 0.3, 216),
    }
    rows = []
    metals, anions = ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "Ba"), ("F", "Cl", "Br", "O", "S", "Se")
    for (name, (cell, shift, edge, energy, number)), metal, anion in itertools.product(
        prototypes.items(), metals, anions
    ):
        size = edge * (1 + 0.004 * (ATOMIC_NUMBERS[metal] + ATOMIC_NUMBERS[anion]))
        rows.append(
            {
                "id": f"{name}-{metal}{anion}",
                "source": "test",
                "formula": f"{metal}{anion}",
                "num_atoms": 2,
                "atomic_numbers": [ATOMIC_NUMBERS[metal], ATOMIC_NUMBERS[anion]],
                "frac_coords": [0.0, 0.0, 0.0, shift, shift, shift],
                "lattice": (cell * size).ravel().tolist(),
                "spacegroup": number,
                "formation_energy": energy - 1.0 + 0.02 * rng.random(),
                "e_above_hull": energy + 0.02 * rng.random(),
                "energy_method": "made up",
                "split": None,
            }
        )
    pq.write_table(pa.Table.from_pylist(rows, schema=CRYSTAL_SCHEMA), path)
