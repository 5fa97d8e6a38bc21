"""Stage generate_candidates: the crystals of one shard, sampled by DAO-G and guided by DAO-P.

The result of a shard follows from the campaign's seed, the shard's number and its rows alone. Batches are
written as they are finished, so an interrupted shard continues at its last batch.
"""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from dao_pipeline.candidates.from_templates import template_rows
from dao_pipeline.candidates.made import as_candidates, without_crystals
from dao_pipeline.candidates.plan import PLAN_COLUMNS
from dao_pipeline.config import Campaign, Generate, stage_settings
from dao_pipeline.crystals.dataset import size_batches
from dao_pipeline.crystals.flat import list_values
from dao_pipeline.crystals.held_out import training_of
from dao_pipeline.crystals.table import file_hash, is_finished, provenance, read_table, write_table
from dao_pipeline.device import pick_device
from dao_pipeline.energy.predict import guidance_gradient, load_energy_model
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.interrupt import Interruptible
from dao_pipeline.model.dao import DaoModel, load_model
from dao_pipeline.model.layout import Layout
from dao_pipeline.process import flow_sampler, sampler
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.guidance import Steering, choose
from dao_pipeline.progress import Reporter
from dao_pipeline.seeds import stage_seed

_log = logging.getLogger("dao_pipeline")


def generate_candidates(
    campaign: Campaign,
    plan: Path,
    generator: Path | None,
    energy_model: Path | None,
    shard: int,
    out: Path,
    work: Path,
    templates: Path | None = None,
) -> None:
    """Generate the rows of ``plan`` that belong to ``shard``; one row each in ``out``, whatever happens.

    Those with a row in ``templates`` are made from it, all others generated; without a ``generator`` they have no
    crystal, and templates stay as they are. energy_model: DAO-P, for guidance. A shard beyond the plan is an empty
    table. Raises ContinueLater when interrupted, and UserError for models that
    do not fit each other or the settings.
    """
    settings = campaign.generate
    table = read_table(plan, list(PLAN_COLUMNS))
    rows = table.filter(pc.equal(table["shard"], shard)).combine_chunks()
    named = {"generator": generator, "energy_model": energy_model}
    models = {name: folder for name, folder in named.items() if folder is not None}
    inputs = {"plan": plan, **{name: folder / "model.safetensors" for name, folder in models.items()}}
    about = provenance(
        "generate_candidates",
        campaign=campaign.name,
        settings=stage_settings(campaign, "generate_candidates"),
        inputs=inputs,
        shard=shard,
        seed=campaign.seed,
        training={name: training_of(folder) for name, folder in models.items()},
    )
    if templates is not None:
        inputs["templates"] = templates
    hashes = {name: file_hash(inputs[name]) for name in inputs if name != "plan"}
    identity = {"models": hashes, "settings": about["settings_hash"], "ids": rows["id"].to_pylist()}
    device = pick_device()
    dao_g, dao_p = load_models(generator, energy_model, settings, device)
    if dao_g is not None:
        about["sampling"] = settings.sampling(dao_g.process)._asdict()
    proposed = None if templates is None else read_table(templates)
    batches = _batches(rows, proposed, settings.batch_atoms)
    parts: list[Path] = []
    with Interruptible() as interrupt, Reporter(f"generate_candidates shard {shard}", rows.num_rows) as progress:
        for name, indices in batches.items():
            part = work / f"{name}.parquet"
            if not is_finished(part, identity):
                kind, number = name.split("-")
                batch = rows.take(indices)
                if kind == "batch" and dao_g is None:
                    made = without_crystals(batch)
                elif kind == "batch":
                    assert dao_g is not None
                    seed = stage_seed(campaign.seed, f"generate:{shard}:{int(number)}")
                    made = generate_rows(batch, dao_g, dao_p, settings, seed)
                else:
                    assert proposed is not None
                    seed = stage_seed(campaign.seed, f"templates:{shard}:{int(number)}")
                    made = template_rows(batch, proposed, dao_g, settings, seed)
                write_table(made, part, {**about, "identity": identity})
            parts.append(part)
            progress.advance(len(indices))
            if interrupt.requested and len(parts) < len(batches):
                raise ContinueLater(f"shard {shard} after {name}; finished batches are in {work}")
    if parts:
        done = pa.concat_tables([read_table(part) for part in parts])
        result = done.take(np.argsort(np.concatenate(list(batches.values()))))  # back in the order of the plan
    else:
        result = as_candidates(rows, np.zeros((0, 3)), np.zeros((0, 3, 3)), settings)
    if result["id"].to_pylist() != rows["id"].to_pylist():
        raise RuntimeError(f"shard {shard}: generated rows do not agree with the plan")
    write_table(result, out, about)
    shutil.rmtree(work, ignore_errors=True)


def _batches(rows: pa.Table, proposed: pa.Table | None, batch_atoms: int) -> dict[str, np.ndarray]:
    """Rows of each batch by name: ``batch-...`` of those to be generated, ``template-...`` of the others."""
    sizes = rows["num_atoms"].to_numpy().astype(np.int64)
    own = np.zeros(len(sizes), dtype=bool)
    if proposed is not None:
        own = np.asarray(pc.is_in(rows["id"], value_set=proposed["id"].combine_chunks())).astype(bool)
    batches = {}
    for kind, chosen in (("batch", np.flatnonzero(~own)), ("template", np.flatnonzero(own))):
        for number, indices in enumerate(size_batches(sizes[chosen], batch_atoms) if len(chosen) else []):
            batches[f"{kind}-{number:05d}"] = chosen[indices]
    return batches


def load_models(
    generator: Path | None, energy_model: Path | None, settings: Generate, device: torch.device
) -> tuple[DaoModel | None, DaoModel | None]:
    """DAO-G, and DAO-P if it guides; None for what is not there or not needed.

    Raises UserError for models that do not fit each other or the settings.
    """
    if generator is None:
        return None, None
    dao_g = load_model(generator, device)
    if dao_g.about.kind != "dao_g":
        raise UserError(f"{generator}: a {dao_g.about.kind} model cannot generate; name a DAO-G directory.")
    try:
        settings.sampling(dao_g.process)
    except ValueError as error:
        raise UserError(f"{generator}: {error}. Change the setting, or the model.") from None
    if settings.guidance_scale == 0:
        return dao_g, None
    if energy_model is None:
        raise UserError(
            f"generate.guidance_scale is {settings.guidance_scale:g}: name a DAO-P with --energy-model."
        )
    dao_p = load_energy_model(energy_model, device)
    require_same_process(dao_g, generator, dao_p, energy_model)
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
    """Sample one crystal per row of a plan, all in one batch.

    With ``guidance.draws`` several are drawn for each row, one after another, and one of them is kept
    (``choose``). The first is what a run with a single draw would give.
    """
    device = next(generator.parameters()).device
    numbers = torch.as_tensor(list_values(rows["atomic_numbers"]).astype(np.int64), device=device)
    counts = torch.as_tensor(rows["num_atoms"].to_numpy().astype(np.int64), device=device)
    layout = Layout.from_ptr(torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    with torch.no_grad():
        edge = generator.edge(numbers, layout)
        draw = partial(_draw, generator, energy_model, settings, numbers, edge, layout)
        coords, lattice = draw(seed)
        scale, guidance = settings.guidance_scale, settings.guidance
        if energy_model is not None and scale > 0 and guidance.draws > 1:
            drawn = [(coords, lattice)]
            drawn += [draw(stage_seed(seed, f"draw:{number}")) for number in range(1, guidance.draws)]
            clean = counts.new_zeros(len(counts))
            energies = [energy_model.energy(numbers, f, cell, clean, layout) for f, cell in drawn]
            random = torch.Generator(device).manual_seed(stage_seed(seed, "choice"))
            standardised = torch.stack(energies) / energy_model.about.energy_std
            kept = choose(standardised, scale * guidance.draws_weight, random)
            coords = torch.stack([f for f, _ in drawn])[kept[layout.crystal], torch.arange(len(numbers))]
            lattice = torch.stack([cell for _, cell in drawn])[kept, torch.arange(len(counts))]
    return as_candidates(rows, coords.double().cpu().numpy(), lattice.double().cpu().numpy(), settings)


def _draw(
    generator: DaoModel,
    energy_model: DaoModel | None,
    settings: Generate,
    numbers: Tensor,
    edge: Tensor,
    layout: Layout,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Fractional coordinates (N, 3) and lattices (B, 3, 3) in angstrom of one crystal for each of the batch."""

    def denoise(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out = generator.crysformer(numbers, coords, lattice, layout.ptr, t, layout)
        return out.coords, out.lattice

    how = settings.sampling(generator.process)
    random = torch.Generator(numbers.device).manual_seed(seed)
    guidance = guidance_gradient(energy_model, numbers, edge, layout) if energy_model else None
    shape = settings.guidance
    steering = Steering(shape.coords, shape.lattice, shape.start, shape.stop, shape.clip)
    if isinstance(generator.schedule, Flow):
        sampled = flow_sampler.sample(
            denoise,
            layout,
            generator.schedule,
            steps=how.steps,
            generator=random,
            method="midpoint" if how.method == "midpoint" else "euler",
            annealing=how.annealing or 0.0,
            guidance=guidance,
            guidance_scale=settings.guidance_scale,
            steering=steering,
        )
    else:
        sampled = sampler.sample(
            denoise,
            layout,
            generator.schedule,
            steps=how.steps,
            generator=random,
            corrector=how.method == "predictor-corrector",
            step_size=settings.step_size,
            guidance=guidance,
            guidance_scale=settings.guidance_scale,
            steering=steering,
            bound=generator.process.lattice_scale != "none",  # it is in units of the expected edge
        )
    return sampled.frac_coords, sampled.lattice * edge
