"""Crystals, a tiny model and short trainings, shared by the tests and by the processes that they start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import Backbone, Process, Training
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.dataset import CrystalDataset
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.model.dao import About, DaoModel
from dao_pipeline.process.objective import GeneratorObjective
from dao_pipeline.training.checkpoint import State
from dao_pipeline.training.loop import train
from dao_pipeline.training.objective import Objective

SETTINGS = Training(
    steps=12, batch_atoms=40, learning_rate=1e-3, warmup_steps=3, validate_every=5, checkpoint_every=4
)
LABEL = "e_above_hull"


def with_settings(**changes: Any) -> Training:
    return Training(**{**SETTINGS.model_dump(), **changes})


def crystals(count: int = 40, seed: int = 0) -> pa.Table:
    random = np.random.default_rng(seed)
    return to_table(
        Crystal(
            id=f"row:{i}",
            source="test",
            atomic_numbers=random.integers(1, 90, n),
            frac_coords=random.random((n, 3)),
            lattice=(4 + random.random()) * np.eye(3) + 0.3 * random.standard_normal((3, 3)),
            extra={"e_above_hull": float(random.random())},
        )
        for i, n in enumerate(random.integers(1, 7, count))
    )


def new_model(kind: str = "dao_g") -> DaoModel:
    torch.manual_seed(0)
    about = About(
        kind=kind,
        backbone=Backbone(preset="tiny", layers=1, width=16, heads=2, frequencies=4).model_dump(),
        process=Process(timesteps=50).model_dump(),
        energy_label=LABEL if kind == "dao_p" else None,
        energy_mean=0.5,
        energy_std=0.3,
    )
    return DaoModel(about, fit_element_volumes(crystals()))


def run(
    work: Path,
    objective: Objective | None = None,
    settings: Training = SETTINGS,
    *,
    kind: str = "dao_g",
    **options: Any,
) -> tuple[dict[str, Tensor], State]:
    """Train a new model on 40 crystals, validate on 6; its weights and the state."""
    model = new_model(kind)
    state = train(
        model,
        objective or GeneratorObjective(),
        CrystalDataset(crystals(), LABEL),
        CrystalDataset(crystals(6, seed=5), LABEL),
        settings,
        work=work,
        **{"identity": "x", "seed": 1, "label": "test", **options},
    )
    return {name: value.clone() for name, value in model.state_dict().items()}, state


class Disturbed(GeneratorObjective):
    """DAO-G's objective that does ``act`` in its n-th training step, before the network sees the first chunk.

    ``steps`` counts the training steps of this process, ``chunks`` the atoms of every chunk it computed.
    """

    def __init__(self, at: int = 0, act: Callable[[], None] = lambda: None) -> None:
        self.steps, self.at, self.act, self.fresh = 0, at, act, False
        self.chunks: list[int] = []

    def draw(self, model: DaoModel, batch: Data, generator: torch.Generator) -> Data:
        self.fresh = True
        return super().draw(model, batch, generator)

    def sums(self, model: DaoModel, batch: Data) -> dict[str, Tensor]:
        if not torch.is_grad_enabled():
            return super().sums(model, batch)
        self.steps += self.fresh
        self.fresh, due = False, self.fresh and self.steps == self.at
        if due:
            self.act()
        self.chunks.append(len(batch.atomic_numbers))
        return super().sums(model, batch)


class SmallMemory(Disturbed):
    """Allocations fail for more than ``limit`` atoms at once: before the network, or after half the work."""

    def __init__(self, limit: int, error: BaseException) -> None:
        super().__init__()
        self.limit, self.error = limit, error

    def sums(self, model: DaoModel, batch: Data) -> dict[str, Tensor]:
        if len(batch.atomic_numbers) > self.limit:
            raise self.error
        return super().sums(model, batch)


def fail() -> None:
    raise KeyboardInterrupt
