"""Crysformer and what it is trained on: process, backbone, training, DAO-P, DAO-G."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from dao_pipeline.config.section import Section


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

    enabled: bool = Field(
        True,
        description="false: no DAO-P, and no energies, where nothing needs them: no generator, candidates ranked "
        "by probability without ranking.energy",
    )
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

    enabled: bool = Field(
        True,
        description="false: no DAO-G is trained, where all candidates are templates as they are "
        "(generate.template_share: 1); those that find none have no crystal, status no_template",
    )
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
