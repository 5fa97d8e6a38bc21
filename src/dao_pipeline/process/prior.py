"""The cells that flow matching starts from: a normal distribution fitted on the training crystals."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dao_pipeline.crystals.flat import flatten
from dao_pipeline.process.log_metric import log_metric, pack

RIDGE = 0.05
"""Standard deviation added to each direction of the prior: about 5 % of a length, 3 degrees of an angle.

Training crystals that are all cubic would otherwise leave directions without noise.
"""


class LatticePrior(NamedTuple):
    """N(mean, factor factor^T) of the packed log metric, in units of the composition's expected edge.

    mean: (6,). factor: (6, 6), lower triangular with positive diagonal.
    """

    mean: Tensor
    factor: Tensor


def fit_lattice_prior(table: pa.Table, element_volumes: np.ndarray) -> LatticePrior:
    """Mean and covariance of lengths and angles, jointly, over the crystals of ``table``.

    element_volumes: (101,) angstrom^3. All six permutations of the axes count, because training permutes them.
    """
    crystals = flatten(table)
    volume = np.bincount(
        crystals.crystal_of_atom, weights=np.asarray(element_volumes)[crystals.numbers], minlength=len(crystals)
    )
    y = log_metric(torch.from_numpy(crystals.lattice / np.cbrt(volume)[:, None, None]))
    everyone = torch.cat([pack(y[:, order][:, :, order]) for order in map(list, itertools.permutations(range(3)))])
    mean = everyone.mean(0)
    deviation = everyone - mean
    covariance = deviation.T @ deviation / len(everyone) + RIDGE**2 * torch.eye(6, dtype=torch.float64)
    return LatticePrior(mean, torch.linalg.cholesky(covariance))
