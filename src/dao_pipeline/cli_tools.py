"""Commands beside the stages: looking ahead, looking into results, taking crystals out of them.

They are no part of any rule; ``cli`` registers them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dao_pipeline.config.read import load_campaign

ResultsDir = Annotated[Path, typer.Option("--results", help="folder of all campaigns' results")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]


def plan(
    campaign: Annotated[Path, typer.Argument(help="campaign file (YAML)")],
    results: ResultsDir = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Say what a campaign will take before anything runs: jobs, candidates, hours, disk, what is infeasible.

    Ends with 1 if the campaign cannot start or has nothing to predict.
    """
    from dao_pipeline.forecast.forecast import forecast
    from dao_pipeline.forecast.text import print_forecast

    found = forecast(load_campaign(campaign), str(campaign), results)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        print_forecast(found)
    if not found.sound:
        raise typer.Exit(1)


def export(
    source: Annotated[Path, typer.Argument(help="folder of a campaign, or a table of crystals")],
    out: Annotated[
        Path, typer.Option("--out", help="NAME.extxyz (one file), NAME.zip (CIFs), or a new folder (CIFs)")
    ],
    top: Annotated[
        int | None,
        typer.Option(min=1, help="the best so many of each composition [default: 5, or all where a condition is]"),
    ] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="this crystal; may be repeated")] = None,
    composition: Annotated[
        list[str] | None, typer.Option(help="as asked for, or a reduced formula; may be repeated")
    ] = None,
    system: Annotated[list[str] | None, typer.Option(help="Li-Fe-O, alkali-*-O, ...; may be repeated")] = None,
    condition: Annotated[
        str | None, typer.Option("--where", help='e.g. "energy_pred < -1 and spacegroup == 225"')
    ] = None,
) -> None:
    """Write crystals as CIF or extended XYZ, with ids, energies and provenance inside.

    All conditions must hold. Ids, compositions and systems that are repeated add up.
    """
    from dao_pipeline.candidates.export_selected import export as run
    from dao_pipeline.candidates.select import Selection, candidates_of

    narrowed = ids or condition or composition or system
    if top is None and not narrowed and candidates_of(source) != source:
        top = _BEST
    chosen = Selection(tuple(ids or ()), tuple(composition or ()), tuple(system or ()), top, condition)
    typer.echo(f"wrote {run(source, chosen, out)} crystals to {out}")


def show(
    file: Annotated[Path, typer.Argument(help="table, shard folder, model directory or folder of a campaign")],
    rows: Annotated[int, typer.Option(min=0, help="rows to print")] = 10,
    name: Annotated[str | None, typer.Option("--id", help="print this crystal")] = None,
) -> None:
    """Print a table's provenance and a summary of its columns, what a campaign's folder holds, or a crystal."""
    from dao_pipeline.candidates.select import candidates_of
    from dao_pipeline.crystals.show import show as run
    from dao_pipeline.story.text import show_campaign, show_crystal

    if name is not None:
        show_crystal(candidates_of(file), name)
    elif file.is_dir() and (file / "config.yaml").is_file():
        show_campaign(file)
    else:
        run(file, rows)


def explain(
    candidate: Annotated[str, typer.Argument(help="id of a candidate, e.g. cand:0:3")],
    campaign: Annotated[str, typer.Option("--campaign", help="name under results/, or the folder of a campaign")],
    results: ResultsDir = Path("results"),
    as_json: AsJson = False,
) -> None:
    """Tell the story of one candidate over all stages, from the campaign's tables."""
    from dao_pipeline.story.story import story, to_dict
    from dao_pipeline.story.text import print_story

    folder = Path(campaign) if Path(campaign).is_dir() else results / campaign
    chapters = story(folder, candidate)
    if as_json:
        typer.echo(json.dumps({"id": candidate, "folder": str(folder), "chapters": to_dict(chapters)}, indent=2))
    else:
        print_story(f"{candidate} of {folder}", chapters)


_BEST = 5
"""Candidates of each composition that are exported where nothing else is said."""

TOOLS = (plan, show, explain, export)
"""In the order in which ``--help`` lists them."""
