"""What guidance does, scale by scale: match rate, energy by an independent potential, validity, diversity.

python benchmarks/guidance.py --known mp20_tune.parquet --generator DAO_G --energy-model DAO_P --out work/guidance

Every setting starts from the same noise as the unguided run, so that candidates compare one by one. The energy is
CHGNet's, which neither DAO-P nor DAO-G has seen; a candidate is compared with the unguided one of the same number
where both are valid. Give the two models of the other process to scan that; settings are in ``scan``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
import typer

from dao_pipeline.candidates.generate import require_same_process
from dao_pipeline.config import Generate, Screen
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.table import file_hash, read_table, write_table, write_text
from dao_pipeline.energy.predict import predict_energies
from dao_pipeline.evaluation.polymorphs import distinct
from dao_pipeline.model.dao import DaoModel, load_model
from dao_pipeline.parallel import parallel_map
from dao_pipeline.screening.geometry import check_geometry
from held_out import compare, generate_for

_STRUCTURE = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]


def scan(scales: list[float]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and settings: both fields at each scale, then at the middle one fields, bound, time and draws."""
    yield "unguided", {"guidance_scale": 0}
    for scale in scales:
        yield f"{scale:g}", {"guidance_scale": scale}
    middle = scales[len(scales) // 2]
    shapes: dict[str, dict[str, float]] = {
        "coordinates only": {"lattice": 0},
        "lattice only": {"coords": 0},
        "clip 0.3": {"clip": 0.3},
        "start 0.5": {"start": 0.5},
        "4 draws, no gradient": {"coords": 0, "lattice": 0, "draws": 4},
    }
    for name, shape in shapes.items():
        yield f"{middle:g}, {name}", {"guidance_scale": middle, "guidance": shape}


def chgnet(crystals: list[Crystal]) -> list[float]:
    """Energies, eV/atom, of crystals as they stand."""
    from dao_pipeline.sources.chgnet_labels import Labeller

    torch.set_num_threads(1)
    return Labeller().energies(crystals)


def different(crystals: list[Crystal]) -> int:
    """How many of them are different structures."""
    return len(distinct(crystals))


def energies(table: pa.Table, workers: int) -> np.ndarray:
    """CHGNet's energy of each valid row, NaN for the others."""
    valid = np.flatnonzero(table["valid"].to_numpy(zero_copy_only=False))
    crystals = list(from_table(table.select(_STRUCTURE).take(valid)))
    pieces = [crystals[i : i + 50] for i in range(0, len(crystals), 50)]
    found = np.full(table.num_rows, np.nan)
    found[valid] = [e for piece in parallel_map(chgnet, pieces, workers) for e in piece]
    return found


def measure(made: pa.Table, known: pa.Table, samples: int, workers: int) -> dict[str, Any]:
    """Match rate, validity and diversity of candidates, ``samples`` in a row for each composition."""
    valid = made["valid"].to_numpy(zero_copy_only=False)
    rows = [[i for i in range(c, c + samples) if valid[i]] for c in range(0, made.num_rows, samples)]
    groups = [list(from_table(made.select(_STRUCTURE).take(members))) for members in rows if members]
    found = compare(
        made.set_column(made.schema.get_field_index("status"), "status", made["generated"]), known, workers
    )
    hits = np.isfinite(found.rmse).reshape(-1, samples)
    draws = np.random.default_rng(0).integers(len(hits), size=(2000, len(hits)))
    low, high = np.percentile(hits.mean(1)[draws].mean(1), [2.5, 97.5])
    return {
        "match_rate": 100 * float(hits.mean()),
        "low": 100 * float(low),
        "high": 100 * float(high),
        "found_by_any": 100 * float(hits.any(1).mean()),
        "rmse": float(np.nanmean(found.rmse)) if hits.any() else None,
        "valid": 100 * float(valid.mean()),
        "different": float(np.mean(parallel_map(different, groups, workers))) if groups else 0.0,
    }


def against(energy: np.ndarray, plain: np.ndarray, samples: int) -> dict[str, Any]:
    """Guided against unguided candidates of the same number, both valid and not the same: share lower, change."""
    change = energy - plain
    known = np.isfinite(change) & (change != 0)  # of several draws the first, which is the unguided, may be kept
    lower = np.where(known, change < 0, np.nan).reshape(-1, samples)
    each = lower[np.isfinite(lower).any(1)]
    draws = np.random.default_rng(0).integers(len(each), size=(1000, len(each)))
    low, high = np.percentile(np.nanmean(each[draws], axis=(1, 2)), [2.5, 97.5])
    return {
        "compared": int(known.sum()),
        "lower": 100 * float(np.nanmean(lower)),
        "lower_low": 100 * float(low),
        "lower_high": 100 * float(high),
        "median_change": float(np.median(change[known])),
        "mean_change": float(np.clip(change[known], -2, 2).mean()),
    }


def same_order(table: pa.Table, model: DaoModel, samples: int) -> str:
    """How often DAO-P and CHGNet agree on which of the first two candidates of a composition is lower."""
    chgnet, own = table["chgnet"].to_numpy(), predict_energies(model, table, batch_atoms=1000)
    by_chgnet, by_own = (e[1::samples] - e[::samples] for e in (chgnet, own))
    known = np.isfinite(by_chgnet + by_own)
    agree = (np.sign(by_chgnet) == np.sign(by_own))[known]
    draws = np.random.default_rng(0).integers(len(agree), size=(2000, len(agree)))
    low, high = np.percentile(agree[draws].mean(1), [2.5, 97.5])
    apart = [f"{np.median(np.abs(e[known])):.3f}" for e in (by_chgnet, by_own)]
    return (
        f"DAO-P orders two unguided candidates of a composition as CHGNet does in {100 * agree.mean():.0f} % "
        f"[{100 * low:.0f}, {100 * high:.0f}] of {len(agree)}; they are {apart[0]} eV/atom apart to CHGNet, "
        f"{apart[1]} to DAO-P (medians)."
    )


def sampled(
    models: tuple[DaoModel, DaoModel], rows: pa.Table, settings: Generate, seed: int
) -> tuple[pa.Table, float]:
    """Candidates with the columns of the screening's geometry, and seconds per candidate."""
    started = time.process_time()
    made = generate_for(models[0], rows, settings, seed, models[1] if settings.guidance_scale else None)
    seconds = (time.process_time() - started) / rows.num_rows
    return check_geometry(made, Screen()).append_column("generated", made["status"]), seconds


def main(
    known: Annotated[Path, typer.Option(help="table of crystals that the models never saw")],
    generator: Annotated[list[Path], typer.Option(help="DAO-G model directory, one per process")],
    energy_model: Annotated[list[Path], typer.Option(help="DAO-P model directory, one per process")],
    out: Annotated[Path, typer.Option()],
    targets: Annotated[int, typer.Option(help="compositions")] = 300,
    samples: Annotated[int, typer.Option(help="candidates per composition")] = 2,
    scale: Annotated[list[float] | None, typer.Option(help="default: 1, 3, 10, 30, 100")] = None,
    only: Annotated[list[str] | None, typer.Option(help="names of settings, default: all of scan")] = None,
    steps: Annotated[int | None, typer.Option(help="of sampling; default: that of the process")] = None,
    batch_atoms: Annotated[int, typer.Option()] = 1000,
    seed: Annotated[int, typer.Option()] = 1,
    workers: Annotated[int, typer.Option()] = 1,
) -> None:
    table = read_table(known)
    chosen = np.sort(np.random.default_rng(0).permutation(table.num_rows)[:targets])
    rows = table.take(np.repeat(chosen, samples))
    head = (
        "process, scale, kT eV/atom, match rate %, by any %, RMSE, CHGNet lower %, median change eV/atom, valid %"
    )
    head += f", different of {samples}, CPU s each"
    lines = [f"| {head.replace(', ', ' | ')} |", "|" + "---|" * 11]
    for g, p in zip(generator, energy_model, strict=True):
        models = load_model(g), load_model(p)
        require_same_process(models[0], g, models[1], p)
        kind, std = models[0].process.kind, models[1].about.energy_std
        folder = out / f"{kind}-{file_hash(g / 'model.safetensors')}-{file_hash(p / 'model.safetensors')}"
        plain: np.ndarray | None = None
        for name, values in scan(scale or [1.0, 3.0, 10.0, 30.0, 100.0]):
            if only and name not in only and name != "unguided":
                continue
            settings = Generate(batch_atoms=batch_atoms, steps=steps, **values)
            file = folder / f"{name.replace(' ', '_').replace(',', '')}-{targets}x{samples}.json"
            if not file.exists():
                made, seconds = sampled(models, rows, settings, seed)
                energy = energies(made, workers)
                write_table(made.append_column("chgnet", pa.array(energy)), file.with_suffix(".parquet"), values)
                result = measure(made, rows, samples, workers) | {"seconds": seconds, "settings": values}
                if plain is not None:
                    result |= against(energy, plain, samples)
                write_text(file, json.dumps(result))
            if name == "unguided":
                unguided = read_table(file.with_suffix(".parquet"))
                plain = unguided["chgnet"].to_numpy()
                print(same_order(unguided, models[1], samples) if samples > 1 else "", flush=True)
            r = json.loads(file.read_text())
            w = values["guidance_scale"]
            cells = [kind, name, f"{std / w:.3f}" if w else ""]
            cells += [f"{r['match_rate']:.1f} [{r['low']:.1f}, {r['high']:.1f}]", f"{r['found_by_any']:.1f}"]
            cells += ["-" if r["rmse"] is None else f"{r['rmse']:.3f}"]
            if "lower" in r:
                cells += [f"{r['lower']:.1f} [{r['lower_low']:.1f}, {r['lower_high']:.1f}]"]
                cells += [f"{r['median_change']:+.4f}"]
            else:
                cells += ["", ""]
            cells += [f"{r['valid']:.1f}", f"{r['different']:.2f}", f"{r['seconds']:.3f}"]
            line = f"| {' | '.join(cells)} |"
            print(line, flush=True)
            lines.append(line)
    write_text(out / "guidance.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    typer.run(main)
