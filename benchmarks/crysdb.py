"""Time and memory of building CrysDB, from ten thousand crystals to a million.

python benchmarks/crysdb.py --sizes 10000 100000 --crystals corpus.parquet --out crysdb-benchmark

The input is made by decorating known crystals (the embedded ones, or those of a file): elements are replaced by
others of their group, volumes follow the radii, cells are strained a little; some rows are copies of others. Each
size runs in a process of its own. Writes crysdb.json and crysdb.md into ``--out`` and prints the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, COVALENT_RADIUS
from dao_pipeline.crystals.flat import FlatCrystals, flatten, formulas, structure_columns
from dao_pipeline.crystals.schema import COLUMNS, CRYSTAL
from dao_pipeline.crystals.table import ROW_GROUP, read_about, writing
from dao_pipeline.sources.embedded import EMBEDDED_PATH
from dao_pipeline.sources.files import read_crystals

GROUPS = (
    "Li Na K Rb Cs Be Mg Ca Sr Ba",
    "Sc Y La Ce Pr Nd Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Th U",
    "Ti Zr Hf V Nb Ta Cr Mo W Mn Re Fe Ru Os Co Rh Ir Ni Pd Pt Cu Ag Au Zn Cd Hg",
    "B Al Ga In Tl C Si Ge Sn Pb",
    "N P As Sb Bi O S Se Te",
    "F Cl Br I",
)
"""Elements that replace one another."""

ELEMENTS = 3
"""Crystals of fewer elements are not decorated: a million would be few compositions, each many times."""

COPIES = 0.04
"""Share of rows that copy another one of their piece, half of them exactly, half strained by a percent."""

POLYMORPHS = 0.04
"""Share of rows with the composition and volume of another one of their piece, and atoms elsewhere."""


def main() -> None:
    """Run all sizes, one process each, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="crystals")
    parser.add_argument("--crystals", type=Path, default=EMBEDDED_PATH, help="file of crystals to decorate")
    parser.add_argument("--dedup", choices=("structure", "exact", "off"), default="structure")
    parser.add_argument("--threads", type=int, default=2, help="processes that compare crystals")
    parser.add_argument("--out", type=Path, default=Path("crysdb-benchmark"))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one is not None:
        print(json.dumps(measure(options.one, options)))
        return
    results = []
    for size in options.sizes:
        arguments = [*sys.argv, "--one", str(size)]
        done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        (options.out / "crysdb.json").write_text(json.dumps(results, indent=2) + "\n")
        (options.out / "crysdb.md").write_text(markdown(results))
    print(markdown(results), end="")


def measure(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """Make ``size`` crystals and build CrysDB from them: seconds and peak memory of each step."""
    folder = options.out / f"{size}"
    raw = folder / "raw.parquet"
    steps: list[dict[str, Any]] = []
    spent = _cpu_seconds()

    def observe(name: str, crystals: int, seconds: float) -> None:
        nonlocal spent
        before, spent = spent, _cpu_seconds()
        measured = {"seconds": seconds, "cpu_seconds": spent - before, "peak_mb": _peak_mb()}
        steps.append({"step": name, "crystals": crystals} | measured)
        _reset_peak()

    _reset_peak()
    start = time.perf_counter()
    decorate(options.crystals, size, raw)
    observe("make the input", size, time.perf_counter() - start)
    campaign = parse_campaign(
        {
            "name": f"benchmark-{size}",
            "crysdb": {"min_atoms": 1, "max_atoms": 60, "dedup": {"mode": options.dedup}},
            "compute": {"cpu": {"threads": options.threads}},
        },
        "benchmark",
    )
    build_crysdb(campaign, raw, folder / "crysdb", observe)
    return {
        "size": size,
        "steps": steps,
        "counts": read_about(folder / "crysdb" / "train.parquet")["counts"],
        "worker_peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        "dedup": options.dedup,
    }


def _cpu_seconds() -> float:
    """CPU time of this process and of those that it waited for: other work on the machine does not change it."""
    return sum(os.times()[:4])


def _peak_mb() -> float:
    """Largest resident memory of this process since the last reset (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def decorate(path: Path, size: int, out: Path, seed: int = 0) -> None:
    """Write ``size`` crystals made from those of a file, a row group at a time.

    Copies and polymorphs apart, no composition occurs twice: in a million crystals as in ten thousand, each has as
    many others to be compared with. Left to chance, their number would grow with the square.
    """
    base = flatten(read_crystals(path).table)
    kinds = np.unique(base.crystal_of_atom * 128 + base.numbers) // 128
    base = base.select(np.bincount(kinds, minlength=len(base)) >= ELEMENTS)
    rng = np.random.default_rng(seed)
    schema = pa.schema([(name, COLUMNS[name].type) for name in (*CRYSTAL, "published")])
    seen: set[str] = set()
    with writing(out, schema, {"stage": "download"}, size) as out_file:
        for start in range(0, size, ROW_GROUP):
            out_file.write(_piece(base, start, min(ROW_GROUP, size - start), rng, schema, seen))


def _piece(
    base: FlatCrystals, start: int, count: int, rng: np.random.Generator, schema: pa.Schema, seen: set[str]
) -> pa.Table:
    flat, names = _new(base, start, count, rng, seen)
    columns: dict[str, Any] = structure_columns(flat, names)
    energy = np.abs(rng.normal(0, 0.15, count))
    columns |= {
        "id": pa.array([f"made:{start + i}" for i in range(count)]),
        "source": pa.array(np.where(np.arange(count) % 3 == 0, "one", "other")),
        "formation_energy": pa.array(energy - 1.5),
        "e_above_hull": pa.array(energy),
        "energy_method": pa.array(["made up"] * count),
        "published": pa.array(rng.integers(1950, 2025, count).astype(str)),
    }
    nulls = {name: pa.nulls(count, schema.field(name).type) for name in schema.names}
    table = pa.table({name: columns.get(name, nulls[name]) for name in schema.names})
    # some rows become others again: as they are, strained, or with atoms elsewhere
    changed = rng.choice(count, int((COPIES + POLYMORPHS) * count), replace=False)
    copies, polymorphs = np.split(changed, [int(COPIES * count)])
    take = np.arange(count)
    take[changed] = rng.choice(np.setdiff1d(take, changed), len(changed))
    again = table.take(pa.array(take))
    flat = flatten(again)
    strained = np.ones(count)
    strained[copies[::2]] = 1.01
    moved = np.isin(flat.crystal_of_atom, polymorphs)[:, None] * rng.normal(0, 0.15, flat.frac.shape)
    flat = replace(flat, frac=flat.frac + moved, lattice=flat.lattice * strained[:, None, None])
    columns = structure_columns(flat, again["formula"].to_pylist()) | {"id": table["id"]}
    return pa.table([columns.get(name, again[name]) for name in schema.names], schema=schema)


def _new(
    base: FlatCrystals, start: int, count: int, rng: np.random.Generator, seen: set[str]
) -> tuple[FlatCrystals, list[str]]:
    """Decorated crystals whose compositions were not ``seen``, and their formulas."""
    rows = (start + np.arange(count)) % len(base)
    flat = _decorated(base, rows, rng)
    names = formulas(flat)
    for _ in range(20):
        again, fresh = [], set()
        for i, name in enumerate(names):
            if name in seen or name in fresh:
                again.append(i)
            fresh.add(name)
        if not again:
            break
        rows[again] = rng.integers(0, len(base), len(again))
        more = _decorated(base, rows[again], rng)
        flat = _replaced(flat, np.array(again), more)
        for i, name in zip(again, formulas(more), strict=True):
            names[i] = name
    seen.update(names)
    return flat, names


def _replaced(flat: FlatCrystals, rows: np.ndarray, others: FlatCrystals) -> FlatCrystals:
    """``flat`` with the crystals ``rows`` replaced by ``others``."""
    place = np.arange(len(flat))
    place[rows] = len(flat) + np.arange(len(rows))
    both = FlatCrystals(
        numbers=np.concatenate([flat.numbers, others.numbers]),
        frac=np.concatenate([flat.frac, others.frac]),
        lattice=np.concatenate([flat.lattice, others.lattice]),
        counts=np.concatenate([flat.counts, others.counts]),
    )
    return _taken(both, place)


def _taken(flat: FlatCrystals, rows: np.ndarray) -> FlatCrystals:
    counts = flat.counts[rows]
    ends = np.cumsum(counts)
    atoms = np.repeat(flat.ptr[rows] - (ends - counts), counts) + np.arange(ends[-1])
    return FlatCrystals(
        numbers=flat.numbers[atoms], frac=flat.frac[atoms], lattice=flat.lattice[rows], counts=counts
    )


def _decorated(base: FlatCrystals, rows: np.ndarray, rng: np.random.Generator) -> FlatCrystals:
    """Crystals of ``base`` with other elements, volumes after their radii, and cells strained by a percent."""
    flat = _taken(base, rows)
    crystal = flat.crystal_of_atom
    numbers = _replacements(rng, len(rows))[crystal, flat.numbers]
    radius = np.asarray(COVALENT_RADIUS)
    growth = np.bincount(crystal, radius[numbers] ** 3) / np.bincount(crystal, radius[flat.numbers] ** 3)
    strain = rng.normal(0, 0.01, (len(rows), 3, 3))
    lattice = flat.lattice @ (np.eye(3) + (strain + strain.transpose(0, 2, 1)) / 2)
    return replace(flat, numbers=numbers, lattice=lattice * np.cbrt(np.clip(growth, 0.6, 1.6))[:, None, None])


def _replacements(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 119): what each element becomes in each crystal; a cyclic shift in its group, so none meet."""
    table = np.tile(np.arange(119), (count, 1))
    for group in GROUPS:
        members = np.array([ATOMIC_NUMBERS[symbol] for symbol in group.split()])
        shift = rng.integers(0, len(members), (count, 1))
        table[:, members] = members[(np.arange(len(members)) + shift) % len(members)]
    return table


def markdown(results: list[dict[str, Any]]) -> str:
    """The measurements as a Markdown table."""
    lines = [
        "| crystals | step | wall s | CPU s | crystals per CPU s | CPU us per crystal | peak memory MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        lines += [
            _line(result["size"], s["step"], s["crystals"], s, f"{s['peak_mb']:.0f}") for s in result["steps"]
        ]
        own = result["steps"][1:]  # without making the input
        total = {name: sum(step[name] for step in own) for name in ("seconds", "cpu_seconds")}
        peak = f"{max(step['peak_mb'] for step in own):.0f} (workers {result['worker_peak_mb']:.0f} each)"
        lines.append(_line(result["size"], "all of build_crysdb", result["size"], total, peak))
    lines.append("")
    for result in results:
        counts = result["counts"]
        lost = ", ".join(f"{n} {reason}" for reason, n in counts["rejected"].items()) or "none"
        lines.append(
            f"{result['size']:,}: train {counts['train']}, val {counts['val']}, test {counts['test']}; rejected: "
            f"{lost}. Duplicates: {result['dedup']}.\n"
        )
    return "\n".join(lines)


def _line(size: int, step: str, crystals: int, times: dict[str, float], peak: str) -> str:
    cpu, wall = times["cpu_seconds"], times["seconds"]
    rate = f"{crystals / cpu:,.0f}" if cpu > 0.02 else ""
    return f"| {size:,} | {step} | {wall:.1f} | {cpu:.1f} | {rate} | {1e6 * cpu / max(crystals, 1):.0f} | {peak} |"


if __name__ == "__main__":
    main()
