"""How candidates are drawn, and how they are screened; what to predict is in ``asked``."""

from __future__ import annotations

from math import ceil, floor
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from dao_pipeline.config.asked import Composition, Substitutions, Systems, TestSplit
from dao_pipeline.config.crysdb import Matcher
from dao_pipeline.config.models import Process
from dao_pipeline.config.section import Section

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

    compositions: list[Composition] | None = Field(
        None,
        description="what to predict, together with files, systems and substitutions; if all are empty, the test "
        "split",
    )
    files: list[str] = Field(
        [],
        description="files of formulas: text with one per line, or CSV or Parquet with the column formula and, if "
        "wanted, formula_units",
    )
    systems: Systems = Systems()
    substitutions: Substitutions = Substitutions()
    test_split: TestSplit = TestSplit()
    unit_atoms: int = Field(
        20,
        ge=1,
        le=200,
        description="formulas without formula_units are predicted with every number of them up to so many atoms, "
        "at least with one",
    )
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
        description="share of each composition's candidates, rounded down, that are made from known structures "
        "with the elements replaced (section templates); those that find no template are generated like the "
        "others (paper: 0)",
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
    shard_compositions: int = Field(
        50,
        ge=1,
        le=100_000,
        description="compositions per shard, one job of the screening each; more for millions",
    )
    round_samples: int = Field(
        20, ge=1, le=100_000, description="samples of each of its compositions per round of a shard, one job each"
    )
    batch_atoms: int = Field(6_000, ge=10, description="atoms per sampling batch")

    @property
    def known(self) -> bool:
        """Whether compositions of the test split are predicted, whose crystals are known."""
        return self.compositions is None and not (self.files or self.systems.of or self.substitutions)

    @property
    def templates(self) -> int:
        """Candidates of each composition that are made from templates, where it has so many."""
        return floor(round(self.template_share * self.samples, 9))

    @property
    def rounds(self) -> int:
        """Rounds of each shard."""
        return ceil(self.samples / self.round_samples)

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


class SecondModel(Section):
    """Another model's opinion on the best candidates of each composition."""

    model: Literal["none", "chgnet"] = Field("none", description="chgnet: needs the package (extra chgnet)")
    top_k: int = Field(3, ge=1, description="candidates per composition that it is asked about, by rank")
    relax_steps: int = Field(
        0, ge=0, le=10_000, description="steps of a relaxation by it, some 0.1 s per core each; 0: none"
    )


class Hull(Section):
    """Energy above the convex hull of known phases, by the model that also judges the candidates."""

    entries: str | None = Field(
        None,
        description="crysdb: training and validation crystals of this campaign; else a file, a crystal table "
        "(Parquet) or JSON as in docs/ranking.md; $NAME and ${NAME} are read from the environment; null: no hull",
    )
    model: Literal["dao_p", "chgnet"] = Field(
        "dao_p",
        description="whose energies: dao_p, which must have learned formation energies (energy_model.label), or "
        "chgnet, for the candidates of second_model.top_k",
    )
    energies: Literal["model", "given"] = Field(
        "model",
        description="of the known phases: model, evaluated by the same model; given, as the file has them, which "
        "must then name that model",
    )
    per_formula: int = Field(
        5, ge=1, description="phases of each formula that are evaluated, the most stable first where that is known"
    )


class Screen(Section):
    """Stage screen_candidates."""

    min_distance: float = Field(0.5, ge=0, description="angstrom; closer atoms are invalid")
    min_volume_per_atom: float = Field(1.0, ge=0, description="angstrom^3; denser cells are invalid")
    max_volume_per_atom: float = Field(500.0, gt=0, description="angstrom^3; emptier cells are invalid")
    require_charge_neutral: bool = Field(
        False, description="compositions whose oxidation states cannot add up to zero are invalid"
    )
    symprec: float = Field(0.1, gt=0, description="angstrom; tolerance of the space group and the refined cell")
    symprecs: list[Annotated[float, Field(gt=0)]] = Field(
        [0.01, 0.03, 0.1, 0.3],
        min_length=1,
        max_length=20,
        description="angstrom; tolerances of the space groups in column spacegroups",
    )
    matcher: Matcher = Field(
        Matcher(ltol=0.2, stol=0.3, angle_tol=5.0),
        description="decides uniqueness and novelty (pymatgen's defaults)",
    )
    second_model: SecondModel = SecondModel()
    hull: Hull = Hull()
    top_k: int = Field(5, ge=1, description="candidates per composition that are exported and shown")
    top_files: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="files in top.zip at most; if top_k asks for more, those of lower rank are left out first",
    )

    @model_validator(mode="after")
    def _has_energies(self) -> Screen:
        if self.hull.entries is not None and self.hull.model == "chgnet" and self.second_model.model != "chgnet":
            raise ValueError(
                "hull.model is chgnet, but second_model.model is none: set second_model.model: chgnet, or "
                "hull.model: dao_p"
            )
        if self.hull.entries is not None and self.hull.model == "chgnet" and self.hull.energies == "given":
            raise ValueError(
                "hull.energies: given has formation energies, and CHGNet gives total energies of candidates: set "
                "hull.energies: model"
            )
        return self
