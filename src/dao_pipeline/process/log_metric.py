"""Cells as symmetric matrices: Y = 1/2 log(L L^T), the logarithm of the metric.

Y does not change when the cell is turned, every symmetric Y is a cell (exp(Y), of positive volume
exp(trace Y)), and scaling a cell adds a multiple of the unit matrix: cells become a vector space. As vectors
the six entries are (xx, yy, zz, sqrt(2) yz, sqrt(2) xz, sqrt(2) xy), so that lengths are those of the matrices.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROWS, _COLUMNS = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
_WEIGHTS = (1.0, 1.0, 1.0, math.sqrt(2), math.sqrt(2), math.sqrt(2))
_PLACE = (0, 5, 4, 5, 1, 3, 4, 3, 2)
"""Where each of the nine entries of the matrix lies in the vector."""


def log_metric(lattice: Tensor) -> Tensor:
    """Y = 1/2 log(L L^T), (B, 3, 3) -> (B, 3, 3) symmetric. For data: without a gradient.

    In float64 inside, because L L^T squares the ratio of a needle's lengths. A cell without volume gives a
    large but finite Y, one that is not finite gives NaN and leaves the others alone.
    """
    with torch.no_grad():
        exact = lattice.double()
        metric = exact @ exact.transpose(1, 2)
        finite = metric.isfinite().all(2, keepdim=True).all(1, keepdim=True)
        values, vectors = torch.linalg.eigh(torch.where(finite, metric, 1.0))
        values = values.clamp(min=torch.finfo(torch.float64).tiny)
        result: Tensor = (vectors * (0.5 * values.log())[:, None, :]) @ vectors.transpose(1, 2)
        return torch.where(finite, result, torch.nan).to(lattice.dtype)


def metric_cell(y: Tensor) -> Tensor:
    """The symmetric cell exp(Y), (B, 3, 3); its gradient exists at cubic cells too."""
    result: Tensor = torch.linalg.matrix_exp(y)
    return result


def pack(y: Tensor) -> Tensor:
    """Symmetric matrices (B, 3, 3) as vectors (B, 6) of the same length."""
    return y[:, list(_ROWS), list(_COLUMNS)] * y.new_tensor(_WEIGHTS)


def unpack(vector: Tensor) -> Tensor:
    """Vectors (B, 6) as symmetric matrices (B, 3, 3)."""
    return (vector / vector.new_tensor(_WEIGHTS))[:, list(_PLACE)].view(-1, 3, 3)
