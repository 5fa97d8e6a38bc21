"""What a file says about itself: provenance and a summary of tables, shard folders and model directories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import read_about, read_table, table_files
from dao_pipeline.errors import UserError

_MOST = 6
"""Values of a text column that are counted by name; more are only counted."""


def show(file: Path, rows: int = 10, console: Console | None = None) -> None:
    """Print the provenance of a table, shard folder or model directory, a summary, and the first ``rows`` rows.

    Raises UserError for anything else.
    """
    console = console or Console(highlight=False)
    if (file / "config.json").is_file():
        _show_model(file, rows, console)
    else:
        _show_table(file, rows, console)


def _show_model(folder: Path, rows: int, console: Console) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: not valid JSON ({error}). Rerun the stage.") from error
    weights = folder / "model.safetensors"
    size = f"{weights.stat().st_size / 1e6:.1f} MB" if weights.is_file() else "missing"
    console.print(Text(f"Model {folder}"), _pairs({"model.safetensors": size} | _flat(config)))
    if (folder / "metrics.parquet").is_file():
        metrics = read_table(folder / "metrics.parquet")
        console.print(f"Last {rows} rows of metrics", _rows(metrics.slice(max(0, metrics.num_rows - rows))))


def _show_table(file: Path, rows: int, console: Console) -> None:
    about = read_about(file)
    table = read_table(file)
    files = table_files(file)
    title = str(file) if len(files) == 1 else f"{file} ({len(files)} shards; provenance of the first)"
    if about:
        console.print(Text(title), _pairs(_flat(about)))
    else:
        console.print(Text(f"{title}: no provenance; not written by dao-pipeline"))
    console.print(f"{table.num_rows} rows", _summary(table))
    if rows and table.num_rows:
        console.print(f"First {min(rows, table.num_rows)} rows", _rows(table.slice(0, rows)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _pairs(values: Mapping[str, str]) -> Table:
    table = Table("key", "value", box=SIMPLE)
    for key, value in values.items():
        table.add_row(Text(key), Text(value))
    return table


def _summary(table: pa.Table) -> Table:
    """One line per column: unit, how many values are known, and what they are."""
    summary = Table(box=SIMPLE)
    for name in ("column", "unit", "known", "values", "meaning"):
        summary.add_column(name)
    for name in table.column_names:
        column = table[name]
        known = COLUMNS.get(name)
        cells = (
            name,
            known.unit if known else "",
            str(table.num_rows - column.null_count),
            _values(column),
            known.meaning if known else "",
        )
        summary.add_row(*(Text(cell) for cell in cells))
    return summary


def _values(column: pa.ChunkedArray) -> str:
    """Range and mean of numbers, the most frequent texts, lengths of lists."""
    kind = column.type
    if len(column) == column.null_count:
        return ""
    if pa.types.is_boolean(kind):
        return f"{pc.sum(column).as_py()} true"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        ends = pc.min_max(column).as_py()
        return f"{ends['min']:.4g} to {ends['max']:.4g}, mean {pc.mean(column).as_py():.4g}"
    if pa.types.is_list(kind):
        ends = pc.min_max(pc.list_value_length(column)).as_py()
        return f"{ends['min']} to {ends['max']} values each"
    if pa.types.is_string(kind):
        counts = column.drop_null().value_counts().to_pylist()
        if len(counts) > _MOST:
            return f"{len(counts)} different"
        counts.sort(key=lambda count: -count["counts"])
        return ", ".join(f"{count['values']} ({count['counts']})" for count in counts)
    return ""


def _rows(table: pa.Table) -> Table:
    """The rows of a table, its list columns and columns without values left out."""
    names = [
        name
        for name in table.column_names
        if not pa.types.is_nested(table[name].type) and table[name].null_count < table.num_rows
    ]
    shown = Table(box=SIMPLE)
    for name in names:
        shown.add_column(Text(name), no_wrap=name == "id")  # to be copied, so not to be cut
    for row in table.select(names).to_pylist():
        shown.add_row(*(Text(_cell(row[name])) for name in names))
    return shown


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
