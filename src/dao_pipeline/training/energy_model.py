"""Stage train_energy_model: DAO-P on stable and unstable crystals, and the members that tell its uncertainty."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dao_pipeline.config import Campaign, EnergyModel, Training, stage_settings
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.table import file_hash, read_table, replacing, write_text
from dao_pipeline.crystals.volume import NUM_ELEMENTS
from dao_pipeline.energy.objective import EnergyObjective
from dao_pipeline.energy.predict import ensemble_energies, fit_std_scale
from dao_pipeline.energy.reference import fit_element_energies
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import About, DaoModel, load_model, save_model
from dao_pipeline.seeds import stage_seed
from dao_pipeline.training.distributed import environment_rank
from dao_pipeline.training.run import train_to_directory

STAGE = "train_energy_model"

_log = logging.getLogger("dao_pipeline")


def labelled(table: pa.Table, label: str) -> pa.Table:
    """Rows that have the label."""
    return table.filter(pc.is_valid(table[label]))


def new_energy_model(campaign: Campaign, crystals: pa.Table) -> DaoModel:
    """An untrained DAO-P whose units are fitted on labelled crystals."""
    settings = campaign.energy_model
    reference = np.zeros(NUM_ELEMENTS)
    if settings.reference == "elements":
        reference = fit_element_energies(crystals, settings.label)
    flat = flatten(crystals)
    offsets = np.add.reduceat(reference[flat.numbers], flat.ptr[:-1]) / flat.counts
    energies = crystals[settings.label].to_numpy() - offsets
    about = About(
        kind="dao_p",
        backbone=settings.backbone.model_dump(mode="json"),
        process=campaign.process.model_dump(mode="json"),
        energy_label=settings.label,
        energy_mean=float(np.mean(energies)),
        energy_std=float(np.std(energies)) + 1e-5,
        element_energies=reference.tolist() if settings.reference == "elements" else [],
    )
    torch.manual_seed(stage_seed(campaign.seed, STAGE))
    return DaoModel.fitted(about, crystals)


def train_energy_model(campaign: Campaign, crysdb: Path, out: Path, work: Path) -> None:
    """Train DAO-P on the training split and write its model directory.

    Each member (``members/1``, ...) starts from the first model and is trained on, with a warm restart of the
    learning rate, on as many crystals drawn with replacement. Raises UserError if no training crystal has the
    label, or there are members but no validation crystal that has it.
    """
    settings = campaign.energy_model
    files = {"train": crysdb / "train.parquet", "val": crysdb / "val.parquet"}
    crystals = labelled(read_table(files["train"]), settings.label)
    validation = labelled(read_table(files["val"]), settings.label)
    if crystals.num_rows == 0:
        raise UserError(
            f"{files['train']}: no crystal has energy_model.label = {settings.label}; choose one that the data "
            "has."
        )
    if settings.members and validation.num_rows < 2:
        raise UserError(
            f"{files['val']}: {validation.num_rows} crystals have energy_model.label = {settings.label}, but "
            "energy_model.members needs some to calibrate the uncertainty; raise crysdb.val_fraction, or set "
            "members: 0."
        )
    model = new_energy_model(campaign, crystals)

    def run(number: int, model: DaoModel, folder: Path) -> None:
        """Train the first model (0) or a member into ``folder``."""
        chosen, training, seeded = crystals, settings.training, campaign
        if number:
            draws = np.random.default_rng([campaign.seed, number]).integers(
                0, crystals.num_rows, crystals.num_rows
            )
            chosen, training = crystals.take(draws), member_training(settings)
            seeded = campaign.model_copy(update={"seed": stage_seed(campaign.seed, f"{STAGE} member {number}")})
        train_to_directory(
            model,
            EnergyObjective(settings),
            chosen,
            validation,
            training,
            campaign=seeded,
            stage=STAGE,
            inputs=files,
            out=folder,
            work=work / f"training-{number}" if settings.members else work,
        )

    if settings.members == 0:
        run(0, model, out)
        return
    # finished parts wait in the work folder: Snakemake deletes the outputs of a run that is interrupted
    models: list[DaoModel] = []
    for number in range(settings.members + 1):
        folder, identity = work / f"part-{number}", _identity(campaign, files, number)
        if number:
            model = copy.deepcopy(models[0])
        if _finished(folder, identity):
            model.load_state_dict(load_model(folder).state_dict())
        else:
            run(number, model.train(), folder)
            if environment_rank() == 0:
                write_text(folder / "identity.txt", identity)
        models.append(model)
    if environment_rank() == 0:
        _gather(models, validation, settings.label, work, out)


def member_training(settings: EnergyModel) -> Training:
    """The loop's settings for a member."""
    steps = settings.member_steps
    warmup = min(settings.training.warmup_steps, steps // 10)
    return settings.training.model_copy(update={"steps": steps, "warmup_steps": warmup})


def _gather(models: list[DaoModel], validation: pa.Table, label: str, work: Path, out: Path) -> None:
    """Calibrate, and write everything to ``out``, what says that it is whole last."""
    models = [model.eval() for model in models]
    scale = fit_std_scale(ensemble_energies(models, validation), validation[label].to_numpy())
    hashes = []
    for number, member in enumerate(models[1:], 1):
        folder = out / "members" / str(number)
        member.about = load_model(work / f"part-{number}").about
        save_model(member, folder)
        hashes.append(file_hash(folder / "model.safetensors"))
    first = work / "part-0"
    models[0].about = replace(load_model(first).about, members=hashes, std_scale=scale)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "metrics.parquet") as temporary:
        shutil.copyfile(first / "metrics.parquet", temporary)
    save_model(models[0], out)
    shutil.rmtree(work, ignore_errors=True)
    _log.info(
        "%s: %d members; their spread times %.3g is the error of 68 %% of the validation crystals",
        STAGE,
        len(hashes),
        scale,
    )


def _identity(campaign: Campaign, files: dict[str, Path], number: int) -> str:
    """Hash of what a part depends on."""
    note = [stage_settings(campaign, STAGE), {name: file_hash(path) for name, path in files.items()}, number]
    return hashlib.sha256(json.dumps(note, sort_keys=True, default=str).encode()).hexdigest()


def _finished(folder: Path, identity: str) -> bool:
    note = folder / "identity.txt"
    return note.exists() and note.read_text(encoding="utf-8") == identity
