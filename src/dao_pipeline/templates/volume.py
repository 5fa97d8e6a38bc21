"""The volume of a crystal from its composition: a volume for each element, and a correction for each pair of them.

    V / n = b (1 + sum_{i<j} 4 x_i x_j w_ij),   b = sum_i x_i v_i,

with x_i the share of element i among the atoms. The element volumes v are those of ``crystals.volume``; the pairs'
corrections w (metals shrink beside oxygen, more so than beside other metals) are fitted to what these leave over.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dao_pipeline.crystals.elements import COVALENT_RADIUS
from dao_pipeline.crystals.flat import FlatCrystals, flatten
from dao_pipeline.crystals.geometry import volumes
from dao_pipeline.crystals.volume import NUM_ELEMENTS, element_counts, fit_element_volumes

RIDGE = 0.5
"""Weight of the prior that a pair changes nothing, in crystals with equal parts of both."""
_CAP = 0.6
"""Corrections beyond are cut: of pairs in rare company."""
_ROUNDS = 40


@dataclass(frozen=True)
class VolumeModel:
    """elements: (101,) angstrom^3 per atom. pairs: (101, 101) symmetric, zero on its diagonal."""

    elements: np.ndarray
    pairs: np.ndarray

    @classmethod
    def fit(cls, table: pa.Table) -> VolumeModel:
        """Fit to the crystals of a table."""
        flat = flatten(table)
        if not len(flat):  # nothing to go by but the size of atoms
            return cls(4 * np.asarray(COVALENT_RADIUS[:NUM_ELEMENTS]) ** 3, np.zeros((NUM_ELEMENTS, NUM_ELEMENTS)))
        elements = fit_element_volumes(table)
        shares = element_counts(flat) / flat.counts[:, None]
        left = volumes(flat.lattice) / flat.counts / (shares @ elements) - 1
        left = np.clip(left, -_CAP, _CAP)
        return cls(elements, _fit_pairs(shares, left))

    def expected(self, flat: FlatCrystals) -> np.ndarray:
        """(m,) angstrom^3: volumes of cells of these compositions; their lattices are not looked at."""
        numbers = np.minimum(flat.numbers, NUM_ELEMENTS - 1)  # heavier elements count as the last one known
        shares = np.zeros((len(flat), NUM_ELEMENTS))
        np.add.at(shares, (flat.crystal_of_atom, numbers), 1.0)
        shares /= np.maximum(flat.counts, 1)[:, None]
        correction = 2 * ((shares @ self.pairs) * shares).sum(1)
        return flat.counts * (shares @ self.elements) * (1 + np.clip(correction, -_CAP, _CAP))


def _fit_pairs(shares: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Ridge regression on all products of two shares, by conjugate gradients: each crystal has but a few."""
    present, element = np.nonzero(shares)
    place = np.arange(len(present)) - np.searchsorted(present, present)
    listed = np.full((len(shares), int(place.max(initial=0)) + 1), -1)
    listed[present, place] = element
    left, right = np.triu_indices(listed.shape[1], 1)
    row, which = np.nonzero(listed[:, right] >= 0)
    i, j = listed[row, left[which]], listed[row, right[which]]
    column, place = np.unique(i * NUM_ELEMENTS + j, return_inverse=True)
    value = 4 * shares[row, i] * shares[row, j]

    def forward(weights: np.ndarray) -> np.ndarray:
        return np.bincount(row, value * weights[place], len(shares))

    def backward(residual: np.ndarray) -> np.ndarray:
        return np.bincount(place, value * residual[row], len(column))

    weights = np.zeros(len(column))
    residual = backward(wanted)
    direction, size = residual.copy(), residual @ residual
    for _ in range(_ROUNDS):
        if size < 1e-18:
            break
        image = backward(forward(direction)) + RIDGE * direction
        length = size / (direction @ image)
        weights += length * direction
        residual -= length * image
        size, before = residual @ residual, size
        direction = residual + size / before * direction
    pairs = np.zeros((NUM_ELEMENTS, NUM_ELEMENTS))
    pairs[column // NUM_ELEMENTS, column % NUM_ELEMENTS] = weights
    return pairs + pairs.T
