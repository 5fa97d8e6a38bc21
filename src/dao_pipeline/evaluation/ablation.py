"""Stage ablate: the variants of a campaign side by side, on the same known crystals.

All intervals come from the same resamples of the targets, those of one composition together. They say how far the
targets stand for others like them; that a training with another seed ends elsewhere is not in them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crystals.schema import ABLATION
from dao_pipeline.crystals.table import provenance, read_table, write_table, write_text
from dao_pipeline.errors import UserError
from dao_pipeline.evaluation.metrics import group_numbers
from dao_pipeline.seeds import stage_seed

SCHEMA = pa.schema([(name, column.type) for name, column in ABLATION.items()])
TARGETS = "targets.parquet"
_READ = ("target_id", "formula", "method", "candidates", "matches", "found", "rmse")


class Variant(NamedTuple):
    """What the stages of one variant left: folder of its evaluation, model directory of its generator."""

    evaluation: Path
    generator: Path


@dataclass(frozen=True)
class Outcome:
    """What one variant achieved for each target, in the order of ``ids``.

    formulas: reduced; targets of one have the same candidates.
    share: (n,) of its candidates that match. found: (n,), 1 where any does. rmse: (n,) of the best match, NaN
    where there is none. k: candidates per target.
    """

    ids: list[str]
    formulas: list[str | None]
    share: np.ndarray
    found: np.ndarray
    rmse: np.ndarray
    k: int


def ablate(campaign: Campaign, variants: Mapping[str, Variant], out: Path) -> None:
    """Write summary.parquet and table.md, one row per variant, into ``out``; the first is the reference.

    Raises UserError for variants that were evaluated on different targets.
    """
    outcomes = {name: read_outcome(variant.evaluation / TARGETS) for name, variant in variants.items()}
    reference = next(iter(outcomes))
    for name, outcome in outcomes.items():
        if outcome.ids != outcomes[reference].ids:
            raise UserError(
                f"{variants[name].evaluation / TARGETS}: other targets than in variant {reference}; variants must "
                "not differ in the test split (sections data and crysdb) or in generate.test_split."
            )
    seed = stage_seed(campaign.seed, "ablate")
    drawn = resampled(outcomes[reference].formulas, campaign.evaluate.bootstrap, seed)
    rows = [
        {"variant": name, **trained(variants[name].generator), **row(outcome, outcomes[reference], drawn)}
        for name, outcome in outcomes.items()
    ]
    inputs = {f"{name}.{kind}": path for name, v in variants.items() for kind, path in v._asdict().items()}
    about = provenance(
        "ablate",
        campaign=campaign.name,
        settings=stage_settings(campaign, "ablate"),
        inputs=inputs,
        variants=campaign.ablation.variants,
    )
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), out / "summary.parquet", about)
    write_text(out / "table.md", markdown(rows))


def read_outcome(targets: Path) -> Outcome:
    """DAO-G's rows of an evaluation's targets, sorted by target."""
    table = read_table(targets, columns=[*_READ])
    table = table.filter(pc.equal(table["method"], "dao")).sort_by("target_id")
    candidates = table["candidates"].to_numpy()
    if not len(candidates):
        raise UserError(f"{targets}: no targets, so there is nothing to compare; see generate.test_split.")
    return Outcome(
        ids=table["target_id"].to_pylist(),
        formulas=table["formula"].to_pylist(),
        share=table["matches"].to_numpy() / np.maximum(candidates, 1),
        found=table["found"].to_numpy().astype(float),
        rmse=table["rmse"].to_numpy().astype(float),
        k=int(candidates.max()),
    )


def trained(generator: Path) -> dict[str, Any]:
    """How a generator came about, from the history in its model directory."""
    history = json.loads((generator / "config.json").read_text(encoding="utf-8"))["history"]
    runs = [entry for entry in history if "steps" in entry]
    names = {
        "pretrain_generator_stage1": "I",
        "pretrain_generator_stage2": "II",
        "finetune_generator": "fine-tuned",
    }
    return {
        "training": ", ".join(
            f"{names.get(run['stage'], run['stage'])}: {run['steps']} on {run['crystals']}" for run in runs
        ),
        "steps": sum(run["steps"] for run in runs),
    }


def resampled(formulas: Sequence[str | None], resamples: int, seed: int) -> np.ndarray:
    """How often each target is in each bootstrap resample, (resamples, n) float64.

    Formulas are drawn, as many as there are, and with each all its targets.
    """
    group = group_numbers(formulas)
    count = 1 + int(group.max())
    chosen = np.random.default_rng(seed).integers(count, size=(resamples, count))
    chosen += count * np.arange(resamples)[:, None]
    times = np.bincount(chosen.ravel(), minlength=resamples * count).reshape(resamples, count)
    return times[:, group].astype(np.float64)


def row(outcome: Outcome, reference: Outcome, drawn: np.ndarray) -> dict[str, Any]:
    """Rates, RMSE and their differences from the reference, each with its interval over ``resampled`` targets."""
    both = np.where(np.isfinite(reference.rmse), outcome.rmse, np.nan)
    values = {
        "match_rate": outcome.share,
        "match_rate_change": outcome.share - reference.share,
        "found_rate": outcome.found,
        "found_rate_change": outcome.found - reference.found,
        "rmse": outcome.rmse,
        "rmse_change": both - reference.rmse,
    }
    result: dict[str, Any] = {"n": len(outcome.ids), "k": outcome.k, "both_found": int(np.isfinite(both).sum())}
    for name, value in values.items():
        mean, low, high = mean_and_interval(value, drawn)
        result |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return result


def mean_and_interval(values: np.ndarray, drawn: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """Mean of the values (n,) that are finite, and its 95 % percentile interval.

    drawn: (r, n), how often each value is in each of r resamples.
    """
    known = np.isfinite(values)
    if not known.any():
        return None, None, None
    sums, counts = drawn @ np.where(known, values, 0.0), drawn @ known
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, [0.025, 0.975]) if len(means) else (None, None)
    return float(values[known].mean()), low, high


def markdown(rows: list[dict[str, Any]]) -> str:
    """The summary as a Markdown table: rates in %, changes against the first row in percentage points."""
    k = rows[0]["k"]
    several = k > 1
    head = ["variant", "training steps and crystals", "match rate %", "change"]
    head += [f"found by any of {k} %", "change"] if several else []
    head += ["RMSE", "change where both match"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for i, r in enumerate(rows):
        cells = [r["variant"], r["training"]]
        for name in ("match_rate", *(("found_rate",) if several else ())):
            cells += [_cell(r, name, 100, ".1f"), _cell(r, f"{name}_change", 100, "+.1f") if i else ""]
        cells += [_cell(r, "rmse", 1, ".3f"), _cell(r, "rmse_change", 1, "+.3f") if i else ""]
        lines.append("| " + " | ".join(cells) + " |")
    n = rows[0]["n"]
    lines += [
        "",
        f"{n} targets, {k} candidate{'s' if several else ''} each; 95 % bootstrap intervals over targets.",
    ]
    return "\n".join(lines) + "\n"


def _cell(values: dict[str, Any], name: str, factor: float, style: str) -> str:
    if values[name] is None:
        return "-"
    text = format(factor * values[name], style)
    low, high = values[f"{name}_low"], values[f"{name}_high"]
    return text if low is None else f"{text} [{factor * low:{style}}, {factor * high:{style}}]"
