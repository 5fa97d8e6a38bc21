"""Stage generate_candidates: the crystals of one round of a shard, sampled by DAO-G and guided by DAO-P.

A candidate's crystal follows from the campaign's seed, its composition and its number there, whatever else is in
the shard or the batch (but for rounding). Batches are written as they are finished, and an interrupted shard
continues with the candidates that are left.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from dao_pipeline.candidates.batches import BatchSize, Parts, in_batches
from dao_pipeline.candidates.from_templates import template_rows
from dao_pipeline.candidates.made import as_candidates, without_crystals, without_template
from dao_pipeline.candidates.plan import PLAN_COLUMNS
from dao_pipeline.config import Campaign, Generate, stage_settings
from dao_pipeline.crystals.flat import list_values
from dao_pipeline.crystals.held_out import training_of
from dao_pipeline.crystals.table import file_hash, provenance, read_table, write_table
from dao_pipeline.device import device_name, pick_device
from dao_pipeline.energy.predict import guidance_gradient, load_energy_model
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.interrupt import Interruptible
from dao_pipeline.model.dao import DaoModel, load_model
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.guidance import Steering, choose
from dao_pipeline.process.noise_stream import Candidates, NoiseStream
from dao_pipeline.process.sample import sampled_by
from dao_pipeline.process.sampler import Watch
from dao_pipeline.progress import Reporter


def generate_candidates(
    campaign: Campaign,
    plan: Path,
    generator: Path | None,
    energy_model: Path | None,
    out: Path,
    work: Path,
    templates: Path | None = None,
) -> None:
    """Generate the rows of ``plan``, a round of a shard; one row each in ``out``, whatever happens.

    Those with a row in ``templates`` are made from it, all others generated; without a ``generator`` they have no
    crystal, and templates stay as they are. energy_model: DAO-P, for guidance. Without rows the result is an empty
    table. Raises ContinueLater when interrupted, and UserError for models that
    do not fit each other or the settings.
    """
    settings = campaign.generate
    rows = read_table(plan, list(PLAN_COLUMNS))
    named = {"generator": generator, "energy_model": energy_model}
    models = {name: folder for name, folder in named.items() if folder is not None}
    inputs = {"plan": plan, **{name: folder / "model.safetensors" for name, folder in models.items()}}
    about = provenance(
        "generate_candidates",
        campaign=campaign.name,
        settings=stage_settings(campaign, "generate_candidates"),
        inputs=inputs,
        seed=campaign.seed,
        training={name: training_of(folder) for name, folder in models.items()},
    )
    if templates is not None:
        inputs["templates"] = templates
    hashes = {name: file_hash(inputs[name]) for name in inputs if name != "plan"}
    identity = {"models": hashes, "settings": about["settings_hash"], "seed": campaign.seed}
    device = pick_device()
    dao_g, dao_p = load_models(campaign, generator, energy_model, device)
    needs = {"device": device_name(device)}
    if dao_g is not None:
        about["sampling"] = settings.sampling(dao_g.process)._asdict()
        needs["generator"] = hashes["generator"]
    if dao_p is not None:
        needs["energy_model"] = hashes["energy_model"]
    size = BatchSize(settings.batch_atoms, work.parent, needs)
    proposed = None if templates is None else read_table(templates)
    parts = Parts(work, identity)
    missing = ~parts.have(rows)
    own = np.zeros(rows.num_rows, dtype=bool)
    if proposed is not None:
        own = np.asarray(pc.is_in(rows["id"], value_set=proposed["id"].combine_chunks())).astype(bool)

    def generated(batch: pa.Table) -> pa.Table:
        if dao_g is None:
            return without_template(batch, settings)
        return generate_rows(batch, dao_g, dao_p, settings, campaign.seed)

    def from_templates(batch: pa.Table) -> pa.Table:
        assert proposed is not None
        return template_rows(batch, proposed, dao_g, settings, campaign.seed)

    failed = partial(without_crystals, settings=settings, status="out_of_memory")
    left = int(missing.sum())
    label = f"generate_candidates {out.stem}"
    with Interruptible() as interrupt, Reporter(label, rows.num_rows, rows.num_rows - left) as progress:
        for kind, chosen, make in (("batch", ~own, generated), ("template", own, from_templates)):
            for made in in_batches(rows.filter(pa.array(chosen & missing)), size, make, failed):
                parts.add(kind, made, about)
                progress.advance(made.num_rows)
                left -= made.num_rows
                if interrupt.requested and left:
                    raise ContinueLater(f"{out.stem}: {left} candidates are left; the finished ones are in {work}")
    result = parts.of(rows) if rows.num_rows else without_crystals(rows, settings, "ok")
    write_table(result, out, {**about, "batch_atoms": size.atoms})
    shutil.rmtree(work, ignore_errors=True)


def load_models(
    campaign: Campaign, generator: Path | None, energy_model: Path | None, device: torch.device
) -> tuple[DaoModel | None, DaoModel | None]:
    """DAO-G and, where it guides, DAO-P; None for what is not given or not needed.

    Raises UserError for models that do not fit each other or the settings.
    """
    settings = campaign.generate
    if generator is None:
        return None, None
    dao_g = load_model(generator, device)
    if dao_g.about.kind != "dao_g":
        raise UserError(f"{generator}: a {dao_g.about.kind} model cannot generate; name a DAO-G directory.")
    dao_p = None
    if settings.guidance_scale > 0:
        if energy_model is None:
            scale = settings.guidance_scale
            raise UserError(f"generate.guidance_scale is {scale:g}: name a DAO-P with --energy-model.")
        dao_p = load_energy_model(energy_model, device)
        require_same_process(dao_g, generator, dao_p, energy_model)
    try:
        settings.sampling(dao_g.process)
    except ValueError as error:
        raise UserError(f"{generator}: {error}. Change the setting, or the model.") from None
    return dao_g, dao_p


def require_same_process(generator: DaoModel, generator_at: Path, energy_model: DaoModel, energy_at: Path) -> None:
    """Raise UserError unless both models were trained on one noise: E_t is an energy of that noise's crystals."""
    if name := generator.process.difference(energy_model.process):
        ours, theirs = getattr(generator.process, name), getattr(energy_model.process, name)
        raise UserError(
            f"{energy_at} cannot guide {generator_at}: DAO-P was trained with process.{name} = {theirs}, "
            f"DAO-G with {ours}. Train both with one process, or set generate.guidance_scale: 0."
        )


def generate_rows(
    rows: pa.Table, generator: DaoModel, energy_model: DaoModel | None, settings: Generate, seed: int
) -> pa.Table:
    """Sample one crystal per row of a plan, all in one batch. seed: the campaign's.

    With ``guidance.draws`` several are drawn for each row, one after another, and one of them is kept
    (``choose``). The first is what a run with a single draw would give.
    """
    coords, lattice, _ = sample_rows(rows, generator, energy_model, settings, seed)
    return as_candidates(rows, coords.double().cpu().numpy(), lattice.double().cpu().numpy(), settings)


def candidates_of(rows: pa.Table, seed: int) -> Candidates:
    """Whose noise the rows of a plan take."""
    return Candidates.of(seed, rows["composition"].to_pylist(), rows["sample"].to_numpy())


def sample_rows(
    rows: pa.Table,
    generator: DaoModel,
    energy_model: DaoModel | None,
    settings: Generate,
    seed: int,
    watch: Callable[[int, int, Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fractional coordinates (N, 3), lattices (B, 3, 3) in angstrom, and which draw was kept (B,), of B rows.

    watch: (draw, level, coordinates, lattices in angstrom), is shown the start and every step of every draw.
    """
    device = next(generator.parameters()).device
    numbers = torch.as_tensor(list_values(rows["atomic_numbers"]).astype(np.int64), device=device)
    counts = torch.as_tensor(rows["num_atoms"].to_numpy().astype(np.int64), device=device)
    layout = Layout.from_ptr(torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    noise = candidates_of(rows, seed).noise(layout)
    scale, guidance = settings.guidance_scale, settings.guidance
    with torch.no_grad():
        edge = generator.edge(numbers, layout)
        draw = partial(_draw, generator, energy_model, settings, numbers, edge, layout)
        choosing = energy_model is not None and scale > 0 and guidance.draws > 1
        drawn = [
            draw(noise.of_draw(number), watch and partial(watch, number))
            for number in range(guidance.draws if choosing else 1)
        ]
        clean = counts.new_zeros(len(counts))
        if energy_model is None or not choosing:
            return (*drawn[0], clean)
        energies = [energy_model.energy(numbers, f, cell, clean, layout) for f, cell in drawn]
        standardised = torch.stack(energies) / energy_model.about.energy_std
        kept = choose(standardised, scale * guidance.draws_weight, noise.choice(len(drawn)))
        atoms, crystals = (torch.arange(len(of), device=device) for of in (numbers, counts))
        coords = torch.stack([f for f, _ in drawn])[kept[layout.crystal], atoms]
        return coords, torch.stack([cell for _, cell in drawn])[kept, crystals], kept


def _draw(
    generator: DaoModel,
    energy_model: DaoModel | None,
    settings: Generate,
    numbers: Tensor,
    edge: Tensor,
    layout: Layout,
    noise: NoiseStream,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor]:
    """Fractional coordinates (N, 3) and lattices (B, 3, 3) in angstrom of one crystal for each of the batch."""

    def denoise(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out = generator.crysformer(numbers, coords, lattice, layout.ptr, t, layout)
        return out.coords, out.lattice

    def seen(t: int, coords: Tensor, lattice: Tensor) -> None:
        if watch is not None:
            watch(t, coords, lattice * edge)

    guidance = guidance_gradient(energy_model, numbers, edge, layout) if energy_model else None
    shape = settings.guidance
    sampled = sampled_by(
        generator,
        settings,
        denoise,
        layout,
        noise,
        guidance=guidance,
        guidance_scale=settings.guidance_scale,
        steering=Steering(shape.coords, shape.lattice, shape.start, shape.stop, shape.clip),
        watch=seen if watch is not None else None,
    )
    return sampled.frac_coords, sampled.lattice * edge
