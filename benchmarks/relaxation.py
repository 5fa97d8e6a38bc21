"""Does relaxation with DAO-P help? Crystals whose relaxed structure is known, before and after it.

``python benchmarks/relaxation.py --model MODEL --known mp20_held.parquet --train crysdb/train.parquet --out FILE``

- known crystals, perturbed: atoms displaced and cells strained at random, by three sizes. How far atoms are from
  their places (root mean square over a crystal's atoms, angstrom), and the cell from its shape;
- unrelaxed precursors of the embedded crystals, of compositions that the models have not seen: RMSE to the relaxed
  crystal by StructureMatcher, as in the other tables.

The energy is CHGNet's, which knows nothing of DAO-P, above that of the known crystal. Methods: none; paper (the
published procedure); DAO-P (what the stage does: refused ones stay as they were); denoising (with the same model's
other two heads, which say where the crystal lies that noise was added to: no energy, no gradient); and, for some
of the crystals, CHGNet's own relaxation. Times are CPU times of one thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import typer

from dao_pipeline.config import Matcher, Relax
from dao_pipeline.crystals.crystal import from_table, to_table
from dao_pipeline.crystals.flat import FlatCrystals, flatten, structure_columns
from dao_pipeline.crystals.matching import structure_matcher
from dao_pipeline.crystals.schema import CRYSTAL_SCHEMA
from dao_pipeline.crystals.table import read_table, write_text
from dao_pipeline.energy.predict import load_energy_model
from dao_pipeline.energy.relax import start
from dao_pipeline.energy.relax_table import relaxed_table
from dao_pipeline.evaluation.matching import match
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.flow import Flow
from dao_pipeline.process.log_metric import log_metric, metric_cell
from dao_pipeline.sources import embedded
from dao_pipeline.sources.chgnet_labels import Labeller, RelaxSettings

LEVELS = {"small": (0.05, 0.01), "medium": (0.1, 0.03), "large": (0.2, 0.06)}
"""Standard deviations of each displacement (angstrom) and of each entry of the strain."""

DENOISING = (0.1, 8)
"""Time s of the flow that a crystal is taken to be at, chosen on other crystals, and steps from there to 0."""

DRAWS = 2000
"""Bootstrap resamplings of the crystals."""


Outcome = tuple[pa.Table, dict[str, float]]
"""Crystals of a task after relaxation, and figures about it."""


@dataclass(frozen=True)
class Task:
    """Unrelaxed crystals, the known one of each row, and how many angstrom or matcher units lie between them."""

    name: str
    table: pa.Table
    known: pa.Table
    unit: str

    def distances(self, relaxed: pa.Table) -> np.ndarray:
        """(rows,) from ``relaxed`` to the known crystals; NaN where the matcher finds no match."""
        if self.unit == "angstrom":
            return displacements(flatten(relaxed), flatten(self.known))
        matcher = structure_matcher(Matcher())
        pairs = zip(from_table(relaxed), from_table(self.known), strict=True)
        found = [match(a, b, matcher).rmse for a, b in pairs]
        return np.array([np.nan if rmse is None else rmse for rmse in found])

    @cached_property
    def before(self) -> np.ndarray:
        """Distances of the unrelaxed crystals."""
        return self.distances(self.table)

    def strains(self, relaxed: pa.Table) -> np.ndarray:
        """(rows,), how far cells are from the known: in shape, or, where cells are set otherwise, in size."""
        moved, known = flatten(relaxed).lattice, flatten(self.known).lattice
        if self.unit == "angstrom":
            return strains(moved, known)
        sizes = [np.abs(np.linalg.det(t)) / flatten(self.known).counts for t in (moved, known)]
        return np.abs(np.log(sizes[0] / sizes[1])) / 3

    def head(self, count: int) -> Task:
        """``count`` of the crystals, spread over all."""
        rows = np.linspace(0, self.table.num_rows - 1, min(count, self.table.num_rows)).astype(int)
        return replace(self, table=self.table.take(rows), known=self.known.take(rows))


def displacements(moved: FlatCrystals, known: FlatCrystals) -> np.ndarray:
    """(m,) angstrom: root mean square of the atoms' distances from their places, a shift of all left out.

    Fractional differences are measured in the known cell, so that strain is not counted.
    """
    difference = moved.frac - known.frac
    difference -= np.rint(difference)
    crystal, counts = known.crystal_of_atom, known.counts
    for _ in range(3):  # the shift may carry an atom over half a cell
        mean = (
            np.stack([np.bincount(crystal, difference[:, k], len(known)) for k in range(3)], 1) / counts[:, None]
        )
        difference -= mean[crystal]
        difference -= np.rint(difference)
    square = (np.einsum("ni,nij->nj", difference, known.lattice[crystal]) ** 2).sum(1)
    return np.sqrt(np.bincount(crystal, square, len(known)) / counts)


def strains(moved: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(m,): root mean square of the three principal logarithmic strains between cells, however they are turned."""
    deformation = np.linalg.inv(known) @ moved
    principal = np.linalg.eigvalsh(deformation @ deformation.transpose(0, 2, 1))
    return np.sqrt((np.log(principal) ** 2).mean(1)) / 2


def with_structures(table: pa.Table, flat: FlatCrystals) -> pa.Table:
    """``table`` with other coordinates and cells."""
    for name, column in structure_columns(flat, table["formula"].to_pylist()).items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    return table


def perturbed(known: pa.Table, level: str, seed: int) -> Task:
    """Every crystal of ``known`` with its atoms displaced and its cell strained."""
    length, strain = LEVELS[level]
    random = np.random.default_rng([seed, list(LEVELS).index(level)])
    flat = flatten(known)
    shift = random.normal(0, length, flat.frac.shape)
    frac = flat.frac + np.einsum("ni,nij->nj", shift, np.linalg.inv(flat.lattice)[flat.crystal_of_atom])
    matrix = random.normal(0, strain, flat.lattice.shape)
    cells = flat.lattice @ (np.eye(3) + 0.5 * (matrix + matrix.transpose(0, 2, 1)))
    moved = with_structures(known, replace(flat, frac=frac, lattice=cells))
    return Task(f"perturbed, {level}: {length} angstrom, {strain:.0%}", moved, known, "angstrom")


def precursors(train: pa.Table, count: int, seed: int) -> Task:
    """Embedded crystals before and after CHGNet's relaxation, of compositions that are not in ``train``."""
    table = embedded.load()
    row = {name: i for i, name in enumerate(table["id"].to_pylist())}
    parents = np.array([row.get(name, -1) for name in table["precursor_of"].to_pylist()])
    unseen = ~np.asarray(pc.is_in(table["formula"], value_set=train["formula"].combine_chunks().unique()))
    rows = np.random.default_rng(seed).permutation(np.flatnonzero((parents >= 0) & unseen))[:count]
    rows.sort()
    return Task("precursors of embedded crystals", table.take(rows), table.take(parents[rows]), "(V/n)^(1/3)")


def interval(values: np.ndarray, statistic: Callable[..., Any] = np.mean) -> list[float]:
    """Statistic of ``values`` and its 95 % bootstrap interval over crystals; NaN for none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return [float("nan")] * 3
    draws = values[np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))]
    return [float(statistic(values)), *(float(x) for x in np.percentile(statistic(draws, axis=1), [2.5, 97.5]))]


def dao_p(model: Path, tasks: list[Task], settings: Relax) -> list[Outcome]:
    """The crystals of each task as the stage would leave them, if it chose all, and what it took.

    All tasks are relaxed together, as in the stage: the time of each is its share of the steps.
    """
    network = load_energy_model(model)
    whole = pa.concat_tables([task.table.select(CRYSTAL_SCHEMA.names) for task in tasks])
    begin = time.process_time()
    relaxation = start(network, flatten(whole), settings)
    while not relaxation.finished:
        relaxation.advance()
    seconds = time.process_time() - begin
    result = relaxation.result
    table = relaxed_table(whole, np.ones(whole.num_rows, dtype=bool), result, settings)
    accepted = table["relax_accepted"].to_numpy(zero_copy_only=False)
    found, first = [], 0
    for task in tasks:
        part = slice(first, first + task.table.num_rows)
        figures = {
            "accepted": float(accepted[part].mean()),
            "converged": float(result.converged[part].double().mean()),
            "steps": float(result.steps[part].double().mean()),
            "crystals_per_second": whole.num_rows / seconds,
        }
        found.append((table.slice(first, task.table.num_rows), figures))
        first = part.stop
    return found


def denoised(model: Path, task: Task) -> Outcome:
    """The task's crystals after a few steps of the flow towards s = 0; all are kept."""
    network, (start_time, steps) = load_energy_model(model), DENOISING
    flow = network.schedule
    assert isinstance(flow, Flow)
    begin = time.process_time()
    flat = flatten(task.table)
    layout, numbers = Layout.from_ptr(torch.from_numpy(flat.ptr)), torch.from_numpy(flat.numbers)
    edge = network.edge(numbers, layout)
    coords = torch.from_numpy(flat.frac).float()
    # what the flow calls Y_s has moved the same share of the way towards the mean of the prior
    y = torch.lerp(
        log_metric(torch.from_numpy(flat.lattice).float() / edge), flow.center(torch.float32), start_time
    )
    levels = np.rint(np.linspace(start_time * flow.timesteps, 0, steps + 1)).astype(int)
    with torch.no_grad():
        for level, then in pairwise(levels.tolist()):
            t, move = torch.full((len(flat),), level), (level - then) / flow.timesteps
            out = network.crysformer(numbers, coords % 1.0, metric_cell(y), layout.ptr, t, layout)
            coords = coords - move * flow.coords_velocity(out.coords, layout)
            y = y - move * flow.lattice_velocity(out.lattice, y, level / flow.timesteps)
        cells = metric_cell(y) * edge
    seconds = time.process_time() - begin
    moved = replace(flat, frac=coords.double().numpy(), lattice=cells.double().numpy())
    return with_structures(task.table, moved), {"steps": steps, "crystals_per_second": len(flat) / seconds}


def chgnet(task: Task, steps: int) -> Outcome:
    """CHGNet's own relaxation; what came to no good stays as it was."""
    crystals = [replace(c, id=str(i)) for i, c in enumerate(from_table(task.table))]
    done = list(crystals)
    begin, good, used = time.process_time(), 0, 0
    for outcome in Labeller(RelaxSettings(steps=steps)).relax(crystals):
        if outcome.reason in ("", "not converged"):
            done[int(outcome.crystal.id)] = outcome.crystal
        good += outcome.reason == ""
        used += outcome.steps
    seconds = time.process_time() - begin
    figures = {
        "converged": good / len(done),
        "steps": used / len(done),
        "crystals_per_second": len(done) / seconds,
    }
    return to_table(done), figures


def main(
    model: Annotated[list[Path], typer.Option(help="DAO-P directories")],
    known: Annotated[Path, typer.Option(help="crystal table: relaxed crystals that no model has seen")],
    train: Annotated[Path, typer.Option(help="what the models have seen: its compositions are left out")],
    count: Annotated[int, typer.Option(help="crystals of each kind")] = 200,
    ceiling: Annotated[int, typer.Option(help="of these, relaxed with CHGNet itself")] = 25,
    ceiling_steps: Annotated[int, typer.Option(help="steps of that at most")] = 25,
    levels: Annotated[str, typer.Option(help="which perturbations")] = ",".join(LEVELS),
    setting: Annotated[list[str] | None, typer.Option(help="of section relax, e.g. steps=20")] = None,
    denoising: Annotated[bool, typer.Option(help="also with the models' denoising heads")] = True,
    seed: Annotated[int, typer.Option()] = 0,
    out: Annotated[Path, typer.Option()] = Path("results/benchmarks/relaxation.json"),
) -> None:
    torch.set_num_threads(1)
    ours = Relax.model_validate(dict(pair.split("=", 1) for pair in setting or []))
    table = read_table(known)
    chosen = np.sort(np.random.default_rng(seed).permutation(table.num_rows)[:count])
    tasks = [perturbed(table.take(chosen), level, seed) for level in levels.split(",") if level]
    tasks.append(precursors(read_table(train), count, seed))
    labeller = Labeller()
    rows: list[dict[str, Any]] = []
    relaxed = {path: relaxed_by(path, tasks, ours, denoising) for path in model}
    for number, task in enumerate(tasks):
        outcomes: list[tuple[str, Task, Outcome]] = [("none", task, (task.table, {}))]
        for path in model:
            outcomes += [(f"{name} ({path.name})", task, found[number]) for name, found in relaxed[path].items()]
        if ceiling:
            part = task.head(ceiling)
            outcomes += [("none, of these", part, (part.table, {})), ("CHGNet", part, chgnet(part, ceiling_steps))]
        for name, of, (table_after, figures) in outcomes:
            if name.startswith("none"):
                known_energies = np.array(labeller.energies(list(from_table(of.known))))
            energies = np.array(labeller.energies(list(from_table(table_after)))) - known_energies
            row = measured(of, table_after, energies) | figures
            rows.append({"task": task.name, "unit": task.unit, "method": name, "n": of.table.num_rows} | row)
            print(line(rows[-1], header=name == "none"), flush=True)
    settings_used = {"ours": ours.model_dump(mode="json"), "ceiling_steps": ceiling_steps, "seed": seed}
    write_text(out, json.dumps({"rows": rows, "settings": settings_used}, indent=2) + "\n")


def relaxed_by(model: Path, tasks: list[Task], ours: Relax, denoising: bool) -> dict[str, list[Outcome]]:
    """By name of the method, what became of the crystals of each task."""
    paper = Relax(method="paper", steps=5)
    found = {"paper": [dao_p(model, [task], paper)[0] for task in tasks], "DAO-P": dao_p(model, tasks, ours)}
    if denoising and isinstance(load_energy_model(model).schedule, Flow):
        found["denoising"] = [denoised(model, task) for task in tasks]
    return found


def measured(task: Task, relaxed: pa.Table, energy: np.ndarray) -> dict[str, Any]:
    """Distances, strains and energies of relaxed crystals, with intervals."""
    distance, before = task.distances(relaxed), task.before
    return {
        "distance": interval(distance),
        "matched": float(np.isfinite(distance).mean()),
        "closer": float(np.mean(np.nan_to_num(distance, nan=9) < np.nan_to_num(before, nan=9) - 1e-9)),
        "strain": interval(task.strains(relaxed)),
        "energy": interval(energy),
        "energy_median": interval(energy, np.median),
    }


def line(row: dict[str, Any], header: bool) -> str:
    """A row of the Markdown table of a task, after its head where that is asked for."""

    def shown(values: list[float], digits: int, factor: float = 1.0) -> str:
        value, low, high = (f"{factor * x:.{digits}f}" for x in values)
        return f"{value} [{low}, {high}]"

    def share(name: str) -> str:
        return f"{row[name]:.0%}" if name in row else ""

    cells = [
        row["method"],
        row["n"],
        shown(row["distance"], 3),
        share("closer"),
        shown(row["strain"], 2, 100),
        shown(row["energy_median"], 0, 1000),
        shown(row["energy"], 0, 1000),
        share("accepted"),
        share("converged"),
        f"{row['steps']:.1f}" if "steps" in row else "",
        f"{row['crystals_per_second']:.1f}" if "steps" in row else "",
    ]
    if row["unit"] != "angstrom":
        cells[2] = f"{cells[2]}; {row['matched']:.0%} match"
    text = "| " + " | ".join(str(cell) for cell in cells) + " |"
    if not header:
        return text
    columns = [
        *(
            "relaxed by",
            "n",
            f"distance, {row['unit']}",
            "closer",
            "strain, %",
            "energy, meV/atom: median",
            "mean",
        ),
        *("accepted", "converged", "steps", "crystals/s"),
    ]
    return f"\n{row['task']}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n{text}"


if __name__ == "__main__":
    typer.run(main)
