"""What the three training stages share: from a model and a table of crystals to a model directory."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Campaign, Training, stage_settings
from dao_pipeline.crystals.dataset import CrystalDataset
from dao_pipeline.crystals.held_out import held_out
from dao_pipeline.crystals.table import file_hash, provenance, write_table
from dao_pipeline.model.dao import DaoModel, save_model
from dao_pipeline.seeds import stage_seed
from dao_pipeline.training.checkpoint import State
from dao_pipeline.training.distributed import join_processes
from dao_pipeline.training.loop import train
from dao_pipeline.training.metrics import metrics_table
from dao_pipeline.training.objective import Objective

_log = logging.getLogger("dao_pipeline")


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
    templates: pa.Table | None = None,
) -> None:
    """Train ``model`` on a table and write model.safetensors, config.json and metrics.parquet to ``out``.

    templates: of the crystals, see ``CrystalDataset``.
    The work directory holds the checkpoint while the run lasts and is removed when ``out`` is complete. If this is
    one of several processes, the first one writes.
    """
    hashes = {name: file_hash(path) for name, path in inputs.items()}
    seed = stage_seed(campaign.seed, stage)
    # all settings of the stage: the objective's and the choice of crystals are not among those of the loop
    note = {"stage": stage, "settings": stage_settings(campaign, stage), "inputs": hashes}
    note |= {"about": {**model.about.__dict__, "history": None}}
    identity = hashlib.sha256(json.dumps(note, sort_keys=True, default=str).encode()).hexdigest()[:16]
    label = model.about.energy_label
    left_out = _held_out(inputs)
    with join_processes() as processes:
        state = train(
            model.to(processes.device),
            objective,
            CrystalDataset(crystals, label, templates=templates),
            CrystalDataset(validation, label) if validation.num_rows else None,
            settings,
            work=work,
            identity=identity,
            seed=seed,
            label=stage,
            processes=processes,
            chunk_atoms=campaign.compute.training.chunk_atoms,
        )
    if not processes.first:
        return
    seen = np.unique(crystals["atomic_numbers"].combine_chunks().values.to_numpy()).tolist()
    history = [
        *model.about.history,
        {
            "stage": stage,
            "campaign": campaign.name,
            "crystals": crystals.num_rows,
            **({} if templates is None else {"templates": templates.num_rows}),
            "steps": settings.steps,
            "seed": seed,
            "inputs": hashes,
            "held_out": left_out,
            **_validated(state),
        },
    ]
    model.about = replace(model.about, elements=sorted({*model.about.elements, *seen}), history=history)
    about = provenance(
        stage, campaign=campaign.name, settings=settings.model_dump(mode="json"), inputs=inputs, seed=seed
    )
    write_table(metrics_table(stage, state.records), out / "metrics.parquet", about)
    save_model(model, out)
    shutil.rmtree(work, ignore_errors=True)


def _held_out(inputs: dict[str, Path]) -> list[dict[str, Any]] | None:
    """What the table that a model is trained on leaves out; says before training where evaluate will object."""
    table = next(path for name, path in inputs.items() if name not in ("init", "val", "pairs"))
    if "val" not in inputs:
        return held_out(table)
    test = inputs["val"].with_name("test.parquet")
    found = held_out(table, test)
    if found is None and test.exists():
        _log.warning(
            "%s has compositions of %s: evaluate will refuse to score this model on them, unless "
            "evaluate.allow_leakage is set",
            table,
            test,
        )
    return found


def _validated(state: State) -> dict[str, Any]:
    """Which weights the model directory holds, and how good they and the best were in validation."""
    losses = {r["step"]: r["loss"] for r in state.records if r["split"] == "val"}
    if not state.best_step:
        return {}
    return {
        "kept": {"step": state.kept_step, "val_loss": losses.get(state.kept_step)},
        "best": {"step": state.best_step, "val_loss": state.best_loss},
    }
