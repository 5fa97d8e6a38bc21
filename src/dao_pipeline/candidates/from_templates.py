"""Candidates from templates: as they are proposed, or refined by DAO-G."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from dao_pipeline.candidates.made import as_candidates
from dao_pipeline.config import Generate
from dao_pipeline.crystals.flat import FlatCrystals, flatten
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.noise_stream import Candidates
from dao_pipeline.process.sample import sampled_by
from dao_pipeline.process.sampler import Sampled
from dao_pipeline.process.symmetrize import Symmetrizer
from dao_pipeline.process.template_sampler import noised, refine


def template_rows(
    rows: pa.Table, proposed: pa.Table, generator: DaoModel | None, settings: Generate, seed: int
) -> pa.Table:
    """One crystal per row of a plan from its template in ``proposed``, all in one batch. seed: the campaign's.

    Known crystals of the composition stay as they are, as all do without a generator.
    """
    found = proposed.take(pc.index_in(rows["id"], value_set=proposed["id"].combine_chunks())).combine_chunks()
    crystals = flatten(found)
    known = np.asarray(pc.equal(found["origin"], "known")).astype(bool)
    coords, lattice = crystals.frac, crystals.lattice
    refined = ~known if settings.template_refinement != "none" else np.zeros_like(known)
    if refined.any():
        assert generator is not None, "the campaign is checked for it"
        candidates = Candidates.of(seed, rows["composition"].to_pylist(), rows["sample"].to_numpy())
        moved = refine_templates(crystals.select(refined), generator, settings, candidates.select(refined))
        coords, lattice = coords.copy(), lattice.copy()
        coords[np.repeat(refined, crystals.counts)], lattice[refined] = moved.frac, moved.lattice
    origin = np.select([known, refined], ["known", "template_refined"], "template")
    columns = {
        "source": np.where(known, "known", "template"),
        "origin": origin,
        "template_id": found["template_id"],
        "template_distance": found["template_distance"],
        "guidance_scale": pa.nulls(len(known)),
    }
    return as_candidates(rows, coords, lattice, settings, columns)


def refine_templates(
    crystals: FlatCrystals, generator: DaoModel, settings: Generate, candidates: Candidates
) -> FlatCrystals:
    """What DAO-G makes of templates; lattices in angstrom, in reduced cells. candidates: whose noise they take.

    Raises UserError for a generator that has not learned paths from templates, where they are asked for.
    """
    device = next(generator.parameters()).device
    numbers = torch.as_tensor(crystals.numbers, device=device)
    ptr = torch.as_tensor(crystals.ptr, device=device)
    layout = Layout.from_ptr(ptr)
    path = settings.template_refinement == "path"
    schedule = generator.schedule
    if path and generator.about.template_errors is None:
        raise UserError(
            "generate.template_refinement is path, but this generator has not learned paths from templates: train "
            "it with generator.template_paths above 0, or choose another refinement."
        )
    from_template = torch.full((len(crystals),), path, device=device)
    with torch.no_grad():
        edge = generator.edge(numbers, layout)
        template = Sampled(
            torch.as_tensor(crystals.frac, device=device).to(generator.dtype),
            torch.as_tensor(crystals.lattice, device=device).to(generator.dtype) / edge,
        )

        def denoise(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            out = generator.crysformer(
                numbers, coords, lattice, ptr, t, layout, from_template=from_template if path else None
            )
            return out.coords, out.lattice

        if path:
            assert isinstance(schedule, Flow)
            symmetry = Symmetrizer.of(crystals, device, generator.dtype)
            moved = refine(denoise, layout, schedule, template, steps=settings.template_steps, symmetry=symmetry)
        else:
            stream = candidates.noise(layout)
            start = noised(schedule, layout, template, settings.template_noise, stream)
            moved = sampled_by(generator, settings, denoise, layout, stream, start=start)
    return FlatCrystals(
        numbers=crystals.numbers,
        frac=moved.frac_coords.double().cpu().numpy(),
        lattice=(moved.lattice * edge).double().cpu().numpy(),
        counts=crystals.counts,
    )
