"""Rows of a plan with the crystals that were made for them, whatever made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Generate
from dao_pipeline.crystals.crystal import wrap
from dao_pipeline.crystals.geometry import cell_parameters, lattices_from_parameters, volumes
from dao_pipeline.crystals.schema import COLUMNS

NO_TEMPLATE = "no_template"
"""Status of a candidate that was to be made from a template where none is left, and nothing generates freely."""

SMALLEST_VOLUME = 1e-3
"""angstrom^3; a smaller cell is flat."""


def as_candidates(
    rows: pa.Table,
    coords: np.ndarray,
    lattice: np.ndarray,
    settings: Generate,
    columns_of_origin: Mapping[str, Sequence[Any] | np.ndarray | pa.Array] | None = None,
) -> pa.Table:
    """The plan's rows with their crystals: coords (N, 3), lattice (rows, 3, 3) in angstrom.

    Cells are rebuilt from lengths and angles. A crystal that is not finite has status ``not_finite`` and no
    coordinates; a cell without volume has status ``flat_cell``. They are generated freely, unless
    ``columns_of_origin`` say otherwise.
    """
    counts = rows["num_atoms"].to_numpy().astype(np.int64)
    number = len(counts)
    crystal = np.repeat(np.arange(number), counts)
    with np.errstate(all="ignore"):  # what is not finite is sorted out below
        volume = volumes(lattice)
        finite = np.isfinite(volume) & np.isfinite(lattice).all((1, 2))
        finite[crystal[~np.isfinite(coords).all(1)]] = False
        cells = lattices_from_parameters(cell_parameters(lattice))
        sound = finite & (volume >= SMALLEST_VOLUME) & np.isfinite(cells).all((1, 2))
    made: dict[str, Any] = {
        "frac_coords": _lists(wrap(coords[sound[crystal]]).ravel(), np.where(sound, 3 * counts, 0), sound),
        "lattice": pa.FixedSizeListArray.from_arrays(
            pa.array(np.where(sound[:, None, None], cells, 0.0).ravel()), 9, mask=pa.array(~sound)
        ),
        "source": pa.repeat("dao_g", number),
        "status": np.select([~finite, ~sound], ["not_finite", "flat_cell"], "ok"),
        "guidance_scale": np.full(number, settings.guidance_scale),
        "origin": pa.repeat("generated", number),
        "template_id": pa.nulls(number),
        "template_distance": pa.nulls(number),
    }
    return set_columns(rows, {**made, **(columns_of_origin or {})})


def without_crystals(
    rows: pa.Table, settings: Generate, status: str, columns_of_origin: Mapping[str, Sequence[Any]] | None = None
) -> pa.Table:
    """The plan's rows without crystals, for a reason."""
    atoms = int(rows["num_atoms"].to_numpy().sum())
    nothing = np.full((atoms, 3), np.nan), np.full((rows.num_rows, 3, 3), np.nan)
    columns = {**(columns_of_origin or {}), "status": pa.repeat(status, rows.num_rows)}
    return as_candidates(rows, *nothing, settings, columns)


def without_template(rows: pa.Table, settings: Generate) -> pa.Table:
    """The plan's rows where there is no template, in a campaign without DAO-G."""
    count = rows.num_rows
    origin: dict[str, Sequence[Any]] = {
        "source": ["template"] * count,
        "origin": [None] * count,
        "guidance_scale": [None] * count,
    }
    return without_crystals(rows, settings, NO_TEMPLATE, origin)


def set_columns(rows: pa.Table, columns: Mapping[str, Sequence[Any] | np.ndarray | pa.Array]) -> pa.Table:
    """``rows`` with columns of the crystal schema added or replaced."""
    for name, values in columns.items():
        given = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        column = given.cast(COLUMNS[name].type)
        place = rows.schema.get_field_index(name)
        rows = rows.append_column(name, column) if place < 0 else rows.set_column(place, name, column)
    return rows


def _lists(values: np.ndarray, lengths: np.ndarray, present: np.ndarray) -> pa.Array:
    """A list column of so many values in each row, null where a row is not ``present``."""
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values), mask=pa.array(~present))
