"""The benchmark of the models runs, agrees with itself, and refuses to time what differs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "models.py"
SMALL = ["--preset", "tiny", "--layers", "1", "--threads", "1"]
SMALL += ["--crystals", "3", "--repeats", "1", "--steps", "2"]


def run(tmp_path: Path, *options: str, edit: tuple[str, str] | None = None) -> tuple[int, str, dict]:
    script = SCRIPT
    if edit:
        script = tmp_path / "models.py"
        script.write_text(SCRIPT.read_text())
        plain = SCRIPT.with_name("plain.py").read_text()
        assert edit[0] in plain
        (tmp_path / "plain.py").write_text(plain.replace(*edit))
    out = tmp_path / "result.json"
    command = [sys.executable, str(script), *SMALL, *options, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr, json.loads(out.read_text()) if out.exists() else {}


@pytest.mark.slow
def test_every_work_is_measured_and_written(tmp_path: Path) -> None:
    code, text, result = run(tmp_path, "--sizes", "mp20")
    assert code == 0, text
    assert [row["work"] for row in result["rows"]] == [
        "forward",
        "train",
        "sampler_step",
        "sampling",
        "relaxation",
    ]
    for row in result["rows"]:
        assert row["ratio"] == row["plain"]["min"] / row["ours"]["min"]
        assert row["crystals"] == 3
    assert result["agreement"]["double"] < 1e-10
    assert result["machine"]["cores"] >= 1
    assert {row["batches"] for row in result["batches"]["rows"]} >= {"mp20, mixed", "mp20, sorted by size"}
    assert result["memory"][0]["sizes"] == "mp20"
    assert "structures/s" in text


def test_better_mode_in_bfloat16(tmp_path: Path) -> None:
    code, text, result = run(
        tmp_path, "--sizes", "mp20", "--work", "train", "--mode", "better", "--dtype", "bfloat16"
    )
    assert code == 0, text
    assert len(result["rows"]) == 1


def test_nothing_is_timed_if_the_two_differ(tmp_path: Path) -> None:
    code, text, result = run(tmp_path, "--work", "forward", edit=("g * x + (1 - g) * y", "g * x + y"))
    assert code != 0
    assert "differ" in text
    assert not result
