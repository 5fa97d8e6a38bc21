"""What the composition alone says about an energy: one energy per element, fitted on known crystals."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.volume import NUM_ELEMENTS, element_counts


def fit_element_energies(table: pa.Table, label: str, ridge: float = 2.0) -> np.ndarray:
    """Energies per element, (101,) float64 in eV/atom, whose mean over a crystal's atoms is near its label.

    Ridge regression on the shares of the elements, towards the mean label: an element that occurs rarely or never
    keeps a sensible value. ``ridge`` is the weight of that prior in crystals.
    """
    crystals = flatten(table)
    energies = table[label].to_numpy()
    shares = element_counts(crystals) / crystals.counts[:, None]
    prior = float(np.mean(energies))
    normal = shares.T @ shares + ridge * np.eye(NUM_ELEMENTS)
    fitted: np.ndarray = prior + np.linalg.solve(normal, shares.T @ (energies - prior))
    return fitted
