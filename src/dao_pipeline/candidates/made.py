"""Rows of a plan with the crystals that were made for them, whatever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Generate
from dao_pipeline.crystals.flat import FlatCrystals, list_values, structure_columns
from dao_pipeline.crystals.geometry import cell_parameters, lattices_from_parameters
from dao_pipeline.crystals.schema import COLUMNS

NO_TEMPLATE = "no_template"
"""Status of a candidate that was to be made from a template where none is left, and nothing generates freely."""


def as_candidates(
    rows: pa.Table,
    coords: np.ndarray,
    lattice: np.ndarray,
    settings: Generate,
    columns_of_origin: Mapping[str, Sequence[Any]] | None = None,
) -> pa.Table:
    """The plan's rows with their crystals: coords (N, 3), lattice (rows, 3, 3) in angstrom.

    Cells are rebuilt from lengths and angles. A crystal that is not finite has status ``not_finite`` and no
    coordinates; a cell without volume has status ``flat_cell``. They are generated freely, unless
    ``columns_of_origin`` say otherwise.
    """
    counts = rows["num_atoms"].to_numpy().astype(np.int64)
    crystal = np.repeat(np.arange(len(counts)), counts)
    finite = np.isfinite(lattice).all((1, 2))
    finite[crystal[~np.isfinite(coords).all(1)]] = False
    volume = np.abs(np.linalg.det(np.where(finite[:, None, None], lattice, 0.0)))
    flat_cell = finite & (volume < 1e-3)
    sound = finite & ~flat_cell
    status = np.select([~finite, flat_cell], ["not_finite", "flat_cell"], "ok")
    cells = np.tile(np.eye(3), (len(counts), 1, 1))
    cells[sound] = lattices_from_parameters(cell_parameters(lattice[sound]))
    crystals = FlatCrystals(
        numbers=list_values(rows["atomic_numbers"]).astype(np.int64),
        frac=np.where(sound[crystal][:, None], coords, 0.0),
        lattice=cells,
        counts=counts,
    )
    columns = structure_columns(crystals, rows["formula"].to_pylist())
    absent = pa.array(~sound)
    for name in ("frac_coords", "lattice"):
        rows = rows.append_column(
            name, pc.if_else(absent, pa.nulls(len(counts), columns[name].type), columns[name])
        )
    made = {
        "source": ["dao_g"] * len(counts),
        "status": status.tolist(),
        "guidance_scale": [settings.guidance_scale] * len(counts),
        "origin": ["generated"] * len(counts),
        "template_id": [None] * len(counts),
        "template_distance": [None] * len(counts),
    }
    return set_columns(rows, {**made, **(columns_of_origin or {})})


def without_crystals(rows: pa.Table) -> pa.Table:
    """The plan's rows where there is no template, in a campaign without DAO-G: each with that status."""
    for name in ("frac_coords", "lattice"):
        rows = rows.append_column(name, pa.nulls(rows.num_rows, COLUMNS[name].type))
    values = {"source": "template", "status": NO_TEMPLATE}
    columns = ("source", "status", "guidance_scale", "origin", "template_id", "template_distance")
    return set_columns(rows, {name: [values.get(name)] * rows.num_rows for name in columns})


def set_columns(rows: pa.Table, columns: Mapping[str, Sequence[Any] | pa.Array]) -> pa.Table:
    """``rows`` with columns of the crystal schema added or replaced."""
    for name, values in columns.items():
        column = pa.array(values, COLUMNS[name].type)
        place = rows.schema.get_field_index(name)
        rows = rows.append_column(name, column) if place < 0 else rows.set_column(place, name, column)
    return rows
