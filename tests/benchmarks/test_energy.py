"""The measures of DAO-P's quality, on predictions whose quality is known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dao_pipeline.config import Backbone, Process
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.model.dao import About, DaoModel
from tests.make import binary

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import energy as bench


def test_pairs_are_within_a_formula_and_a_level_of_theory() -> None:
    facts = pd.DataFrame(
        {
            "formula": ["A", "A", "B", "A", "B", "A"],
            "energy_method": ["x", "x", "x", "y", "x", "x"],
            "formation_energy": [0.3, 0.1, -1.0, 0.0, -2.0, 0.2],
        }
    )
    low, high, group = bench.pairs(facts)
    assert {(int(a), int(b)) for a, b in zip(low, high, strict=True)} == {(1, 5), (1, 0), (5, 0), (4, 2)}
    assert len(set(group.tolist())) == 2


def test_intervals_hold_the_share_and_widen_for_groups() -> None:
    random = np.random.default_rng(0)
    right = np.repeat(random.random(40) < 0.7, 10)
    alone = [float(x) for x in bench.interval(lambda i: float(right[i].mean()), len(right)).split(" to ")]
    grouped = [float(x) for x in bench.by_group(right, np.repeat(np.arange(40), 10)).split(" to ")]
    assert grouped[0] < alone[0] < right.mean() < alone[1] < grouped[1]


def test_spearman_with_ties() -> None:
    assert bench.spearman(np.array([0.0, 0, 1, 2]), np.array([1.0, 1, 5, 9])) == pytest.approx(1.0)


def test_an_exact_free_energy_is_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that says -log mean exp(-y) of everything: nothing is to be added, though it is no mean label."""
    random = np.random.default_rng(0)
    table = to_table([binary(i, formation_energy=float(random.normal(-1, 0.8))) for i in range(128)])
    about = About(
        kind="dao_p",
        backbone=Backbone(preset="tiny", layers=1, width=16, heads=2, frequencies=2).model_dump(),
        process=Process(timesteps=50).model_dump(),
        energy_label="formation_energy",
        energy_std=0.5,
    )
    model = DaoModel(about, np.full(101, 15.0))
    free = -np.log(np.exp(-table["formation_energy"].to_numpy() / 0.5).mean())

    def energy(numbers: Any, coords: Any, lattice: torch.Tensor, t: Any, layout: Any) -> torch.Tensor:
        return torch.full((len(lattice),), free)

    monkeypatch.setattr(model.crysformer, "energy", energy)
    monkeypatch.setattr(bench, "load_energy_model", lambda folder: model)
    found = bench.calibration({"m": Path("m")}, {"d": table}, draws=1)
    np.testing.assert_allclose(found["free energy"], 0, atol=1e-6)
    assert (found["bias"] < -0.1).all()
