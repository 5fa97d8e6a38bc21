"""What refinement does to substituted templates, and how candidates are best divided between templates and DAO-G.

``python benchmarks/seeding.py refine --crysdb FOLDER --targets TABLE --generator DIR [--energy-model DIR]``: the
first proposal for each target as it is and refined in each way: match rate, RMSE and cRMSE on the same proposals,
with 95 % intervals of the differences from a bootstrap over targets.

``python benchmarks/seeding.py budget --crysdb FOLDER --targets TABLE --generator DIR --candidates 10``: the share
of targets found with so many candidates, by how many of them are templates; the rest is generated freely.

Templates of a target's composition are left out. The index is kept in ``--index``, and made if it is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from dao_pipeline.candidates.compositions import Requested
from dao_pipeline.candidates.from_templates import refine_templates
from dao_pipeline.candidates.generate import generate_rows
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.config import Generate, Relax, Templates
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.dataset import size_batches
from dao_pipeline.crystals.flat import FlatCrystals, flatten, formulas
from dao_pipeline.crystals.table import read_table
from dao_pipeline.energy.predict import load_energy_model
from dao_pipeline.energy.relax import relax
from dao_pipeline.model.dao import DaoModel, load_model
from dao_pipeline.process.noise_stream import Candidates
from dao_pipeline.templates.files import load, save
from dao_pipeline.templates.index import TemplateIndex
from held_out import STOL, rmse_of_pairs

REFINEMENTS: dict[str, dict[str, object]] = {
    "path, 1 step": {"template_refinement": "path", "template_steps": 1},
    "path, 10 steps": {"template_refinement": "path", "template_steps": 10},
    "noise, 0.02": {"template_refinement": "noise", "template_noise": 0.02, "steps": 250},
    "noise, 0.05": {"template_refinement": "noise", "template_noise": 0.05, "steps": 100},
    "noise, 0.1": {"template_refinement": "noise", "template_noise": 0.1, "steps": 100},
}

app = typer.Typer()
CrysdbDir = Annotated[Path, typer.Option(help="folder with train.parquet")]
TargetsFile = Annotated[Path, typer.Option(help="crystals whose compositions are in no training table")]
GeneratorDir = Annotated[Path, typer.Option(help="DAO-G that has learned paths from templates")]
IndexDir = Annotated[Path, typer.Option(help="folder of the index")]
Workers = Annotated[int, typer.Option()]


def opened(crysdb: Path, folder: Path) -> TemplateIndex:
    """The index of the training crystals."""
    if not (folder / "index.json").exists():
        save(TemplateIndex.build(read_table(crysdb / "train.parquet"), Templates()), folder, {})
    return load(folder)


def in_batches(crystals: FlatCrystals, function: Callable[[FlatCrystals], FlatCrystals]) -> FlatCrystals:
    """``function`` of the crystals in batches of similar size, back in their order."""
    frac, lattice = crystals.frac.copy(), crystals.lattice.copy()
    for indices in size_batches(crystals.counts, 3000):
        chosen = np.zeros(len(crystals), dtype=bool)
        chosen[indices] = True
        made = function(crystals.select(chosen))
        frac[np.repeat(chosen, crystals.counts)], lattice[chosen] = made.frac, made.lattice
    return FlatCrystals(numbers=crystals.numbers, frac=frac, lattice=lattice, counts=crystals.counts)


def refined(model: DaoModel, settings: Generate, crystals: FlatCrystals) -> FlatCrystals:
    """What DAO-G makes of templates; each has noise of its own."""
    candidates = Candidates.of(1, formulas(crystals), range(len(crystals)))
    return refine_templates(crystals, model, settings, candidates)


def crystals_of(flat: FlatCrystals) -> list[Crystal]:
    """One by one."""
    ptr = flat.ptr
    return [
        Crystal(
            id=str(i),
            atomic_numbers=flat.numbers[ptr[i] : ptr[i + 1]],
            frac_coords=flat.frac[ptr[i] : ptr[i + 1]] % 1.0,
            lattice=flat.lattice[i],
        )
        for i in range(len(flat))
    ]


@app.command()
def refine(
    crysdb: CrysdbDir,
    targets: TargetsFile,
    generator: GeneratorDir,
    index: IndexDir,
    energy_model: Annotated[Path | None, typer.Option(help="DAO-P, to relax with")] = None,
    limit: Annotated[int | None, typer.Option(help="first so many targets only")] = None,
    workers: Workers = 1,
) -> None:
    """Compare the first proposals with what refinement makes of them."""
    known = list(from_table(read_table(targets)))[:limit]
    proposed = opened(crysdb, index).propose([c.atomic_numbers for c in known], 1, exclude="composition")
    model = load_model(generator)

    def compared(crystals: FlatCrystals) -> np.ndarray:
        pairs = list(zip(crystals_of(crystals), (known[i] for i in proposed.composition), strict=True))
        rmse = np.full(len(known), np.nan)
        rmse[proposed.composition] = rmse_of_pairs(pairs, workers)
        return rmse

    base = compared(proposed.crystals)
    print("| refinement | match rate % | RMSE | change of common matches | cRMSE | change | better, worse % | s |")
    print("|---|---|---|---|---|---|---|---|")
    row("none", base, base, 0.0)
    for name, settings in REFINEMENTS.items():
        how = Generate.model_validate(settings)
        started = time.process_time()
        made = in_batches(proposed.crystals, partial(refined, model, how))
        row(name, compared(made), base, (time.process_time() - started) / len(proposed))
    if energy_model is not None:
        dao_p = load_energy_model(energy_model)
        started = time.process_time()
        relaxed = relax(dao_p, proposed.crystals, Relax(steps=50))
        made = FlatCrystals(
            numbers=proposed.crystals.numbers,
            frac=relaxed.frac_coords.numpy(),
            lattice=relaxed.lattice.numpy(),
            counts=proposed.crystals.counts,
        )
        row("relaxed by DAO-P", compared(made), base, (time.process_time() - started) / len(proposed))


def row(name: str, rmse: np.ndarray, base: np.ndarray, seconds: float) -> None:
    """One line of the table: differences are of the same targets."""
    hit, both = np.isfinite(rmse), np.isfinite(rmse) & np.isfinite(base)
    cost = np.where(hit, rmse, STOL)
    change = (rmse - base)[both]
    shares = f"{100 * (change < -1e-3).mean():.0f}, {100 * (change > 1e-3).mean():.0f}"
    print(
        f"| {name} | {100 * hit.mean():.1f} | {rmse[hit].mean():.4f} | {interval(change)} | {cost.mean():.4f} | "
        f"{interval(cost - np.where(np.isfinite(base), base, STOL))} | {shares} | {seconds:.3f} |",
        flush=True,
    )


def interval(values: np.ndarray) -> str:
    """Mean with a 95 % bootstrap interval."""
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return f"{values.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


@app.command()
def budget(
    crysdb: CrysdbDir,
    targets: TargetsFile,
    generator: GeneratorDir,
    index: IndexDir,
    candidates: Annotated[int, typer.Option(help="per target")] = 10,
    limit: Annotated[int | None, typer.Option(help="first so many targets only")] = None,
    workers: Workers = 1,
) -> None:
    """Share of targets found by the number of templates among the candidates."""
    known = list(from_table(read_table(targets)))[:limit]
    proposed = opened(crysdb, index).propose([c.atomic_numbers for c in known], candidates, exclude="composition")
    pairs = list(zip(crystals_of(proposed.crystals), (known[i] for i in proposed.composition), strict=True))
    templates = np.zeros((len(known), candidates), dtype=bool)
    templates[proposed.composition, proposed.rank] = np.isfinite(rmse_of_pairs(pairs, workers))
    there = np.bincount(proposed.composition, minlength=len(known))

    model, settings = load_model(generator), Generate(guidance_scale=0)
    asked = [Requested(c.formula, c.formula, tuple(sorted(c.atomic_numbers.tolist()))) for c in known]
    rows = plan_table(asked, candidates, 10**9)
    batches = size_batches(rows["num_atoms"].to_numpy().astype(np.int64), 3000)
    parts = [generate_rows(rows.take(b), model, None, settings, 1) for b in batches]
    made = pa.concat_tables(parts).take(np.argsort(np.concatenate(batches)))
    sound = np.array([status == "ok" for status in made["status"].to_pylist()])
    places = np.flatnonzero(sound)
    crystals = crystals_of(flatten(made.filter(pa.array(sound))))
    pairs = list(zip(crystals, (known[i // candidates] for i in places), strict=True))
    hits = np.zeros(len(known) * candidates, dtype=bool)
    hits[places] = np.isfinite(rmse_of_pairs(pairs, workers))
    free = hits.reshape(len(known), candidates)
    print(f"targets: {len(known)}; with a template: {(there > 0).sum()}")
    print("| candidates | templates | found % |")
    print("|---|---|---|")
    for k in sorted({1, 2, 5, candidates} & set(range(candidates + 1))):
        for share in (0, 0.25, 0.5, 0.75, 0.9, 1):
            wanted = Generate(samples=k, template_share=share).templates
            own = np.minimum(wanted, there)
            by_template = (templates & (np.arange(candidates) < own[:, None])).any(1)
            by_model = (free & (np.arange(candidates) < (k - own)[:, None])).any(1)
            print(f"| {k} | {wanted} | {100 * (by_template | by_model).mean():.1f} |", flush=True)


if __name__ == "__main__":
    app()
