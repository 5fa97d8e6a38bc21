"""How much work each stage of a campaign has to do, in units that its time is proportional to."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.config import Backbone, Campaign, DataSource, Training, expand_path
from dao_pipeline.errors import UserError

Kind = Literal["cpu", "training", "sampling", "dft"]


class Sizes(NamedTuple):
    """What the amounts of work are computed from; None where it is not known yet.

    compositions: cells to fill. atoms: in all these cells together. crystals: of the sources. training: in the
    training split. bounds: what of it is an upper bound only, in words.
    """

    compositions: int
    atoms: float
    crystals: int | None
    training: int | None
    bounds: tuple[str, ...] = ()


class Amount(NamedTuple):
    """Work of one stage. ``like``: what two stages must share for their throughput to be the same."""

    value: float | None
    unit: str
    kind: Kind
    like: str = ""


def sizes(campaign: Campaign, folder: Path, atoms: tuple[int, float] | None) -> Sizes:
    """Sizes of a campaign from what there is in its ``folder``, or else from its configuration.

    atoms: number of cells and their atoms together, where compositions are given; None: the test split.
    """
    bounds = []
    crystals = _rows(folder / "raw" / "crystals.parquet")
    if crystals is None:
        crystals = source_rows(campaign)
    training = _rows(folder / "crysdb" / "train.parquet")
    if training is None and crystals is not None:
        training = crystals
        bounds.append("training crystals: all of the source")
    if atoms is None:
        limit, test = campaign.generate.test_split.limit, folder / "crysdb" / "test.parquet"
        if test.is_file():
            found = pq.read_table(test, columns=["num_atoms"])["num_atoms"].slice(0, limit)
            atoms = len(found), float(pc.sum(found).as_py() or 0)
        else:
            atoms = limit, float(limit * min(campaign.crysdb.max_atoms, campaign.generate.max_atoms))
            bounds.append("test crystals: as many as generate.test_split.limit, of crysdb.max_atoms atoms each")
    return Sizes(atoms[0], atoms[1], crystals, training, tuple(bounds))


def source_rows(campaign: Campaign) -> int | None:
    """Crystals of the sources at most, where that is known without reading them."""
    found = [_source_rows(source) for _, source in campaign.data.each()]
    known = [rows for rows in found if rows is not None]
    return sum(known) if len(known) == len(found) else None


def _source_rows(source: DataSource) -> int | None:
    rows = None
    if source.source == "embedded":
        from dao_pipeline.sources.embedded import EMBEDDED_PATH

        rows = _rows(EMBEDDED_PATH)
    elif source.source == "file" and source.path and source.path.lower().endswith(".parquet"):
        try:
            rows = _rows(expand_path(source.path))
        except (UserError, OSError):
            rows = None
    return rows if source.limit is None else min(rows or source.limit, source.limit)


def _rows(path: Path) -> int | None:
    """Rows of a table from its footer; None if there is none."""
    return int(pq.read_metadata(path).num_rows) if path.is_file() else None


def amounts(campaign: Campaign, size: Sizes) -> dict[str, Amount]:
    """The work of each stage, and of the rules beside them, that the campaign may have."""
    generate = campaign.generate
    candidates = size.compositions * generate.samples
    energy = campaign.energy_model
    predictor, generator = _preset(energy.backbone), _preset(campaign.generator.backbone)
    relaxed = None if size.training is None else size.training * campaign.relax.steps

    def trained(training: Training, preset: str) -> Amount:
        return Amount(training.steps * training.batch_atoms, "atoms in steps", "training", preset)

    return {
        "download": Amount(size.crystals, "crystals", "cpu", "+".join(s.source for _, s in campaign.data.each())),
        "build_crysdb": Amount(size.crystals, "crystals", "cpu"),
        "train_energy_model": Amount(
            (energy.training.steps + energy.members * energy.member_steps) * energy.training.batch_atoms,
            "atoms in steps",
            "training",
            predictor,
        ),
        "relax_dataset": Amount(relaxed, "crystals x steps", "sampling", predictor),
        "index_templates": Amount(size.training, "crystals", "cpu", campaign.templates.distance),
        "pair_templates": Amount(size.training, "crystals", "cpu"),
        "pretrain_generator_stage1": trained(campaign.pretrain.stage1, generator),
        "pretrain_generator_stage2": trained(campaign.pretrain.stage2, generator),
        "finetune_generator": trained(campaign.finetune.training, generator),
        "plan_candidates": Amount(candidates, "candidates", "cpu"),
        "plan_shard": Amount(candidates, "candidates", "cpu"),
        "propose_templates": Amount(size.compositions, "compositions", "cpu", campaign.templates.distance),
        "generate_candidates": _sampled(campaign, size, generator),
        "train_ranker": Amount(campaign.ranking.compositions, "compositions", "cpu"),
        "sort_references": Amount(size.training, "crystals", "cpu"),
        "screen_shard": Amount(candidates, "candidates", "cpu", _screened(campaign, predictor)),
        "screen_candidates": Amount(candidates, "candidates", "cpu"),
        "evaluate": Amount(candidates, "candidates", "cpu"),
        "finetune_property": trained(campaign.property.training, predictor),
        "predict_property": Amount(candidates, "candidates", "sampling", predictor),
        "validate_qe": Amount(None, "calculations", "dft"),  # see dft_hours
        "report": Amount(candidates, "candidates", "cpu"),
    }


def _sampled(campaign: Campaign, size: Sizes, preset: str) -> Amount:
    """Calls of the generator, each counted with its atoms; those of unrefined templates are none."""
    generate = campaign.generate
    calls = generate.sampling(campaign.process).network_calls
    refining = {
        "none": 0,
        "path": generate.template_steps,
        "noise": ceil(generate.template_noise * calls),
    }[generate.template_refinement]
    templates = min(generate.templates, generate.samples)
    guided = generate.guidance_scale > 0
    draws = generate.guidance.draws if guided else 1
    per_atom = (generate.samples - templates) * calls * draws + templates * refining
    return Amount(size.atoms * per_atom, "atoms in calls", "sampling", preset + (", guided" if guided else ""))


def _screened(campaign: Campaign, predictor: str) -> str:
    """What decides how long a candidate's screening takes: the models that judge it."""
    screen, energy = campaign.screen, campaign.energy_model
    parts = [predictor if energy.enabled else "no DAO-P"]
    if energy.members:
        parts.append(f"{energy.members} members")
    if screen.second_model.model != "none":
        second = screen.second_model
        parts.append(f"{second.model} on {second.top_k}, {second.relax_steps} steps")
    if screen.hull.entries is not None:
        parts.append(f"hull by {screen.hull.model}")
    return ", ".join(parts)


def _preset(backbone: Backbone) -> str:
    """What decides how long a network takes."""
    given = (backbone.layers, backbone.width, backbone.heads, backbone.frequencies)
    return backbone.preset if not any(given) else f"{backbone.preset} {given}"
