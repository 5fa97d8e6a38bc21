"""What is made of the candidates: evaluation, properties, ablation, report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dao_pipeline.config.crysdb import Matcher
from dao_pipeline.config.models import Training
from dao_pipeline.config.section import Section

VARIANT = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"


class Evaluate(Section):
    """Stage evaluate: were the known crystals found?"""

    matcher: Matcher = Matcher()
    bootstrap: int = Field(1000, ge=0, description="resamples for 95 % intervals")
    targets: Literal["stable", "all"] = Field(
        "stable",
        description="known crystals to be found among the candidates of a composition and number of atoms: "
        "stable, the most stable one; all, each of them, which is how match rates are published",
    )
    k: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 5, 20],
        description="match rates of the first so many candidates, those below generate.samples; the rates of the "
        "first one and of all are always there",
    )
    baselines: list[Literal["random", "substitution"]] = Field(
        ["random", "substitution"], description="compare with random crystals, and with substituted templates"
    )
    allow_leakage: bool = Field(
        False, description="score models whose training did not demonstrably exclude the test split"
    )


class Property(Section):
    """Stages finetune_property and predict_property: DAO-P learns another property of crystals."""

    enabled: bool = Field(False, description="run the stages")
    path: str | None = Field(
        None,
        description="crystal table (Parquet) with the labels; $NAME and ${NAME} are read from the environment",
    )
    column: str | None = Field(None, description="column of the labels, and name of the property")
    log: bool = Field(False, description="learn the natural logarithm; labels must be positive")
    unit: str = Field("", description="unit of the labels, e.g. GPa (recorded beside the predictions)")
    val_fraction: float = Field(
        0.1, ge=0, lt=0.5, description="share of compositions kept for validation, where the table has no split"
    )
    training: Training = Training(steps=5_000, learning_rate=1e-4)

    @model_validator(mode="after")
    def _complete(self) -> Property:
        for key, what in (("path", "the labelled table"), ("column", "the column of its labels")):
            if self.enabled and not getattr(self, key):
                raise ValueError(f"{key} is not given, but enabled is true: name {what}, or set enabled: false")
        return self


class Ablation(Section):
    """Stage ablate: the campaign again with other settings, and a table of what each setting is worth."""

    variants: dict[Annotated[str, Field(pattern=VARIANT)], dict[str, Any]] = Field(
        {},
        description="by name, the keys in which each variant differs from this campaign, {} for the campaign "
        "itself; the first is what the others are compared with. Stages of equal settings run once for all",
    )


class Report(Section):
    """Stage report."""

    title: str | None = Field(None, description="heading; the campaign's name if null")
