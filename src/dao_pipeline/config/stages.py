"""Which settings each stage uses."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from dao_pipeline.config.campaign import Campaign
from dao_pipeline.config.candidates import Screen

_OF_THE_WHOLE = ("top_k", "top_files")
"""Keys of ``screen`` that matter only when the shards are put together."""

_DFT_METHOD = (
    "qe.protocol",
    "qe.functional",
    "qe.kspacing",
    "qe.ecutwfc",
    "qe.ecutrho",
    "qe.smearing",
    "qe.degauss",
    "qe.spin",
    "qe.pseudo_dir",
    "qe.pseudo_table",
)
"""Keys that decide a DFT energy."""

STAGE_SETTINGS: dict[str, tuple[str, ...]] = {
    "download": ("data",),
    "build_crysdb": ("crysdb", "energy_model.label", "seed"),
    "train_energy_model": ("energy_model", "process", "seed"),
    "relax_dataset": ("relax", "energy_model.pretrained"),
    "pair_templates": ("templates.max_pair_rmse",),
    "pretrain_generator_stage1": (
        "generator.backbone",
        "generator.template_paths",
        "pretrain.stage1",
        "pretrain.crystals",
        "crysdb.stable_threshold",
        "process",
        "seed",
    ),
    "pretrain_generator_stage2": ("generator.template_paths", "pretrain.stage2", "seed"),
    "finetune_generator": (
        "finetune",
        "generator",
        "pretrain.stages",
        "process",
        "crysdb.stable_threshold",
        "seed",
    ),
    "plan_candidates": (
        "generate.compositions",
        "generate.files",
        "generate.systems",
        "generate.substitutions",
        "generate.unit_atoms",
        "generate.test_split",
        "generate.samples",
        "generate.shard_compositions",
        "generate.round_samples",
        "generate.max_atoms",
        "generate.template_share",
        "seed",
    ),
    "index_templates": ("templates.distance", "templates.learned", "templates.same_type"),
    "propose_templates": ("templates.exclude",),
    "generate_candidates": (
        "generate.steps",
        "generate.corrector",
        "generate.step_size",
        "generate.method",
        "generate.annealing",
        "generate.guidance_scale",
        "generate.guidance",
        "generate.batch_atoms",
        "generate.template_refinement",
        "generate.template_steps",
        "generate.template_noise",
        "seed",
    ),
    "train_ranker": ("ranking", "screen.symprec", "seed"),
    "sort_references": (),
    "screen_shard": (
        *(f"screen.{name}" for name in Screen.model_fields if name not in _OF_THE_WHOLE),
        "ranking.model",
        "ranking.matcher",
    ),
    "screen_candidates": tuple(f"screen.{name}" for name in _OF_THE_WHOLE),
    "evaluate": (
        "evaluate",
        "generate.compositions",
        "generate.test_split",
        "generate.samples",
        "screen",
        "seed",
    ),
    "finetune_property": ("property", "seed"),
    "predict_property": (),
    "validate_qe": (
        "qe.candidates",
        "qe.top_k",
        "qe.select",
        "qe.budget_core_hours",
        "qe.calculation",
        *_DFT_METHOD,
    ),
    "reference_energies": (*_DFT_METHOD, "compare_dft.max_element_atoms", "compare_dft.phases"),
    "compare_dft": ("compare_dft", "evaluate.bootstrap", "energy_model.label", "seed"),
    "ablate": ("ablation", "evaluate.bootstrap", "seed"),
    "report": ("report",),
}
"""Configuration keys that each stage uses: the rule's ``params``, so that other edits do not rerun it.

How pw.x is started (``qe.command``, ``launcher``, ``pools``, ``setup``, ``scratch``) is left out like ``compute``.
"""


def stage_settings(campaign: Campaign, stage: str) -> dict[str, Any]:
    """The configuration values that ``stage`` uses, by dotted key."""
    values: dict[str, Any] = {}
    for key in STAGE_SETTINGS[stage]:
        value: Any = campaign
        for part in key.split("."):
            value = getattr(value, part)
        values[key] = value.model_dump(mode="json") if isinstance(value, BaseModel) else _plain(value)
    if stage == "generate_candidates":
        # what null stands for is decided by the process: a new default is another setting
        values["sampling"] = campaign.generate.sampling(campaign.process)._asdict()
    return values


def _plain(value: Any) -> Any:
    return (
        [_plain(v) for v in value]
        if isinstance(value, list)
        else (value.model_dump(mode="json") if isinstance(value, BaseModel) else value)
    )
