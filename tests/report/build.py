"""A made-up but consistent results folder, written with the project's own writers, of real crystals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pymatgen.core import Lattice, Structure

from dao_pipeline.config import Campaign
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.convert import from_structure
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.table import provenance, write_rejected, write_table
from dao_pipeline.evaluation.evaluate import SAMPLES_SCHEMA, SUMMARY_SCHEMA, TARGETS_SCHEMA
from dao_pipeline.evaluation.metrics import RANK1_BY
from dao_pipeline.training.metrics import metrics_table

PROTOTYPES: dict[str, Structure] = {
    "Sr1Ti1O3": Structure(
        Lattice.cubic(3.905),
        ["Sr", "Ti", "O", "O", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    ),
    "Na4Cl4": Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "Zn2O2": Structure.from_spacegroup(
        "P6_3mc", Lattice.hexagonal(3.25, 5.21), ["Zn", "O"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.382]]
    ),
    "Cs1Cl1": Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    "Ti2O4": Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.3053, 0.3053, 0]]
    ),
}
SPACEGROUPS = {"Sr1Ti1O3": 221, "Na4Cl4": 225, "Zn2O2": 186, "Cs1Cl1": 221, "Ti2O4": 136}


def make_campaign(**sections: Any) -> Campaign:
    """A small campaign."""
    return parse_campaign({"name": "made_up", "generate": {"samples": 12}, **sections}, "test")


def build_results(folder: Path, samples: int = 12, seed: int = 0) -> Path:
    """Write every table of a campaign under ``folder``: 5 targets, ``samples`` candidates each."""
    rng = np.random.default_rng(seed)
    about = provenance("made_up", campaign="made_up", settings={"seed": seed})
    known = {
        name: from_structure(s, id=f"known:{i}", source="made up", extra={"spacegroup": SPACEGROUPS[name]})
        for i, (name, s) in enumerate(PROTOTYPES.items())
    }
    crystals = [Crystal(**{**vars(known[name]), "id": f"{name}-{i}"}) for name in PROTOTYPES for i in range(9)]
    write_table(to_table(crystals), folder / "raw" / "crystals.parquet", about)
    write_rejected(
        [{"id": "row:7", "stage": "download", "reason": "damaged_cif", "detail": "<b>x</b>"}],
        folder / "raw" / "rejected.parquet",
        about,
    )
    for split, part in (("train", crystals[:30]), ("val", crystals[30:36]), ("test", crystals[36:41])):
        note = {**about, "energy_methods": {"CHGNet": 41}}
        write_table(to_table(part), folder / "crysdb" / f"{split}.parquet", note)
    rejected = [
        {"id": c.id, "stage": "build_crysdb", "reason": "duplicate" if i else "atoms_too_close", "detail": ""}
        for i, c in enumerate(crystals[41:])
    ]
    write_rejected(rejected, folder / "crysdb" / "rejected.parquet", about)
    _write_models(folder, rng)
    _write_relaxed(folder, crystals[:30], rng, about)
    _write_candidates(folder, known, samples, rng, about)
    _write_timings(folder)
    return folder


def _write_models(folder: Path, rng: np.random.Generator) -> None:
    for place in ("dao_p", "dao_g/stage1", "dao_g/stage2", "dao_g/finetuned"):
        steps = np.arange(20, 2001, 20)
        rows = [
            {
                "step": int(step),
                "split": split,
                "loss": float(0.2 + 2 * np.exp(-step / 300) + (0.05 if split == "train" else 0.01) * rng.random()),
                "loss_lattice": 0.1,
                "loss_coords": 0.1,
                "energy_mae": 0.05 if place == "dao_p" and split == "val" else None,
                "learning_rate": 1e-4,
                "crystals_per_second": 220.0 + rng.random(),
                "atoms_per_second": 1500.0,
                "memory_mb": 812.0,
                "seconds": step * 0.05,
            }
            for step in steps
            for split in (("train", "val") if step % 200 == 0 else ("train",))
        ]
        about = provenance("train_" + place.split("/")[0], settings={"steps": 2000})
        write_table(metrics_table(place, rows), folder / "models" / place / "metrics.parquet", about)
        (folder / "models" / place / "config.json").write_text(json.dumps({"kind": place[:5]}), encoding="utf-8")


def _write_relaxed(folder: Path, crystals: list[Crystal], rng: np.random.Generator, about: dict[str, Any]) -> None:
    rows = []
    for i, crystal in enumerate(crystals):
        status = "not_selected" if i % 3 == 0 else ("energy_rose" if i % 7 == 0 else "accepted")
        moved = status != "not_selected"
        extra = {
            "relax_status": status,
            "energy_before": 0.3 if moved else None,
            "energy_after": 0.3 - 0.2 * float(rng.random()) if moved else None,
            "relax_steps": 12 if moved else None,
            "displacement": 0.2 if moved else None,
            "volume_change": -0.01 if moved else None,
        }
        rows.append(Crystal(**{**vars(crystal), "extra": extra}))
    write_table(to_table(rows[:16]), folder / "relaxed" / "shard-0000.parquet", about)
    write_table(to_table(rows[16:]), folder / "relaxed" / "shard-0001.parquet", about)


def _write_candidates(
    folder: Path, known: dict[str, Crystal], samples: int, rng: np.random.Generator, about: dict[str, Any]
) -> None:
    screened: list[dict[str, Any]] = []
    crystals: list[Crystal] = []
    evaluated: list[dict[str, Any]] = []
    targets: list[dict[str, Any]] = []
    for c, (name, crystal) in enumerate(known.items()):
        energies = np.sort(0.02 + rng.gamma(1.5, 0.12, samples))
        order = rng.permutation(samples)
        matched_rank = 2 if c in (0, 3) else None
        rank = 0
        for place, sample in enumerate(order):
            valid, failed = place < samples - 3, place == samples - 1
            unique = valid and place % 4 != 3
            rank += unique
            extra = {
                "composition": name,
                "target_id": crystal.id,
                "sample": int(sample),
                "status": "diverged" if failed else ("ok" if valid else "atoms_too_close"),
                "valid": valid,
                "unique": unique,
                "novel": bool(place % 5) if unique else None,
                "group": place // 4 * 3 + min(place % 4, 2) if valid else None,
                "group_size": 2 if place % 4 == 2 else 1,
                "rank": rank if unique else None,
                "energy_pred": float(energies[place]) if valid else None,
                "spacegroup": int(SPACEGROUPS[name] if place % 2 else rng.integers(1, 231)),
                "volume_per_atom": crystal.volume / crystal.num_atoms,
            }
            noise = 0.02 * rng.standard_normal((crystal.num_atoms, 3))
            crystals.append(
                Crystal(
                    id=f"cand:{c}:{sample}",
                    source="dao",
                    atomic_numbers=crystal.atomic_numbers,
                    frac_coords=crystal.frac_coords + noise,
                    lattice=crystal.lattice * (1 + 0.02 * rng.standard_normal()),
                    extra=extra,
                )
            )
            screened.append(extra)
            hit = unique and rank == matched_rank
            evaluated.append(_sample(crystal.id, name, "dao", int(sample), extra, hit))
        for method in ("random", "substitution"):
            evaluated += [
                _sample(crystal.id, name, method, s, {"valid": True, "rank": s + 1}, method[0] == "s" and s == 0)
                for s in range(samples)
            ]
        for method, found in (("dao", matched_rank is not None), ("random", False), ("substitution", c != 4)):
            targets.append(
                {
                    "target_id": crystal.id,
                    "composition": name,
                    "method": method,
                    "found": found,
                    "rmse": 0.043 if found else None,
                    "rank1_by": RANK1_BY[method],
                    "spacegroup": SPACEGROUPS[name],
                    "rank1_found": method == "substitution" and found,
                    "rank1_rmse": 0.05 if method == "substitution" and found else None,
                    "first_match_rank": (2 if method == "dao" else 1) if found else None,
                    "candidates": samples,
                }
            )
    table = to_table(crystals)
    failed = [status == "diverged" for status in table["status"].to_pylist()]
    for column in ("lattice", "frac_coords"):
        values = [None if bad else v for bad, v in zip(failed, table[column].to_pylist(), strict=True)]
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, pa.array(values, table.schema.field(column).type))
    write_table(table, folder / "candidates" / "screened.parquet", about)
    plan = table.select(["id", "composition", "target_id", "sample"])
    write_table(plan, folder / "candidates" / "plan.parquet", about)
    evaluation = folder / "evaluation"
    for file, rows, schema in (
        ("samples", evaluated, SAMPLES_SCHEMA),
        ("targets", targets, TARGETS_SCHEMA),
        ("summary", _summary(samples, len(known)), SUMMARY_SCHEMA),
    ):
        write_table(pa.Table.from_pylist(rows, schema=schema), evaluation / f"{file}.parquet", about)


def _summary(samples: int, targets: int) -> list[dict[str, Any]]:
    return [
        {
            "method": m,
            "k": k,
            "rank1_by": RANK1_BY[m],
            "match_rate": r,
            "low": lo,
            "high": hi,
            "rmse": e,
            "n": targets,
            "match_rate_single": 0.07 if m == "dao" and k == 1 else None,
        }
        for m, k, r, lo, hi, e in (
            ("dao", 1, 0.0, 0.0, 0.43, None),
            ("dao", samples, 0.4, 0.12, 0.77, 0.043),
            ("random", 1, 0.0, 0.0, 0.43, None),
            ("random", samples, 0.0, 0.0, 0.0, None),
            ("substitution", 1, 0.8, 0.38, 0.96, 0.043),
            ("substitution", samples, 0.8, 0.38, 0.96, 0.043),
        )
    ]


def _sample(target: str, name: str, method: str, sample: int, extra: dict[str, Any], hit: bool) -> dict[str, Any]:
    return {
        "target_id": target,
        "composition": name,
        "method": method,
        "sample": sample,
        "valid": extra["valid"],
        "energy_pred": extra.get("energy_pred"),
        "rank": extra["rank"],
        "matched": hit,
        "rmse": 0.043 if hit else None,
    }


def _write_timings(folder: Path) -> None:
    head = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    times = {"download": 3.2, "build_crysdb": 8.0, "train_energy_model": 95.0, "finetune_generator": 64.0}
    times |= {"generate_candidates-0000": 41.0, "generate_candidates-0001": 39.5, "evaluate": 12.0}
    (folder / "timings").mkdir(parents=True, exist_ok=True)
    for name, seconds in times.items():
        row = f"{seconds}\t0:00:01\t{300 + 10 * seconds:.2f}\t-\t-\t-\t0\t0\t99\t1\n"
        (folder / "timings" / f"{name}.tsv").write_text(head + row, encoding="utf-8")
