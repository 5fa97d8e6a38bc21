"""What the three training stages share: from a model and a table of crystals to a model directory."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Campaign, Training
from dao_pipeline.crystals.dataset import CrystalDataset
from dao_pipeline.crystals.held_out import held_out
from dao_pipeline.crystals.table import file_hash, provenance, write_table
from dao_pipeline.device import pick_device
from dao_pipeline.model.dao import DaoModel, save_model
from dao_pipeline.seeds import stage_seed
from dao_pipeline.training.loop import Objective, train
from dao_pipeline.training.metrics import metrics_table


def train_to_directory(
    model: DaoModel,
    objective: Objective,
    crystals: pa.Table,
    validation: pa.Table,
    settings: Training,
    *,
    campaign: Campaign,
    stage: str,
    inputs: dict[str, Path],
    out: Path,
    work: Path,
) -> None:
    """Train ``model`` on a table and write model.safetensors, config.json and metrics.parquet to ``out``.

    The work directory holds the checkpoint while the run lasts and is removed when ``out`` is complete.
    """
    hashes = {name: file_hash(path) for name, path in inputs.items()}
    seed = stage_seed(campaign.seed, stage)
    note = {"stage": stage, "seed": seed, "settings": settings.model_dump(mode="json"), "inputs": hashes}
    note |= {"about": {**model.about.__dict__, "history": None}}
    identity = hashlib.sha256(json.dumps(note, sort_keys=True, default=str).encode()).hexdigest()[:16]
    label = model.about.energy_label
    device = pick_device()
    records = train(
        model.to(device),
        objective,
        CrystalDataset(crystals, label),
        CrystalDataset(validation, label) if validation.num_rows else None,
        settings,
        work=work,
        identity=identity,
        seed=seed,
        label=stage,
    )
    seen = np.unique(crystals["atomic_numbers"].combine_chunks().values.to_numpy()).tolist()
    history = [
        *model.about.history,
        {
            "stage": stage,
            "campaign": campaign.name,
            "crystals": crystals.num_rows,
            "steps": settings.steps,
            "seed": seed,
            "inputs": hashes,
            "held_out": _held_out(inputs),
        },
    ]
    model.about = replace(model.about, elements=sorted({*model.about.elements, *seen}), history=history)
    about = provenance(
        stage, campaign=campaign.name, settings=settings.model_dump(mode="json"), inputs=inputs, seed=seed
    )
    write_table(metrics_table(stage, records), out / "metrics.parquet", about)
    save_model(model, out)
    shutil.rmtree(work, ignore_errors=True)


def _held_out(inputs: dict[str, Path]) -> list[dict[str, Any]] | None:
    """What the table that a model was trained on leaves out."""
    table = next(path for name, path in inputs.items() if name not in ("init", "val"))
    return held_out(table, inputs["val"].with_name("test.parquet") if "val" in inputs else None)
