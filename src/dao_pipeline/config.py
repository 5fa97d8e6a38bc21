"""The campaign as typed models: the only place that knows defaults and limits.

Each top-level section belongs to one stage (``STAGE_SETTINGS``), so that an edit reruns that stage and what
follows, and nothing before it. Unknown keys are errors. ``config/default.yaml`` and ``config/schema.json``
are generated from here.
"""

from __future__ import annotations

import os
import re
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.errors import UserError


def _formula(value: str) -> str:
    parse_formula(value)
    return value


VARIANT = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
_DATE = r"^\d{4}(-\d{2}(-\d{2})?)?$"


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, values: Any) -> Any:
        """A subsection that is given in part keeps this section's defaults for the rest, not its class's own."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name, value in values.items():
            default = cls.model_fields[name].default if name in cls.model_fields else None
            if isinstance(default, Section) and isinstance(value, dict):
                values[name] = {**default.model_dump(exclude_unset=True), **value}
        return values


class MaterialsProject(Section):
    """What to ask the Materials Project for; the key is MP_API_KEY or pymatgen's PMG_MAPI_KEY, never stored."""

    elements: list[str] | None = Field(None, description="only crystals that contain all of these elements")
    exclude_elements: list[str] | None = Field(None, description="only crystals that contain none of these")
    chemical_systems: list[str] | None = Field(
        None, description="chemical systems, e.g. [Li-Fe-O, Na-Cl]; '*' stands for any element"
    )
    min_sites: int | None = Field(None, ge=1, description="atoms per primitive cell at least")
    max_sites: int | None = Field(None, ge=1, description="atoms per primitive cell at most")
    min_e_above_hull: float | None = Field(None, ge=0, le=10, description="eV/atom; e.g. 0.08: unstable only")
    max_e_above_hull: float = Field(1.0, ge=0, le=10, description="eV/atom")
    theoretical: bool | None = Field(
        None, description="true: only crystals nobody has made; false: only known ones; null: both"
    )
    thermo_type: Literal["GGA_GGA+U", "GGA_GGA+U_R2SCAN", "R2SCAN"] = Field(
        "GGA_GGA+U", description="level of theory of the energies; always sent explicitly"
    )
    published: bool = Field(True, description="ask for the year of first publication as well, for splits by time")
    phases: bool = Field(True, description="fetch the phases on the convex hull as well: raw/phases.parquet")
    chunk: int = Field(400, ge=1, le=1000, description="crystals per request; kept as they arrive")
    endpoint: str | None = Field(None, description="address of another server that speaks the same API")

    @model_validator(mode="after")
    def _ranges(self) -> MaterialsProject:
        for low, high in (("min_sites", "max_sites"), ("min_e_above_hull", "max_e_above_hull")):
            lowest, highest = getattr(self, low), getattr(self, high)
            if lowest is not None and highest is not None and lowest > highest:
                raise ValueError(f"{low} ({lowest}) exceeds {high} ({highest})")
        return self


class Optimade(Section):
    """What to ask an OPTIMADE server for (OQMD, Alexandria, JARVIS, COD and others are such)."""

    url: str | None = Field(
        None,
        description="base address without the version, e.g. https://oqmd.org/optimade, or one of the names oqmd, "
        "alexandria, alexandria-pbesol, jarvis, cod, mp",
    )
    filter: str = Field(
        "", description='OPTIMADE filter, e.g. \'elements HAS ALL "Li", "O" AND nsites <= 20\'; empty: everything'
    )
    page: int = Field(100, ge=1, le=1000, description="structures per request; kept as they arrive")
    sort: str | None = Field(
        None, description="property to sort by, where the server can: pages then do not shift while they are read"
    )


ImportedColumn = Literal[
    "id",
    "source",
    "spacegroup",
    "formation_energy",
    "e_above_hull",
    "energy_method",
    "split",
    "published",
    "precursor_of",
]
"""Columns of the crystal table that a source may carry beside the structure."""


class Network(Section):
    """How patiently online sources are asked."""

    timeout: float = Field(60.0, gt=0, le=3600, description="seconds of silence after which a request is repeated")
    attempts: int = Field(
        8, ge=1, le=100, description="tries of a request; 429, 5xx, timeouts and cut connections are repeated"
    )
    backoff: float = Field(1.0, ge=0, le=600, description="seconds before the second try; doubled each time")
    longest_wait: float = Field(
        300.0,
        ge=0,
        description="seconds; where a server asks for a longer pause, the run ends and continues later",
    )


class DataSource(Section):
    """One source of crystals: what ships with the package, a file or folder, or a server."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="goes into the column source, where a file does not fill it itself, and in front of every id, "
        "as NAME:ID; null: the file's or server's own name, and ids as they are",
    )
    source: Literal["embedded", "file", "materials_project", "optimade"] = Field(
        "embedded", description="embedded: the crystals that ship with the package, no network"
    )
    path: str | None = Field(
        None,
        description="for source file: Parquet, CSV with a cif column, CIF, extended XYZ or pymatgen JSON, or a "
        "folder or zip of such; $NAME and ${NAME} are read from the environment",
    )
    columns: dict[ImportedColumn, str] = Field(
        {},
        description="names under which the source carries values, where they differ from the usual ones, e.g. "
        "{formation_energy: ef_per_atom, published: year}",
    )
    energy_method: str | dict[str, str] | None = Field(
        None,
        description="level of theory of the energies in the file, e.g. PBE (recorded, never guessed), or one for "
        "each value of the file's column source, e.g. {oqmd: 'PBE, OQMD', mp: 'PBE, MP'}",
    )
    limit: int | None = Field(None, ge=1, description="use only the first so many crystals")
    seconds_per_crystal: float = Field(
        30.0, gt=0, le=3600, description="a CIF or other text that takes longer to parse is rejected"
    )
    snapshot: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="name of the copy of an online source, e.g. 2026-11; another name downloads anew",
    )
    materials_project: MaterialsProject = MaterialsProject()
    optimade: Optimade = Optimade()
    network: Network = Network()

    @model_validator(mode="after")
    def _complete(self) -> DataSource:
        if self.source == "file" and not self.path:
            raise ValueError("path: source is file, so name the file (or use source: embedded)")
        if self.source == "optimade" and not self.optimade.url:
            raise ValueError("optimade.url: source is optimade, so name the server, e.g. oqmd")
        if self.source != "file" and isinstance(self.energy_method, dict):
            raise ValueError(f"energy_method: source is {self.source}, which needs a single level of theory")
        return self


class Data(DataSource):
    """Stage download: where crystals come from."""

    sources: list[DataSource] | None = Field(
        None,
        min_length=1,
        description="several sources in place of the one above, each with the keys above, the most trusted first: "
        "of equal crystals, build_crysdb keeps that of the earlier source",
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> Data:
        if self.sources is None:
            return self
        single = DataSource()
        if given := [key for key in DataSource.model_fields if getattr(self, key) != getattr(single, key)]:
            raise ValueError(f"{', '.join(given)}: sources is given, so write this into its entries")
        names = [source.name for source in self.sources if source.name]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"sources: {', '.join(twice)} is the name of several; rename one, or put files that belong "
                "together into one folder"
            )
        return self

    def each(self) -> list[tuple[str, DataSource]]:
        """Every source with the key that it stands under in the campaign: ``data`` or ``data.sources[0]``."""
        if self.sources is None:
            return [("data", self)]
        return [(f"data.sources[{i}]", source) for i, source in enumerate(self.sources)]


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
        if (self.val_from or self.test_from) and self.split != "time":
            raise ValueError(f"val_from and test_from belong to split: time, but split is {self.split}")
        return self


class Process(Section):
    """The way to noise that both models are trained on (paper: joint lattice and wrapped-normal diffusion)."""

    kind: Literal["flow", "diffusion"] = Field(
        "flow",
        description="flow: flow matching along straight paths, which with 25 network calls finds as many crystals "
        "as diffusion with 2,000 (docs/benchmarks.md); diffusion: as published",
    )
    timesteps: int = Field(1000, ge=10, le=10_000, description="noise levels T (paper: 1000)")
    sigma_min: float = Field(0.005, gt=0, lt=1, description="coordinate noise at t = 1, fractional (diffusion)")
    sigma_max: float = Field(0.5, gt=0, le=2, description="coordinate noise at t = T, fractional (diffusion)")
    remove_drift: bool = Field(
        True,
        description="leave the mean displacement of a crystal's atoms out of the coordinate loss: no model "
        "that ignores the origin can predict it (paper: false)",
    )
    lattice_scale: Literal["none", "composition"] = Field(
        "composition",
        description="none: lattices diffuse in angstrom (paper); composition: they are divided by the edge of a "
        "cube with the volume expected of the composition, so that noise and signal are of one size",
    )

    @model_validator(mode="after")
    def _flow_form(self) -> Process:
        if self.kind == "diffusion":
            return self
        if self.lattice_scale != "composition":
            raise ValueError(
                "lattice_scale: a flow starts from cells in units of the composition's: composition, or set "
                "kind: diffusion"
            )
        if not self.remove_drift:
            raise ValueError("remove_drift: the paths of a flow have no drift; set true, or kind: diffusion")
        for name in ("sigma_min", "sigma_max"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} belongs to kind: diffusion; a flow ends in uniform noise. Leave it out, or set kind"
                )
        return self

    @classmethod
    def of_model(cls, stated: dict[str, Any]) -> Process:
        """What the config.json of a model states; those from before there were flows state no kind."""
        return cls.model_validate({"kind": "diffusion", **stated})

    def difference(self, other: Process) -> str | None:
        """The first setting by which the noise of the two differs, or None: one cannot guide the other then."""
        names = ("kind", "timesteps", "sigma_min", "sigma_max", "lattice_scale")
        return next((name for name in names if getattr(self, name) != getattr(other, name)), None)


class Backbone(Section):
    """Crysformer. Presets: tiny (4 layers, width 96), small (8, 256), base (12, 384: the paper)."""

    preset: Literal["tiny", "small", "base"] = Field("small", description="layers, width, heads and frequencies")
    layers: int | None = Field(None, ge=1, le=64, description="overrides the preset")
    width: int | None = Field(None, ge=16, le=4096, description="overrides the preset; divisible by heads")
    heads: int | None = Field(None, ge=1, le=64, description="overrides the preset")
    frequencies: int | None = Field(None, ge=2, le=256, description="Fourier frequencies; overrides the preset")
    edge_norm: Literal["separate", "joint"] = Field(
        "separate",
        description="joint: one LayerNorm over lattice and Fourier features (paper); separate: the weight of the "
        "Fourier features does not depend on cell size",
    )
    distances: Literal["none", "bias", "values"] = Field(
        "values",
        description="attention also sees distances between atoms: bias, in its logits; values, also in what it "
        "sums (paper: none; others need edge_norm: separate)",
    )
    neighbours: Literal["nearest", "all"] = Field(
        "all",
        description="which distances: to the nearest image, in units of the composition's expected volume; or to "
        "all images, in angstrom, so that bond lengths and numbers of neighbours are seen (costs memory)",
    )
    residual: Literal["gated", "sum"] = Field(
        "gated",
        description="how a layer's result joins its input: gated, a learnt mean of the two (paper), or their sum, "
        "with a LayerNorm before the heads; default for DAO-P: sum",
    )
    noise_aware: bool = Field(
        True,
        description="the model knows how much noise t stands for: frequencies that drown in it are damped, and "
        "lattice noise is predicted as a velocity (paper: false; needs edge_norm: separate)",
    )

    @model_validator(mode="after")
    def _published_form(self) -> Backbone:
        if self.edge_norm == "joint" and (self.distances != "none" or self.noise_aware):
            raise ValueError("edge_norm joint is the published form: set distances: none and noise_aware: false")
        return self

    @classmethod
    def of_model(cls, stated: dict[str, Any]) -> Backbone:
        """What the config.json of a model states; those from before there was a choice saw nearest images."""
        return cls.model_validate({"neighbours": "nearest", "residual": "gated", **stated})


class Training(Section):
    """One run of the training loop."""

    steps: int = Field(20_000, ge=1, description="optimiser steps")
    batch_atoms: int = Field(4_000, ge=10, description="atoms per optimiser step, all processes together")
    learning_rate: float = Field(5e-4, gt=0, lt=1, description="peak learning rate (Adam)")
    final_learning_rate: float = Field(1e-6, ge=0, lt=1, description="end of the cosine schedule")
    warmup_steps: int = Field(200, ge=0, description="linear warm-up from a thousandth of the peak (paper)")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="pulls weights to zero")
    decoupled_decay: bool = Field(
        True, description="true: AdamW; false: Adam with an L2 term, whose pull Adam scales (paper)"
    )
    clip: Literal["norm", "value", "none"] = Field(
        "norm", description="norm: scale the gradient as a whole; value: cut each entry (paper)"
    )
    clip_value: float = Field(1.0, gt=0, description="limit of the gradient's norm or of each entry (paper: 0.5)")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="of the network's matrix products; weights, noise and losses are fp32 in either case"
    )
    max_skipped: int = Field(
        100, ge=0, description="steps that may be skipped because loss or gradient is not finite"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1, description="exponential moving average of weights; 0: off")
    permute_axes: bool = Field(
        False,
        description="augment by permuting a, b, c, which are all one to physics; default for DAO-P: true",
    )
    validate_every: int = Field(500, ge=1, description="steps between validations on fixed noise")
    keep: Literal["last", "best"] = Field(
        "last", description="averaged weights of the last step, or of the validation with the smallest loss"
    )
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints")


class EnergyModel(Section):
    """Stage train_energy_model: DAO-P."""

    backbone: Backbone = Backbone(residual="sum")
    label: Literal["e_above_hull", "formation_energy"] = Field(
        "e_above_hull", description="energy the model learns, eV/atom"
    )
    reference: Literal["none", "elements"] = Field(
        "elements",
        description="elements: learn what is left of the label after one energy per element, fitted on the "
        "training crystals; its standard deviation is then the temperature of guidance (paper: none)",
    )
    loss: Literal["linex", "exponential", "squared"] = Field(
        "linex",
        description="of noisy crystals: exponential, the squared error of exp(-E) (paper), and linex, "
        "exp(E - y) - (E - y) - 1, have the same minimum, the exact energy of the noisy crystal, but linex is no "
        "blinder to high energies; squared: the mean energy, inexact",
    )
    energy_weight: float = Field(
        3.0, gt=0, description="of the energy's loss beside the two of denoising (paper: 1)"
    )
    clean_fraction: float = Field(
        0.5, ge=0, le=1, description="share of crystals shown without noise, t = 0 (paper: 0)"
    )
    precursors: Literal["clean", "noisy"] = Field(
        "clean",
        description="crystals that are unrelaxed precursors of others: clean, shown without noise only, because "
        "E_t belongs to noise on what is generated, relaxed crystals; noisy: like all others (paper)",
    )
    clip_label: float = Field(4.0, gt=0, description="standard deviations; labels beyond are clipped")
    training: Training = Training(learning_rate=3e-4, permute_axes=True)
    members: int = Field(
        0,
        ge=0,
        le=20,
        description="further models, each trained on from the first one with a warm restart on a resample of the "
        "crystals: their spread tells how certain an energy is (column energy_std_pred)",
    )
    member_steps: int = Field(2_000, ge=1, description="optimiser steps of each")
    pretrained: str | None = Field(
        None, description="a DAO-P model directory, taken as it is: the stage has nothing to do then"
    )


class Relax(Section):
    """Stage relax_dataset: DAO-P moves unstable training crystals down in energy."""

    method: Literal["lbfgs", "paper"] = Field(
        "lbfgs",
        description="lbfgs: each crystal by itself, and accepted only if it is sound; paper: one L-BFGS for the "
        "crystals among 100, which are all accepted, as published (limits and tolerances below do not count)",
    )
    min_e_above_hull: float = Field(0.08, ge=0, description="eV/atom; more stable crystals are left alone")
    max_e_above_hull: float = Field(0.5, gt=0, description="eV/atom; less stable crystals are left alone")
    steps: int = Field(30, ge=1, description="L-BFGS steps at most, refused ones counted (paper: 5)")
    max_step: float = Field(0.1, gt=0, description="angstrom; an atom moves at most so far in one step")
    max_strain: float = Field(0.02, gt=0, le=0.2, description="largest strain component of one step")
    force_tolerance: float = Field(0.05, gt=0, description="eV/angstrom; converged below, with the stress")
    stress_tolerance: float = Field(0.5, gt=0, description="GPa; converged below, with the forces")
    max_displacement: float = Field(1.5, gt=0, description="angstrom; the original is kept beyond")
    max_volume_change: float = Field(0.3, gt=0, description="relative; the original is kept beyond")
    min_distance: float = Field(0.7, ge=0, description="angstrom; the original is kept below")
    batch_atoms: int = Field(
        4_000, ge=1, description="atoms that are relaxed at once; who has converged makes room for others"
    )
    flush: int = Field(
        200, ge=1, description="relaxed crystals after which the state is saved: what a kill loses at most"
    )
    shard_size: int = Field(2_000, ge=1, description="crystals per shard; finished shards are never redone")
    jobs: int = Field(1, ge=1, le=1000, description="jobs that share the shards")

    @model_validator(mode="after")
    def _window(self) -> Relax:
        if self.min_e_above_hull >= self.max_e_above_hull:
            raise ValueError("no crystal lies above min_e_above_hull and below max_e_above_hull: raise the latter")
        return self


class Generator(Section):
    """DAO-G's backbone, and weights from elsewhere in place of pretraining."""

    backbone: Backbone = Backbone(distances="none")
    pretrained: str | None = Field(
        None, description="a model directory; pretraining is skipped and fine-tuning starts there"
    )
    template_paths: float = Field(
        0.0,
        ge=0,
        le=1,
        description="flow: where a training crystal has a template, the probability that its path starts there, "
        "not at noise, so that the model also learns to refine templates; 0: it does not (paper)",
    )


class Pretrain(Section):
    """Stages pretrain_generator: I on stable and unstable crystals, II on the relaxed set."""

    stages: Literal[0, 1, 2] = Field(
        2, description="2: both; 1: the first only; 0: none, fine-tuning starts from random weights"
    )
    crystals: Literal["all", "stable"] = Field(
        "all", description="of stage I: the whole training split, or its part up to crysdb.stable_threshold"
    )
    stage1: Training = Training()
    stage2: Training = Training(steps=10_000, learning_rate=2e-4)


class Finetune(Section):
    """Stage finetune_generator."""

    crystals: Literal["stable", "all"] = Field(
        "stable",
        description="part of the training split: up to crysdb.stable_threshold above the hull, or all",
    )
    sources: list[str] | None = Field(
        None,
        description="only the crystals of these sources (column source), e.g. those of a benchmark; null: of all",
    )
    path: str | None = Field(None, description="a crystal table to fine-tune on instead")
    training: Training = Training(steps=5_000, learning_rate=1e-4)

    @model_validator(mode="after")
    def _one_table(self) -> Finetune:
        if self.sources is not None and self.path is not None:
            raise ValueError("sources are parts of the training split, path is another table: give one of them")
        return self


class Composition(Section):
    """One composition to predict."""

    formula: Annotated[str, AfterValidator(_formula)] = Field(description="e.g. SrTiO3")
    formula_units: int = Field(1, ge=1, le=100, description="how many of them are in the cell")

    @property
    def num_atoms(self) -> int:
        """Atoms in the cell."""
        return self.formula_units * sum(parse_formula(self.formula).values())


class TestSplit(Section):
    """Predict compositions of the test split, whose crystals are known."""

    limit: int = Field(10, ge=1, description="compositions at most, in the order of the table")


# as published for diffusion; for flow from the table of samplers in docs/benchmarks.md
DEFAULT_STEPS = {"diffusion": 1000, "flow": 50}
DEFAULT_ANNEALING = 5.0

CALLS_PER_STEP = {"predictor": 1, "predictor-corrector": 2, "euler": 1, "midpoint": 2}


class Sampling(NamedTuple):
    """How crystals are drawn: process, sampler, steps, calls of the network by all steps, annealing of a flow."""

    process: str
    method: str
    steps: int
    network_calls: int
    annealing: float | None


class Guidance(Section):
    """How DAO-P guides sampling, beside generate.guidance_scale; all of it is without effect at scale 0."""

    coords: float = Field(1.0, ge=0, description="multiplier of the scale for the coordinates; 0: not guided")
    lattice: float = Field(1.0, ge=0, description="multiplier of the scale for the lattice; 0: not guided")
    start: float = Field(1.0, ge=0, le=1, description="share of noise, t / T, at which guidance begins")
    stop: float = Field(0.0, ge=0, le=1, description="share of noise, t / T, below which it has ended")
    clip: float | None = Field(
        None,
        gt=0,
        description="a crystal's coordinates, and its lattice, are guided at most this many times as far as the "
        "generator itself moves them in the step; null: no bound",
    )
    draws: int = Field(
        1,
        ge=1,
        le=1000,
        description="crystals drawn for each candidate, of which one is kept: at random, the lower its energy the "
        "likelier. Sampling costs as many times as much",
    )
    draws_weight: float = Field(
        1.0, ge=0, description="multiplier of the scale in that choice, exp(-multiplier * scale * E)"
    )

    @model_validator(mode="after")
    def _some_time(self) -> Guidance:
        if self.stop > self.start:
            raise ValueError(f"stop ({self.stop}) exceeds start ({self.start}); sampling goes from 1 to 0")
        return self


class Generate(Section):
    """Stages plan_candidates and generate_candidates."""

    compositions: list[Composition] | None = Field(None, description="what to predict; null: the test split")
    test_split: TestSplit = TestSplit()
    max_atoms: int = Field(60, ge=1, le=200, description="larger cells are refused")
    samples: int = Field(20, ge=1, description="candidates per composition")
    steps: int | None = Field(
        None,
        ge=2,
        description="reverse steps; fewer than timesteps skips noise levels; null: 1000 for diffusion, 50 for "
        "flow, or as many as the levels allow",
    )
    corrector: bool | None = Field(
        None, description="diffusion: a Langevin step before each predictor step (paper); null: true"
    )
    step_size: float = Field(1e-5, gt=0, lt=1, description="of the corrector at the smallest noise (paper)")
    method: Literal["euler", "midpoint"] | None = Field(
        None, description="flow: euler, one network call per step, or midpoint, two and second order; null: euler"
    )
    annealing: float | None = Field(
        None,
        ge=0,
        le=50,
        description="flow: by the end the velocity of the coordinates has grown to 1 + this; null: 5",
    )
    guidance_scale: float = Field(
        0.0,
        ge=0,
        description="multiplier w of DAO-P's energy E in standard deviations of its training set: candidates "
        "become exp(-w E) times as likely, which is a temperature kT = energy_std / w; 0: unguided, the default "
        "by the scan in docs/benchmarks.md",
    )
    guidance: Guidance = Guidance()
    template_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of each composition's candidates, rounded up, that are made from known structures with "
        "the elements replaced (section templates); those that find no template are generated like the others "
        "(paper: 0)",
    )
    template_refinement: Literal["none", "path", "noise"] = Field(
        "none",
        description="what DAO-G does to templates: none; path: follow the paths it has learned "
        "(generator.template_paths); noise: noise them to template_noise, and denoise them",
    )
    template_steps: int = Field(10, ge=1, description="steps of template_refinement: path, one network call each")
    template_noise: float = Field(
        0.1, gt=0, le=1, description="noise level of template_refinement: noise, as a share of process.timesteps"
    )
    shard_size: int = Field(1_000, ge=1, description="candidates per shard, one job each")
    batch_atoms: int = Field(6_000, ge=10, description="atoms per sampling batch")

    @property
    def templates(self) -> int:
        """Candidates of each composition that are made from templates, where it has so many."""
        return ceil(round(self.template_share * self.samples, 9))

    def sampling(self, process: Process) -> Sampling:
        """The sampler of a process, defaults filled in.

        Raises ValueError for settings of the other process, or more steps than the noise levels allow.
        """
        if process.kind == "diffusion":
            foreign: dict[str, Any] = {"method": self.method, "annealing": self.annealing}
            method = "predictor" if self.corrector is False else "predictor-corrector"
        else:
            foreign = {"corrector": self.corrector}
            method = self.method or "euler"
        for name, value in foreign.items():
            if value is not None:
                raise ValueError(f"generate.{name} ({value}) has no meaning for process.kind: {process.kind}")
        most = process.timesteps // 2 if method == "midpoint" else process.timesteps
        steps = self.steps or min(DEFAULT_STEPS[process.kind], most)
        if steps > most:
            raise ValueError(
                f"generate.steps ({steps}) exceeds {most}, the most that process.timesteps "
                f"({process.timesteps}) allows with method {method}"
            )
        annealing = DEFAULT_ANNEALING if self.annealing is None else self.annealing
        return Sampling(
            process.kind,
            method,
            steps,
            steps * CALLS_PER_STEP[method],
            annealing if process.kind == "flow" else None,
        )


class Screen(Section):
    """Stage screen_candidates."""

    min_distance: float = Field(0.5, ge=0, description="angstrom; closer atoms are invalid")
    min_volume_per_atom: float = Field(1.0, ge=0, description="angstrom^3; denser cells are invalid")
    max_volume_per_atom: float = Field(500.0, gt=0, description="angstrom^3; emptier cells are invalid")
    symprec: float = Field(0.1, gt=0, description="angstrom; tolerance of the space group")
    matcher: Matcher = Field(
        Matcher(ltol=0.2, stol=0.3, angle_tol=5.0),
        description="decides uniqueness and novelty (pymatgen's defaults)",
    )
    top_k: int = Field(5, ge=1, description="candidates per composition that are exported and shown")


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

    enabled: bool = Field(
        False,
        description="train a ranker, and rank candidates by its probabilities; false: by predicted energy",
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
        2_000, ge=20, description="training compositions whose proposals are compared with the known crystal"
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
        if self.model is not None and not self.enabled:
            raise ValueError("model is given, but enabled is false: set enabled: true, or leave model out")
        return self


class Evaluate(Section):
    """Stage evaluate: were the known crystals found?"""

    matcher: Matcher = Matcher()
    bootstrap: int = Field(1000, ge=0, description="resamples for 95 % intervals")
    baselines: bool = Field(True, description="compare with random crystals and substituted templates as well")
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


class QE(Section):
    """Stage validate_qe: Quantum ESPRESSO on the top candidates, one job each."""

    enabled: bool = Field(False, description="run the stage")
    top_k: int = Field(1, ge=1, description="candidates per composition")
    command: str = Field("pw.x", description="how pw.x is started, e.g. 'mpirun -np 8 pw.x'")
    pseudo_dir: str | None = Field(None, description="folder with PBE pseudopotentials (UPF)")
    ecutwfc: float = Field(60.0, gt=0, description="Ry")
    ecutrho: float = Field(480.0, gt=0, description="Ry")
    kspacing: float = Field(0.3, gt=0, description="1/angstrom")
    calculation: Literal["scf", "relax", "vc-relax"] = Field(
        "vc-relax", description="scf: energy as it stands; relax: move atoms; vc-relax: cell as well"
    )


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


class Resources(Section):
    """What a rule asks of Snakemake and Slurm."""

    threads: int = Field(2, ge=1, description="CPU cores")
    gpus: int = Field(0, ge=0, description="GPUs of one node")
    mem_mb: int = Field(4_000, ge=100, description="megabytes; multiplied by the attempt")
    runtime: int = Field(60, ge=1, description="minutes; multiplied by the attempt")


class TrainingResources(Resources):
    """Resources of training, and how its steps are computed: that changes results by rounding only."""

    processes: int | None = Field(None, ge=1, description="processes of one training; null: one per GPU, else 1")
    chunk_atoms: int | None = Field(
        None,
        ge=1,
        description="atoms computed at once, which bounds memory; null: 1024 on CPUs, where that fits the caches, "
        "and a process's whole share of the step on GPUs. Halved by itself where memory runs out",
    )

    @property
    def num_processes(self) -> int:
        """Processes of one training."""
        return self.processes or max(1, self.gpus)

    @model_validator(mode="after")
    def _one_gpu_each(self) -> TrainingResources:
        if self.gpus and self.num_processes > self.gpus:
            raise ValueError(
                f"processes ({self.processes}) exceeds gpus ({self.gpus}): each process needs its own"
            )
        return self


class Compute(Section):
    """Resources by kind of stage; changing them reruns nothing."""

    cpu: Resources = Resources()
    training: TrainingResources = TrainingResources(mem_mb=8_000, runtime=720)
    sampling: Resources = Resources(mem_mb=8_000, runtime=240)


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
                    f"generate.compositions[{i}]: {composition.formula} x {composition.formula_units} has "
                    f"{composition.num_atoms} atoms, more than generate.max_atoms ({self.generate.max_atoms}); "
                    "use fewer formula units or raise the limit"
                )
        return self

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
        "generate.test_split",
        "generate.samples",
        "generate.shard_size",
        "generate.max_atoms",
        "generate.template_share",
        "seed",
    ),
    "index_templates": ("templates.distance", "templates.learned", "templates.same_type"),
    "propose_templates": ("templates.exclude", "generate.template_share", "generate.samples"),
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
    "train_ranker": ("ranking", "templates", "screen.symprec", "seed"),
    "screen_candidates": ("screen", "ranking.enabled", "ranking.model", "ranking.matcher"),
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
    "validate_qe": ("qe",),
    "ablate": ("ablation", "evaluate.bootstrap", "seed"),
    "report": ("report",),
}
"""Configuration keys that each stage uses: the rule's ``params``, so that other edits do not rerun it."""


def stage_settings(campaign: Campaign, stage: str) -> dict[str, Any]:
    """The configuration values that ``stage`` uses, by dotted key."""
    values: dict[str, Any] = {}
    for key in STAGE_SETTINGS[stage]:
        value: Any = campaign
        for part in key.split("."):
            value = getattr(value, part)
        values[key] = value.model_dump(mode="json") if isinstance(value, BaseModel) else _plain(value)
    return values


def _plain(value: Any) -> Any:
    return (
        [_plain(v) for v in value]
        if isinstance(value, list)
        else (value.model_dump(mode="json") if isinstance(value, BaseModel) else value)
    )


def expand_path(text: str) -> Path:
    """A path of the configuration with ``~``, ``$NAME`` and ``${NAME}`` replaced.

    Raises UserError naming an environment variable that is not set.
    """
    expanded = os.path.expandvars(text)
    if missing := re.search(r"\$\{?(\w+)", expanded):
        raise UserError(f"path {text!r}: the environment variable {missing.group(1)} is not set; set it.")
    return Path(expanded).expanduser()
