"""The campaign's outcome on the terminal: best candidates, match rates beside baselines, where the report is."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dao_pipeline.report.candidates import Matches, is_known, ranked
from dao_pipeline.report.coverage import candidates_funnel
from dao_pipeline.report.found import Found, found_section, matches
from dao_pipeline.report.results import Results, load_results
from dao_pipeline.report.text import count, number, percent, present, spacegroup

BEST = 3
"""Candidates shown per composition."""

MAX_COMPOSITIONS = 30
"""Compositions shown; the report has all of them."""


def print_summary(results: Path, console: Console | None = None) -> None:
    """Print the ranked table, the match rates and the path of the report of results/<campaign>.

    Raises UserError where the folder does not exist or a table in it is damaged.
    """
    console = console or Console()
    tables = load_results(results)
    if tables.screened is not None and len(tables.screened):
        console.print(_candidates(tables))
        steps = candidates_funnel(tables.planned, tables.screened).steps
        console.print("Candidates: " + ", ".join(f"{count(s.count)} {s.name.lower()}" for s in steps) + ".")
    else:
        console.print("No candidates have been screened yet.")
    if found := found_section(tables):
        console.print()
        console.print(_rates(found))
        for sentence in found.sentences:
            console.print(Text(sentence))
    page = results / "report" / "index.html"
    if page.is_file():
        console.print(Text(f"\nReport: {page}"))


def _candidates(tables: Results) -> Table:
    screened = tables.screened
    assert screened is not None
    known: Matches = matches(tables)
    table = Table(title="Best candidates", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("composition", "rank", "eV/atom", "space group", "Å³/atom", "group", "novel"):
        table.add_column(name, justify="right" if name in ("rank", "eV/atom", "Å³/atom", "group") else "left")
    if known:
        table.add_column("known crystal")
    rows = ranked(screened, BEST)
    names = rows["place"].unique()[:MAX_COMPOSITIONS]
    previous = None
    for row in rows[rows["place"].isin(names)].to_dict("records"):
        if previous not in (None, row["place"]):
            table.add_section()
        found, rmse = is_known(row, known)
        cells = [
            str(row["composition"]) if row["place"] != previous else "",
            str(row["rank"]),
            number(row["energy_pred"]),
            spacegroup(row["spacegroup"]),
            number(row["volume_per_atom"], 2),
            count(row["group_size"]),
            "yes" if present(row["novel"]) and row["novel"] else "no",
        ]
        if known:
            cells.append("" if found is None else (f"found, RMSE {number(rmse)}" if found else "no"))
        # Text, not markup: square brackets in names are shown, not obeyed.
        table.add_row(*(Text(cell) for cell in cells), style="green" if found else None)
        previous = row["place"]
    left = rows["place"].nunique() - len(names)
    if left > 0:
        table.caption = f"and {left} more compositions in the report"
    return table


def _rates(found: Found) -> Table:
    table = Table(title="Known crystals found", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("method", "best k", "found", "95 % interval", "RMSE"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for rate in found.rates:
        table.add_row(
            Text(found.methods.get(rate.method, rate.method)),
            str(rate.k),
            percent(rate.rate),
            f"{100 * rate.low:.0f} to {percent(rate.high)}",
            number(rate.rmse),
        )
    return table
