"""Columns of the crystal schema in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.crystals.schema import COLUMNS

STRUCTURE = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]
"""Columns that make a crystal."""


def set_column(table: pa.Table, name: str, values: Sequence[Any] | np.ndarray) -> pa.Table:
    """``table`` with one column of the crystal schema added or replaced; None and NaN are null."""
    column = pa.array(values, COLUMNS[name].type, from_pandas=True)
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)
