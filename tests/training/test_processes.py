"""Two processes and one: the same losses and weights, exact resumption, and faults in one of the two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dao_pipeline.config import EnergyModel
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.errors import EXIT_CONTINUE
from dao_pipeline.model.dao import load_model
from dao_pipeline.training.checkpoint import NAME
from tests.training.common import SETTINGS, Disturbed, crystals, fail, run, with_settings

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")


def torchrun(
    folder: Path, part: str, *arguments: int, by: tuple[str, ...] = TORCHRUN
) -> subprocess.CompletedProcess[str]:
    """A part of the worker in two processes, or ``by=()`` in one."""
    return subprocess.run(
        [sys.executable, "-m", *by, "tests.training.worker", str(folder), part, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def read(folder: Path, name: str, rank: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(folder / f"{name}-{rank}.safetensors", framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["facts"])  # noqa: SIM118


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Adam divides by the gradient's size: where that is mere rounding, weights may part by learning rates."""
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4)


def wait_for(condition: Callable[[], bool], log: Path) -> None:
    until = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    with pytest.raises(KeyboardInterrupt):
        run(folder / "grown", Disturbed(10, fail))
    done = torchrun(folder, "together")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_learn_what_one_learns(together: Path, tmp_path: Path) -> None:
    for name, kind in (("plain", "dao_g"), ("energy", "dao_p")):
        energy = kind == "dao_p"
        objective = EnergyObjective(EnergyModel()) if energy else None
        settings = with_settings(keep="best" if energy else "last")
        expected, state = run(tmp_path / name, objective, settings, kind=kind)
        found, facts = read(together, name)
        other, _ = read(together, name, rank=1)
        assert equal(found, other)
        assert_close(found, expected)
        assert len(facts["records"]) == len(state.records) == 12 + 3
        for record, alone in zip(facts["records"], state.records, strict=True):
            assert (record["step"], record["split"]) == (alone["step"], alone["split"])
            for key in alone:
                if key.startswith(("loss", "energy_mae", "grad_norm")):
                    expected_value = None if alone[key] is None else pytest.approx(alone[key], rel=2e-5)
                    assert record[key] == expected_value, key


def test_sigterm_in_one_process_stops_both_and_resumes_exactly(together: Path) -> None:
    for rank in (0, 1):
        assert "step 6 of 12" in read(together, "stopped", rank)[1]["stopped"]
    assert equal(read(together, "stopped_resumed")[0], read(together, "plain")[0])


def test_one_process_begins_and_two_go_on(together: Path) -> None:
    assert_close(read(together, "grown")[0], read(together, "plain")[0])


def test_a_loss_that_is_infinite_in_one_process_is_skipped_by_both(together: Path) -> None:
    for rank in (0, 1):
        _, facts = read(together, "broken", rank)
        assert (facts["skipped"], facts["step"]) == (1, 12)
    assert equal(read(together, "broken")[0], read(together, "broken", rank=1)[0])


def test_memory_that_runs_out_in_one_process_halves_the_chunks_of_both(together: Path) -> None:
    found, facts = read(together, "memory")
    assert_close(found, read(together, "plain")[0])
    budgets = [record["chunk_atoms"] for record in facts["records"]]
    assert budgets[0] == 11  # half of half the batch and an eighth more
    assert budgets[-1] == 5
    assert equal(found, read(together, "memory", rank=1)[0])


def test_a_crystal_that_does_not_fit_in_one_process_ends_both(together: Path) -> None:
    assert "see its message" in read(together, "no_memory", 0)[1]["error"]
    assert "a single crystal of" in read(together, "no_memory", 1)[1]["error"]


def random_step(seed: int) -> int:
    """One after the first checkpoint."""
    return int(np.random.default_rng(seed).integers(SETTINGS.checkpoint_every + 1, SETTINGS.steps + 1))


def test_a_killed_training_resumes_exactly(tmp_path: Path) -> None:
    killed = torchrun(tmp_path, "killed", random_step(1), by=())
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "killed" / NAME).exists()
    done = torchrun(tmp_path, "alone", by=())
    assert done.returncode == 0, done.stderr[-3000:]
    assert read(tmp_path, "killed")[1]["step"] == 12
    assert equal(read(tmp_path, "killed")[0], read(tmp_path, "whole")[0])


def test_a_killed_process_ends_the_other_and_both_resume_exactly(together: Path, tmp_path: Path) -> None:
    assert torchrun(tmp_path, "killed", random_step(2)).returncode == 1
    assert (tmp_path / "killed" / NAME).exists()
    done = torchrun(tmp_path, "resumed")
    assert done.returncode == 0, done.stderr[-3000:]
    assert read(tmp_path, "killed")[1]["step"] == 12
    assert equal(read(tmp_path, "killed")[0], read(together, "plain")[0])


@pytest.mark.slow
def test_the_command_starts_its_processes_and_ends_with_their_exit_code(tmp_path: Path) -> None:
    """SIGTERM of the command, as Snakemake and Slurm send it: 75, and the next attempt goes on.

    If the command is killed at once, its processes do not train on without it.
    """
    for name, seed in (("train", 0), ("val", 1)):
        write_table(crystals(40, seed), tmp_path / "crysdb" / f"{name}.parquet", {"stage": "test"})
    (tmp_path / "c.yaml").write_text(
        "name: two\n"
        "compute: {training: {processes: 2}}\n"
        "energy_model:\n"
        "  backbone: {preset: tiny, layers: 1, width: 16, heads: 2, frequencies: 4}\n"
        "  training: {steps: 150, batch_atoms: 60, checkpoint_every: 5, validate_every: 50, keep: best}\n"
    )
    command = [
        sys.executable,
        "-m",
        "dao_pipeline.cli",
        "train-energy-model",
        "--config",
        str(tmp_path / "c.yaml"),
    ]
    command += [
        "--crysdb",
        str(tmp_path / "crysdb"),
        "--out",
        str(tmp_path / "m"),
        "--work",
        str(tmp_path / "work"),
    ]
    for number, code in ((signal.SIGTERM, EXIT_CONTINUE), (signal.SIGKILL, -signal.SIGKILL)):
        log, seen = tmp_path / f"{number}.log", (tmp_path / "work" / NAME)
        before = seen.stat().st_mtime_ns if seen.exists() else 0
        with log.open("w") as stream:
            first = subprocess.Popen(command, env=ENVIRONMENT, stderr=stream)
        wait_for(lambda seen=seen, before=before: seen.exists() and seen.stat().st_mtime_ns > before, log)
        first.send_signal(number)
        assert first.wait(100) == code, log.read_text()
        wait_for(lambda log=log: "interrupted: train_energy_model at step" in log.read_text(), log)
        assert log.read_text().count("interrupted") == 1
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continues at step" in done.stderr
    history = load_model(tmp_path / "m").about.history[-1]
    assert history["kept"]["step"] == history["best"]["step"]
    losses = [r["loss"] for r in read_table(tmp_path / "m" / "metrics.parquet").to_pylist() if r["split"] == "val"]
    assert history["best"]["val_loss"] == min(losses)
