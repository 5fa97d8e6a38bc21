"""A second model's opinion: CHGNet's energy of the best candidates of each composition, and its relaxation of
them.

Crystals are taken in small pieces, each kept in the work folder under a hash of its crystals, settings and code:
an interruption loses one piece, and a rerun takes the others.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Matcher, Screen
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.parallel import parallel_map
from dao_pipeline.screening.columns import STRUCTURE, set_column
from dao_pipeline.stage_code import modules_hash

_CRYSTALS = 16
"""Crystals per piece."""

_SAME = Matcher()
"""Whether the relaxed crystal is still the candidate: by the tolerances of the match rates."""

_JUDGES = ("dao_pipeline.screening.second_model", "dao_pipeline.sources.chgnet_labels")
"""Modules whose code decides what a piece holds."""

_FOUND = (
    "energy_second",
    "energy_second_relaxed",
    "second_status",
    "relaxed_frac_coords",
    "relaxed_lattice",
    "relaxed_rmse",
)
"""Columns that come from one crystal alone."""


def add_second_model(table: pa.Table, settings: Screen, workers: int, work: Path | None) -> pa.Table:
    """Add the second model's columns: values for the candidates of rank up to ``second_model.top_k``, else null.

    work: folder for finished pieces; None: nothing is kept. ``compare`` must have been before.
    """
    asked = settings.second_model
    rows = np.flatnonzero(np.asarray(pc.fill_null(pc.less_equal(table["rank"], asked.top_k), False)))
    crystals = list(from_table(table.select(STRUCTURE).take(pa.array(rows))))
    outcomes = evaluate(crystals, asked.relax_steps, workers, work)
    for name in _FOUND:
        values: list[Any] = [None] * table.num_rows
        for row, outcome in zip(rows.tolist(), outcomes, strict=True):
            values[row] = outcome[name]
        table = set_column(table, name, values)
    return set_column(table, "energy_disagreement", disagreement(table))


def disagreement(table: pa.Table) -> list[float | None]:
    """DAO-P's energy minus the second model's, eV/atom, less the mean of that over the siblings that both judge.

    The two are not comparable as they are: one is a formation energy or a distance from a hull, the other a total
    energy. They differ by what the composition alone decides, its elements or its phases as reference. Siblings
    have one composition, so that cancels. Positive: DAO-P thinks less of this candidate than the second model
    does. None where fewer than two siblings have both.
    """
    ours, theirs = table["energy_pred"].to_pylist(), table["energy_second"].to_pylist()
    siblings: dict[str, list[int]] = defaultdict(list)
    for row, composition in enumerate(table["composition"].to_pylist()):
        if ours[row] is not None and theirs[row] is not None:
            siblings[composition].append(row)
    found: list[float | None] = [None] * len(ours)
    for rows in siblings.values():
        if len(rows) > 1:
            difference = np.array([ours[row] - theirs[row] for row in rows])
            for row, value in zip(rows, (difference - difference.mean()).tolist(), strict=True):
                found[row] = value
    return found


def method() -> str:
    """Name of the second model, with the version of its package: what its energies belong to.

    Raises UserError where it is not installed.
    """
    if find_spec("chgnet") is None:
        raise UserError(
            "screen.second_model.model = chgnet: CHGNet is not installed; pip install 'dao-pipeline[chgnet]', or "
            "set it to none."
        )
    return f"CHGNet {version('chgnet')}"


def evaluate(
    crystals: Sequence[Crystal], relax_steps: int, workers: int, work: Path | None
) -> list[dict[str, Any]]:
    """What CHGNet says about crystals, as values of the columns of screening: energies (eV/atom) as they are, and
    relaxed if ``relax_steps`` is not 0."""
    # neighbours in size share a pass
    order = sorted(range(len(crystals)), key=lambda i: (crystals[i].num_atoms, i))
    pieces = [order[i : i + _CRYSTALS] for i in range(0, len(order), _CRYSTALS)]
    tasks = [([crystals[i] for i in piece], relax_steps, work) for piece in pieces]
    outcomes: list[dict[str, Any]] = [{} for _ in crystals]
    for piece, found in zip(pieces, parallel_map(_piece, tasks, workers), strict=True):
        for i, outcome in zip(piece, found, strict=True):
            outcomes[i] = outcome
    return outcomes


def _piece(task: tuple[list[Crystal], int, Path | None]) -> list[dict[str, Any]]:
    """One piece, from the work folder if it is there."""
    crystals, relax_steps, work = task
    named = method()
    if work is None:
        return _judge(crystals, relax_steps)
    file = work / f"second-{_identity(crystals, relax_steps, named)}.parquet"
    if file.exists():
        return list(read_table(file).select(_FOUND).to_pylist())
    found = _judge(crystals, relax_steps)
    schema = pa.schema([(name, COLUMNS[name].type) for name in _FOUND])
    write_table(pa.Table.from_pylist(found, schema=schema), file, {"stage": "second_model", "method": named})
    return found


def _identity(crystals: Sequence[Crystal], relax_steps: int, named: str) -> str:
    from dao_pipeline.sources.chgnet_labels import RelaxSettings

    how = [named, asdict(RelaxSettings(steps=relax_steps)), modules_hash(_JUDGES)]
    digest = hashlib.sha256(json.dumps(how).encode())
    for crystal in crystals:
        for array in (crystal.atomic_numbers, crystal.frac_coords, crystal.lattice):
            digest.update(np.ascontiguousarray(array, dtype=np.float64).tobytes())
    return digest.hexdigest()[:16]


def _judge(crystals: Sequence[Crystal], relax_steps: int) -> list[dict[str, Any]]:
    from dao_pipeline.sources.chgnet_labels import Labeller, Relaxation, RelaxSettings

    labeller = Labeller(RelaxSettings(steps=relax_steps))
    found: list[dict[str, Any]] = []
    for energy in labeller.energies(crystals):
        known = isfinite(energy)
        outcome: dict[str, Any] = dict.fromkeys(_FOUND)
        outcome["energy_second"] = energy if known else None
        outcome["second_status"] = "ok" if known else "no_neighbours"
        found.append(outcome)
    if relax_steps:
        # by place, for they come as they end
        known_ones = [replace(c, id=str(i)) for i, c in enumerate(crystals) if found[i]["second_status"] == "ok"]
        relaxation: Relaxation
        for relaxation in labeller.relax(known_ones):
            i = int(relaxation.crystal.id)
            found[i] |= _relaxed(crystals[i], relaxation.crystal, relaxation.energy, relaxation.reason)
    return found


def _relaxed(crystal: Crystal, relaxed: Crystal, energy: float, reason: str) -> dict[str, Any]:
    """Columns of a relaxation that ended for some reason, '' being success."""
    from dao_pipeline.crystals.matching import Sameness

    if reason not in ("", "not converged"):
        return {"second_status": reason.replace(" ", "_")}
    same = Sameness(_SAME)
    rmse = same.rms(same.reduce(crystal), same.reduce(relaxed))
    return {
        "second_status": reason.replace(" ", "_") or "ok",
        "energy_second_relaxed": energy,
        "relaxed_frac_coords": relaxed.frac_coords.ravel().tolist(),
        "relaxed_lattice": relaxed.lattice.ravel().tolist(),
        "relaxed_rmse": rmse if isfinite(rmse) else None,
    }
