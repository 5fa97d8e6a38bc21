"""Which settings help: controlled runs that differ in one setting, on the same crystals, steps and seeds.

python benchmarks/settings.py --data mp20/train.parquet --data mp20/val.parquet --out work/settings
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dao_pipeline.config import Campaign
from dao_pipeline.crystals.dataset import CrystalDataset, size_batches
from dao_pipeline.crystals.table import write_text
from dao_pipeline.energy.predict import predict_energies
from dao_pipeline.model.dao import DaoModel, load_model
from dao_pipeline.process.objective import add_noise_to, denoise
from dao_pipeline.training.energy_model import train_energy_model
from dao_pipeline.training.generator import pretrain_generator
from held_out import compare, generate_for, held_out, prepare_crysdb

Overrides = dict[str, Any]

JOINT = {"backbone": {"edge_norm": "joint", "distances": "none", "noise_aware": False}}
PAPER_PROCESS = {"process": {"kind": "diffusion", "lattice_scale": "none", "remove_drift": False}}
PAPER_TRAINING = {"training": {"ema_decay": 0.0, "permute_axes": False}}

REFERENCE: Overrides = {
    "backbone": {"distances": "values", "neighbours": "nearest", "residual": "gated"},
    "energy": {"loss": "exponential", "reference": "none"},
}

GENERATOR: dict[str, Overrides] = {
    "reference": {},
    "paper": JOINT | PAPER_PROCESS | PAPER_TRAINING,
    "joint norm": JOINT,
    "separate norm, nothing else": {"backbone": {"distances": "none", "noise_aware": False}},
    "without noise_aware": {"backbone": {"noise_aware": False}},
    "without distances": {"backbone": {"distances": "none"}},
    "distances in the logits only": {"backbone": {"distances": "bias"}},
    "without distances, lattice in angstrom": {
        "backbone": {"distances": "none"},
        "process": {"lattice_scale": "none"},
    },
    "drift in the loss": {"process": {"remove_drift": False}},
    "no averaged weights": {"training": {"ema_decay": 0.0}},
    "axes not permuted": {"training": {"permute_axes": False}},
    "summed residuals": {"backbone": {"residual": "sum"}},
    "64 frequencies": {"backbone": {"frequencies": 64}},
    "128 frequencies": {"backbone": {"frequencies": 128}},
}

ENERGY: dict[str, Overrides] = {
    "reference": {},
    "paper": JOINT | PAPER_PROCESS | PAPER_TRAINING | {"energy": {"clean_fraction": 0.0, "clip_label": 1e6}},
    "t = 0 never shown": {"energy": {"clean_fraction": 0.0}},
    "labels not clipped": {"energy": {"clip_label": 1e6}},
    "squared loss": {"energy": {"loss": "squared"}},
    "linex loss": {"energy": {"loss": "linex"}},
    "energies of the elements apart": {"energy": {"reference": "elements"}},
    "all images": {"backbone": {"neighbours": "all"}},
    "summed residuals": {"backbone": {"residual": "sum"}},
    "without distances": {"backbone": {"distances": "none"}},
    "joint norm": JOINT,
    "axes not permuted": {"training": {"permute_axes": False}},
    "no averaged weights": {"training": {"ema_decay": 0.0}},
}


def campaign(args: argparse.Namespace, changes: Overrides, seed: int) -> Campaign:
    """The controlled campaign with one variant's changes.

    What all variants are compared with is stated here and not taken from the defaults, which follow from them.
    """
    training = {
        "steps": args.steps,
        "batch_atoms": args.batch_atoms,
        "learning_rate": args.learning_rate,
        "warmup_steps": 50,
        "ema_decay": 0.99,
        "permute_axes": True,
        "validate_every": 10**9,
    } | changes.get("training", {})
    backbone = {"preset": args.preset, **REFERENCE["backbone"]} | changes.get("backbone", {})
    return Campaign.model_validate(
        {
            "name": "settings",
            "seed": seed,
            "data": {"energy_method": "PBE"},
            "crysdb": {"min_atoms": 1, "max_atoms": 20, "val_fraction": 0.01, "test_fraction": 0.08},
            "process": {"kind": "diffusion"} | changes.get("process", {}),
            "energy_model": {
                "backbone": backbone,
                "label": args.label,
                "training": training,
                **REFERENCE["energy"],
            }
            | changes.get("energy", {}),
            "generator": {"backbone": backbone},
            "pretrain": {"stage1": training},
            "generate": {
                "steps": args.sampling_steps,
                "corrector": False,
                "guidance_scale": 0,
                "batch_atoms": 1000,
            },
        }
    )


def coords_loss(model: DaoModel, crystals: CrystalDataset) -> float:
    """Mean squared error of the coordinates' noise, less the drift, on noise that is the same for all variants."""
    model.process = model.process.model_copy(update={"remove_drift": True})
    total = atoms = 0.0
    with torch.no_grad():
        for number, indices in enumerate(size_batches(crystals.sizes, 1000)):
            batch = crystals.select(indices)
            generator = torch.Generator().manual_seed(number)
            t = torch.randint(1, model.schedule.timesteps + 1, (len(indices),), generator=generator)
            total += float(denoise(model, add_noise_to(model, batch, t, generator)).coords_error.sum())
            atoms += len(batch.atomic_numbers)
    return total / atoms


def run_generator(args: argparse.Namespace, changes: Overrides, seed: int, crysdb: Path, work: Path) -> Overrides:
    """Train one variant of DAO-G and generate for held-out compositions."""
    settings = campaign(args, changes, seed)
    started = time.monotonic()
    pretrain_generator(settings, crysdb, work / "model", work / "checkpoint", stage=1)
    seconds = time.monotonic() - started
    model = load_model(work / "model")
    known = held_out(crysdb, args.targets)
    found = compare(generate_for(model, known, settings.generate, seed), known, args.workers)
    loss = coords_loss(model, CrystalDataset(known))
    return {"train_seconds": seconds, "coords_loss": loss, **found.summary()}


def run_energy(args: argparse.Namespace, changes: Overrides, seed: int, crysdb: Path, work: Path) -> Overrides:
    """Train one variant of DAO-P and predict energies of held-out crystals."""
    from scipy.stats import spearmanr

    settings = campaign(args, changes, seed)
    started = time.monotonic()
    train_energy_model(settings, crysdb, work / "model", work / "checkpoint")
    seconds = time.monotonic() - started
    known = held_out(crysdb, 10**9)
    true = known[args.label].to_numpy()
    predicted = predict_energies(load_model(work / "model"), known, 1000)
    return {
        "train_seconds": seconds,
        "mae": float(np.abs(predicted - true).mean()),
        "spearman": float(spearmanr(predicted, true).statistic),
        "mae_of_median": float(np.abs(np.median(true) - true).mean()),
    }


def main() -> None:
    """Run every variant that has no result yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True, help="tables of crystals")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", choices=["generator", "energy"], default="generator")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--label", default="formation_energy")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch-atoms", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--sampling-steps", type=int, default=100)
    parser.add_argument("--targets", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="*", help="names of variants")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    variants = GENERATOR if args.model == "generator" else ENERGY
    run = run_generator if args.model == "generator" else run_energy
    crysdb = prepare_crysdb(args.data, args.out / "crysdb", campaign(args, {}, 1))
    results: list[Overrides] = []
    for seed in args.seeds:
        for name, changes in variants.items():
            if args.only and name not in args.only:
                continue
            file = args.out / f"{args.model}-{name.replace(' ', '_')}-{seed}.json"
            if not file.exists():
                work = args.out / "running"
                shutil.rmtree(work, ignore_errors=True)
                found = {"variant": name, "seed": seed, **run(args, changes, seed, crysdb, work)}
                write_text(file, json.dumps(found))
            results.append(json.loads(file.read_text()))
            print(results[-1], flush=True)


if __name__ == "__main__":
    main()
