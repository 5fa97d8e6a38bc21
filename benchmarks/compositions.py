"""Candidates per second against the number of compositions: the same number of candidates, of as many atoms.

python benchmarks/compositions.py --generator models/dao_g --out work/compositions
"""

from __future__ import annotations

import argparse
import json
import time
from functools import wraps
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch

from dao_pipeline.candidates import batches, generate
from dao_pipeline.candidates.compositions import Requested, requested
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.config import Campaign
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.model.crysformer import Crysformer
from dao_pipeline.model.dao import load_model
from dao_pipeline.process.noise_stream import NoiseStream

SIZES = (2, 3, 4, 5, 6, 7, 8, 9, 10)
"""Atoms per cell of the compositions, one after another; of a single composition the middle one."""

METALS = ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "Ba", "Ti", "Zr", "V", "Fe", "Co", "Ni", "Cu", "Zn")
ANIONS = ("O", "S", "Se", "F", "Cl", "Br", "N", "P")


def compositions(number: int) -> list[Requested]:
    """Different compositions with 6 atoms on average."""
    pairs = list(product(METALS, ANIONS))
    sizes = SIZES[len(SIZES) // 2 :] + SIZES[: len(SIZES) // 2]
    found = (
        requested(f"{metal}{size - anions}{anion}{anions}", 1)
        for anions in (1, 2, 3, 4)
        for at, (metal, anion) in enumerate(pairs)
        for size in (sizes[at % len(sizes) :] + sizes[: at % len(sizes)])
        if size > anions
    )
    return list(islice(found, number))


class Stopwatch:
    """CPU seconds within some functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Count the time in ``owner.attribute`` from now on."""
        inner = getattr(owner, attribute)

        @wraps(inner)
        def timed(*arguments: Any, **more: Any) -> Any:
            started = time.process_time()
            try:
                return inner(*arguments, **more)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started

        setattr(owner, attribute, timed)


def measure(args: argparse.Namespace, number: int, watch: Stopwatch, **more: Any) -> dict[str, float]:
    """One shard of ``args.candidates`` candidates of ``number`` compositions; ``more``: settings of generate."""
    folder = args.out / str(number)
    plan = folder / "plan.parquet"
    samples = -(-args.candidates // number)
    write_table(plan_table(compositions(number), samples, 10**9), plan, {})
    kind = load_model(args.generator).process.kind
    campaign = Campaign.model_validate(
        {
            "name": "compositions",
            "process": {"kind": kind},
            "generate": {"guidance_scale": args.guidance_scale} | json.loads(args.settings) | more,
        }
    )
    energy = args.energy_model or args.generator
    watch.seconds.clear()
    started = time.process_time()
    out = folder / "out.parquet"
    generate.generate_candidates(campaign, plan, args.generator, energy, out, folder / "work")
    seconds = time.process_time() - started
    made = read_table(out, ["num_atoms", "status"])
    atoms = made["num_atoms"].to_numpy().sum()
    return {
        "compositions": number,
        "candidates": made.num_rows,
        "atoms": int(atoms),
        "seconds": seconds,
        "candidates_per_second": made.num_rows / seconds,
        "atoms_per_second": atoms / seconds,
    } | {name: 100 * value / seconds for name, value in watch.seconds.items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", type=Path, required=True)
    parser.add_argument("--energy-model", type=Path)
    parser.add_argument("--guidance-scale", type=float, default=0.0)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--compositions", type=int, nargs="+", default=[1, 10, 1000])
    parser.add_argument("--repeats", type=int, default=1, help="of each; the fastest one counts")
    parser.add_argument("--settings", default="{}", help="JSON, of section generate")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    watch = Stopwatch()
    watch.watch(Crysformer, "forward", "network %")
    watch.watch(NoiseStream, "_words", "random words %")
    watch.watch(batches, "write_table", "parts %")
    watch.watch(generate, "as_candidates", "rows %")
    watch.watch(generate, "load_model", "model %")
    measure(args, args.compositions[0], watch, steps=2)  # warms up: the allocator, the first use of libraries
    runs = [[measure(args, number, watch) for number in args.compositions] for _ in range(args.repeats)]
    rows = [min(same, key=lambda row: row["seconds"]) for same in zip(*runs, strict=True)]
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|---" * len(names) + "|")
    for row in rows:
        print("| " + " | ".join(f"{row.get(name, 0.0):.4g}" for name in names) + " |")


if __name__ == "__main__":
    main()
