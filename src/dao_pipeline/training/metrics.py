"""The training curve as a table beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

METRICS = pa.schema(
    [("stage", pa.string()), ("step", pa.int32()), ("split", pa.string())]
    + [
        (name, pa.float64())
        for name in (
            "loss",
            "loss_lattice",
            "loss_coords",
            "loss_energy",
            "loss_template_lattice",
            "loss_template_coords",
            "energy_mae",
            "learning_rate",
            "grad_norm",
            "skipped",
            "chunk_atoms",
            "crystals_per_second",
            "atoms_per_second",
            "memory_mb",
            "gpu_memory_mb",
            "seconds",
        )
    ]
)
"""Columns of metrics.parquet: losses are means since the record before; energy_mae is in the label's unit.

grad_norm: mean norm before clipping. skipped: steps without an update so far. chunk_atoms: atoms that a process
computes at once. Crystals and atoms per second are of all processes together, memory that of the largest.
"""


def metrics_table(stage: str, records: Sequence[dict[str, Any]]) -> pa.Table:
    """Records of the training loop as a table; absent values are null."""
    return pa.Table.from_pylist([{**record, "stage": stage} for record in records], schema=METRICS)
