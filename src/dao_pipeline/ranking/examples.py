"""Candidates with known outcome: proposals for known compositions, each compared with what is known of them.

No template of the target's own composition is used, so a proposal is right because it is, not because it was
copied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.flat import structure_columns
from dao_pipeline.parallel import parallel_map
from dao_pipeline.templates.index import TemplateIndex

STRUCTURE = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]


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
    """Candidates of one composition, and the known crystals that they may turn out to be."""

    candidates: list[Crystal]
    known: list[Crystal]
    matcher: Matcher


def compare(task: Task) -> np.ndarray:
    """(candidates, known) float64: displacement of the atoms in units of (V/n)^(1/3); NaN where they do not
    match.
    """
    from dao_pipeline.crystals.matching import Sameness

    same = Sameness(task.matcher)
    known = [same.reduce(crystal) for crystal in task.known]
    made = [same.reduce(crystal) for crystal in task.candidates]
    return np.array([[same.rms(one, other) for other in known] for one in made], dtype=np.float64).reshape(
        len(made), len(known)
    )


def label(
    candidates: pa.Table, targets: pa.Table, others: dict[str, list[Crystal]], matcher: Matcher, workers: int
) -> pa.Table:
    """``candidates`` with rmse and matched against their target, and matched_other against its polymorphs.

    others: further known crystals, by reduced formula.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, target in enumerate(candidates["target_id"].to_pylist()):
        rows[target].append(row)
    made = list(from_table(candidates.select(STRUCTURE)))
    wanted = [crystal for crystal in from_table(targets.select(STRUCTURE)) if crystal.id in rows]
    tasks = [Task([made[row] for row in rows[t.id]], [t, *_others(t, others)], matcher) for t in wanted]
    rmse, other = np.full(len(made), np.nan), np.zeros(len(made), dtype=bool)
    for target, result in zip(wanted, parallel_map(compare, tasks, workers), strict=True):
        rmse[rows[target.id]] = result[:, 0]
        other[rows[target.id]] = np.isfinite(result[:, 1:]).any(1)
    table = candidates.append_column("rmse", pa.array(rmse, from_pandas=True))
    table = table.append_column("matched", pa.array(np.isfinite(rmse)))
    return table.append_column("matched_other", pa.array(other))


def _others(target: Crystal, known: dict[str, list[Crystal]]) -> Sequence[Crystal]:
    return [crystal for crystal in known.get(target.formula, []) if crystal.id != target.id]
