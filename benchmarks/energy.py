"""How good DAO-P is: errors, calibration over noise, order of distorted crystals and polymorphs.

python benchmarks/energy.py --model flow=models/dao_p --data mp20=mp20_held.parquet
    --data mpts52=mpts52_held.parquet --train crysdb/train.parquet --siblings raw.parquet --out FOLDER

Prints Markdown tables and writes each as a Parquet file. Models may have learnt either label; energies above
the hull of those that learnt formation energies are the prediction less the target's own hull energy, so that
their errors are the same and only their order differs. ``--chgnet N``: what N distorted crystals cost by CHGNet.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.dataset import CrystalDataset, size_batches
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.table import provenance, read_table, write_table
from dao_pipeline.crystals.volume import NUM_ELEMENTS, element_counts
from dao_pipeline.energy.predict import load_energy_model, predict_energies, predict_with_std
from dao_pipeline.energy.reference import fit_element_energies
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.objective import add_noise_to
from dao_pipeline.sources.perturbed import perturbed

LABELS = ("formation_energy", "e_above_hull")
LEVELS = (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Noise levels t / T."""
DISTORTIONS = (
    *((d, 0.0) for d in (0.02, 0.05, 0.1, 0.2, 0.3)),
    *((0.0, s) for s in (0.01, 0.02, 0.04, 0.06)),
    (0.1, 0.02),
)
"""Root mean square displacement in angstrom, root mean square strain."""
GAPS = (0.005, 0.02, 0.05, 0.1, np.inf)
"""Edges of the differences of polymorphs, eV/atom."""
RESAMPLES = 1000
BATCH_ATOMS = 1500


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; ties share their mean rank."""
    return float(pd.Series(a).corr(pd.Series(b), method="spearman"))


def _mean_of(values: np.ndarray, rows: np.ndarray) -> float:
    return float(values[rows].mean())


def _order_of(predicted: np.ndarray, true: np.ndarray, rows: np.ndarray) -> float:
    return spearman(predicted[rows], true[rows])


def interval(statistic: Callable[[np.ndarray], float], count: int) -> str:
    """95 % bootstrap interval of ``statistic`` of row numbers, as text."""
    random = np.random.default_rng(0)
    values = [statistic(random.integers(0, count, count)) for _ in range(RESAMPLES)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return f"{low:.3f} to {high:.3f}"


# Errors -------------------------------------------------------------------------------------------------------


def predictions(
    models: dict[str, Path], known: pa.Table, train: pa.Table, label: str
) -> Iterator[tuple[str, Any]]:
    """(name, predicted label (rows,) eV/atom): trivial predictors, then models that can say something about it."""
    labelled = train.filter(pc.is_valid(train[label]))
    yield "median of the training crystals", np.full(known.num_rows, np.median(labelled[label].to_numpy()))
    crystals = flatten(known)
    shares = element_counts(crystals) / crystals.counts[:, None]
    yield "one energy per element (ridge)", shares @ fit_element_energies(labelled, label)[:NUM_ELEMENTS]
    hull = known["formation_energy"].to_numpy() - known["e_above_hull"].to_numpy()
    for name, folder in models.items():
        own = load_energy_model(folder).about.energy_label
        if own == label:
            yield name, predict_with_std(folder, known, BATCH_ATOMS)[0]
        elif own == "formation_energy":
            yield f"{name}, less the hull", predict_with_std(folder, known, BATCH_ATOMS)[0] - hull


def errors(models: dict[str, Path], data: dict[str, pa.Table], train: pa.Table) -> pd.DataFrame:
    """MAE, RMSE and rank correlation of both labels, with bootstrap intervals."""
    rows = []
    for label in LABELS:
        for dataset, known in data.items():
            true = known[label].to_numpy()
            for name, predicted in predictions(models, known, train, label):
                wrong = np.abs(predicted - true)
                flat = np.ptp(predicted) == 0
                order = interval(partial(_order_of, predicted, true), len(true)) if not flat else ""
                rows.append(
                    {
                        "label": label,
                        "crystals": dataset,
                        "predictor": name,
                        "MAE": wrong.mean(),
                        "MAE, 95 %": interval(partial(_mean_of, wrong), len(wrong)),
                        "median": np.median(wrong),
                        "RMSE": np.sqrt((wrong**2).mean()),
                        "Spearman": float("nan") if flat else spearman(predicted, true),
                        "Spearman, 95 %": order,
                    }
                )
    return pd.DataFrame(rows)


# Calibration over the noise -----------------------------------------------------------------------------------


def calibration(models: dict[str, Path], data: dict[str, pa.Table], draws: int) -> pd.DataFrame:
    """E_t of noisy crystals against their labels.

    If E_t = -log E[exp(-y) | noisy crystal], the mean of exp(E_t - y) is 1, over all crystals and over any that
    are chosen by E_t. ``free energy`` is minus the logarithm of that mean, what would have to be added to E_t,
    in eV/atom, over all; ``worst fifth`` is the largest of it in size among fifths of the crystals by E_t.
    """
    rows = []
    for name, folder in models.items():
        model = load_energy_model(folder)
        about = model.about
        for dataset, known in data.items():
            for level in LEVELS:
                t = round(level * model.schedule.timesteps)
                said, label = [], []
                for draw in range(draws if t else 1):
                    energy, y = at_level(model, CrystalDataset(known, about.energy_label), t, draw)
                    said.append(energy)
                    label.append(y)
                energy, y = np.concatenate(said), np.concatenate(label)
                excess = energy - y
                fifths = np.array_split(excess[np.argsort(energy, kind="stable")], 5)
                free = [-np.log(np.exp(part).mean()) * about.energy_std for part in fifths]
                rows.append(
                    {
                        "model": name,
                        "crystals": dataset,
                        "t / T": level,
                        "bias": excess.mean() * about.energy_std,
                        "MAE": np.abs(excess).mean() * about.energy_std,
                        "free energy": -np.log(np.exp(excess).mean()) * about.energy_std,
                        "worst fifth": max(free, key=abs),
                    }
                )
    return pd.DataFrame(rows)


def at_level(model: Any, crystals: CrystalDataset, t: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Standardised E_t and labels of crystals at noise level ``t``, (rows,) both, in one order."""
    said, label = [], []
    with torch.no_grad():
        for number, indices in enumerate(size_batches(crystals.sizes, BATCH_ATOMS)):
            batch = crystals.select(indices)
            generator = torch.Generator().manual_seed(1000 * draw + number)
            noisy = add_noise_to(model, batch, torch.full((len(indices),), t), generator)
            layout = Layout.from_ptr(batch.ptr)
            energy = model.crysformer.energy(
                batch.atomic_numbers, noisy.frac_coords, noisy.lattice, noisy.t, layout
            )
            y = batch.energy - model.reference(batch.atomic_numbers, layout) - model.about.energy_mean
            said.append(energy.double().numpy())
            label.append((y / model.about.energy_std).double().numpy())
    return np.concatenate(said), np.concatenate(label)


# Distorted crystals -------------------------------------------------------------------------------------------


def distortions(
    models: dict[str, Path], data: dict[str, pa.Table], count: int | None, chgnet: int
) -> pd.DataFrame:
    """How often the true crystal is below its distorted copy, and what distortion costs, by its size."""
    rows = []
    for dataset, table in data.items():
        known = table.take(np.random.default_rng(0).permutation(table.num_rows)[:count])
        crystals = list(from_table(known))
        for displacement, strain in DISTORTIONS:
            random = np.random.default_rng(7)
            copies = [perturbed(crystal, displacement, strain, random) for crystal in crystals]
            moved = np.array([displacement == 0 or crystal.num_atoms > 1 for crystal in crystals])
            cost = chgnet_rise(crystals[:chgnet], copies[:chgnet]) if chgnet else None
            for name, folder in models.items():
                model = load_energy_model(folder)
                before = predict_energies(model, known, BATCH_ATOMS)
                rise = predict_energies(model, to_table(copies), BATCH_ATOMS) - before
                below = (rise > 0)[moved]
                row = {
                    "model": name,
                    "crystals": dataset,
                    "displacement": displacement,
                    "strain": strain,
                    "true one below": below.mean(),
                    "95 %": interval(partial(_mean_of, below), len(below)),
                    "median rise": np.median(rise[moved]),
                }
                if cost is not None:
                    some = moved[:chgnet] & np.isfinite(cost)
                    row |= {
                        "median rise by CHGNet": np.median(cost[some]),
                        "MAE of the rise": np.abs(rise[:chgnet] - cost)[some].mean(),
                        "Spearman of the rise": spearman(rise[:chgnet][some], cost[some]),
                    }
                rows.append(row)
    return pd.DataFrame(rows)


def chgnet_rise(crystals: list[Crystal], copies: list[Crystal]) -> np.ndarray:
    """What each copy costs by CHGNet, eV/atom; NaN where it says nothing."""
    from dao_pipeline.sources.chgnet_labels import Labeller

    potential = Labeller()
    return np.array(potential.energies(copies)) - np.array(potential.energies(crystals))


# Polymorphs ---------------------------------------------------------------------------------------------------


def siblings(models: dict[str, Path], data: dict[str, pa.Table], source: pa.Table) -> pd.DataFrame:
    """How often the lower of two polymorphs of a held-out composition is predicted lower, by their difference.

    Both are of one level of theory. Intervals are over compositions, whose pairs are not independent.
    """
    rows = []
    for dataset, known in data.items():
        asked = pc.is_in(source["formula"], value_set=known["formula"].combine_chunks())
        table = source.filter(pc.and_(asked, pc.is_valid(source["formation_energy"])))
        facts = table.select(["id", "formula", "energy_method", "formation_energy"]).to_pandas()
        keep = (~facts.duplicated(["id"])).to_numpy()
        table, facts = table.filter(pa.array(keep)), facts[keep].reset_index(drop=True)
        low, high, group = pairs(facts)
        gap = facts.formation_energy.to_numpy()[high] - facts.formation_energy.to_numpy()[low]
        for name, folder in models.items():
            predicted = predict_with_std(folder, table, BATCH_ATOMS)[0]
            right = predicted[high] > predicted[low]
            for smallest, largest in zip((GAPS[0], *GAPS[:-1]), (np.inf, *GAPS[1:]), strict=True):
                chosen = (gap >= smallest) & (gap < largest)
                if chosen.any():
                    rows.append(
                        {
                            "model": name,
                            "compositions of": dataset,
                            "gap from": smallest,
                            "to": largest,
                            "pairs": int(chosen.sum()),
                            "in order": right[chosen].mean(),
                            "95 %": by_group(right[chosen], group[chosen]),
                        }
                    )
    return pd.DataFrame(rows)


def pairs(facts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of one formula and level of theory: rows of the lower, of the higher, and number of the group."""
    low, high, group = [], [], []
    for number, (_, rows) in enumerate(facts.groupby(["formula", "energy_method"], sort=True)):
        order = rows.sort_values("formation_energy").index.to_numpy()
        for i, j in zip(*np.triu_indices(len(order), 1), strict=True):
            low.append(order[i])
            high.append(order[j])
            group.append(number)
    return np.array(low, int), np.array(high, int), np.array(group, int)


def by_group(right: np.ndarray, group: np.ndarray) -> str:
    """95 % bootstrap interval of a share when whole groups are drawn."""
    _, code = np.unique(group, return_inverse=True)
    good, all_of = np.bincount(code, right), np.bincount(code)
    return interval(lambda i: float(good[i].sum() / all_of[i].sum()), len(all_of))


# Uncertainty --------------------------------------------------------------------------------------------------


def uncertainty(models: dict[str, Path], data: dict[str, pa.Table]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """For models with members: coverage of the standard deviation, and errors by its deciles."""
    coverage, deciles = [], []
    for name, folder in models.items():
        label = load_energy_model(folder).about.energy_label
        for dataset, known in data.items():
            energy, std = predict_with_std(folder, known, BATCH_ATOMS)
            if std is None:
                continue
            wrong = np.abs(energy - known[label].to_numpy())
            single = predict_energies(load_energy_model(folder), known, BATCH_ATOMS)
            coverage.append(
                {
                    "model": name,
                    "crystals": dataset,
                    "within 1 std": (wrong <= std).mean(),
                    "within 2 std": (wrong <= 2 * std).mean(),
                    "Spearman of std and error": spearman(std, wrong),
                    "MAE of the mean": wrong.mean(),
                    "MAE of the model alone": np.abs(single - known[label].to_numpy()).mean(),
                }
            )
            for number, rows in enumerate(np.array_split(np.argsort(std, kind="stable"), 10), 1):
                deciles.append(
                    {
                        "model": name,
                        "crystals": dataset,
                        "decile": number,
                        "mean std": std[rows].mean(),
                        "MAE": wrong[rows].mean(),
                        "RMSE": np.sqrt((wrong[rows] ** 2).mean()),
                    }
                )
    return pd.DataFrame(coverage), pd.DataFrame(deciles)


def markdown(table: pd.DataFrame) -> str:
    """A table for the docs."""

    def text(value: object) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.4g}" if abs(value) >= 1 else f"{value:.3f}"
        return str(value)

    lines = [list(table.columns), ["---"] * len(table.columns)]
    lines += [[text(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def named(values: list[str]) -> dict[str, Path]:
    """``NAME=PATH`` options."""
    return {name: Path(path) for name, _, path in (value.partition("=") for value in values)}


def main() -> None:
    """Make the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--data", action="append", required=True, metavar="NAME=TABLE", help="held-out crystals")
    parser.add_argument("--train", type=Path, required=True, help="training crystals, for the trivial predictors")
    parser.add_argument("--siblings", type=Path, help="crystals with the polymorphs of the held-out ones")
    parser.add_argument("--draws", type=int, default=3, help="of noise for each crystal, for the calibration")
    parser.add_argument("--distorted", type=int, help="crystals of each table that are distorted; default: all")
    parser.add_argument("--chgnet", type=int, default=0, help="distorted crystals of each kind that CHGNet labels")
    parser.add_argument("--only", nargs="*", help="errors, calibration, distortions, siblings, uncertainty")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models, files = named(args.model), named(args.data)
    data, train = {name: read_table(path) for name, path in files.items()}, read_table(args.train)
    tables: dict[str, Callable[[], dict[str, pd.DataFrame]]] = {
        "errors": lambda: {"errors": errors(models, data, train)},
        "calibration": lambda: {"calibration": calibration(models, data, args.draws)},
        "distortions": lambda: {"distortions": distortions(models, data, args.distorted, args.chgnet)},
        "siblings": lambda: (
            {"siblings": siblings(models, data, read_table(args.siblings))} if args.siblings else {}
        ),
        "uncertainty": lambda: dict(zip(("uncertainty", "deciles"), uncertainty(models, data), strict=True)),
    }
    about = provenance("benchmarks/energy.py", inputs={**files, "train": args.train})
    for key, make in tables.items():
        if args.only and key not in args.only:
            continue
        for name, table in make().items():
            if len(table):
                write_table(pa.Table.from_pandas(table, preserve_index=False), args.out / f"{name}.parquet", about)
                print(f"\n{name}\n\n{markdown(table)}", flush=True)


if __name__ == "__main__":
    main()
