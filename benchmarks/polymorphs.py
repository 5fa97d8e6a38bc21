"""How many of the known structures of held-out compositions are among k samples.

python benchmarks/polymorphs.py --held mp20_held.parquet --known mp20/val.parquet --known mpts52/val.parquet
    --generator results/ablation/models/dao_g/finetuned --out work/polymorphs

A composition counts if a crystal in ``--held`` has it and the tables together know two to four structures of it
with the same number of atoms. That the generator never saw these compositions is for the caller to see to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import typer

from dao_pipeline.config import Generate, Matcher
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.table import read_table, write_text
from dao_pipeline.evaluation.polymorphs import Recall, bootstrap_mean, distinct, polymorphs
from dao_pipeline.model.dao import load_model
from dao_pipeline.parallel import parallel_map
from dao_pipeline.sources.files import read_crystals
from held_out import crystals_or_none, generate_for

KS = (1, 5, 20)
_STRUCTURE = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]


class Task(NamedTuple):
    """Known structures of one composition, and its samples."""

    known: list[Crystal]
    samples: list[Crystal | None]


def known_structures(held: list[Path], known: list[Path], largest: int) -> list[list[Crystal]]:
    """Two to four different structures of each held-out composition that has them."""
    formulas = {name for path in held for name in read_table(path, ["formula"])["formula"].to_pylist()}
    tables = [read_table(path, _STRUCTURE) for path in held]
    tables += [read_crystals(path, energy_method="any", processes=1).table.select(_STRUCTURE) for path in known]
    table = pa.concat_tables(tables)
    sizes = pc.list_value_length(table["atomic_numbers"])
    wanted = pc.is_in(table["formula"], value_set=pa.array(sorted(formulas)))
    return polymorphs(list(from_table(table.filter(pc.and_(wanted, pc.less_equal(sizes, largest))))))


def recall(task: Task) -> tuple[Recall, int]:
    """What the samples find, and how many different structures are among them."""
    torch.set_num_threads(1)
    different = distinct([sample for sample in task.samples if sample is not None])
    return Recall.of(task.known, task.samples, Matcher()), len(different)


def main(
    held: Annotated[list[Path], typer.Option(help="tables whose compositions no model has seen")],
    known: Annotated[list[Path], typer.Option(help="further tables with structures of these compositions")],
    generator: Annotated[Path, typer.Option(help="DAO-G model directory")],
    out: Annotated[Path, typer.Option()],
    energy_model: Annotated[Path | None, typer.Option(help="DAO-P model directory, to guide")] = None,
    settings: Annotated[str, typer.Option(help="JSON, section generate of a campaign")] = '{"guidance_scale": 0}',
    samples: Annotated[int, typer.Option(help="per composition")] = 20,
    most_atoms: Annotated[int, typer.Option()] = 20,
    limit: Annotated[int, typer.Option(help="compositions at most")] = 1000,
    workers: Annotated[int, typer.Option()] = 1,
) -> None:
    groups = known_structures(held, known, most_atoms)[:limit]
    asked = to_table([members[0] for members in groups])
    rows = asked.take(np.repeat(np.arange(asked.num_rows), samples))
    energy = load_model(energy_model) if energy_model else None
    made = generate_for(load_model(generator), rows, Generate(**json.loads(settings)), 1, energy)
    crystals = crystals_or_none(made)
    tasks = [Task(members, crystals[i * samples : (i + 1) * samples]) for i, members in enumerate(groups)]
    found = parallel_map(recall, tasks, workers)
    lines = [
        "| known structures | compositions | k | found, share % | all of them % | RMSE |",
        "|---|---|---|---|---|---|",
    ]
    results: list[dict[str, Any]] = []
    for number in (2, 3, 4, None):
        chosen = [r for r, members in zip(found, groups, strict=True) if number in (len(members), None)]
        if not chosen:
            continue
        for k in (k for k in KS if k <= samples):
            share, whole = (
                bootstrap_mean([getattr(r, name)(k) for r, _ in chosen]) for name in ("found", "all_found")
            )
            rmse = np.concatenate([r.rmse for r, _ in chosen])
            results.append(
                {
                    "structures": number,
                    "compositions": len(chosen),
                    "k": k,
                    "found": share,
                    "all_found": whole,
                    "rmse_of_all_samples": float(np.nanmean(rmse)) if np.isfinite(rmse).any() else None,
                    "different_samples": float(np.mean([different for _, different in chosen])),
                }
            )
            cells = [f"{100 * m:.1f} [{100 * low:.1f}, {100 * high:.1f}]" for m, low, high in (share, whole)]
            last = f"{np.nanmean(rmse):.3f}" if k == samples and np.isfinite(rmse).any() else ""
            lines.append(f"| {number or '2 to 4'} | {len(chosen)} | {k} | {cells[0]} | {cells[1]} | {last} |")
    write_text(out / "polymorphs.json", json.dumps(results, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
