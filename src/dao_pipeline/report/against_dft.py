"""The section that compares candidates with DFT: figures with intervals, parity, what moved, what was refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
from markupsafe import Markup

from dao_pipeline.report.figures import histogram, parity
from dao_pipeline.report.results import Results
from dao_pipeline.report.text import NONE, count, formula, number, percent, present, short

SOURCES = {"quantum_espresso": "Quantum ESPRESSO", "generation": "Generation"}
"""Names of sources that are not a table's own."""

METRICS: dict[str, tuple[str, str]] = {
    "same_crystal_after_relaxation": ("stay the same crystal when DFT relaxes them", "percent"),
    "rmse": ("displacement of those, in (V/n)^(1/3)", "number"),
    "displacement": ("largest displacement of an atom, Å", "number"),
    "volume_change": ("change of volume", "percent"),
    "volume_change_size": ("size of that change", "percent"),
    "known_before": ("are the known crystal before relaxation", "percent"),
    "known_after": ("are the known crystal after relaxation", "percent"),
    "top1_agreement": ("compositions whose lowest candidate is DFT's lowest", "percent"),
    "regret": ("DFT energy of DAO-P's lowest above DFT's lowest, eV/atom", "number"),
    "pairs_right": ("pairs of candidates in the order of DFT", "percent"),
    "spearman": ("rank correlation within a composition (Spearman)", "number"),
    "kendall": ("rank correlation within a composition (Kendall)", "number"),
    "order_mae": ("error of energies within a composition, eV/atom", "number"),
    "energy_mae": ("mean error of DAO-P's energies, eV/atom", "number"),
    "energy_mae_without_offset": ("the same without the mean difference", "number"),
    "energy_mae_of_the_mean": ("for scale: error of the mean energy as a guess", "number"),
    "core_seconds": ("core seconds per structure, end to end", "short"),
    "core_seconds_per_step": ("core seconds per structure and step", "short"),
    "times_faster_core_seconds": ("times faster than DFT, end to end", "short"),
    "times_faster_core_seconds_per_step": ("times faster than DFT, per step", "short"),
}
"""What each figure is called, and how it is written."""

_WRITE = {"percent": lambda v: percent(v, 0), "number": number, "short": short}


@dataclass(frozen=True)
class Row:
    """One figure of one source."""

    source: str
    name: str
    value: str
    interval: str
    over: str


@dataclass(frozen=True)
class AgainstDFT:
    """The section: figures, plots, candidates that DFT changed most, and why energies are missing."""

    rows: list[Row]
    parity: list[tuple[str, Markup]]
    volumes: Markup
    outliers: list[dict[str, str]]
    refused: list[tuple[str, int]]
    quantity: str


def comparison_section(results: Results, label: str) -> AgainstDFT | None:
    """The section, or None where the stage did not run."""
    figures, candidates = results.dft_summary, results.dft_candidates
    if figures is None or candidates is None or candidates.empty:
        return None
    plots = []
    for source, rows in candidates.groupby("source", sort=False):
        both = rows.dropna(subset=["energy_pred", "energy_error"])
        if len(both) > 1:
            dft = (both["energy_pred"] - both["energy_error"]).tolist()
            notes = [f"{r['formula']} ({r['id']})" for r in both.to_dict("records")]
            plots.append(
                (_source(str(source)), parity(dft, both["energy_pred"].tolist(), notes, "DFT, eV/atom", "DAO-P"))
            )
    changes = candidates["volume_change"].dropna().tolist()
    reasons = Counter(
        f"{name}: {reason}"
        for name, column in (("formation energy", "formation_refused"), ("energy above hull", "hull_refused"))
        for reason in candidates[column].dropna()
    )
    return AgainstDFT(
        rows=[_row(r) for r in figures.to_dict("records") if r["metric"] in METRICS],
        parity=plots,
        volumes=histogram([100 * v for v in changes], "change of volume (%)", "Changes of volume by DFT")
        if len(changes) > 4
        else Markup(""),
        outliers=_outliers(candidates),
        refused=reasons.most_common(8),
        quantity={"formation_energy": "formation energies", "e_above_hull": "energies above the hull"}.get(
            label, label
        ),
    )


def _source(name: str) -> str:
    return SOURCES.get(name, name)


def _row(figure: dict[Any, Any]) -> Row:
    name, kind = METRICS[str(figure["metric"])]
    write = _WRITE[kind]
    interval = f"{write(figure['low'])} to {write(figure['high'])}" if present(figure["low"]) else NONE
    over = str(figure["over"])
    return Row(
        source=_source(str(figure["source"])),
        name=name,
        value=write(figure["value"]),
        interval=interval,
        over=over if figure["source"] == "generation" else f"{count(figure['n'])} {over}",
    )


def _outliers(candidates: pd.DataFrame, most: int = 8) -> list[dict[str, str]]:
    """Candidates that are another crystal after relaxation, or moved farthest, worst first."""
    moved = candidates[candidates["matched"].notna()]
    moved = moved.assign(lost=~moved["matched"].astype(bool), size=moved["rmse"].astype(float).fillna(9.0))
    worst = moved.sort_values(["lost", "size"], ascending=False).head(most)
    return [
        {
            "formula": formula(r["composition"] if present(r["composition"]) else r["formula"]),
            "id": str(r["id"]),
            "source": _source(r["source"]),
            "same": "yes" if r["matched"] else "no",
            "rmse": number(r["rmse"]),
            "volume": percent(r["volume_change"], 1),
            "displacement": number(r["displacement"], 2),
            "error": number(r["energy_error"]),
        }
        for r in worst.to_dict("records")
    ]
