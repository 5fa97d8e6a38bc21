"""How crystals are cleaned, told apart and split."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dao_pipeline.config.section import Section

_DATE = r"^\d{4}(-\d{2}(-\d{2})?)?$"


class Matcher(Section):
    """pymatgen's StructureMatcher; the defaults are those of the field's match rates."""

    ltol: float = Field(0.3, gt=0, lt=1, description="fractional length tolerance")
    stol: float = Field(0.5, gt=0, lt=2, description="site tolerance, in units of (V/n)^(1/3)")
    angle_tol: float = Field(10.0, gt=0, lt=90, description="degrees")


class Dedup(Section):
    """When two crystals of CrysDB are one; the better one is kept (docs/data.md says which that is)."""

    mode: Literal["structure", "exact", "off"] = Field(
        "structure",
        description="structure: pymatgen's StructureMatcher decides; exact: the same cell up to 0.01 angstrom; "
        "off: duplicates stay",
    )
    matcher: Matcher = Field(Matcher(ltol=0.2, stol=0.3, angle_tol=5.0), description="pymatgen's defaults")
    max_volume_difference: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="relative, per atom; beyond, a crystal is another one whatever the matcher says",
    )
    prefer: list[str] = Field(
        [], description="sources, best first, whose crystals are kept; sources not named come after them"
    )


class CrysDB(Section):
    """Stage build_crysdb: cleaning, labels, duplicates and splits."""

    min_atoms: int = Field(3, ge=1, description="atoms per reduced cell (the paper: 3)")
    max_atoms: int = Field(30, ge=1, le=200, description="atoms per reduced cell (the paper: 30)")
    min_distance: float = Field(0.5, ge=0, le=5, description="angstrom; closer atoms are rejected")
    min_volume_per_atom: float = Field(1.0, ge=0, description="angstrom^3; denser cells are rejected")
    max_volume_per_atom: float = Field(500.0, gt=0, description="angstrom^3; emptier cells are rejected")
    max_e_above_hull: float = Field(1.0, gt=0, description="eV/atom; less stable crystals are rejected")
    stable_threshold: float = Field(0.08, ge=0, description="eV/atom above hull; stable up to here (paper)")
    hull: Literal["given", "fill", "own"] = Field(
        "given",
        description="energy above hull: given by the source; fill: where the source gives only a formation "
        "energy, from the hull of this set at the same level of theory; own: always from that hull",
    )
    energy_methods: list[str] | None = Field(
        None,
        description="levels of theory whose energies may stand side by side (unknown: not named); energies of "
        "others are left out. null: there must be only one",
    )
    require_label: bool = Field(
        True, description="crystals without energy_model.label are rejected; false: they only teach the generator"
    )
    dedup: Dedup = Dedup()
    exclude: list[str] = Field([], description="tables of crystals that must not be trained on (benchmark tests)")
    exclude_by: Literal["composition", "structure"] = Field(
        "composition",
        description="composition: everything with a composition in those tables goes; structure: what has the id "
        "and composition of a crystal in them, or matches one (crysdb.dedup.matcher)",
    )
    split: Literal["composition", "chemical_system", "time", "given"] = Field(
        "composition",
        description="how crystals without a given split are divided: at random by reduced formula or by set of "
        "elements, by date of publication, or not at all (all to train)",
    )
    val_fraction: float = Field(
        0.05, ge=0, lt=0.5, description="share of compositions (or systems) for validation"
    )
    test_fraction: float = Field(0.05, ge=0, lt=0.5, description="share of compositions (or systems) for testing")
    val_from: str | None = Field(
        None, pattern=_DATE, description="split: time; crystals published since then (YYYY-MM-DD) validate"
    )
    test_from: str | None = Field(
        None, pattern=_DATE, description="split: time; crystals published since then (YYYY-MM-DD) test"
    )
    use_given_split: bool = Field(True, description="respect a split column of the source where it is filled")
    held_out: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {},
        description="by source (column source), so many of its crystals, drawn at random by the seed, are the "
        "test split, e.g. {mp20: 1000}; whatever else has one of their compositions is left out",
    )

    @model_validator(mode="after")
    def _ordered(self) -> CrysDB:
        if self.min_atoms > self.max_atoms:
            raise ValueError(f"min_atoms ({self.min_atoms}) exceeds max_atoms ({self.max_atoms})")
        if self.min_volume_per_atom > self.max_volume_per_atom:
            raise ValueError(
                f"min_volume_per_atom ({self.min_volume_per_atom:g}) exceeds max_volume_per_atom "
                f"({self.max_volume_per_atom:g})"
            )
        if self.val_from and self.test_from and self.val_from > self.test_from:
            raise ValueError(f"val_from ({self.val_from}) is later than test_from ({self.test_from})")
        if bool(self.val_from) != bool(self.test_from):
            raise ValueError("val_from and test_from belong together: give both, or neither")
        if self.held_out and self.split not in ("composition", "chemical_system"):
            raise ValueError(
                f"held_out needs split: composition or chemical_system, which keep compositions apart, not "
                f"{self.split}"
            )
        if (self.val_from or self.test_from) and self.split != "time":
            raise ValueError(f"val_from and test_from belong to split: time, but split is {self.split}")
        return self
