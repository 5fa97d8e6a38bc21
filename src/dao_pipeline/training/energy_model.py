"""Stage train_energy_model: DAO-P on stable and unstable crystals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dao_pipeline.config import Campaign
from dao_pipeline.crystals.table import read_table
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import About, DaoModel
from dao_pipeline.seeds import stage_seed
from dao_pipeline.training.run import train_to_directory

STAGE = "train_energy_model"


def labelled(table: pa.Table, label: str) -> pa.Table:
    """Rows that have the label."""
    return table.filter(pc.is_valid(table[label]))


def train_energy_model(campaign: Campaign, crysdb: Path, out: Path, work: Path) -> None:
    """Train DAO-P on the training split and write its model directory.

    Raises UserError if no training crystal has the label.
    """
    settings = campaign.energy_model
    train_file = crysdb / "train.parquet"
    crystals = labelled(read_table(train_file), settings.label)
    if crystals.num_rows == 0:
        raise UserError(
            f"{train_file}: no crystal has energy_model.label = {settings.label}; choose one that the data has."
        )
    energies = crystals[settings.label].to_numpy()
    about = About(
        kind="dao_p",
        backbone=settings.backbone.model_dump(mode="json"),
        process=campaign.process.model_dump(mode="json"),
        energy_label=settings.label,
        energy_mean=float(np.mean(energies)),
        energy_std=float(np.std(energies)) + 1e-5,
    )
    torch.manual_seed(stage_seed(campaign.seed, STAGE))
    model = DaoModel.fitted(about, crystals)
    train_to_directory(
        model,
        EnergyObjective(settings),
        crystals,
        labelled(read_table(crysdb / "val.parquet"), settings.label),
        settings.training,
        campaign=campaign,
        stage=STAGE,
        inputs={"train": train_file, "val": crysdb / "val.parquet"},
        out=out,
        work=work,
    )
