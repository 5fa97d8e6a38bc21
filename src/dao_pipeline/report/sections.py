"""The page's sections as plain values: one function each, None where the stage did not run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dao_pipeline.config import Campaign
from dao_pipeline.report.against_dft import comparison_section
from dao_pipeline.report.candidates import Top, energies_section, top_section
from dao_pipeline.report.coverage import Funnel, candidates_funnel, crystals_funnel, tally
from dao_pipeline.report.figures import curves, histogram
from dao_pipeline.report.found import ANY_ONE, Found, found_section
from dao_pipeline.report.origin import origin_section
from dao_pipeline.report.results import Model, Results
from dao_pipeline.report.text import (
    NONE,
    count,
    duration,
    formula,
    megabytes,
    number,
    percent,
    plural,
    present,
    short,
)


@dataclass(frozen=True)
class Fact:
    """A number that matters, with its name and one remark."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Overview:
    """The paragraph at the top and the numbers beside it."""

    sentences: list[str]
    facts: list[Fact]


def _inside(name: str) -> str:
    """A method's name inside a sentence."""
    return name if name.startswith("DAO") else name[:1].lower() + name[1:]


def _listed(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def overview(results: Results, top: Top | None, found: Found | None, funnel: Funnel | None) -> Overview:
    """What the campaign did and what came out, in a few sentences made from the tables."""
    sentences, facts = [], []
    if funnel:
        steps = {step.name: step.count for step in funnel.steps}
        asked = 0 if results.screened is None else results.screened["composition"].nunique()
        made = 0 if results.screened is None else int(results.screened["template_id"].notna().sum())
        none = 0 if results.screened is None else int((results.screened["status"] == "no_template").sum())
        rest = f"{count(none)} found no template" if none == steps["Requested"] - made else "the others by DAO-G"
        who = f"{count(made)} were made from known structures and {rest}; " if made else ""
        sentences.append(
            f"For {plural(asked, 'composition')} {plural(steps['Requested'], 'candidate')} "
            f"{'was' if steps['Requested'] == 1 else 'were'} asked for{'' if made else ' of DAO-G'}: {who}"
            f"{count(steps['Valid'])} are valid crystals, {count(steps['Unique'])} of them distinct, and "
            f"{count(steps['Novel'])} match no crystal that the models learned from"
            f"{', nor a known structure type that was tried' if made else ''}."
        )
        facts.append(
            Fact("Distinct candidates", count(steps["Unique"]), f"of {count(steps['Requested'])} requested")
        )
    lead = next((method for method in ("combined", "dao") if found and method in found.methods), None)
    if found and lead:
        hit, tried = found.totals(lead)
        rate = found.best_rate(lead)
        interval = f"95 % interval {rate.interval}" if rate and rate.interval != NONE else ""
        facts.insert(0, Fact("Known crystals found", f"{hit} of {tried}", interval))
        others = [method for method in found.methods if method != lead]
        against = [f"{_inside(found.methods[m])} {found.totals(m)[0]}" for m in others]
        shown = f" ({percent(hit / tried)}, {interval})" if interval else ""
        sentences.append(
            f"{found.methods[lead]} found {hit} of {plural(tried, 'known crystal')} that no model had seen{shown}"
            + (f"; {_listed(against)}." if against else ".")
        )
        first = next((r for r in found.rates if r.method == lead and r.k == 1 and r.order != ANY_ONE), None)
        if first:
            right = round(first.rate * tried)
            facts.insert(1, Fact("First candidate right", f"{right} of {tried}", f"first by {first.order}"))
    if results.crysdb_rows:
        train = results.crysdb_rows.get("train", 0)
        sentences.append(f"The models learned from {plural(train, 'crystal')}.")
        facts.append(Fact("Training crystals", count(train), "CrysDB, training split"))
    if results.timings:
        total = sum(t.seconds for t in results.timings)
        facts.append(
            Fact("Computing time", duration(total), f"{plural(sum(t.jobs for t in results.timings), 'job')}")
        )
    if top and top.rows and not found:
        sentences.append("The compositions have no known crystal to compare with: judge the candidates below.")
    if not sentences:
        sentences.append("No candidate has been generated yet; this page shows the stages that have run.")
    return Overview(sentences, facts)


@dataclass(frozen=True)
class Curve:
    """A model's learning curve with what is worth knowing about its training."""

    name: str
    figure: Markup
    facts: list[tuple[str, str]]


def training(results: Results) -> list[Curve] | None:
    """Learning curves of the models that were trained here."""
    found = [_curve(m) for m in results.models if m.metrics is not None and len(m.metrics)]
    return found or None


def _curve(model: Model) -> Curve:
    metrics = model.metrics
    assert metrics is not None
    last = {split: rows.sort_values("step").iloc[-1] for split, rows in metrics.groupby("split")}
    facts = [("steps", count(metrics["step"].max()))]
    facts += [
        (f"last {'training' if s == 'train' else 'validation'} loss", short(r["loss"])) for s, r in last.items()
    ]
    if "energy_mae" in metrics and "val" in last and present(last["val"]["energy_mae"]):
        facts.append(("validation error", f"{number(1000 * last['val']['energy_mae'], 0)} meV/atom"))
    for column, name, show in (
        ("seconds", "time", duration),
        ("crystals_per_second", "crystals per second", short),
        ("memory_mb", "memory", megabytes),
    ):
        if column in metrics and metrics[column].notna().any():
            values = metrics[column].dropna()
            facts.append((name, show(values.median() if column == "crystals_per_second" else values.max())))
    return Curve(model.name, curves(metrics, model.name), facts)


@dataclass(frozen=True)
class Relaxation:
    """What DAO-P's relaxation did to the training set."""

    total: int
    selected: int
    accepted: int
    kept: tuple[tuple[str, int], ...]
    facts: list[tuple[str, str]]
    figure: Markup


def relaxation(results: Results) -> Relaxation | None:
    """Selected, accepted, kept with reasons, and how far energies fell."""
    rows = results.relaxed
    if rows is None or rows.empty:
        return None
    selected = rows[rows["relax_status"] != "not_selected"]
    accepted = selected[selected["relax_status"] == "accepted"]
    drop = (accepted["energy_before"] - accepted["energy_after"]).astype(float).dropna()
    facts = []
    if len(drop):
        facts = [
            ("median energy drop", f"{short(1000 * drop.median())} meV/atom"),
            ("median largest displacement", f"{number(accepted['displacement'].median())} Å"),
            ("median change of volume", percent(accepted["volume_change"].astype(float).median(), 1)),
            ("median steps", short(accepted["relax_steps"].astype(float).median())),
        ]
    return Relaxation(
        total=len(rows),
        selected=len(selected),
        accepted=len(accepted),
        kept=tally(selected["relax_status"][selected["relax_status"] != "accepted"].tolist()),
        facts=[(name, value) for name, value in facts if not value.startswith(NONE)],
        figure=histogram((1000 * drop).tolist(), "energy drop (meV/atom)", "Energy drops of accepted relaxations"),
    )


@dataclass(frozen=True)
class Validation:
    """Rows of the DFT calculations."""

    rows: list[dict[str, Any]]
    converged: int


def validation(results: Results) -> Validation | None:
    """Quantum ESPRESSO's results, one row per candidate, failed or not."""
    frame = results.validation
    if frame is None or frame.empty:
        return None
    rows = [
        {
            "formula": formula(r.get("composition") or r.get("formula")),
            "rank": count(r.get("rank")),
            "status": str(r["status"]),
            "converged": r["status"] == "converged",
            "reason": str(r["reason"]) if present(r.get("reason")) else "",
            "calculation": str(r.get("calculation") or ""),
            "energy": number(r.get("energy_per_atom")),
            "force": number(r.get("force_max")),
            "stress": number(r.get("pressure"), 2),
            "volume": percent(r["volume_change"], 1) if present(r.get("volume_change")) else NONE,
            "seconds": duration(r.get("wall_seconds")),
        }
        for r in frame.to_dict("records")
    ]
    return Validation(rows, int((frame["status"] == "converged").sum()))


def _timings(results: Results) -> list[dict[str, Any]] | None:
    total = sum(t.seconds for t in results.timings)
    longest = max((t.seconds for t in results.timings), default=0) or 1
    return [
        {
            "stage": re.sub(r"[_/]", " ", t.stage),
            "jobs": count(t.jobs),
            "time": duration(t.seconds),
            "share": percent(t.seconds / total) if total else "",
            "width": round(100 * t.seconds / longest, 1),
            "memory": megabytes(t.max_rss),
        }
        for t in results.timings
    ] or None


def build_sections(results: Results, campaign: Campaign) -> dict[str, Any]:
    """Everything that the template shows, by section; absent sections are None."""
    funnel = None
    if results.screened is not None and not results.screened.empty:
        funnel = candidates_funnel(results.planned, results.screened)
    top, found = top_section(results, campaign), found_section(results)
    return {
        "overview": overview(results, top, found, funnel),
        "top": top,
        "found": found,
        "energies": energies_section(results, campaign),
        "coverage": funnel,
        "not_planned": list(results.not_planned.items()),
        "crystals": crystals_funnel(results),
        "splits": results.crysdb_rows,
        "energy_methods": results.energy_methods,
        "training": training(results),
        "relaxation": relaxation(results),
        "validation": validation(results),
        "against_dft": comparison_section(results, campaign.energy_model.label),
        "timings": _timings(results),
        "origin": origin_section(results, campaign),
    }
