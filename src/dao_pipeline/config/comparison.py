"""What candidates are compared with: our own DFT, and that of others."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dao_pipeline.config.crysdb import Matcher
from dao_pipeline.config.section import Section


class DFTBaseline(Section):
    """DFT results from elsewhere: Materials Project values, a collaborator's calculations."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$", description="what the comparison calls it")
    path: str = Field(description="file of crystals in any form that data.path takes; ~ and $NAME are replaced")
    quantity: Literal["formation_energy", "e_above_hull", "total"] = Field(
        "formation_energy",
        description="what its energies are, eV/atom. total: total energies, which order the candidates of one "
        "composition and say nothing else",
    )
    column: str | None = Field(None, description="its column of energies; null: by its usual names")
    relaxed: bool = Field(True, description="its crystals are relaxed, so that geometries are compared too")


class CompareDFT(Section):
    """Stage compare_dft: candidates against Quantum ESPRESSO and against DFT results from elsewhere."""

    baselines: list[DFTBaseline] = Field(
        [],
        description="tables of DFT results. A row with a candidate's id belongs to it, others to the candidates "
        "that StructureMatcher finds to be the same crystal",
    )
    elements: bool = Field(
        True,
        description="compute the elements with the settings of qe, which formation energies need; kept for "
        "other campaigns",
    )
    max_element_atoms: int = Field(
        8, ge=1, description="cells of elements with more atoms are not computed, nor their compounds' formation"
    )
    phases: str | None = Field(
        None,
        description="file of crystals that are computed with the same settings: the reference phases of the hull. "
        "Without it no energies above hull are given",
    )
    known: str | None = Field(
        None,
        description="file of known crystals: candidates without a target of the test split are compared with the "
        "one of their composition (the lowest in energy, if several), before and after DFT",
    )
    tie: float = Field(1e-3, ge=0, description="eV/atom; DFT energies within it are not put in order")
    matcher: Matcher = Field(
        Matcher(ltol=0.2, stol=0.3, angle_tol=5.0),
        description="decides whether a candidate is the same crystal after DFT, and which result of others is its "
        "own (pymatgen's defaults: those of match rates take rock salt for zincblende)",
    )

    @model_validator(mode="after")
    def _names(self) -> CompareDFT:
        names = [b.name for b in self.baselines]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"baselines: {', '.join(twice)} is the name of several; rename one")
        if "quantum_espresso" in names:
            raise ValueError("baselines: quantum_espresso is the name of our own results; rename it")
        return self
