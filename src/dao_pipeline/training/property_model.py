"""Stage finetune_property: DAO-P learns another property of crystals (paper 3.4)."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from dao_pipeline.config import Campaign, CrysDB, expand_path
from dao_pipeline.crysdb.clean import implausible, malformed
from dao_pipeline.crysdb.ledger import Ledger
from dao_pipeline.crysdb.split import assign, given_split
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.table import provenance, read_table, require_crystals, write_rejected
from dao_pipeline.energy.predict import load_energy_model
from dao_pipeline.energy.property import Target
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout
from dao_pipeline.seeds import stage_seed
from dao_pipeline.training.distributed import environment_rank
from dao_pipeline.training.run import train_to_directory

STAGE = "finetune_property"
LIMITS = CrysDB(min_atoms=1, max_atoms=200)
"""What no labelled crystal can be; the campaign's limits are for the crystals that the generator learns."""

_log = logging.getLogger("dao_pipeline")


class PropertyObjective:
    """L1 of clean crystals (t = 0): ``loss_energy`` in standard deviations, ``energy_mae`` in the label's unit.

    With ``property.log`` that unit is the logarithm's, so ``energy_mae`` is a mean relative error.
    """

    def draw(self, model: DaoModel, batch: Data, generator: torch.Generator) -> Data:
        """Nothing random: crystals as they are, at t = 0."""
        drawn = batch.clone()
        drawn.t = torch.zeros(len(batch.lattice), dtype=torch.int64, device=batch.lattice.device)
        return drawn

    def weights(self, batch: Data) -> dict[str, Tensor]:
        """Crystals."""
        crystals = torch.ones_like(batch.energy).sum()
        return {"loss_energy": crystals, "energy_mae": crystals}

    def sums(self, model: DaoModel, batch: Data) -> dict[str, Tensor]:
        """Absolute errors, summed over the crystals of ``batch``."""
        layout = Layout.from_ptr(batch.ptr)
        value = model.energy(batch.atomic_numbers, batch.frac_coords, batch.lattice, batch.t, layout)
        error = (value.to(batch.energy.dtype) - batch.energy).abs().sum()
        return {"loss_energy": error / model.about.energy_std, "energy_mae": error}


def finetune_property(campaign: Campaign, model: Path, out: Path, work: Path) -> None:
    """Fine-tune all weights of DAO-P in ``model``, with a new energy head, and write its model directory.

    Rows that cannot be learned from go to rejected.parquet in ``out``. Raises UserError if none is left, or if
    the table or its column of labels is missing.
    """
    settings = campaign.property
    if not settings.path or not settings.column:
        raise UserError("finetune-property needs property.path and property.column; set both in the campaign.")
    source = expand_path(settings.path)
    target = Target(name=settings.column, unit=settings.unit, log=settings.log)
    seed = stage_seed(campaign.seed, STAGE)
    inputs = {"labels": source, "init": model / "model.safetensors"}
    start = load_energy_model(model)
    require_crystals(source)
    table = read_table(source)
    ledger = Ledger(table["id"].to_pylist())
    sides = split(table, ledger, seed, settings.val_fraction)
    table = learnable(table, target, source, ledger)
    rejected = ledger.rows(STAGE)
    about = provenance(STAGE, campaign=campaign.name, settings=settings.model_dump(mode="json"), inputs=inputs)
    if environment_rank() == 0:
        write_rejected(rejected, out / "rejected.parquet", about)
    _log.info("%s: %d of %d rows rejected", STAGE, len(rejected), len(ledger.ids))
    train, val = (table.filter(pa.array(sides[ledger.alive] == side)) for side in ("train", "val"))
    if train.num_rows == 0:
        raise UserError(
            f"{source}: no crystal to learn property.column = {target.name} from "
            f"({len(rejected)} rows rejected, see {out / 'rejected.parquet'}; {val.num_rows} in validation). "
            "Correct the labels, property.log or property.val_fraction."
        )
    labels = train[target.name].to_numpy()
    start.about = replace(
        start.about,
        energy_label=target.name,
        energy_mean=float(np.mean(labels)),
        energy_std=float(np.std(labels)) + 1e-5,
        element_energies=[],
        members=[],
        std_scale=1.0,
        history=[*start.about.history, target.note()],
    )
    torch.manual_seed(seed)
    start.element_energies.zero_()
    reset_energy_head(start)
    train_to_directory(
        start.train(),
        PropertyObjective(),
        train,
        val,
        settings.training,
        campaign=campaign,
        stage=STAGE,
        inputs=inputs,
        out=out,
        work=work,
    )


def split(table: pa.Table, ledger: Ledger, seed: int, val_fraction: float) -> np.ndarray:
    """The side of each row, (rows,): train or val as given, else by composition. Rejects all others."""
    formulas = [formula or "" for formula in table["formula"].to_pylist()]
    sides = assign(formulas, given_split(table), seed=seed, val_fraction=val_fraction, test_fraction=0)
    held_out = np.flatnonzero(~np.isin(sides, ("train", "val")))
    ledger.reject(held_out, "held_out", "of the given test split, or of one of its compositions")
    return sides


def learnable(table: pa.Table, target: Target, source: Path, ledger: Ledger) -> pa.Table:
    """Sound rows with a usable label, in the form that the model learns; rejects the others.

    Raises UserError where the column of labels is missing or holds no numbers.
    """
    if target.name not in table.column_names:
        raise UserError(f"{source}: no column {target.name}; set property.column to the column of the labels.")
    column = table[target.name]
    try:
        labels = np.asarray(pc.fill_null(column.cast(pa.float64()), np.nan))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"{source}: column {target.name} is {column.type}; labels must be numbers.") from None
    learnt = target.encode(labels)
    ledger.reject(np.flatnonzero(~np.isfinite(labels)), "no_label", f"{target.name} is null or not finite")
    bad = np.flatnonzero(~np.isfinite(learnt))
    ledger.reject(bad, "label_not_positive", lambda k: f"{target.name} = {labels[bad[k]]:g} has no logarithm")
    malformed(table, ledger)
    rows = np.flatnonzero(ledger.alive)
    implausible(flatten(table.take(rows)), rows, ledger, LIMITS)
    table = table.set_column(table.column_names.index(target.name), target.name, pa.array(learnt))
    return table.filter(pa.array(ledger.alive))


def reset_energy_head(model: DaoModel) -> None:
    """Draw new weights for the energy head; the backbone keeps its own."""
    assert model.crysformer.energy_head is not None
    for layer in model.crysformer.energy_head:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
