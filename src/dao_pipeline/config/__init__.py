"""The campaign as typed models: the only place that knows defaults and limits.

Each top-level section belongs to one stage (``STAGE_SETTINGS``), so that an edit reruns that stage and what
follows, and nothing before it. Unknown keys are errors. ``config/default.yaml`` and ``config/schema.json``
are generated from here.
"""

from __future__ import annotations

from dao_pipeline.config.asked import (
    MAX_UNITS,
    Composition,
    Substitutions,
    Systems,
    TestSplit,
    roles,
)
from dao_pipeline.config.campaign import (
    Campaign,
)
from dao_pipeline.config.candidates import (
    CALLS_PER_STEP,
    DEFAULT_ANNEALING,
    DEFAULT_STEPS,
    Generate,
    Guidance,
    Sampling,
    Screen,
)
from dao_pipeline.config.comparison import (
    CompareDFT,
    DFTBaseline,
)
from dao_pipeline.config.compute import (
    Compute,
    Resources,
    TrainingResources,
)
from dao_pipeline.config.crysdb import (
    CrysDB,
    Dedup,
    Matcher,
)
from dao_pipeline.config.data import (
    Data,
    DataSource,
    MaterialsProject,
    Network,
    Optimade,
)
from dao_pipeline.config.models import (
    Backbone,
    EnergyModel,
    Finetune,
    Generator,
    Pretrain,
    Process,
    Relax,
    Training,
)
from dao_pipeline.config.paths import (
    expand_path,
)
from dao_pipeline.config.qe import QE
from dao_pipeline.config.results import (
    VARIANT,
    Ablation,
    Evaluate,
    Property,
    Report,
)
from dao_pipeline.config.section import (
    Section,
)
from dao_pipeline.config.stages import (
    STAGE_SETTINGS,
    stage_settings,
)
from dao_pipeline.config.templates import (
    LearnedDistance,
    Ranking,
    Templates,
)

__all__ = [
    "CALLS_PER_STEP",
    "DEFAULT_ANNEALING",
    "DEFAULT_STEPS",
    "MAX_UNITS",
    "QE",
    "STAGE_SETTINGS",
    "VARIANT",
    "Ablation",
    "Backbone",
    "Campaign",
    "CompareDFT",
    "Composition",
    "Compute",
    "CrysDB",
    "DFTBaseline",
    "Data",
    "DataSource",
    "Dedup",
    "EnergyModel",
    "Evaluate",
    "Finetune",
    "Generate",
    "Generator",
    "Guidance",
    "LearnedDistance",
    "Matcher",
    "MaterialsProject",
    "Network",
    "Optimade",
    "Pretrain",
    "Process",
    "Property",
    "Ranking",
    "Relax",
    "Report",
    "Resources",
    "Sampling",
    "Screen",
    "Section",
    "Substitutions",
    "Systems",
    "Templates",
    "TestSplit",
    "Training",
    "TrainingResources",
    "expand_path",
    "roles",
    "stage_settings",
]
