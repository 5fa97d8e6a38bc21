"""Candidates with known outcome: proposals for known compositions, each compared with what is known of them.

No template of the target's own composition is used, so a proposal is right because it is, not because it was
copied.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.flat import structure_columns
from dao_pipeline.crystals.table import is_finished, read_table, write_table
from dao_pipeline.errors import ContinueLater
from dao_pipeline.interrupt import Interruptible
from dao_pipeline.parallel import parallel_stream
from dao_pipeline.templates.index import TemplateIndex

STRUCTURE = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]

PART = 50
"""Targets whose labels are lost at most when the stage is killed."""


def propose(index: TemplateIndex, targets: pa.Table, k: int) -> pa.Table:
    """Up to ``k`` proposals for the cell of each target, as candidates: a crystal table with target_id.

    Templates with the target's composition are left out. ``sample`` is the proposal's place, from 0, and
    ``template_share`` its share of the index's votes.
    """
    cells = [np.asarray(numbers.values, dtype=np.int64) for numbers in targets["atomic_numbers"]]
    found = index.propose(cells, k, exclude="composition")
    names, formulas = targets["id"].to_pylist(), targets["formula"].to_pylist()
    of = found.composition.tolist()
    columns = structure_columns(found.crystals, [formulas[i] for i in of])
    return pa.table(
        {
            "id": pa.array([f"{names[i]}:{n}" for i, n in zip(of, found.rank.tolist(), strict=True)], pa.string()),
            "source": pa.array(["template"] * len(of), pa.string()),
            **columns,
            "composition": pa.array([names[i] for i in of], pa.string()),
            "target_id": pa.array([names[i] for i in of], pa.string()),
            "sample": pa.array(found.rank, pa.int32()),
            "template_id": pa.array(found.template_id.tolist(), pa.string()),
            "template_distance": pa.array(found.distance, pa.float64()),
            "template_share": pa.array(found.probability, pa.float64()),
        }
    )


@dataclass(frozen=True)
class Task:
    """Candidates of one composition, and the known crystal that they may turn out to be."""

    candidates: list[Crystal]
    known: Crystal
    matcher: Matcher


def compare(task: Task) -> np.ndarray:
    """(candidates,) float64: displacement of the atoms in units of (V/n)^(1/3); NaN where they do not match."""
    from dao_pipeline.crystals.matching import Sameness

    same = Sameness(task.matcher)
    known = same.reduce(task.known)
    return np.array([same.rms(same.reduce(crystal), known) for crystal in task.candidates], dtype=np.float64)


def label(
    candidates: pa.Table, targets: pa.Table, matcher: Matcher, workers: int, work: Path | None = None
) -> pa.Table:
    """``candidates`` with rmse and matched against their target.

    work: a folder for the outcomes of each ``PART`` targets; those of an earlier call with the same candidates are
    taken from there. Raises ContinueLater after the part at hand, if the process is asked to stop.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, target in enumerate(candidates["target_id"].to_pylist()):
        rows[target].append(row)
    made = list(from_table(candidates.select(STRUCTURE)))
    wanted = [crystal for crystal in from_table(targets.select(STRUCTURE)) if crystal.id in rows]
    tasks = [Task([made[row] for row in rows[known.id]], known, matcher) for known in wanted]
    rmse = np.full(len(made), np.nan)
    for task, result in zip(tasks, _outcomes(tasks, workers, work), strict=True):
        rmse[rows[task.known.id]] = result
    table = candidates.append_column("rmse", pa.array(rmse, from_pandas=True))
    return table.append_column("matched", pa.array(np.isfinite(rmse)))


def _outcomes(tasks: Sequence[Task], workers: int, work: Path | None) -> Iterator[np.ndarray]:
    """``compare`` of each task, in order; in parts, of which those that are in ``work`` are read from there."""
    if work is None:
        yield from parallel_stream(compare, tasks, workers)
        return
    parts = [list(tasks[i : i + PART]) for i in range(0, len(tasks), PART)]
    files = [work / f"labels-{number:05d}.parquet" for number in range(len(parts))]
    identities = [{"digest": _digest(part)} for part in parts]
    done = [is_finished(file, identity) for file, identity in zip(files, identities, strict=True)]
    waiting = [task for part, old in zip(parts, done, strict=True) if not old for task in part]
    fresh = parallel_stream(compare, waiting, workers)
    with Interruptible() as interrupt, closing(fresh):
        for part, file, identity, old in zip(parts, files, identities, done, strict=True):
            if not old:
                if interrupt.requested:
                    raise ContinueLater(f"labels before {file.name} are in {work}")
                column = pa.array([next(fresh).tolist() for _ in part], pa.list_(pa.float64()))
                write_table(pa.table({"rmse": column}), file, {"identity": identity})
            for values in read_table(file)["rmse"].to_pylist():
                yield np.array(values, dtype=np.float64)


def _digest(part: Sequence[Task]) -> str:
    """Hash of all that the outcomes of a part depend on."""
    digest = hashlib.sha256()
    for task in part:
        digest.update(task.matcher.model_dump_json().encode())
        for crystal in (task.known, *task.candidates):
            digest.update(crystal.id.encode())
            for array in (crystal.atomic_numbers, crystal.frac_coords, crystal.lattice):
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
