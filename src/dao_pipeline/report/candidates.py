"""The best candidates of each composition, with their CIF files, and how energies are distributed."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from dao_pipeline.candidates.export import cif_comment
from dao_pipeline.config import Campaign
from dao_pipeline.crystals.cif import cif_text
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.report.coverage import is_true, novelty
from dao_pipeline.report.figures import Axis, Mark, strip, strip_axis
from dao_pipeline.report.found import Matches, matches
from dao_pipeline.report.results import Results, crystals_by_id
from dao_pipeline.report.text import count, formula, number, present, spacegroup

MAX_ROWS = 2_000
"""Candidates whose crystals are put into the page; larger campaigns have the zip beside the table."""

MAX_STRIPS = 60
"""Compositions whose energies are drawn."""

LABELS = {"e_above_hull": "predicted energy above hull", "formation_energy": "predicted formation energy"}
"""What DAO-P's energy means, by the label that it learned."""


@dataclass(frozen=True)
class Candidate:
    """One row of the ranked table; ``cif`` is a data URI."""

    id: str
    composition: str
    formula: Markup
    rank: int
    energy: float | None
    probability: float | None
    spacegroup: int | None
    symmetry: str
    volume: float | None
    group_size: int | None
    novel: str
    made_from: str
    found: bool | None
    rmse: float | None
    cif: str
    filename: str


@dataclass(frozen=True)
class Top:
    """The ranked table; ``total`` candidates have a rank, ``left_out`` of the best are not in the page.

    ``empty`` names compositions without any ranked candidate.
    """

    rows: list[Candidate]
    left_out: int
    total: int
    top_k: int
    energy: str
    has_targets: bool
    has_templates: bool
    has_probabilities: bool
    empty: list[Markup]


def ranked(screened: pd.DataFrame, top_k: int) -> pd.DataFrame:
    """The first ``top_k`` candidates of each composition, by composition in order of the table, then rank."""
    rows = screened[screened["rank"].notna()]
    rows = rows.assign(place=pd.factorize(_key(rows))[0], rank=rows["rank"].astype(int))
    return rows[rows["rank"] <= top_k].sort_values(["place", "rank"], kind="stable")


def _key(frame: pd.DataFrame) -> pd.Series:
    """A composition and its target as one value: polymorphs of one composition are separate targets."""
    return frame["composition"].astype(str) + "\0" + frame["target_id"].fillna("").astype(str)


def top_section(results: Results, campaign: Campaign) -> Top | None:
    """The ranked table; None if nothing was screened."""
    screened = results.screened
    if screened is None or screened.empty:
        return None
    best = ranked(screened, campaign.screen.top_k)
    # Rank by rank, so that a shortened table still has the best of every composition.
    rows = best.sort_values(["rank", "place"], kind="stable").head(MAX_ROWS).sort_values(["place", "rank"])
    crystals = crystals_by_id(results.folder / "candidates" / "screened.parquet", set(rows["id"]))
    known = matches(results)
    has_rank = set(_key(screened[screened["rank"].notna()]))
    without = screened[~_key(screened).isin(has_rank)]["composition"].drop_duplicates()
    return Top(
        rows=[_candidate(r, crystals[r["id"]], known) for r in rows.to_dict("records")],
        left_out=len(best) - len(rows),
        total=int(screened["rank"].notna().sum()),
        top_k=campaign.screen.top_k,
        energy=LABELS[campaign.energy_model.label],
        has_targets=bool(known),
        has_templates=bool(screened["template_id"].notna().any()),
        has_probabilities=bool(best["probability"].notna().any()),
        empty=[formula(text) for text in without],
    )


def _candidate(row: dict[Any, Any], crystal: Crystal, known: Matches) -> Candidate:
    def maybe(name: str) -> Any:
        return row[name] if present(row.get(name)) else None

    found, rmse = is_known(row, known)
    text = cif_text(crystal, cif_comment(crystal))
    return Candidate(
        id=str(row["id"]),
        composition=str(row["composition"]),
        formula=formula(row["composition"]),
        rank=int(row["rank"]),
        energy=maybe("energy_pred"),
        probability=maybe("probability"),
        spacegroup=maybe("spacegroup"),
        symmetry=spacegroup(maybe("spacegroup")),
        volume=maybe("volume_per_atom"),
        group_size=maybe("group_size"),
        novel=novelty(row),
        made_from=made_from(row),
        found=found,
        rmse=rmse,
        cif="data:chemical/x-cif;base64," + base64.b64encode(text.encode()).decode(),
        filename=re.sub(r"[^A-Za-z0-9.-]", "_", f"{row['composition']}-{row['rank']}") + ".cif",
    )


def made_from(row: dict[Any, Any]) -> str:
    """Where a candidate comes from, in words."""
    template = row.get("template_id")
    words = {
        "known": f"known crystal {template}",
        "template": f"structure of {template}",
        "template_refined": f"structure of {template}, refined",
    }
    return words.get(str(row.get("origin")), "DAO-G")


@dataclass(frozen=True)
class Energies:
    """One strip per composition on a shared axis; ``hidden`` compositions are not drawn."""

    strips: list[tuple[Markup, Markup]]
    axis: Markup
    label: str
    hidden: int
    has_matches: bool
    off_scale: int


def energies_section(results: Results, campaign: Campaign) -> Energies | None:
    """Predicted energies of the valid candidates by composition; None without energies."""
    if results.screened is None:
        return None
    rows = results.screened[is_true(results.screened["valid"]) & results.screened["energy_pred"].notna()]
    if rows.empty:
        return None
    known = matches(results)
    # A few hopeless candidates must not squeeze all others into one corner: nothing is drawn beyond three times
    # the span of the lower 90 %. A known crystal is always drawn.
    hits = [e for e, r in zip(rows["energy_pred"], rows.to_dict("records"), strict=True) if is_known(r, known)[0]]
    low, most, highest = (float(rows["energy_pred"].quantile(q)) for q in (0, 0.9, 1))
    high = max([min(highest, low + 3 * (most - low)), *hits])
    axis = Axis.over([low, high])
    shown = rows[rows["energy_pred"] <= high]
    strips = []
    groups = list(shown.groupby(_key(shown), sort=False))
    for _, group in groups[:MAX_STRIPS]:
        marks = [_mark(record, known) for record in group.to_dict("records")]
        name = str(group["composition"].iloc[0])
        about = f"{name}: {len(marks)} candidates, {sum(m.matched for m in marks)} match the known crystal"
        strips.append((formula(name), strip(marks, axis, about)))
    return Energies(
        strips=strips,
        axis=strip_axis(axis),
        label=f"{LABELS[campaign.energy_model.label]} (eV/atom)",
        hidden=max(0, len(groups) - MAX_STRIPS),
        has_matches=any(found for found, _ in known.values()),
        off_scale=len(rows) - len(shown),
    )


def is_known(row: dict[Any, Any], known: Matches) -> tuple[bool | None, float | None]:
    """Whether a candidate is the known crystal, and its RMSE; (None, None) if it was not compared."""
    sample = int(row["sample"]) if present(row["sample"]) else -1
    return known.get((str(row["composition"]), str(row["target_id"]), sample), (None, None))


def _mark(row: dict[Any, Any], known: Matches) -> Mark:
    found, rmse = is_known(row, known)
    note = f"candidate {count(row['sample'])}: {number(row['energy_pred'])} eV/atom"
    if present(row["spacegroup"]):
        note += f", {spacegroup(row['spacegroup'])}"
    if found:
        note += f"; matches the known crystal (RMSE {number(rmse)})"
    return Mark(float(row["energy_pred"]), bool(found), note)
