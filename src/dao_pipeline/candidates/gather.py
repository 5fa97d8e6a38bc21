"""The candidates of a shard against its plan: every planned candidate exactly once, and no other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.candidates.plan import PLAN_COLUMNS, shard_file
from dao_pipeline.crystals.flat import list_lengths
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import read_table
from dao_pipeline.errors import UserError

GENERATED_COLUMNS = ("id", "source", "composition", "sample", "status", "frac_coords", "lattice", "atomic_numbers")
"""Columns that a shard must have."""


def read_plan(files: Sequence[Path]) -> pa.Table:
    """The rows of several plans in order of composition, then sample."""
    plan = pa.concat_tables([read_table(file, PLAN_COLUMNS) for file in files])
    number = np.array([int(name.split(":")[1]) for name in plan["id"].to_pylist()], dtype=np.int64)
    return plan.take(np.lexsort((plan["sample"].to_numpy(), number)))


def gather_shard(plan: pa.Table, generated: Sequence[Path]) -> pa.Table:
    """All candidates in the files ``generated``, in the order of the plan.

    Raises UserError, naming files, candidates and remedy, for missing, repeated and foreign rows and for rows
    that belong to another plan (composition or atoms differ).
    """
    names: dict[str, str] = {}
    tables = []
    planned = set(plan["id"].to_pylist())
    for file in generated:
        table = read_table(file)
        if absent := [name for name in GENERATED_COLUMNS if name not in table.column_names]:
            raise UserError(f"{file}: columns {', '.join(absent)} are missing. Rerun generate_candidates.")
        for candidate in table["id"].to_pylist():
            if candidate not in planned:
                raise UserError(
                    f"{file}: {candidate} is not in the plan. Delete this file if an earlier plan left it, "
                    "else rerun generate_candidates."
                )
            if candidate in names:
                other = "twice in this file" if names[candidate] == file.name else f"also in {names[candidate]}"
                raise UserError(f"{file}: {candidate} is {other}. Delete the file that is not from this plan.")
            names[candidate] = file.name
        tables.append(table)
    _refuse_missing(plan, set(names))
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    order = pc.index_in(plan["id"], value_set=table["id"])
    table = table.take(order)
    _refuse_other_plan(plan, table, names)
    return _complete(plan, table)


def _refuse_missing(plan: pa.Table, found: set[str]) -> None:
    missing = plan.filter(pc.invert(pc.is_in(plan["id"], value_set=pa.array(sorted(found), pa.string()))))
    if missing.num_rows:
        places = zip(missing["shard"].to_pylist(), missing["round"].to_pylist(), strict=True)
        files = ", ".join(shard_file(*place) for place in dict.fromkeys(places))
        raise UserError(
            f"{missing.num_rows} of {plan.num_rows} candidates are missing, e.g. {missing['id'][0].as_py()}. "
            f"Rerun generate_candidates for {files}."
        )


def _refuse_other_plan(plan: pa.Table, table: pa.Table, names: dict[str, str]) -> None:
    """Ids are numbers, so shards of another plan can carry the right ids: what they stand for must agree."""
    same = np.asarray(pc.fill_null(pc.equal(plan["composition"], table["composition"]), False)).copy()
    pairs = zip(plan["atomic_numbers"].to_pylist(), table["atomic_numbers"].to_pylist(), strict=True)
    for i, (asked, got) in enumerate(pairs):
        same[i] &= got is None or sorted(asked) == sorted(got)
    if not same.all():
        row = int(np.flatnonzero(~same)[0])
        candidate = plan["id"][row].as_py()
        raise UserError(
            f"{names[candidate]}: {candidate} was generated for another plan "
            f"({table['composition'][row].as_py()}; this one says {plan['composition'][row].as_py()}). "
            "Rerun generate_candidates."
        )


def _complete(plan: pa.Table, table: pa.Table) -> pa.Table:
    """Identity from the plan, structure from the shards; rows without a usable crystal have nulls there."""
    usable = _usable(table)
    numbers: list[Any] = plan["atomic_numbers"].to_pylist()
    for i, got in enumerate(table["atomic_numbers"].to_pylist()):
        if usable[i]:
            numbers[i] = got
    status = [
        text if text != "ok" or ok else "not_finite"
        for text, ok in zip(table["status"].to_pylist(), usable, strict=True)
    ]
    fixed = {
        **{name: plan[name] for name in PLAN_COLUMNS if name != "origin"},
        "atomic_numbers": pa.array(numbers, COLUMNS["atomic_numbers"].type),
        "status": pa.array(status, COLUMNS["status"].type),
    }
    for name in ("frac_coords", "lattice"):
        null = pa.scalar(None, COLUMNS[name].type)
        fixed[name] = pc.if_else(pa.array(usable), table[name].cast(COLUMNS[name].type), null)
    for name in table.column_names:
        fixed.setdefault(name, table[name].cast(COLUMNS[name].type) if name in COLUMNS else table[name])
    order = [name for name in COLUMNS if name in fixed] + [name for name in fixed if name not in COLUMNS]
    return pa.table({name: fixed[name] for name in order})


def _usable(table: pa.Table) -> np.ndarray:
    """(rows,) bool: generated, complete and finite, with a cell that has a volume."""
    usable = np.asarray(pc.fill_null(pc.equal(table["status"], "ok"), False)).copy()
    atoms = list_lengths(table["atomic_numbers"])
    usable &= (atoms > 0) & (list_lengths(table["frac_coords"]) == 3 * atoms)
    usable &= np.asarray(pc.is_valid(table["lattice"]))
    for i in np.flatnonzero(usable):
        lattice = np.asarray(table["lattice"][i].as_py(), dtype=np.float64).reshape(3, 3)
        coords = np.asarray(table["frac_coords"][i].as_py(), dtype=np.float64)
        usable[i] = np.isfinite(coords).all() and np.isfinite(lattice).all() and abs(np.linalg.det(lattice)) > 1e-6
    return usable
