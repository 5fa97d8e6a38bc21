"""Density functional theory of the candidates with Quantum ESPRESSO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from dao_pipeline.config.section import Section


class QE(Section):
    """Stage validate_qe: Quantum ESPRESSO on chosen candidates, one job each (docs/dft.md)."""

    enabled: bool = Field(False, description="run the stage")
    candidates: str | list[str] | None = Field(
        None,
        description="ids of the candidates to compute, or a text file with one per line; null: the ranked ones",
    )
    top_k: int = Field(1, ge=1, description="candidates per composition, where none are named")
    select: Literal["rank", "informative"] = Field(
        "rank",
        description="order in which a budget is spent. rank: every composition's first, then every second; "
        "informative: what DFT would decide most about per core hour, by predicted energy and its uncertainty",
    )
    budget_core_hours: float | None = Field(
        None, gt=0, description="expected core hours to spend, all candidates together; null: no limit"
    )
    calculation: Literal["single_point", "relax", "vc-relax"] = Field(
        "vc-relax", description="single_point: energy as it stands; relax: move atoms; vc-relax: cell as well"
    )
    protocol: Literal["fast", "balanced", "stringent"] = Field(
        "balanced", description="values of everything below that is null, and thresholds"
    )
    functional: Literal["PBE", "PBEsol", "LDA"] = Field(
        "PBE", description="that of the pseudopotentials; PBE is the Materials Project's"
    )
    kspacing: float | None = Field(None, gt=0, description="1/angstrom, the factor 2 pi included")
    ecutwfc: float | None = Field(
        None, gt=0, description="Ry; null: of the pseudopotentials, times the protocol's factor"
    )
    ecutrho: float | None = Field(None, gt=0, description="Ry; null: likewise")
    smearing: Literal["cold", "gaussian", "methfessel-paxton", "fermi-dirac"] | None = Field(
        None, description="of the occupations"
    )
    degauss: float | None = Field(None, gt=0, le=0.1, description="Ry; width of the smearing")
    spin: bool | None = Field(
        None, description="polarised; null: where a crystal holds an element of the protocol's magnetic ones"
    )
    pseudo_dir: str | None = Field(None, description="folder with pseudopotentials (UPF)")
    pseudo_table: str | None = Field(
        None,
        description="their table with file names, cut-offs and checksums (JSON of SSSP, or of PseudoDojo: one "
        "file, or a folder of .djrepo files); null: the headers of the files in pseudo_dir",
    )
    command: str = Field("pw.x", description="the program")
    launcher: str = Field("", description="what starts it in parallel, e.g. 'mpirun -np 4' or srun")
    pools: int = Field(1, ge=1, description="groups of processes that share the k-points (-nk)")
    setup: str = Field(
        "",
        description="shell commands before it, e.g. 'module load QuantumESPRESSO'; pw.x is then not looked for "
        "when a campaign is checked",
    )
    scratch: str | None = Field(
        None,
        description="folder for wave functions and densities; null: under work/. One that other nodes do "
        "not see can be fast, but a job that goes on elsewhere restarts from its last geometry",
    )

    @field_validator("candidates")
    @classmethod
    def _named(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and (not value or len(set(value)) < len(value)):
            raise ValueError("give each candidate once, and at least one")
        return value

    @model_validator(mode="after")
    def _density_holds_the_waves(self) -> QE:
        if self.ecutwfc and self.ecutrho and self.ecutrho < 4 * self.ecutwfc:
            raise ValueError(
                f"ecutrho ({self.ecutrho}) is below 4 ecutwfc ({self.ecutwfc}): the density of the plane waves "
                "would not fit; raise it"
            )
        return self
