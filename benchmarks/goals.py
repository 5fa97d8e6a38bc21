"""The goals for the first candidate and for 20, and whether a campaign of templates reaches them.

``snakemake --configfile config/campaigns/mp20_templates.yaml`` makes the campaign from files of crystals, and
``python benchmarks/goals.py results/mp20_templates`` prints its tables as Markdown: goals, match rates beside
plain template substitution, rates by distance to the nearest template, how reliable the probabilities are, and the
time of each stage. The same for ``mpts52_templates``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import typer

from dao_pipeline.crystals.table import read_table
from dao_pipeline.report.results import load_results


class Goal(NamedTuple):
    """A value of the campaign's candidates that is to be reached: at least, or for RMSE at most."""

    what: str
    k: int
    value: float


GOALS = {
    "mp20_templates": [
        Goal("match_rate", 1, 0.75),
        Goal("match_rate", 1, 0.80),
        Goal("match_rate", 20, 0.90),
        Goal("match_rate", 20, 0.92),
        Goal("rmse", 1, 0.030),
        Goal("rmse", 20, 0.030),
    ],
    "mpts52_templates": [
        Goal("match_rate", 1, 0.42),
        Goal("match_rate", 1, 0.45),
        Goal("match_rate", 20, 0.60),
    ],
}
"""By campaign. Of RMSE both are shown: of the first candidates that match, and of the best of 20."""

BINS = (0.0, 0.3, 0.5, 0.7, 0.9)
"""Where bins of predicted probability begin."""


def main(results: Annotated[Path, typer.Argument(help="folder of the campaign, results/NAME")]) -> None:
    """Print the tables of one campaign."""
    folder = results / "evaluation"
    summary = read_table(folder / "summary.parquet").to_pylist()
    rates = {(row["method"], row["k"]): row for row in summary}
    if goals := GOALS.get(results.name):
        print("| goal | measured | reached |\n|---|---|---|")
        for goal in goals:
            print(goal_row(goal, rates["combined", goal.k]))
    print("\n| method | first by | k | match rate, % | RMSE of matches | targets |\n|---|---|---|---|---|---|")
    for row in summary:
        rmse = "" if row["rmse"] is None else f"{row['rmse']:.3f}"
        order = row["rank1_by"].replace("_", " ")
        print(f"| {row['method']} | {order} | {row['k']} | {rate(row)} | {rmse} | {row['n']} |")
    by_distance(read_table(folder / "by_distance.parquet").to_pylist())
    known(results / "candidates" / "screened.parquet")
    reliability(read_table(folder / "samples.parquet").to_pylist())
    print("\n| stage | jobs | wall s |\n|---|---|---|")
    for timing in load_results(results).timings:
        print(f"| `{timing.stage}` | {timing.jobs} | {timing.seconds:.0f} |")


def goal_row(goal: Goal, row: dict[str, Any]) -> str:
    """A line of the table of goals."""
    if goal.what == "rmse":
        text, measured = f"RMSE with k = {goal.k} at most {goal.value:.3f}", f"{row['rmse']:.3f}"
        reached = row["rmse"] <= goal.value
    else:
        text, measured = f"k = {goal.k}: at least {100 * goal.value:.0f} %", f"{rate(row)} %"
        reached = row["match_rate"] >= goal.value
    return f"| {text} | {measured} | {'yes' if reached else '**no**'} |"


def rate(row: dict[str, Any]) -> str:
    """In percent, with its interval."""
    return f"{100 * row['match_rate']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def by_distance(rows: list[dict[str, Any]]) -> None:
    """Print the rates of each quarter of the targets."""
    ks = list(dict.fromkeys(row["k"] for row in rows))
    head = " | ".join("all" if k is None else f"k = {k}" for k in ks)
    print(f"\n| targets by nearest template | distance | number | {head} |\n|---|---|---|{'---|' * len(ks)}")
    for name in dict.fromkeys(row["nearest"] for row in rows):
        own = [row for row in rows if row["nearest"] == name]
        first = own[0]
        span = "" if first["nearest_from"] is None else f"{first['nearest_from']:.2f} to {first['nearest_to']:.2f}"
        print(f"| {name} | {span} | {first['n']} | " + " | ".join(rate(row) for row in own) + " |")


def known(screened: Path) -> None:
    """Print how many candidates there are, by origin and status."""
    table = read_table(screened, ["origin", "status"])
    origins = pc.value_counts(pc.fill_null(table["origin"], "none")).to_pylist()
    statuses = pc.value_counts(table["status"]).to_pylist()
    for what, counts in (("origin", origins), ("status", statuses)):
        print(f"\n{what}: " + ", ".join(f"{entry['counts']} {entry['values']}" for entry in counts))


def reliability(samples: list[dict[str, Any]]) -> None:
    """Print how often the first candidate is right where it says so."""
    first = [s for s in samples if s["method"] == "combined" and s["guess"] == 1 and s["probability"] is not None]
    said = np.array([s["probability"] for s in first])
    right = np.array([s["matched"] for s in first], dtype=float)
    print("\n| probability of the first from | targets | mean | right |\n|---|---|---|---|")
    place = np.digitize(said, BINS) - 1
    for b in sorted(set(place.tolist())):
        own = place == b
        print(f"| {BINS[b]:.1f} | {own.sum()} | {said[own].mean():.3f} | {right[own].mean():.3f} |")


if __name__ == "__main__":
    typer.run(main)
