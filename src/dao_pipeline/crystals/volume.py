"""The volume to expect of a composition: one volume per element, fitted on known crystals."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from dao_pipeline.crystals.elements import COVALENT_RADIUS
from dao_pipeline.crystals.flat import FlatCrystals, flatten
from dao_pipeline.crystals.geometry import volumes

NUM_ELEMENTS = 101
"""Length of per-element tables: index is the atomic number, 0 a placeholder."""


def element_counts(crystals: FlatCrystals) -> np.ndarray:
    """How many atoms of each element each crystal has, (rows, 101) float64."""
    counts = np.zeros((len(crystals), NUM_ELEMENTS))
    np.add.at(counts, (crystals.crystal_of_atom, crystals.numbers), 1.0)
    return counts


def fit_element_volumes(table: pa.Table, ridge: float = 2.0) -> np.ndarray:
    """Per-element volumes, (101,) float64 in angstrom^3, whose sums reproduce the cell volumes of ``table``.

    Ridge regression of the volume per atom towards spheres of the covalent radius, scaled to the data: an
    element that occurs rarely or never keeps a sensible value. ``ridge`` is the weight of that prior in
    crystals.
    """
    crystals = flatten(table)
    per_atom = volumes(crystals.lattice) / crystals.counts
    shares = element_counts(crystals) / crystals.counts[:, None]
    prior = np.asarray(COVALENT_RADIUS[:NUM_ELEMENTS]) ** 3
    prior *= np.median(per_atom / np.maximum(shares @ prior, 1e-9))
    normal = shares.T @ shares + ridge * np.eye(NUM_ELEMENTS)
    fitted = prior + np.linalg.solve(normal, shares.T @ (per_atom - shares @ prior))
    return np.clip(fitted, 0.2 * np.median(per_atom), None)
