"""Were the known crystals found, and how does that compare with the baselines?"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import pandas as pd
from markupsafe import Markup

from dao_pipeline.report.coverage import is_true
from dao_pipeline.report.figures import rate_bar
from dao_pipeline.report.results import Results
from dao_pipeline.report.text import NONE, count, formula, number, percent, plural, present, reason, spacegroup

METHODS = {
    "dao": "DAO-G",
    "combined": "All candidates",
    "substitution": "Template substitution",
    "random": "Random generation",
}
"""Methods of the evaluation in the order in which they are shown."""


@dataclass(frozen=True)
class Outcome:
    """One method on one target."""

    found: bool
    rmse: float | None
    rank: int | None
    candidates: int | None


ANY_ONE = "none: one at random"
"""Order of the rate that one candidate reaches, whichever it is: what the ranking has to beat."""


@dataclass(frozen=True)
class Rate:
    """Share of targets found within the first k candidates of a method, with its 95 % interval."""

    method: str
    k: int
    order: str
    rate: float
    low: float | None
    high: float | None
    rmse: float | None
    bar: Markup

    @property
    def interval(self) -> str:
        """``12 to 77 %``; a dash where resampling gives no width (all targets hit, or all missed)."""
        if self.low is None or self.high is None or self.high <= self.low:
            return NONE
        return f"{100 * self.low:.0f} to {percent(self.high)}"


@dataclass(frozen=True)
class Distance:
    """Targets about as far from their nearest template, and the rates of all candidates for them by k."""

    name: str
    span: str
    targets: int
    rates: list[str]


@dataclass(frozen=True)
class Target:
    """One known crystal with the outcome of each method."""

    id: str
    formula: Markup
    symmetry: str
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Found:
    """The section: one row per target with an outcome per method, rates and what they mean."""

    methods: dict[str, str]
    rows: list[Target]
    rates: list[Rate]
    sentences: list[str]
    ks: list[str]
    distances: list[Distance]

    def totals(self, method: str) -> tuple[int, int]:
        """Targets found by a method, and targets tried."""
        outcomes = [row.outcomes[method] for row in self.rows if method in row.outcomes]
        return sum(o.found for o in outcomes), len(outcomes)

    def best_rate(self, method: str) -> Rate | None:
        """The rate of a method at its largest k."""
        return max((r for r in self.rates if r.method == method), key=lambda r: r.k, default=None)


def found_section(results: Results) -> Found | None:
    """The evaluation's tables as a section; None if the stage has not run or there were no targets."""
    targets = results.targets
    if targets is None or targets.empty:
        return None
    present_methods = set(targets["method"])
    methods = {m: METHODS.get(m, str(m)) for m in [*METHODS, *sorted(present_methods - set(METHODS))]}
    methods = {m: name for m, name in methods.items() if m in present_methods}
    rows: dict[str, Target] = {}
    for record in targets.to_dict("records"):
        name = str(record["target_id"])
        new = Target(name, formula(record["composition"]), spacegroup(record.get("spacegroup")), {})
        rows.setdefault(name, new).outcomes[record["method"]] = _outcome(record)
    ks, distances = _distances(results.by_distance)
    found = Found(methods, list(rows.values()), _rates(results.rates), [], ks, distances)
    lead = "dao" if "dao" in methods else "combined"
    others = [m for m in ("substitution", "random") if m in methods]
    found.sentences.extend(comparison(found, lead, other) for other in others if lead in methods)
    if (known := _known_share(results.screened)) is not None:
        found.sentences.append(known)
    return found


def _distances(table: pd.DataFrame | None) -> tuple[list[str], list[Distance]]:
    """Heads of the columns, and a row for each quarter of the targets by distance to the nearest template."""
    if table is None or table.empty:
        return [], []
    columns = table["k"].drop_duplicates().tolist()
    rows = []
    for name, group in table.groupby("nearest", sort=False):
        first = group.iloc[0]
        ends = [first["nearest_from"], first["nearest_to"]]
        rows.append(
            Distance(
                name=str(name),
                span=f"{number(ends[0], 2)} to {number(ends[1], 2)}" if present(ends[0]) else NONE,
                targets=int(first["n"]),
                rates=[_with_interval(row) for row in group.to_dict("records")],
            )
        )
    return [f"k = {int(k)}" if present(k) else "all" for k in columns], rows


def _with_interval(row: dict[Any, Any]) -> str:
    if not present(row["low"]):
        return percent(row["match_rate"])
    return f"{percent(row['match_rate'])} ({100 * row['low']:.0f} to {100 * row['high']:.0f})"


def _known_share(screened: pd.DataFrame | None) -> str | None:
    """How many candidates are known crystals of their composition, where templates were tried."""
    if screened is None or not screened["template_id"].notna().any():
        return None
    known = int((screened["origin"] == "known").sum())
    of = plural(len(screened), "candidate")
    return f"{count(known)} of {of} are known crystals of the composition that was asked for."


def _outcome(record: dict[Any, Any]) -> Outcome:
    def maybe(name: str) -> Any:
        value = record.get(name)
        return value if present(value) else None

    rank, candidates = maybe("first_match_rank"), maybe("candidates")
    return Outcome(
        found=bool(maybe("found")),
        rmse=maybe("rmse"),
        rank=None if rank is None else int(rank),
        candidates=None if candidates is None else int(candidates),
    )


def _rates(summary: pd.DataFrame | None) -> list[Rate]:
    if summary is None:
        return []
    rates = []
    for record in summary.dropna(subset=["match_rate"]).to_dict("records"):
        low, high = (float(record[end]) if present(record[end]) else None for end in ("low", "high"))
        rates.append(
            Rate(
                method=str(record["method"]),
                k=int(record["k"]),
                order=reason(record["rank1_by"]) if present(record.get("rank1_by")) else "",
                rate=float(record["match_rate"]),
                low=low,
                high=high,
                rmse=float(record["rmse"]) if present(record.get("rmse")) else None,
                bar=rate_bar(float(record["match_rate"]), low, high),
            )
        )
        if present(record.get("match_rate_single")):
            single = float(record["match_rate_single"])
            bar = rate_bar(single, None, None)
            rates.append(Rate(str(record["method"]), 1, ANY_ONE, single, None, None, None, bar))
    order = {method: place for place, method in enumerate(METHODS)}
    return sorted(rates, key=lambda r: (order.get(r.method, len(order)), r.k, r.order != ANY_ONE))


def sign_test(a: int, b: int) -> float:
    """Two-sided exact sign test: probability of a split at least as uneven as a : b by chance."""
    n = a + b
    if n == 0:
        return 1.0
    tail = sum(comb(n, k) for k in range(min(a, b) + 1)) / 2**n
    return min(1.0, 2 * tail)


def comparison(found: Found, lead: str, other: str) -> str:
    """How DAO-G, or without it the campaign, does against a baseline on the same targets, whichever is ahead."""
    tried = [row.outcomes for row in found.rows if {lead, other} <= set(row.outcomes)]
    pairs = [(outcomes[lead].found, outcomes[other].found) for outcomes in tried]
    ours, theirs = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    only_us, only_them = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    name, us = METHODS[other].lower(), "DAO-G" if lead == "dao" else "the campaign"
    head = f"{us[0].upper() + us[1:]} found {ours} of {plural(len(pairs), 'known crystal')}, {name} {theirs}"
    if only_us == only_them == 0:
        return f"{head}: the same ones." if ours else f"{head}."
    alone = f"{us} alone found {only_us}, {name} alone {only_them}"
    if ours == theirs:
        return f"{head}: neither is ahead ({alone})."
    chance = sign_test(only_us, only_them)
    leader = f"{us} is ahead of {name}" if ours > theirs else f"{name} is ahead of {us}"
    shown = f"sign test, p {f'= {chance:.2g}' if chance >= 1e-4 else '< 0.0001'}"
    if chance < 0.05:
        return f"{head}: {leader}, by more than chance explains ({alone}; {shown})."
    return f"{head}: {leader}, though chance alone could make this difference ({alone}; {shown})."


Matches = dict[tuple[str, str, int], tuple[bool, float | None]]
"""By composition, target id and number of the sample: is it the known crystal, and its RMSE."""


def matches(results: Results) -> Matches:
    """For each candidate that was compared: whether it is the known crystal, and its RMSE."""
    if results.samples is None:
        return {}
    methods = results.samples["method"]
    rows = results.samples[methods == ("combined" if (methods == "combined").any() else "dao")]
    matched = is_true(rows["matched"])
    return {
        (str(c), str(t), int(s)): (bool(m), float(r) if present(r) else None)
        for c, t, s, m, r in zip(
            rows["composition"], rows["target_id"], rows["sample"], matched, rows["rmse"], strict=True
        )
    }


def outcome_text(outcome: Outcome | None) -> str:
    """One cell of the found-or-not table in words."""
    if outcome is None:
        return NONE
    if not outcome.found:
        return "not found"
    parts = ["found"]
    if outcome.rank is not None:
        parts.append(f"rank {outcome.rank}")
    if outcome.rmse is not None:
        parts.append(f"RMSE {number(outcome.rmse)}")
    return " · ".join(parts)
