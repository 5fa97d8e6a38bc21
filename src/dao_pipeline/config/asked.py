"""What to predict: formulas, files of formulas, chemical systems, substitutions, or the test split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dao_pipeline.config.section import Section
from dao_pipeline.crystals.element_groups import elements_of
from dao_pipeline.crystals.formula import parse_formula

MAX_UNITS = 100
"""Formula units in a cell at most."""


def _formula(value: str) -> str:
    parse_formula(value)
    return value


def _elements(value: str) -> str:
    elements_of(value)
    return value


Formula = Annotated[str, AfterValidator(_formula)]
Elements = Annotated[str, AfterValidator(_elements)]
"""An element, the name of a group of elements, or ``*``."""


class Composition(Section):
    """One composition to predict."""

    formula: Formula = Field(description="e.g. SrTiO3")
    formula_units: int | None = Field(
        None,
        ge=1,
        le=MAX_UNITS,
        description="how many of them are in the cell; null: each number up to generate.unit_atoms",
    )

    @property
    def num_atoms(self) -> int:
        """Atoms in the smallest cell that is asked for."""
        return (self.formula_units or 1) * sum(parse_formula(self.formula).values())


class TestSplit(Section):
    """Predict compositions of the test split, whose crystals are known."""

    limit: int = Field(10, ge=1, description="compositions at most, in the order of the table")


def roles(system: str | list[str | list[str]]) -> list[tuple[str, ...]]:
    """The elements that may take each place of a chemical system, repetitions removed.

    ``Li-Fe-O``, ``alkali-*-O`` and ``[alkali, [Fe, Co], O]`` are such systems. Raises ValueError for what is
    neither an element nor a group, and for less than two or more than six places.
    """
    places = system.split("-") if isinstance(system, str) else system
    if not 2 <= len(places) <= 6:
        raise ValueError("a chemical system has two to six places, e.g. Li-Fe-O or [alkali, [Fe, Co], O]")
    return [
        tuple(dict.fromkeys(symbol for name in _names(place) for symbol in elements_of(name))) for place in places
    ]


def _names(place: str | list[str]) -> list[str]:
    names = [place.strip()] if isinstance(place, str) else place
    if not names:
        raise ValueError("a place of the chemical system is empty; name elements for it")
    return names


def _system(value: str | list[str | list[str]]) -> str | list[str | list[str]]:
    roles(value)
    return value


System = Annotated[str | list[str | list[str]], AfterValidator(_system)]


class Systems(Section):
    """Chemical systems: all plausible formulas with one element at each place are predicted."""

    of: list[System] = Field(
        [],
        description="elements, groups (alkali, transition_metals, chalcogens, ...) or * joined by -, or a list "
        "with an entry or a list of them for each place; names of groups: docs/campaigns.md",
    )
    exclude: list[Elements] = Field([], description="elements and groups that no place may take")
    max_coefficient: int = Field(6, ge=1, le=20, description="largest number in a formula")
    max_atoms: int = Field(12, ge=2, le=200, description="atoms in a formula unit at most")
    charge_neutral: bool = Field(
        True, description="some oxidation states, one per element, add up to zero (SMACT); false: any numbers"
    )
    electronegativity_order: bool = Field(
        True,
        description="in such a choice every anion is more electronegative than every cation (SMACT's Pauling "
        "test); without charge_neutral it has no effect",
    )
    oxidation_states: Literal["main", "high", "medium", "low"] = Field(
        "medium",
        description="which count: the most frequent of an element; those of at least 50 % of its reports (high), "
        "10 % (medium), or all reported three times (low), in the ICSD by SMACT's table",
    )


class Substitutions(Section):
    """Known compounds with elements replaced: every combination of replacements is predicted."""

    of: list[Formula] = Field([], description="formulas of known compounds")
    path: str | None = Field(
        None,
        description="a file of formulas, or of crystals in any format of docs/data.md, whose numbers of formula "
        "units are then kept",
    )
    replace: dict[Elements, list[Elements]] = Field(
        {}, description="candidates for each element or group, e.g. {Ti: [Zr, Hf], O: [S]}"
    )
    charge_neutral: bool = Field(
        False, description="leave out what is not neutral in any choice of oxidation states, one per element"
    )
    oxidation_states: Literal["main", "high", "medium", "low"] = Field(
        "low", description="which count, see generate.systems"
    )

    @model_validator(mode="after")
    def _complete(self) -> Substitutions:
        if self and not self.replace:
            raise ValueError("say in replace which elements give way to which, e.g. {Ti: [Zr, Hf]}")
        if self.replace and not self:
            raise ValueError("replace is given, but no compounds are: name formulas in of, or a file in path")
        return self

    def __bool__(self) -> bool:
        return bool(self.of) or self.path is not None
