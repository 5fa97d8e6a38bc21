"""Which candidate is named first: by the nearest template, by votes, by DAO-P's energy, by the learned ranking.

``python benchmarks/ranking.py rates --ranker DIR --templates DIR --energy-model DIR --targets A=FILE --out DIR``
proposes crystals for known compositions (templates of the same composition excluded) and compares the first one of
each method with the known crystal. Every target counts, those without proposals as misses. Writes a table of match
rates with 95 % bootstrap intervals and paired differences, a reliability diagram (PNG and table) and ranking.json.

``python benchmarks/ranking.py ablation --ranker DIR --targets A=FILE --out DIR`` fits the ranker anew without some
of its features, on the examples that train_ranker wrote beside it (with ranking.hidden and ranking.energy);
--targets are such examples too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import typer

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import from_table
from dao_pipeline.crystals.matching import Sameness
from dao_pipeline.crystals.table import read_table
from dao_pipeline.energy.predict import predict_energies
from dao_pipeline.evaluation.metrics import interval
from dao_pipeline.ranking.examples import STRUCTURE, propose
from dao_pipeline.ranking.features import BESIDE, FEATURES, SHAPE, VOTED, Features
from dao_pipeline.ranking.files import TrainedRanker, load_ranker
from dao_pipeline.ranking.fit import Labelled, fit_ranker
from dao_pipeline.ranking.model import Groups, likelihood
from dao_pipeline.ranking.plausibility import PLAUSIBILITY
from dao_pipeline.ranking.pool import pool
from dao_pipeline.templates.files import load

METHODS = ("nearest template", "votes of the index", "votes of the ranker", "DAO-P energy", "learned ranking")
LEAST = 0.02
"""Candidates less probable than this are not compared with their siblings: what they could add does not show."""

BINS = 10
app = typer.Typer()


@dataclass(frozen=True)
class Outcome:
    """One target: whose first candidates are right, and the probability of the learned ranking's first."""

    target: str
    right: dict[str, bool]
    probability: float


def first_candidates(
    candidates: pa.Table, features: Features, probability: np.ndarray, rows: np.ndarray, same: Sameness
) -> tuple[dict[str, int], float]:
    """The row of each method's first candidate of one target (its ``rows``), and the pooled probability."""
    place = {row: i for i, row in enumerate(features.rows.tolist())}
    share = features.values[[place[r] for r in rows.tolist()], FEATURES.index("log_share")].numpy()
    column = {
        n: candidates[n].take(pa.array(rows)).to_numpy() for n in ("template_distance", "sample", "energy_pred")
    }
    first = {
        "nearest template": int(rows[np.argmin(column["template_distance"])]),
        "votes of the index": int(rows[np.argmin(column["sample"])]),
        "votes of the ranker": int(rows[np.argmax(share)]),
        "DAO-P energy": int(rows[np.argmin(column["energy_pred"])]),
    }
    likely = rows[probability[rows] >= LEAST]
    if not len(likely):
        likely = rows[[int(np.argmax(probability[rows]))]]
    made = [same.reduce(c) for c in from_table(candidates.select(STRUCTURE).take(pa.array(likely)))]
    best, pooled = pool(probability[likely].tolist(), lambda i, j: same(made[i], made[j]))[0]
    first["learned ranking"] = int(likely[best])
    return first, float(pooled or 0.0)


def outcomes(trained: TrainedRanker, candidates: pa.Table, targets: pa.Table) -> list[Outcome]:
    """What each method names first for each target, compared with the known crystal."""
    names = candidates["target_id"].to_pylist()
    features = trained.describe(candidates, names)
    probability = trained.ranker.probabilities(features)
    same = Sameness(Matcher())
    of: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        of.setdefault(name, []).append(row)
    found = []
    for target in from_table(targets.select(STRUCTURE)):
        rows = np.array(of.get(target.id, []), dtype=np.int64)
        if not len(rows):
            found.append(Outcome(target.id, dict.fromkeys(METHODS, False), 0.0))
            continue
        first, pooled = first_candidates(candidates, features, probability, rows, same)
        known = same.reduce(target)
        unique = sorted(set(first.values()))
        made = from_table(candidates.select(STRUCTURE).take(pa.array(unique)))
        right = {
            row: bool(np.isfinite(same.rms(same.reduce(c), known))) for row, c in zip(unique, made, strict=True)
        }
        found.append(Outcome(target.id, {name: right[row] for name, row in first.items()}, pooled))
    return found


def reliability(found: list[Outcome]) -> tuple[list[dict[str, float]], float]:
    """Bins of predicted probability with what was observed, and the expected calibration error."""
    predicted = np.array([o.probability for o in found])
    right = np.array([o.right["learned ranking"] for o in found], dtype=float)
    where = np.minimum((predicted * BINS).astype(int), BINS - 1)
    bins = [
        {
            "from": b / BINS,
            "count": int((where == b).sum()),
            "predicted": float(predicted[where == b].mean()),
            "observed": float(right[where == b].mean()),
        }
        for b in sorted(set(where.tolist()))
    ]
    error = sum(b["count"] * abs(b["predicted"] - b["observed"]) for b in bins) / max(1, len(found))
    return bins, error


def draw(bins: dict[str, list[dict[str, float]]], path: Path) -> None:
    """The reliability diagram of each set of targets."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(bins), figsize=(4.2 * len(bins), 4.2), squeeze=False)
    for axis, (name, rows) in zip(axes[0], bins.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        error = [1.96 * np.sqrt(max(r["observed"] * (1 - r["observed"]), 1e-9) / r["count"]) for r in rows]
        axis.errorbar([r["predicted"] for r in rows], [r["observed"] for r in rows], error, fmt="o-", capsize=2)
        for r in rows:
            axis.annotate(
                str(r["count"]), (r["predicted"], r["observed"]), (5, -10), textcoords="offset points", fontsize=7
            )
        axis.set(
            title=name, xlabel="predicted probability", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1)
        )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


@app.command()
def rates(
    ranker: Annotated[Path, typer.Option(help="directory written by train-ranker")],
    templates: Annotated[Path, typer.Option(help="template index of its training split")],
    energy_model: Annotated[Path, typer.Option(help="DAO-P model directory")],
    targets: Annotated[list[str], typer.Option(help="name=crystal table of known crystals that nothing has seen")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    proposals: Annotated[int, typer.Option(help="candidates per target")] = 20,
    limit: Annotated[int | None, typer.Option(help="only so many targets of each table")] = None,
) -> None:
    """Match rates with k = 1, and how reliable the probabilities are."""
    torch.set_num_threads(1)
    trained, index = load_ranker(ranker), load(templates)
    result, bins = {}, {}
    for text in targets:
        name, _, path = text.partition("=")
        known = read_table(Path(path)).slice(0, limit)
        if pc.any(pc.is_in(known["formula"], value_set=index.table["formula"])).as_py():
            raise typer.BadParameter(f"{path}: some of its compositions are among the templates")
        candidates = propose(index, known, proposals)
        candidates = candidates.append_column("energy_pred", pa.array(predict_energies(energy_model, candidates)))
        found = outcomes(trained, candidates, known)
        bins[name], error = reliability(found)
        methods = {method: compared(found, method) for method in METHODS}
        result[name] = {"targets": len(found), "methods": methods, "bins": bins[name], "calibration_error": error}
        show(name, result[name])
    out.mkdir(parents=True, exist_ok=True)
    (out / "ranking.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(bins, out / "reliability.png")


def compared(found: list[Outcome], method: str) -> dict[str, float | None]:
    """In percent: how often the first of a method is right, and by how much the learned ranking is better."""
    hits = np.array([o.right[method] for o in found], dtype=float)
    more = np.array([o.right[METHODS[-1]] for o in found], dtype=float) - hits
    (low, high), (less, most) = interval((100 * hits).tolist(), 2000, 0), interval((100 * more).tolist(), 2000, 0)
    if not hits.any() or hits.all():
        low, high = (100 * end for end in interval(hits.tolist(), 2000, 0))  # type: ignore[operator]
    if not more.any():
        less, most = 0.0, 0.0
    rate, better = 100 * hits.mean(), 100 * more.mean()
    return {"rate": rate, "low": low, "high": high, "better": better, "better_low": less, "better_high": most}


def show(name: str, result: dict[str, Any]) -> None:
    """Print the tables of one set of targets."""
    print(f"\n{name}: {result['targets']} targets\n")
    print("| first by | k = 1, % | 95 % | learned ranking is better by | 95 % |\n|---|---|---|---|---|")
    for method, r in result["methods"].items():
        better = f"{r['better']:.1f} | {r['better_low']:.1f} to {r['better_high']:.1f}"
        print(f"| {method} | {r['rate']:.1f} | {r['low']:.1f} to {r['high']:.1f} | {better} |")
    print("\n| probability from | targets | predicted | observed |\n|---|---|---|---|")
    for b in result["bins"]:
        print(f"| {b['from']:.1f} | {b['count']} | {b['predicted']:.3f} | {b['observed']:.3f} |")
    print(f"\nexpected calibration error {result['calibration_error']:.3f}", flush=True)


LEFT_OUT = {
    "nothing": (),
    "votes": VOTED,
    "plausibility of distances": (*PLAUSIBILITY, *(f"{name}_beside" for name in BESIDE)),
    "shape (atoms, cells, order)": SHAPE,
    "volume": ("log_volume", "log_volume_beside"),
    "stability of the template": ("best_e_above_hull",),
    "energy of DAO-P": ("energy",),
    "everything but votes' shares": (*FEATURES, "energy"),
}
"""Features by what they say. The share of votes itself stays in every row: the network only corrects it."""


@app.command()
def ablation(
    ranker: Annotated[Path, typer.Option(help="directory written by train-ranker, for its votes and examples")],
    targets: Annotated[list[str], typer.Option(help="name=examples to judge by, with energy_pred")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    seeds: Annotated[int, typer.Option(help="fits of each row, averaged")] = 3,
) -> None:
    """Log likelihood and share of compositions whose most probable candidate is right, without some features."""
    torch.set_num_threads(1)
    trained = load_ranker(ranker)

    def labelled(table: pa.Table) -> Labelled:
        features = trained.describe(table, table["target_id"].to_pylist())
        return Labelled.of(Groups.of(features), table["matched"].to_numpy(zero_copy_only=False))

    examples = read_table(ranker / "examples.parquet")
    learned, checked = (labelled(examples.filter(pc.equal(examples["split"], name))) for name in ("train", "val"))
    judged = {name: labelled(read_table(Path(path))) for name, _, path in (t.partition("=") for t in targets)}
    print("| without | " + " | ".join(f"{n}: log likelihood | {n}: first right" for n in judged) + " |")
    print("|---|" + "---|---|" * len(judged))
    result = {}
    for what, without in LEFT_OUT.items():
        row: dict[str, list[float]] = {}
        for seed in range(seeds):
            fitted, _ = fit_ranker(learned, checked, seed, hidden=trained.settings.hidden, without=without)
            for name, data in judged.items():
                with torch.no_grad():
                    log_probability = fitted(data.groups)
                first = log_probability[:, 1:].argmax(1, keepdim=True)
                row.setdefault(f"{name}: log likelihood", []).append(
                    float(likelihood(log_probability, data.hit).mean())
                )
                row.setdefault(f"{name}: first right", []).append(
                    100 * float(data.hit.gather(1, first).float().mean())
                )
        result[what] = {name: float(np.mean(values)) for name, values in row.items()}
        cells = [f"{v:.3f}" if "log" in name else f"{v:.1f}" for name, v in result[what].items()]
        print(f"| {what} | " + " | ".join(cells) + " |", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "ablation.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    app()
