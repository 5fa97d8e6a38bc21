"""What a campaign's folder holds: each table read once, None where its stage has not run.

Absent files are normal (the report describes whatever has run); a file that is there but damaged or without
its columns is an error that names it.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from dao_pipeline.config import STAGE_SETTINGS
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.table import iter_tables, read_about, read_table, table_files
from dao_pipeline.errors import UserError

MODELS = {
    "models/dao_p": "DAO-P (energy)",
    "models/dao_g/stage1": "DAO-G, stage I (stable and unstable)",
    "models/dao_g/stage2": "DAO-G, stage II (relaxed set)",
    "models/dao_g/finetuned": "DAO-G, fine-tuned",
}
"""Model directories of a campaign, in the order in which they are trained."""

_SCREENED = [
    *("id", "composition", "target_id", "sample", "formula", "num_atoms", "lattice", "spacegroup", "status"),
    *("valid", "unique", "group", "group_size", "novel", "rank", "energy_pred", "volume_per_atom"),
    *("origin", "template_id", "structure_type_known"),
    "probability",
]
_RELAXED = [
    *("id", "energy_before", "energy_after", "relax_steps", "displacement", "volume_change", "relax_status"),
]


def read_frame(path: Path, required: tuple[str, ...], columns: list[str] | None = None) -> pd.DataFrame | None:
    """A table (file or folder of shards) as a frame; None if there is none.

    ``columns`` restricts what is read; those that the table lacks are filled with None. Raises UserError for
    a damaged table and for one without a ``required`` column.
    """
    if not path.exists() or (path.is_dir() and not any(path.glob("*.parquet"))):
        return None
    read_about(path)
    names = pq.read_schema(table_files(path)[0]).names
    if missing := [name for name in required if name not in names]:
        raise UserError(f"{path}: columns {', '.join(missing)} are missing. Rerun the stage that writes it.")
    wanted = [name for name in columns if name in names] if columns else None
    frame = read_table(path, wanted).to_pandas()
    for name in columns or []:
        if name not in frame:
            frame[name] = None
    return frame


def count_rows(path: Path) -> int | None:
    """Rows of a table from its metadata; None if there is none."""
    if not path.exists() or (path.is_dir() and not any(path.glob("*.parquet"))):
        return None
    read_about(path)
    return sum(pq.read_metadata(file).num_rows for file in table_files(path))


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON mapping; None if there is none, UserError if it is damaged."""
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not valid JSON ({error}). Delete it and rerun its stage.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping, found {type(values).__name__}. Rerun its stage.")
    return values


@dataclass(frozen=True)
class Model:
    """A trained model: its name, its config.json and its learning curve."""

    name: str
    folder: str
    config: dict[str, Any]
    metrics: pd.DataFrame | None


@dataclass(frozen=True)
class Timing:
    """A stage's jobs together: wall seconds in sum, largest resident memory."""

    stage: str
    jobs: int
    seconds: float
    max_rss: float | None


@dataclass(frozen=True)
class Results:
    """Everything a report is made of."""

    folder: Path
    raw_rows: int | None
    raw_rejected: pd.DataFrame | None
    crysdb_rows: dict[str, int]
    crysdb_rejected: pd.DataFrame | None
    energy_methods: dict[str, int]
    models: list[Model]
    relaxed: pd.DataFrame | None
    planned: int | None
    not_planned: dict[str, str]
    screened: pd.DataFrame | None
    samples: pd.DataFrame | None
    targets: pd.DataFrame | None
    rates: pd.DataFrame | None
    by_distance: pd.DataFrame | None
    validation: pd.DataFrame | None
    dft_candidates: pd.DataFrame | None
    dft_summary: pd.DataFrame | None
    timings: list[Timing]


def load_results(folder: Path) -> Results:
    """Read what there is under results/<campaign>.

    Raises UserError where the folder does not exist or a table in it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Give results/<campaign>, where the stages wrote their tables.")
    crysdb = {
        split: rows
        for split in ("train", "val", "test")
        if (rows := count_rows(folder / "crysdb" / f"{split}.parquet")) is not None
    }
    train = folder / "crysdb" / "train.parquet"
    plan = folder / "candidates" / "plan.parquet"
    key = ("target_id", "composition", "method")
    return Results(
        folder=folder,
        raw_rows=count_rows(folder / "raw"),
        raw_rejected=read_frame(folder / "raw" / "rejected.parquet", ("reason",)),
        crysdb_rows=crysdb,
        crysdb_rejected=read_frame(folder / "crysdb" / "rejected.parquet", ("reason",)),
        energy_methods=(read_about(train).get("energy_methods") or {}) if train.exists() else {},
        models=_models(folder),
        relaxed=read_frame(folder / "relaxed", ("relax_status",), _RELAXED),
        planned=count_rows(plan),
        not_planned=(read_about(plan).get("not_planned") or {}) if plan.exists() else {},
        screened=read_frame(
            folder / "candidates" / "screened.parquet", ("id", "composition", "status", "valid"), _SCREENED
        ),
        samples=read_frame(folder / "evaluation" / "samples.parquet", (*key, "sample", "matched", "rmse")),
        targets=read_frame(folder / "evaluation" / "targets.parquet", (*key, "found", "rmse")),
        rates=read_frame(folder / "evaluation" / "summary.parquet", ("method", "k", "match_rate", "low", "high")),
        by_distance=read_frame(
            folder / "evaluation" / "by_distance.parquet", ("nearest", "k", "match_rate", "low", "high", "n")
        ),
        validation=read_frame(folder / "validation", ("id", "status")),
        dft_candidates=read_frame(folder / "comparison" / "candidates.parquet", ("id", "source", "matched")),
        dft_summary=read_frame(folder / "comparison" / "summary.parquet", ("source", "metric", "value")),
        timings=_timings(folder / "timings"),
    )


def _models(folder: Path) -> list[Model]:
    models = []
    for place, name in MODELS.items():
        config = read_json(folder / place / "config.json")
        metrics = read_frame(folder / place / "metrics.parquet", ("step", "split", "loss"))
        if config is not None or metrics is not None:
            models.append(Model(name, place, config or {}, metrics))
    return models


def _timings(folder: Path) -> list[Timing]:
    """Snakemake's benchmark files in the order of the stages; shards are named <stage>-<numbers>."""
    found: dict[str, list[tuple[float, float | None]]] = {}
    for file in sorted(folder.glob("*.tsv")):
        stage = re.sub(r"(-\d+)+$", "", file.stem)
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, delimiter="\t"):
                try:
                    seconds = float(row["s"])
                except (KeyError, TypeError, ValueError):
                    raise UserError(f"{file}: no benchmark file of Snakemake. Delete it.") from None
                found.setdefault(stage, []).append((seconds, _number(row.get("max_rss"))))
    order = {stage: place for place, stage in enumerate(STAGE_SETTINGS)}
    return [
        Timing(
            stage=stage,
            jobs=len(rows),
            seconds=sum(seconds for seconds, _ in rows),
            max_rss=max((rss for _, rss in rows if rss is not None), default=None),
        )
        for stage, rows in sorted(found.items(), key=lambda item: order.get(item[0], len(order)))
    ]


def _number(text: str | None) -> float | None:
    """A benchmark's number; Snakemake writes '-' or 'NA' where it measured nothing."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def crystals_by_id(path: Path, ids: set[str]) -> dict[str, Crystal]:
    """The crystals with these ids, read in pieces: memory does not grow with the table."""
    found: dict[str, Crystal] = {}
    for piece in iter_tables(path):
        keep = [i for i, name in enumerate(piece["id"].to_pylist()) if name in ids]
        if keep:
            found.update((crystal.id, crystal) for crystal in from_table(piece.take(keep)))
    return found
