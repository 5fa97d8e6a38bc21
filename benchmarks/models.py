"""Cost of Crysformer against the plain gather-and-scatter form: Markdown tables, and JSON.

python benchmarks/models.py                        # paper mode, preset base, all work
python benchmarks/models.py --work train forward --sizes mpts52 --repeats 5
python benchmarks/models.py --mode better --device cuda --dtype bfloat16 --compile reduce-overhead

Both implementations have the same weights and do the same work in turn, in one process, through the code that
training, sampling and relaxation use. Before anything is timed, they must agree.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.config import Backbone, Process
from dao_pipeline.model.dao import About, DaoModel
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.diffusion import Diffusion
from dao_pipeline.process.noise_stream import Candidates
from dao_pipeline.process.objective import GeneratorObjective
from dao_pipeline.process.sampler import sample
from plain import PlainCrysformer

AGREEMENT = (1e-10, 2e-6)
"""Largest relative difference of plain and ours in double precision, and of ours in single from double."""

SIZES: dict[str, tuple[float, float, int, int]] = {"mp20": (8.7, 0.55, 20, 64), "mpts52": (17.0, 0.6, 52, 24)}
"""Log-normal atom counts like those of MP-20 and MPTS-52: median, deviation, most atoms; crystals in a batch."""

WORK = ("forward", "train", "sampler_step", "sampling", "relaxation", "memory", "batches")

FORWARDED = ("preset", "layers", "mode", "distances", "compile", "device", "dtype", "threads", "crystals")

Step = Callable[[], object]


def main() -> None:
    """Measure what was asked for, print it, write it."""
    args = _arguments()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(json.dumps(_memory(args, args.memory_of, args.sizes[0])))
        return
    result: dict[str, Any] = {"machine": _machine(args), "settings": _settings(args), "rows": []}
    result["agreement"] = _check_agreement(args)
    print(_heading(result))
    print("\n| sizes | work | plain min s | median | ours min s | median | ratio of minima | ours, per crystal |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in args.sizes:
        for work in (work for work in args.work if work in WORK[:5]):
            row = _compare(args, kind, work)
            result["rows"].append(row)
            print(_line(row), flush=True)
    if "memory" in args.work:
        print("\n| sizes | forward and backward, peak memory above the level before: plain MB | ours MB | ratio |")
        print("|---|---|---|---|")
        result["memory"] = []
        for kind in args.sizes:
            row = _compare_memory(args, kind)
            result["memory"].append(row)
            print(f"| {kind} | {row['plain']:.0f} | {row['ours']:.0f} | **{row['ratio']:.1f}** |", flush=True)
    if "batches" in args.work:
        result["batches"] = _batches(args)
    result["machine"]["load_after"] = os.getloadavg()[0]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\nWritten to {args.out}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", choices=["tiny", "small", "base"])
    parser.add_argument("--layers", type=int, help="other than the preset's; for a quick look")
    parser.add_argument("--mode", default="paper", choices=["paper", "better"])
    parser.add_argument("--distances", default="values", choices=["none", "bias", "values"], help="in better mode")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16: autocast")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compile", choices=["default", "reduce-overhead"], help="ours; the latter: CUDA graphs")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--work", nargs="+", default=list(WORK), choices=WORK)
    parser.add_argument("--crystals", type=int, help="in a batch (default: 64 mp20, 24 mpts52)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="reverse steps of a whole sampling")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks/models.json"))
    parser.add_argument("--memory-of", choices=["plain", "ours"], help=argparse.SUPPRESS)
    return parser.parse_args()


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def _machine(args: argparse.Namespace) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if args.device.startswith("cuda") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def _heading(result: dict[str, Any]) -> str:
    machine, settings, agreement = result["machine"], result["settings"], result["agreement"]
    lines = [
        f"{settings['mode']} mode, preset {settings['preset']}, {settings['dtype']},",
        f"{settings['threads']} threads,",
        f"{machine['gpu'] or machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}.",
    ]
    if machine["load_before"] > 0.3:
        load = f"{machine['load_before']:.1f}"
        lines.append(f"The machine was shared (load {load} before the start): trust ratios, not seconds.")
    lines += [
        f"Outputs and gradients of plain and ours agree to {agreement['double']:.0e} in double precision;",
        f"in single precision ours is off by {agreement['ours_single']:.1e},",
        f"plain by {agreement['plain_single']:.1e}.",
    ]
    if settings["mode"] == "better":
        lines.append("The plain form is that of paper mode, of the same width and depth, with its own weights.")
    return " ".join(lines)


def sizes_like(kind: str, crystals: int, seed: int = 0) -> list[int]:
    """Atom counts of made-up crystals."""
    median, deviation, largest, _ = SIZES[kind]
    random = np.random.default_rng(seed)
    draws = np.rint(median * np.exp(deviation * random.standard_normal(50 * crystals))).astype(int)
    return draws[(draws >= 1) & (draws <= largest)][:crystals].tolist()


def make_batch(sizes: Sequence[int], device: str, seed: int = 1) -> Data:
    """Random crystals, 15 angstrom^3 per atom, in the order of ``sizes``."""
    g = torch.Generator().manual_seed(seed)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    atoms, count = int(ptr[-1]), len(sizes)
    cells = torch.eye(3) + 0.15 * torch.randn(count, 3, 3, generator=g)
    edge = (15.0 * ptr.diff() / torch.linalg.det(cells).abs()).pow(1 / 3)
    return Data(
        atomic_numbers=torch.randint(1, 90, (atoms,), generator=g),
        frac_coords=torch.rand(atoms, 3, generator=g),
        lattice=cells * edge[:, None, None],
        ptr=ptr,
        num_nodes=atoms,
    ).to(device)


def make_models(args: argparse.Namespace) -> dict[str, DaoModel]:
    """Plain and ours, with the same weights (in better mode: the plain form of paper mode)."""
    sizes = {"preset": args.preset, "layers": args.layers}
    paper = Backbone(**sizes, edge_norm="joint", distances="none", noise_aware=False)
    better = Backbone(**sizes, distances=args.distances)
    models = {}
    for name in ("plain", "ours"):
        backbone = better if name == "ours" and args.mode == "better" else paper
        about = About(
            kind="dao_p",
            backbone=backbone.model_dump(),
            process=Process(kind="diffusion", lattice_scale="none", remove_drift=False).model_dump()
            if backbone is paper
            else Process(kind="diffusion").model_dump(),
        )
        torch.manual_seed(0)
        models[name] = DaoModel(about, np.full(101, 15.0)).to(args.device)
    plain = models["plain"]
    setattr(plain, "crysformer", PlainCrysformer(plain.crysformer))  # noqa: B010
    if args.compile:
        ours = models["ours"].crysformer
        setattr(ours, "features", torch.compile(ours.features, mode=args.compile, dynamic=False))  # noqa: B010
    return models


def _check_agreement(args: argparse.Namespace) -> dict[str, float]:
    """Relative differences (2-norm) of outputs and gradients in paper mode; SystemExit if they are too large."""
    paper = copy.copy(args)
    paper.mode, paper.compile = "paper", args.compile if args.mode == "paper" else None
    models = make_models(paper)
    batch = make_batch([3, 1, 7, 7, 20, 2], args.device)
    single = {name: _outputs(model, batch) for name, model in models.items()}
    batch.frac_coords, batch.lattice = batch.frac_coords.double(), batch.lattice.double()
    double = {name: _outputs(model.double(), batch) for name, model in models.items()}

    def difference(a: list[Tensor], b: list[Tensor]) -> float:
        return max(float((x - y).norm() / y.norm()) for x, y in zip(a, b, strict=True))

    found = {
        "double": difference(double["ours"], double["plain"]),
        "ours_single": difference(single["ours"], double["plain"]),
        "plain_single": difference(single["plain"], double["plain"]),
    }
    if not (found["double"] <= AGREEMENT[0] and found["ours_single"] <= AGREEMENT[1]):
        raise SystemExit(f"plain and ours differ, so nothing was timed: {found}")
    return found


def _outputs(model: DaoModel, batch: Data) -> list[Tensor]:
    """Coordinates', lattice's and energy's outputs and the gradient of a sum of their squares."""
    t = torch.full_like(batch.ptr[1:], 500)
    model.zero_grad()
    out = model.crysformer(batch.atomic_numbers, batch.frac_coords, batch.lattice, batch.ptr, t)
    assert out.energy is not None
    (out.coords.square().mean() + out.lattice.square().mean() + out.energy.square().mean()).backward()
    named = sorted(model.crysformer.named_parameters())
    gradient = torch.cat([p.grad.flatten() for _, p in named if p.grad is not None])
    return [values.detach().double() for values in (out.coords, out.lattice, out.energy, gradient)]


def make_step(args: argparse.Namespace, model: DaoModel, batch: Data, work: str) -> Step:
    """One unit of ``work`` on ``batch``."""
    layout = Layout.from_ptr(batch.ptr)
    generator = torch.Generator(args.device).manual_seed(0)
    noise = Candidates.of(0, [""] * layout.num_crystals, range(layout.num_crystals)).noise(layout)
    objective = GeneratorObjective()
    parameters = list(model.crysformer.parameters())

    def denoise(coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        out = model.crysformer(batch.atomic_numbers, coords, lattice, batch.ptr, t, layout)
        return out.coords, out.lattice

    def forward() -> None:
        with torch.no_grad():
            denoise(batch.frac_coords, batch.lattice, torch.full_like(batch.ptr[1:], 500))

    def gradient() -> None:
        for parameter in parameters:
            parameter.grad = None
        noisy = objective.draw(model, batch, generator)
        weights, sums = objective.weights(noisy), objective.sums(model, noisy)
        torch.stack([sums[name] / weights[name] for name in weights]).sum().backward()

    def sampling(steps: int) -> None:
        assert isinstance(model.schedule, Diffusion)
        with torch.no_grad():
            sample(denoise, layout, model.schedule, steps=steps, noise=noise)

    def relaxation() -> None:
        coords, lattice = batch.frac_coords.requires_grad_(), batch.lattice.requires_grad_()
        energy = model.energy(
            batch.atomic_numbers, coords, lattice, torch.zeros_like(batch.ptr[1:]), Layout.from_ptr(batch.ptr)
        )
        torch.autograd.grad(energy.sum(), (coords, lattice))

    if work == "train":
        optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)

        def train() -> None:
            gradient()
            optimizer.step()

        return train
    steps: dict[str, Step] = {
        "forward": forward,
        "gradient": gradient,
        "sampler_step": lambda: sampling(1),
        "sampling": lambda: sampling(args.steps),
        "relaxation": relaxation,
    }
    return steps[work]


@contextlib.contextmanager
def _precision(args: argparse.Namespace) -> Iterator[None]:
    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.dtype == "bfloat16"):
        yield


def time_in_turn(args: argparse.Namespace, steps: dict[str, Step]) -> dict[str, list[float]]:
    """Seconds of each repeat, after one to warm up; the steps take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    synchronize = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    with _precision(args):
        for repeat in range(args.repeats + 1):
            for name, step in steps.items():
                synchronize()
                start = time.perf_counter()
                step()
                synchronize()
                if repeat:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def _compare(args: argparse.Namespace, kind: str, work: str) -> dict[str, Any]:
    batch = make_batch(sizes_like(kind, args.crystals or SIZES[kind][3]), args.device)
    steps = {name: make_step(args, model, batch, work) for name, model in make_models(args).items()}
    seconds = time_in_turn(args, steps)
    crystals = len(batch.lattice)
    return {
        "sizes": kind,
        "work": work,
        "crystals": crystals,
        "atoms": len(batch.atomic_numbers),
        **{name: {"min": min(s), "median": statistics.median(s), "all": s} for name, s in seconds.items()},
        "ratio": min(seconds["plain"]) / min(seconds["ours"]),
        "crystals_per_second": crystals / min(seconds["ours"]),
        "network_calls": 2 * args.steps if work == "sampling" else None,
    }


def _line(row: dict[str, Any]) -> str:
    plain, ours = row["plain"], row["ours"]
    what = row["work"].replace("_", " ")
    if row["network_calls"]:
        what += f" ({row['network_calls']} network calls, {row['crystals_per_second']:.2f} structures/s)"
    return (
        f"| {row['sizes']}, {row['crystals']} crystals, {row['atoms']} atoms | {what} | {plain['min']:.3f} | "
        f"{plain['median']:.3f} | {ours['min']:.3f} | {ours['median']:.3f} | **{row['ratio']:.1f}** | "
        f"{1000 / row['crystals_per_second']:.1f} ms |"
    )


def _compare_memory(args: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Each implementation in a process of its own."""
    found: dict[str, Any] = {"sizes": kind}
    for name in ("plain", "ours"):
        command = [sys.executable, __file__, "--memory-of", name, "--sizes", kind]
        for option in (
            "preset",
            "layers",
            "mode",
            "distances",
            "device",
            "dtype",
            "threads",
            "crystals",
            "compile",
        ):
            if (value := getattr(args, option)) is not None:
                command += [f"--{option}", str(value)]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = float(json.loads(out.splitlines()[-1]))
    return {**found, "ratio": found["plain"] / found["ours"]}


def _memory(args: argparse.Namespace, name: str, kind: str) -> float:
    """Peak memory in MB of forward and backward pass above the level before, which holds the gradients."""
    model = make_models(args)[name]
    small = make_batch([2, 3], args.device)
    batch = make_batch(sizes_like(kind, args.crystals or SIZES[kind][3]), args.device)
    with _precision(args):
        make_step(args, model, small, "gradient")()
        step = make_step(args, model, batch, "gradient")
        if args.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, so that the step must ask for it
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        step()
        return (_status("VmHWM") - before) / 1e3


def _status(field: str) -> int:
    """A figure of this process in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def _batches(args: argparse.Namespace) -> dict[str, Any]:
    """What a crystal costs in mixed batches, in batches of like sizes, and by its size (forward and backward)."""
    model = make_models(args)["ours"]

    def cost(name: str, batches: list[list[int]]) -> dict[str, Any]:
        steps = [make_step(args, model, make_batch(sizes, args.device), "gradient") for sizes in batches]
        seconds = time_in_turn(args, {name: lambda: [step() for step in steps]})[name]
        crystals, atoms = sum(map(len, batches)), sum(map(sum, batches))
        row = {"batches": name, "crystals": crystals, "atoms": atoms, "seconds": min(seconds)}
        print(f"| {name} | {1e3 * min(seconds) / crystals:.2f} | {1e6 * min(seconds) / atoms:.0f} |", flush=True)
        return row

    print("\n| batches (forward and backward, ours) | ms per crystal | microseconds per atom |\n|---|---|---|")
    rows = []
    for kind in args.sizes:
        each = args.crystals or SIZES[kind][3]
        sizes = sizes_like(kind, 4 * each)
        for name, order in ((f"{kind}, mixed", sizes), (f"{kind}, sorted by size", sorted(sizes))):
            rows.append(cost(name, [order[i : i + each] for i in range(0, len(order), each)]))
    rows += [cost(f"{n} atoms each", [[n] * max(1, 512 // n)]) for n in (1, 2, 4, 8, 16, 32, 52)]
    return {"rows": rows}


if __name__ == "__main__":
    main()
