"""Stories, crystals and campaigns on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.crystals.find import find_rows, similar_ids
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import read_about, table_files
from dao_pipeline.errors import UserError
from dao_pipeline.story.story import Chapter

_MOST_ATOMS = 60


def print_story(title: str, chapters: Iterable[Chapter], console: Console | None = None) -> None:
    """Print the chapters of a story: facts with their units, small tables beside them."""
    console = console or Console(highlight=False)
    console.print(Text(title, style="bold"))
    for chapter in chapters:
        console.print(Text(f"\n{chapter.title}", style="bold"))
        if chapter.note:
            console.print(Text(f"  {chapter.note}"))
        print_facts(chapter.facts, console)
        if chapter.rows:
            console.print(_rows(chapter.rows))


def print_facts(facts: Mapping[str, Any], console: Console) -> None:
    """Names and values, a line each, with the units of the crystal table."""
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        column = COLUMNS.get(name.removeprefix("its "))
        unit = column.unit if column and not isinstance(value, str) else ""
        grid.add_row("", Text(name), Text(f"{_shown(value)} {unit}".strip()))
    if facts:
        console.print(grid)


def _rows(rows: list[dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=SIMPLE_HEAD)
    for name in names:
        table.add_column(Text(name), no_wrap=name == "id")
    for row in rows:
        table.add_row(*(Text(_shown(row.get(name))) for name in names))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def show_crystal(path: Path, name: str, console: Console | None = None) -> None:
    """Print all that one row of a table of crystals holds, and the crystal.

    Raises UserError where there is no such row; ids like it are named.
    """
    console = console or Console(highlight=False)
    read_about(path)
    if "id" not in pq.read_schema(table_files(path)[0]).names:
        raise UserError(f"{path}: no column id; this is no table of crystals.")
    found = find_rows(path, "id", name)
    if not found.num_rows:
        near = similar_ids(path, name)
        hint = f"ids like it: {', '.join(near)}" if near else "no id begins so"
        raise UserError(f"{path}: no crystal {name[:80]!r}; {hint}.")
    plain = {n: v for n, v in found.to_pylist()[0].items() if v is not None and not isinstance(v, list)}
    console.print(Text(f"{name} of {path}", style="bold"))
    print_facts(plain, console)
    if "lattice" in found.column_names and found["lattice"].null_count == 0:
        _print_structure(next(from_table(found)), console)


def _print_structure(crystal: Crystal, console: Console) -> None:
    lengths = np.linalg.norm(crystal.lattice, axis=1)
    unit = crystal.lattice / lengths[:, None]
    angles = [np.degrees(np.arccos(np.clip(unit[i] @ unit[j], -1, 1))) for i, j in ((1, 2), (0, 2), (0, 1))]
    console.print("  a b c     " + "  ".join(f"{x:.4f}" for x in lengths) + " angstrom")
    console.print("  angles    " + "  ".join(f"{x:.3f}" for x in angles) + " degrees")
    console.print(f"  volume    {crystal.volume:.3f} angstrom^3")
    for z, place in list(zip(crystal.atomic_numbers, crystal.frac_coords, strict=True))[:_MOST_ATOMS]:
        console.print(f"  {SYMBOLS[z]:2}  " + "  ".join(f"{x:.6f}" for x in place))
    if crystal.num_atoms > _MOST_ATOMS:
        console.print(f"  and {crystal.num_atoms - _MOST_ATOMS} more atoms")


def show_campaign(folder: Path, console: Console | None = None) -> None:
    """Print what there is in a campaign's folder: tables with their rows and stages, models, size on disk.

    Raises UserError for damaged tables.
    """
    console = console or Console(highlight=False)
    table = Table(box=SIMPLE_HEAD, title=f"Campaign {folder}", title_justify="left")
    for name in ("what", "stage", "rows", "files", "MB", "code"):
        table.add_column(name, justify="right" if name in ("rows", "files", "MB") else "left")
    for place in _tables(folder):
        files = table_files(place)
        about = read_about(place)
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        size = sum(file.stat().st_size for file in files) / 1e6
        name = place.relative_to(folder).as_posix() + ("/" if place.is_dir() else "")
        table.add_row(
            name,
            str(about.get("stage", "")),
            f"{rows:,}",
            str(len(files)),
            f"{size:.2f}",
            str(about.get("code_version", "")),
        )
    for weights in sorted(folder.glob("models/**/model.safetensors")):
        place = weights.parent
        table.add_row(f"{place.relative_to(folder)}/", "model", "", "1", f"{weights.stat().st_size / 1e6:.2f}", "")
    console.print(table)
    page = folder / "report" / "index.html"
    if page.is_file():
        console.print(Text(f"Report: {page}"))


def _tables(folder: Path) -> list[Path]:
    """Tables of a campaign: files, and folders of shards as one."""
    found: dict[Path, None] = {}
    for file in sorted(folder.rglob("*.parquet")):
        inside = file.relative_to(folder).parts
        if "models" not in inside and not any(part.startswith(".") for part in inside):
            sharded = file.stem.rpartition("-")[2].isdigit()
            found[file.parent if sharded else file] = None
    return list(found)
