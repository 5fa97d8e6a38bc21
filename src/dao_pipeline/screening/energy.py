"""What DAO-P and the ranker say about candidates."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import numpy as np
import pyarrow as pa

from dao_pipeline.screening.columns import set_column


def add_energies(table: pa.Table, energy_model: Path, batch_atoms: int) -> pa.Table:
    """Add energy_pred, and energy_std_pred where DAO-P has members; null where there is no crystal."""
    from dao_pipeline.energy.predict import predict_with_std

    energies, std = predict_with_std(energy_model, table, batch_atoms=batch_atoms)
    table = set_column(table, "energy_pred", [float(e) if isfinite(e) else None for e in energies])
    if std is not None:
        table = set_column(table, "energy_std_pred", [float(s) if isfinite(s) else None for s in std])
    return table


def predict_probabilities(ranker: Path, table: pa.Table, workers: int) -> list[float | None]:
    """Probability of being the ground state of each valid candidate, energies predicted; None for the others."""
    from dao_pipeline.ranking.files import load_ranker

    valid = np.flatnonzero(np.asarray(table["valid"]))
    sound = table.take(pa.array(valid))
    found = load_ranker(ranker).probabilities(sound, sound["composition"].to_pylist(), workers)
    probabilities: list[float | None] = [None] * table.num_rows
    for row, probability in zip(valid.tolist(), found.tolist(), strict=True):
        probabilities[row] = probability
    return probabilities
