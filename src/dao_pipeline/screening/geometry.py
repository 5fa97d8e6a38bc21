"""Is a candidate possible at all: smallest distance and volume per atom."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Screen
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import shortest_distances, volumes
from dao_pipeline.screening.columns import set_column


def check_geometry(table: pa.Table, settings: Screen) -> pa.Table:
    """Add min_distance, volume_per_atom and valid; name in status what is wrong with an invalid crystal."""
    exists = np.asarray(pc.is_valid(table["lattice"]))
    flat = flatten(table.filter(pa.array(exists)))
    distance, volume = np.full(table.num_rows, np.nan), np.full(table.num_rows, np.nan)
    distance[exists] = shortest_distances(flat)
    volume[exists] = volumes(flat.lattice) / flat.counts
    close = ~(distance >= settings.min_distance)
    dense, empty = ~(volume >= settings.min_volume_per_atom), ~(volume <= settings.max_volume_per_atom)
    valid = exists & ~close & ~dense & ~empty
    status = np.array(table["status"].to_pylist(), dtype=object)
    status[exists & empty] = "too_empty"
    status[exists & dense] = "too_dense"
    status[exists & close] = "atoms_too_close"
    table = set_column(table, "status", status.tolist())
    table = set_column(table, "min_distance", distance)
    table = set_column(table, "volume_per_atom", volume)
    return set_column(table, "valid", valid)
