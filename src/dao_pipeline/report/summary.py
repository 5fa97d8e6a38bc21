"""The campaign's outcome on the terminal: best candidates, match rates beside baselines, where the report is."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dao_pipeline.report.candidates import is_known, ranked
from dao_pipeline.report.coverage import candidates_funnel, novelty
from dao_pipeline.report.found import Found, Matches, found_section, matches
from dao_pipeline.report.results import Results, load_results
from dao_pipeline.report.text import count, number, percent, plural, spacegroup

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
    """The best candidates of each composition, and the one that is the known crystal wherever it ranks."""
    screened = tables.screened
    assert screened is not None
    known: Matches = matches(tables)
    table = _table("Best candidates", "composition", "rank", "eV/atom", "space group", "group", "novel")
    if known:
        table.add_column("known crystal", no_wrap=True)
    rows = ranked(screened, len(screened))
    places = rows["place"].unique()
    for place in places[:MAX_COMPOSITIONS]:
        shown, met = 0, False
        for row in rows[rows["place"] == place].to_dict("records"):
            found, rmse = is_known(row, known)
            if shown < BEST or (found and not met):
                cells = [
                    str(row["composition"]) if not shown else "",
                    str(row["rank"]),
                    number(row["energy_pred"]),
                    spacegroup(row["spacegroup"]),
                    count(row["group_size"]),
                    novelty(row) or "no",
                    "" if found is None else (f"found, RMSE {number(rmse)}" if found else "no"),
                ]
                # Text, not markup: square brackets in names are shown, not obeyed.
                table.add_row(*map(Text, cells[: len(table.columns)]), style="green" if found else None)
                shown, met = shown + 1, met or bool(found)
    if len(places) > MAX_COMPOSITIONS:
        table.caption = f"and {plural(len(places) - MAX_COMPOSITIONS, 'more composition')} in the report"
    return table


def _table(title: str, *columns: str) -> Table:
    """A plain table; numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in columns:
        right = name in ("rank", "eV/atom", "group", "k", "found", "95 % interval", "RMSE")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    return table


def _rates(found: Found) -> Table:
    table = _table("Known crystals found", "method", "first by", "k", "found", "95 % interval", "RMSE")
    for rate in found.rates:
        table.add_row(
            Text(found.methods.get(rate.method, rate.method)),
            Text(rate.order),
            str(rate.k),
            percent(rate.rate),
            rate.interval,
            number(rate.rmse),
        )
    return table
