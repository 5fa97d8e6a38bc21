"""Known crystals as first guesses, and the ranking that they teach."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dao_pipeline.config.crysdb import Matcher
from dao_pipeline.config.section import Section


class LearnedDistance(Section):
    """How templates.distance: learned is learned."""

    width: int = Field(16, ge=1, le=256, description="numbers that describe an element where it replaces another")
    whole: int = Field(8, ge=0, le=256, description="numbers of an element that add up over a composition")
    steps: int = Field(800, ge=1, description="optimizer steps, each of up to 128 crystals")
    learning_rate: float = Field(0.02, gt=0, le=1, description="highest rate of Adam, in one cycle")
    decay: float = Field(0.1, ge=0, description="holds elements to what known facts about them suggest")
    least: int = Field(
        2000,
        ge=1,
        description="crystals with another of their type; from fewer nothing is learned: Mendeleev numbers serve",
    )


class Templates(Section):
    """Known crystals as first guesses: how an index of them is built and asked."""

    distance: Literal["mendeleev", "radii", "substitution", "learned"] = Field(
        "learned",
        description="how far two elements are apart: by Mendeleev number; by covalent radius and "
        "electronegativity; by substitutions in known crystals (pymatgen's table); or learned from the index's "
        "own crystals, from which structure types they share",
    )
    learned: LearnedDistance = LearnedDistance()
    same_type: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="crystals are of one structure type where the distances between their atoms differ by less, "
        "root mean square, in units of (V/n)^(1/3)",
    )
    exclude: Literal["composition", "none"] = Field(
        "none",
        description="composition: crystals of a target's own composition are no templates for it (benchmarks); "
        "none: they are proposed first, and marked as known",
    )
    max_pair_rmse: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="training crystals whose template is farther, in units of (V/n)^(1/3), teach nothing about "
        "the errors of templates (generator.template_paths)",
    )


class Ranking(Section):
    """Stage train_ranker: how likely each candidate is the ground state, learned from known compositions."""

    enabled: bool | None = Field(
        None,
        description="true: train a ranker, and rank candidates by its probabilities; false: by predicted energy; "
        "null: true where candidates are made from templates (generate.template_share)",
    )
    model: str | None = Field(None, description="a ranker's directory from elsewhere, in place of training one")
    sources: list[str] | None = Field(
        None,
        description="learn from the ground states of these sources only (column source): those whose crystals are "
        "like the ones that are asked for; all crystals vote in any case. null: from all",
    )
    max_e_above_hull: float = Field(
        0.08,
        ge=0,
        le=1,
        description="eV/atom; where the most stable known crystal lies higher, nothing is learned",
    )
    compositions: int = Field(
        1_000,
        ge=20,
        description="compositions, at most, whose proposals are compared with the known crystal: of the "
        "validation split, and of the training split for a network (hidden)",
    )
    proposals: int = Field(12, ge=2, le=100, description="proposals per composition that are compared")
    suggestions: int = Field(
        64, ge=1, le=1000, description="nearest known crystals, each under its assignments of elements, that vote"
    )
    epochs: int = Field(6, ge=1, description="passes over the training crystals when votes are learned")
    hidden: int = Field(
        0,
        ge=0,
        le=1024,
        description="width of a network that corrects the votes by distances, volume, order and size; 0: none. "
        "It did not name the right candidate first more often (docs/ranking.md)",
    )
    energy: bool = Field(
        False,
        description="let DAO-P's energy above the lowest sibling count, with a weight fitted on the validation "
        "split; it made the first candidate worse (docs/ranking.md)",
    )
    matcher: Matcher = Field(
        Matcher(), description="decides whether a candidate is the known crystal, and which share a probability"
    )

    @model_validator(mode="after")
    def _one_ranker(self) -> Ranking:
        if self.model is not None and self.enabled is False:
            raise ValueError("model is given, but enabled is false: set enabled: true, or leave model out")
        return self
