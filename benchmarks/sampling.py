"""Match rate against network calls: both processes, trained side by side on the same crystals for as many steps.

python benchmarks/sampling.py --data mp20/train.parquet --data mp20/val.parquet --out work/sampling
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import run
from typing import Any

from dao_pipeline.config import Campaign
from dao_pipeline.crystals.table import write_text
from dao_pipeline.model.dao import load_model
from dao_pipeline.training.generator import pretrain_generator
from held_out import compare, generate_for, held_out, prepare_crysdb

SAMPLERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "diffusion": [
        *(("predictor-corrector", {"steps": n, "corrector": True}) for n in (10, 25, 50, 100, 250, 1000)),
        *(("predictor only", {"steps": n, "corrector": False}) for n in (10, 25, 50, 100, 250, 1000)),
    ],
    "flow": [
        *(("Euler", {"steps": n, "method": "euler", "annealing": 0.0}) for n in (10, 25, 50, 100, 250)),
        *(("Euler, annealed", {"steps": n, "method": "euler", "annealing": 5.0}) for n in (10, 25, 50, 100, 250)),
        *(("midpoint", {"steps": n, "method": "midpoint", "annealing": 0.0}) for n in (5, 12, 25, 50, 125)),
        *(
            ("midpoint, annealed", {"steps": n, "method": "midpoint", "annealing": 5.0})
            for n in (5, 12, 25, 50, 125)
        ),
    ],
}


def campaign(args: argparse.Namespace, kind: str, sampler: dict[str, Any]) -> Campaign:
    """The campaign of one process."""
    backbone = json.loads(args.backbone)
    training = {
        "steps": args.steps,
        "batch_atoms": args.batch_atoms,
        "learning_rate": args.learning_rate,
        "warmup_steps": 100,
        "ema_decay": 0.995,
        "validate_every": max(1, args.steps // 20),
    }
    return Campaign.model_validate(
        {
            "name": "sampling",
            "seed": args.seed,
            "data": {"energy_method": "PBE"},
            "crysdb": {"min_atoms": 1, "max_atoms": 20, "val_fraction": 0.01, "test_fraction": 0.08},
            "process": {"kind": kind},
            "energy_model": {"label": "formation_energy"},
            "generator": {"backbone": backbone},
            "pretrain": {"stage1": training},
            "generate": {"guidance_scale": 0, "batch_atoms": 1000} | sampler,
        }
    )


def trained(args: argparse.Namespace, kind: str, crysdb: Path) -> Path:
    """The model of one process after ``args.steps`` steps; how long they took is kept beside it."""
    folder = Path(args.out / kind)
    if not (folder / "config.json").exists():
        started = time.monotonic()
        pretrain_generator(campaign(args, kind, {}), crysdb, folder, args.out / f"work-{kind}", stage=1)
        write_text(args.out / f"{kind}-seconds.json", json.dumps(time.monotonic() - started))
    return folder


def measure(args: argparse.Namespace, kind: str, crysdb: Path) -> list[dict[str, Any]]:
    """Match rate of every sampler of one process on the same held-out compositions."""
    model = load_model(trained(args, kind, crysdb))
    known = held_out(crysdb, args.targets)
    rows = []
    for name, sampler in SAMPLERS[kind]:
        file = args.out / f"{kind}-{name.replace(' ', '_')}-{sampler['steps']}.json"
        if not file.exists():
            settings = campaign(args, kind, sampler)
            started = time.monotonic()
            made = generate_for(model, known, settings.generate, args.seed)
            seconds = (time.monotonic() - started) / known.num_rows
            found = compare(made, known, args.workers).summary()
            row = {
                "process": kind,
                "sampler": name,
                "steps": sampler["steps"],
                "calls": settings.generate.sampling(settings.process).network_calls,
            }
            write_text(file, json.dumps(row | {"seconds_per_structure": seconds} | found))
        rows.append(json.loads(file.read_text()))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Train what is missing, measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True, help="tables of crystals")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--process", choices=list(SAMPLERS), action="append", help="default: both, side by side")
    parser.add_argument(
        "--steps", type=int, default=8000, help="of training; both processes cost the same per step"
    )
    parser.add_argument("--backbone", default='{"preset": "tiny"}', help="JSON")
    parser.add_argument("--batch-atoms", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--targets", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    crysdb = prepare_crysdb(args.data, args.out / "crysdb", campaign(args, "diffusion", {}))
    if args.process is None:  # one process each, so that both train for the same time on one core
        command = [sys.executable, *sys.argv]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda kind: run([*command, "--process", kind], check=True), SAMPLERS))
        args.process = list(SAMPLERS)
    rows = [row for kind in args.process for row in measure(args, kind, crysdb)]
    print("| process | sampler | calls | match rate % | 95 % interval | RMSE | cRMSE | s per structure |")
    print("|---|---|---|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['process']} | {r['sampler']} | {r['calls']} | {r['match_rate']:.1f} | {r['low']:.1f} to "
            f"{r['high']:.1f} | {r['rmse']:.3f} | {r['crmse']:.3f} | {r['seconds_per_structure']:.3f} |"
        )


if __name__ == "__main__":
    main()
