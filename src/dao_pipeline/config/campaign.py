"""A whole campaign, and what its sections demand of one another."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dao_pipeline.config.candidates import Generate, Screen
from dao_pipeline.config.comparison import CompareDFT
from dao_pipeline.config.compute import Compute
from dao_pipeline.config.crysdb import CrysDB
from dao_pipeline.config.data import Data
from dao_pipeline.config.models import EnergyModel, Finetune, Generator, Pretrain, Process, Relax
from dao_pipeline.config.qe import QE
from dao_pipeline.config.results import Ablation, Evaluate, Property, Report
from dao_pipeline.config.section import Section
from dao_pipeline.config.templates import Ranking, Templates


class Campaign(Section):
    """A whole campaign."""

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}(/ablation/[A-Za-z0-9][A-Za-z0-9_-]{0,63})?$")
    ] = Field(description="folder under results/; letters, digits, '_', '-', '.'")
    seed: int = Field(42, ge=0, description="every random choice of the campaign follows from it")
    data: Data = Data()
    crysdb: CrysDB = CrysDB()
    process: Process = Process()
    energy_model: EnergyModel = EnergyModel()
    relax: Relax = Relax()
    generator: Generator = Generator()
    pretrain: Pretrain = Pretrain()
    finetune: Finetune = Finetune()
    generate: Generate = Generate()
    screen: Screen = Screen()
    templates: Templates = Templates()
    ranking: Ranking = Ranking()
    evaluate: Evaluate = Evaluate()
    property: Property = Property()
    qe: QE = QE()
    compare_dft: CompareDFT = CompareDFT()
    ablation: Ablation = Ablation()
    report: Report = Report()
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _consistent(self) -> Campaign:
        self.generate.sampling(self.process)
        if self.generator.template_paths > 0 and self.process.kind != "flow":
            raise ValueError(
                f"generator.template_paths ({self.generator.template_paths}) has no meaning for process.kind: "
                f"{self.process.kind}; set 0"
            )
        learned = self.generator.template_paths > 0 or self.generator.pretrained is not None
        if self.generate.template_refinement == "path" and not learned:
            raise ValueError(
                "generate.template_refinement: path needs a generator that has learned paths from templates: set "
                "generator.template_paths, e.g. 0.5, or another refinement"
            )
        for section in ("energy_model", "generator"):
            if getattr(self, section).backbone.distances != "none" and self.process.lattice_scale == "none":
                raise ValueError(
                    f"{section}.backbone.distances needs process.lattice_scale: composition, which gives "
                    "distances their unit; set distances: none"
                )
        for i, composition in enumerate(self.generate.compositions or []):
            if composition.num_atoms > self.generate.max_atoms:
                raise ValueError(
                    f"generate.compositions[{i}]: {composition.formula} x {composition.formula_units or 1} has "
                    f"{composition.num_atoms} atoms, more than generate.max_atoms ({self.generate.max_atoms}); "
                    "use fewer formula units or raise the limit"
                )
        return self

    @model_validator(mode="after")
    def _without_models(self) -> Campaign:
        generate = self.generate
        if not self.generator.enabled:
            needed = {
                f"generate.template_share ({generate.template_share:g}); set 1": generate.template_share < 1,
                f"generate.template_refinement ({generate.template_refinement}); set none": (
                    generate.template_refinement != "none"
                ),
                "generator.pretrained; leave it out": self.generator.pretrained is not None,
                "generator.template_paths; set 0": self.generator.template_paths > 0,
                "ablation.variants; leave them out": bool(self.ablation.variants),
            }
            for what, wanted in needed.items():
                if wanted:
                    raise ValueError(f"generator.enabled is false, but a generator is needed for {what}")
        if not self.energy_model.enabled:
            needed = {
                "the generator; set generator.enabled: false": self.generator.enabled,
                "the order of candidates; set ranking.enabled: true": not self.ranks(),
                "ranking.energy; set false": self.ranking.energy,
                "screen.hull.model: dao_p; set chgnet": (
                    self.screen.hull.entries is not None and self.screen.hull.model == "dao_p"
                ),
                "energy_model.pretrained; leave it out": self.energy_model.pretrained is not None,
                "property; set property.enabled: false": self.property.enabled,
            }
            for what, wanted in needed.items():
                if wanted:
                    raise ValueError(f"energy_model.enabled is false, but DAO-P is needed for {what}")
        return self

    def ranks(self) -> bool:
        """Whether candidates are ranked by probability, with a ranker of the campaign's own or a given one."""
        wanted = self.ranking.enabled
        return wanted if wanted is not None else self.generate.template_share > 0 or self.ranking.model is not None

    def trains_ranker(self) -> bool:
        """Whether the campaign trains a ranker of its own."""
        return self.ranks() and self.ranking.model is None

    def needs_paths(self) -> bool:
        """Whether the generator must have learned paths from templates before it comes here, if it is given."""
        return self.generator.template_paths > 0 or self.generate.template_refinement == "path"

    def refusal(self, process: Process) -> str | None:
        """Why a generator that was trained on ``process`` is of no use to this campaign; None if it is.

        It may be another process than the campaign's, on which DAO-P is trained, if nothing is guided.
        """
        try:
            self.generate.sampling(process)
        except ValueError as error:
            return f"{error}. Change the setting, or name another model"
        if self.generate.guidance_scale > 0 and (name := self.process.difference(process)):
            return (
                f"it was trained with process.{name} = {getattr(process, name)}; this campaign, and so its DAO-P, "
                f"has {getattr(self.process, name)}, and DAO-P could not guide it. Use one process, or set "
                "generate.guidance_scale: 0"
            )
        return None
