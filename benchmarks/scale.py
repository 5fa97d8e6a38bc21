"""A large campaign on this machine, and what a still larger one takes on a cluster.

python benchmarks/scale.py run --out work/scale                            100,000 candidates
python benchmarks/scale.py run --candidates 2000 --shard-compositions 25 --out work/scale
python benchmarks/scale.py cluster --measured work/scale/scale.json        10 million, simulated

``run`` makes binary and ternary compositions that are neutral with usual charges, trains small models (or takes
those named) and runs Snakemake up to the screened table. It prints time, memory over time, counts and disk.
``cluster`` builds the graphs of jobs of larger campaigns without running them, and scales what ``run`` measured.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations
from math import ceil, gcd
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import yaml

from dao_pipeline.crystals.table import iter_tables, write_text
from dao_pipeline.preflight import elements_in
from dao_pipeline.sources.embedded import EMBEDDED_PATH
from stages import stage_rows

REPOSITORY = Path(__file__).parents[1]
SHARES = (0.1, 0.5, 1.0)
"""Parts of a stage's time after which its peak memory so far is told: where it is flat, they agree."""

_CHARGES = {
    1: "Li Na K Rb Cs Cu Ag",
    2: "Mg Ca Sr Ba Zn Cd Mn Fe Co Ni",
    3: "Al Ga In Sc Y La Cr Bi",
    4: "Ti Zr Hf Si Ge Sn",
    5: "V Nb Ta",
}
CATIONS = {symbol: charge for charge, symbols in _CHARGES.items() for symbol in symbols.split()}
ANIONS = {"O": 2, "S": 2, "Se": 2, "Te": 2, "F": 1, "Cl": 1, "Br": 1, "I": 1, "N": 3, "P": 3, "As": 3}
FOLDERS = ("planned", "templates", "generated", "screened")
FILES = ("plan.parquet", "references.parquet", "screened.parquet", "top.zip")
PER_ROUND = ("plan_shard", "propose_templates", "generate_candidates")
TRAINED = {"batch_atoms": 600, "learning_rate": 2e-3, "warmup_steps": 20, "ema_decay": 0.98}


# Compositions ---------------------------------------------------------------------------------------------------


def neutral_formulas(elements: set[str], number: int, max_atoms: int = 20) -> list[str]:
    """``number`` neutral binaries and ternaries of these elements, in random but fixed order."""
    found = list(dict.fromkeys(_neutral({e: CATIONS[e] for e in CATIONS if e in elements}, elements, max_atoms)))
    random.Random(0).shuffle(found)
    if len(found) < number:
        raise SystemExit(f"there are only {len(found)} such compositions; ask for more samples of each")
    return found[:number]


def _neutral(cations: dict[str, int], elements: set[str], max_atoms: int) -> Iterator[str]:
    for anion, charge in ANIONS.items():
        if anion not in elements:
            continue
        for a, z in cations.items():
            common = gcd(z, charge)
            yield f"{a}{charge // common}{anion}{z // common}"
        for (a, y), (b, z) in combinations(cations.items(), 2):
            for i in range(1, 5):
                for j in range(1, 5):
                    k, rest = divmod(i * y + j * z, charge)
                    if rest == 0 and gcd(i, j, k) == 1 and i + j + k <= max_atoms:
                        yield f"{a}{i}{b}{j}{anion}{k}"


# The run --------------------------------------------------------------------------------------------------------


def campaign(args: argparse.Namespace) -> dict[str, Any]:
    """The campaign's settings."""
    table = Path(args.crystals) if args.crystals else EMBEDDED_PATH
    formulas = neutral_formulas(elements_in(table), ceil(args.candidates / args.samples))
    training = {"steps": args.training_steps, **TRAINED, "validate_every": args.training_steps}
    values: dict[str, Any] = {
        "name": "scale",
        "data": {"source": "file", "path": str(table.resolve())} if args.crystals else {"source": "embedded"},
        "crysdb": {"min_atoms": 1},
        "energy_model": {"backbone": {"preset": args.preset}, "training": training},
        "generator": {"backbone": {"preset": args.preset}},
        "pretrain": {"stages": 0},
        "finetune": {"crystals": "all", "training": training},
        "generate": {
            "compositions": [{"formula": formula} for formula in formulas],
            "samples": args.samples,
            "shard_compositions": args.shard_compositions,
            "round_samples": args.samples,
            "template_share": args.template_share,
            "steps": args.steps,
        },
        "compute": {kind: {"threads": 1} for kind in ("cpu", "training", "sampling")},
    }
    if args.generator:  # taken as it is, but for one step of fine-tuning
        values["generator"] = {"pretrained": str(Path(args.generator).resolve())}
        values["finetune"]["training"] = {"steps": 1, "validate_every": 1}
    if args.energy_model:
        values["energy_model"] = {"pretrained": str(Path(args.energy_model).resolve())}
    return values


class Memory(threading.Thread):
    """Looks every second at what the jobs of a process hold, by stage: (seconds, megabytes) of each."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self.samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._root = psutil.Process(process.pid)

    def run(self) -> None:
        """Until the process has ended."""
        start = time.monotonic()
        while self._root.is_running():
            with suppress(psutil.NoSuchProcess):  # ended between two looks
                self._look(time.monotonic() - start)
            time.sleep(1.0)

    def _look(self, now: float) -> None:
        self.samples["snakemake"].append((now, _megabytes(self._root)))
        for child in self._root.children(recursive=True):
            try:
                words = child.cmdline()
                place = next((i for i, word in enumerate(words) if Path(word).name == "dao-pipeline"), None)
                if place is None or place + 1 == len(words):
                    continue  # a shell around it
                family = [child, *child.children(recursive=True)]
                self.samples[words[place + 1].replace("-", "_")].append((now, sum(map(_megabytes, family))))
            except psutil.NoSuchProcess:
                continue

    def peaks(self) -> dict[str, list[float]]:
        """Of each stage, the most that a job of it held in the first parts of the stage's time."""
        result = {}
        for stage, samples in self.samples.items():
            when, held = np.array(samples).T
            end = when[0] + np.array(SHARES) * (when[-1] - when[0])
            result[stage] = [float(held[when <= moment].max()) for moment in end]
        return result


def _megabytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 1e6


def run(args: argparse.Namespace) -> None:
    """Run the campaign, print its tables, write scale.json."""
    out = Path(args.out).resolve()
    settings = campaign(args)
    file = out / "scale.yaml"
    write_text(file, yaml.safe_dump(settings, sort_keys=False))
    command = snakemake(file, out, "screen_candidates", "--cores", args.cores)
    start = time.monotonic()
    with (out / "snakemake.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=out, stdout=log, stderr=subprocess.STDOUT)
        memory = Memory(process)
        memory.start()
        code = process.wait()
    wall = time.monotonic() - start
    if code:
        raise SystemExit(f"Snakemake ended with {code}: see {out / 'snakemake.log'}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    measured = {
        "candidates": len(settings["generate"]["compositions"]) * args.samples,
        "compositions": len(settings["generate"]["compositions"]),
        "settings": {name: value for name, value in vars(args).items() if name != "command"},
        "cores": args.cores,
        "wall_s": wall,
        "cpu_s": used.ru_utime + used.ru_stime,
        "stages": {
            stage: {"jobs": jobs, "wall_s": seconds, "cpu_s": cpu, "peak_mb": peak}
            for stage, jobs, seconds, cpu, peak in stage_rows(out / "results/scale")
        },
        "peaks_mb": memory.peaks(),
        "counts": counts(out / "results/scale/candidates"),
        "disk": disk(out / "results/scale/candidates"),
    }
    check(measured)
    write_text(out / "scale.json", json.dumps(measured, indent=1) + "\n")
    print(run_tables(measured))


def snakemake(file: Path, directory: Path, *options: Any) -> list[str]:
    """Snakemake's command line."""
    base = [sys.executable, "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "--directory", directory]
    return [str(word) for word in (*base, "--configfile", file, *options)]


def counts(candidates: Path) -> dict[str, dict[str, int]]:
    """Rows of the plan, and rows of the screened table by status, origin and verdict."""
    found: dict[str, Counter[str]] = {"status": Counter(), "origin": Counter(), "verdict": Counter()}
    for piece in iter_tables(candidates / "screened.parquet", columns=["status", "origin", "unique", "novel"]):
        for name in ("status", "origin"):
            found[name].update(piece[name].to_pylist())
        unique, novel = (np.asarray(piece[name].to_pylist(), dtype=object) == True for name in ("unique", "novel"))  # noqa: E712
        found["verdict"].update({"unique": int(unique.sum()), "unique and novel": int((unique & novel).sum())})
    rows = {"planned": pq.read_metadata(candidates / "plan.parquet").num_rows}
    return {"rows": rows} | {name: dict(counter.most_common()) for name, counter in found.items()}


def disk(candidates: Path) -> dict[str, dict[str, int]]:
    """Files and bytes of each folder and file of the candidates."""
    sizes = {name: [path.stat().st_size for path in (candidates / name).glob("*.parquet")] for name in FOLDERS}
    sizes |= {name: [(candidates / name).stat().st_size] for name in FILES}
    return {name: {"files": len(size), "bytes": sum(size)} for name, size in sizes.items() if size}


def check(measured: dict[str, Any]) -> None:
    """Raise RuntimeError unless every candidate that was asked for is counted once."""
    found = measured["counts"]
    totals = {name: sum(found[name].values()) for name in ("rows", "status", "origin")}
    if set(totals.values()) != {measured["candidates"]}:
        raise RuntimeError(f"{measured['candidates']} candidates were asked for, but counted are {totals}")


def run_tables(measured: dict[str, Any]) -> str:
    """What was measured, in Markdown."""
    lines = [
        f"{measured['candidates']:,} candidates of {measured['compositions']:,} compositions on "
        f"{measured['cores']} cores: {measured['wall_s']:.0f} s, {measured['cpu_s']:.0f} s of CPU time",
        "",
        "| stage | jobs | wall s | CPU s | peak MB in the first 10 % | 50 % | 100 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in dict.fromkeys([*measured["stages"], *measured["peaks_mb"]]):
        row = measured["stages"].get(stage, {})
        peaks = " | ".join(f"{peak:.0f}" for peak in measured["peaks_mb"].get(stage, [])) or "| |"
        numbers = " | ".join(f"{row[key]:.0f}" for key in ("jobs", "wall_s", "cpu_s")) if row else " | | "
        lines.append(f"| `{stage}` | {numbers} | {peaks} |")
    for name in ("status", "origin", "verdict"):
        lines += ["", f"| {name} | candidates |", "|---|---|"]
        lines += [f"| {key} | {number:,} |" for key, number in measured["counts"][name].items()]
        if name != "verdict":
            lines.append(f"| all | {sum(measured['counts'][name].values()):,} |")
    lines += ["", "| candidates/ | files | MB | bytes per candidate |", "|---|---|---|---|"]
    for name, size in measured["disk"].items():
        per = size["bytes"] / measured["candidates"]
        lines.append(f"| `{name}` | {size['files']} | {size['bytes'] / 1e6:.1f} | {per:.0f} |")
    return "\n".join(lines)


# A cluster ------------------------------------------------------------------------------------------------------


def dry_run(shards: int, out: Path) -> dict[str, float]:
    """Jobs of a campaign of so many shards, and what Snakemake takes to build its graph: seconds and megabytes.

    Compositions of the test split are used, whose number is known before there are any.
    """
    size = 50
    values = {
        "name": "simulated",
        "data": {"source": "embedded"},
        "generate": {"test_split": {"limit": shards * size}, "shard_compositions": size},
    }
    file = out / f"simulated-{shards}.yaml"
    write_text(file, yaml.safe_dump(values))
    command = snakemake(file, out / f"simulated-{shards}", "screen_candidates", "-n", "-q", "rules", "--cores", 1)
    (out / f"simulated-{shards}").mkdir(exist_ok=True)
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        output = process.communicate()[0]
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(output)
    total = next(int(line.split()[1]) for line in output.splitlines() if line.startswith("total "))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3  # of the largest child so far: rising runs
    return {"shards": shards, "jobs": total, "seconds": seconds, "mb": peak}


def cluster(args: argparse.Namespace) -> None:
    """Print what a campaign takes that nobody runs here, with the arithmetic."""
    measured = json.loads(Path(args.measured).read_text(encoding="utf-8"))
    out = Path(args.out or Path(args.measured).parent).resolve()
    runs = [dry_run(shards, out) for shards in sorted(args.dry_run)]
    compositions = ceil(args.candidates / args.samples)
    rounds = ceil(args.samples / args.round_samples)
    fixed = runs[0]["jobs"] - runs[0]["shards"] * (len(PER_ROUND) + 1)
    (slope, start), (growth, base) = (
        np.polyfit([run["jobs"] for run in runs], [run[key] for run in runs], 1) for key in ("seconds", "mb")
    )
    lines = [
        f"Graphs of jobs, built by a dry run: {start:.1f} s + {slope * 1e3:.2f} ms per job, "
        f"{base:.0f} MB + {growth * 1e3:.1f} kB per job",
        "",
        "| shards | jobs | seconds | MB |",
        "|---|---|---|---|",
        *(f"| {r['shards']:,} | {r['jobs']:,} | {r['seconds']:.1f} | {r['mb']:.0f} |" for r in runs),
        "",
        f"{args.candidates:,} candidates: {compositions:,} compositions x {args.samples} samples, {rounds} rounds",
        "",
        "| compositions per shard | shards | jobs | graph s | graph MB | files of candidates |",
        "|---|---|---|---|---|---|",
    ]
    layouts = []
    for size in args.shard_compositions:
        shards = ceil(compositions / size)
        jobs = shards * (len(PER_ROUND) * rounds + 1) + fixed
        files = shards * (len(PER_ROUND) * rounds + 1) + len(FILES)
        seconds, megabytes = start + slope * jobs, base + growth * jobs
        layouts.append({"size": size, "shards": shards, "jobs": jobs, "seconds": seconds, "files": files})
        lines.append(f"| {size} | {shards:,} | {jobs:,} | {seconds:.0f} | {megabytes:.0f} | {files:,} |")
    lines += [
        "",
        f"Jobs: shards x ({len(PER_ROUND)} per round x {rounds} + 1 of screening) + {fixed:.0f} others.",
        "",
        "| stage | candidates per second of a core | hours for all | on | elapsed hours |",
        "|---|---|---|---|---|",
    ]
    hours = {}
    for stage in ("propose_templates", "generate_candidates", "screen_shard", "screen_candidates"):
        if stage not in measured["stages"]:
            continue
        rate = measured["candidates"] / measured["stages"][stage]["wall_s"]
        unit, slots = f"{args.cores} cores", args.cores
        if stage == "generate_candidates" and args.gpu_rate:
            rate, unit, slots = args.gpu_rate, f"{args.gpus} GPUs", args.gpus
        elif stage == "screen_candidates":
            unit, slots = "one core", 1
        hours[stage] = args.candidates / rate / 3600
        lines.append(f"| `{stage}` | {rate:.3g} | {hours[stage]:,.1f} | {unit} | {hours[stage] / slots:,.1f} |")
    size = {name: entry["bytes"] / measured["candidates"] for name, entry in measured["disk"].items()}
    size.pop("references.parquet", None)  # does not depend on the candidates
    size.pop("top.zip", None)  # bounded by screen.top_files
    per = sum(size.values())
    lines += [
        "",
        f"Disk: {per:.0f} bytes per candidate ("
        + ", ".join(f"{name} {value:.0f}" for name, value in size.items())
        + f") x {args.candidates:,} = {per * args.candidates / 1e9:.1f} GB.",
        f"Rates are those of {measured['candidates']:,} candidates here, start of each job included"
        + ("; of generate_candidates as given with --gpu-rate." if args.gpu_rate else "."),
    ]
    result = {"dry_runs": runs, "layouts": layouts, "hours": hours, "bytes_per_candidate": per}
    write_text(out / "cluster.json", json.dumps(result, indent=1) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.set_defaults(command=run)
    one.add_argument("--out", required=True)
    one.add_argument("--candidates", type=int, default=100_000)
    one.add_argument("--samples", type=int, default=20)
    one.add_argument("--shard-compositions", type=int, default=250)
    one.add_argument("--template-share", type=float, default=0.5)
    one.add_argument("--preset", default="tiny")
    one.add_argument("--steps", type=int, default=10, help="of sampling")
    one.add_argument("--training-steps", type=int, default=200)
    one.add_argument("--generator", help="DAO-G directory [default: train one]")
    one.add_argument("--energy-model", help="DAO-P directory [default: train one]")
    one.add_argument("--crystals", help="table of known crystals [default: the embedded ones]")
    one.add_argument("--cores", type=int, default=2)
    two = commands.add_parser("cluster")
    two.set_defaults(command=cluster)
    two.add_argument("--measured", required=True, help="scale.json of a run")
    two.add_argument("--out", help="folder for the simulated campaigns [default: that of the run]")
    two.add_argument("--candidates", type=int, default=10_000_000)
    two.add_argument("--samples", type=int, default=20)
    two.add_argument("--round-samples", type=int, default=20)
    two.add_argument("--shard-compositions", type=int, nargs="+", default=[50, 250, 1000])
    two.add_argument("--dry-run", type=int, nargs="+", default=[100, 1_000, 10_000], help="numbers of shards")
    two.add_argument("--gpu-rate", type=float, help="candidates per second of a GPU, measured elsewhere")
    two.add_argument("--gpus", type=int, default=32)
    two.add_argument("--cores", type=int, default=256)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
