"""Stages pretrain_generator and finetune_generator: DAO-G (paper 2.5, 2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch

from dao_pipeline.config import Campaign, expand_path
from dao_pipeline.crystals.table import read_table, require_crystals
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import About, DaoModel, load_model
from dao_pipeline.process.objective import GeneratorObjective, TemplateObjective
from dao_pipeline.process.template_errors import template_errors
from dao_pipeline.seeds import stage_seed
from dao_pipeline.training.run import train_to_directory


def pretrain_generator(
    campaign: Campaign,
    crysdb: Path,
    out: Path,
    work: Path,
    *,
    stage: int,
    relaxed: Path | None = None,
    init: Path | None = None,
    pairs: Path | None = None,
) -> None:
    """Stage I from scratch on stable and unstable crystals; stage II from ``init`` on the relaxed set.

    With ``pretrain.crystals: stable`` stage I sees the stable crystals alone.
    pairs: table of pair_templates, which ``generator.template_paths`` needs.
    """
    name = f"pretrain_generator_stage{stage}"
    val_file = crysdb / "val.parquet"
    if stage == 1:
        source = crysdb / "train.parquet"
        crystals = read_table(source)
        if campaign.pretrain.crystals == "stable":
            crystals = _stable(crystals, source, campaign, "pretrain.crystals")
        templates = _templates(campaign, pairs)
        model = _untrained(campaign, crystals, name, templates)
        settings, inputs = campaign.pretrain.stage1, {"train": source}
    else:
        if relaxed is None or init is None:
            raise UserError("pretrain-generator --stage 2 needs --relaxed and --init; give both.")
        crystals = read_table(relaxed)
        model = _generator(init)
        templates = _templates(campaign, pairs, model)
        settings, inputs = campaign.pretrain.stage2, {"relaxed": relaxed, "init": init / "model.safetensors"}
    train_to_directory(
        model,
        _objective(campaign, templates),
        crystals,
        read_table(val_file),
        settings,
        campaign=campaign,
        stage=name,
        inputs={**inputs, "val": val_file, **({} if pairs is None else {"pairs": pairs})},
        out=out,
        work=work,
        templates=templates,
    )


def finetune_generator(
    campaign: Campaign, crysdb: Path, out: Path, work: Path, *, init: Path | None, pairs: Path | None = None
) -> None:
    """Fine-tune on the stable part of the training split, all of it, or the table named in the campaign.

    Without ``init`` training starts from random weights.

    ``finetune.sources`` restricts the training split, and validation with it, to some of its sources.

    Raises UserError for a table with elements beyond the models' last one, or without crystals, and for a model
    whose process the campaign cannot sample or guide (``Campaign.refusal``).
    """
    settings = campaign.finetune
    model = _generator(init) if init else None
    if model is not None and (refusal := campaign.refusal(model.process)):
        raise UserError(f"{init}: {refusal}.")
    source = expand_path(settings.path) if settings.path else crysdb / "train.parquet"
    require_crystals(source)
    crystals = read_table(source)
    validation = stable(read_table(crysdb / "val.parquet"), campaign.crysdb.stable_threshold)
    if settings.sources is not None:
        crystals, validation = (of_sources(table, settings.sources) for table in (crystals, validation))
        if crystals.num_rows == 0:
            raise UserError(
                f"{source}: no crystal is of finetune.sources = {', '.join(settings.sources)}; dao-pipeline "
                "coverage lists the sources there are."
            )
    if settings.crystals == "stable" and not settings.path:
        crystals = _stable(crystals, source, campaign, "finetune.crystals")
    templates = _templates(campaign, pairs, model)
    if model is None:
        model = _untrained(campaign, crystals, "finetune_generator", templates)
    train_to_directory(
        model,
        _objective(campaign, templates),
        crystals,
        validation,
        settings.training,
        campaign=campaign,
        stage="finetune_generator",
        inputs={
            "train": source,
            "val": crysdb / "val.parquet",
            **({} if init is None else {"init": init / "model.safetensors"}),
            **({} if pairs is None else {"pairs": pairs}),
        },
        out=out,
        work=work,
        templates=templates,
    )


def _untrained(campaign: Campaign, crystals: pa.Table, stage: str, templates: pa.Table | None) -> DaoModel:
    """Random weights, with the volumes and the prior of the crystals that they will be trained on."""
    about = About(
        kind="dao_g",
        backbone=campaign.generator.backbone.model_dump(mode="json"),
        process=campaign.process.model_dump(mode="json"),
        template_errors=None if templates is None else template_errors(crystals, templates),
    )
    torch.manual_seed(stage_seed(campaign.seed, stage))
    return DaoModel.fitted(about, crystals)


def _stable(table: pa.Table, source: Path, campaign: Campaign, key: str) -> pa.Table:
    """``stable`` by the campaign's threshold. Raises UserError if nothing is left; ``key`` asked for it."""
    found = stable(table, campaign.crysdb.stable_threshold)
    if found.num_rows == 0:
        raise UserError(
            f"{source}: no crystal within crysdb.stable_threshold = {campaign.crysdb.stable_threshold} eV/atom of "
            f"the hull; raise it, or set {key}: all."
        )
    return found


def stable(table: pa.Table, threshold: float) -> pa.Table:
    """Rows up to ``threshold`` eV/atom above the hull; rows without a hull distance are kept."""
    keep = pc.or_(pc.is_null(table["e_above_hull"]), pc.less_equal(table["e_above_hull"], threshold))
    return table.filter(pc.fill_null(keep, True))


def of_sources(table: pa.Table, sources: Sequence[str]) -> pa.Table:
    """Rows of these sources."""
    return table.filter(pc.is_in(table["source"], value_set=pa.array(sources, pa.string())))


def _templates(campaign: Campaign, pairs: Path | None, model: DaoModel | None = None) -> pa.Table | None:
    """The pair table, if the campaign trains on paths from templates and ``model`` has learned of them."""
    if campaign.generator.template_paths == 0:
        return None
    if pairs is None:
        raise UserError(
            f"generator.template_paths is {campaign.generator.template_paths}, which needs the table of "
            "pair_templates: give --pairs, or set 0."
        )
    if model is not None and model.about.template_errors is None:
        raise UserError(
            "the model to start from has not learned paths from templates: pretrain it with "
            "generator.template_paths above 0, or set 0."
        )
    return read_table(pairs)


def _objective(campaign: Campaign, templates: pa.Table | None) -> GeneratorObjective:
    return GeneratorObjective() if templates is None else TemplateObjective(campaign.generator.template_paths)


def _generator(folder: Path) -> DaoModel:
    model = load_model(folder)
    if model.about.kind != "dao_g":
        raise UserError(f"{folder}: a {model.about.kind} model cannot generate; name a DAO-G directory.")
    return model.train()
