"""The wrapped normal distribution on the unit circle, and its score (paper 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGES = 10
"""Periodic images summed on either side, as published."""


def score(x: Tensor, sigma: Tensor) -> Tensor:
    """Negative derivative of the log density, -d/dx log p(x; sigma), elementwise (paper 2.1).

    x: displacement in units of the cell, any real. sigma: broadcastable, positive. For small sigma this is
    (x wrapped into [-1/2, 1/2)) / sigma^2; for large sigma it tends to zero.
    """
    images = torch.arange(-IMAGES, IMAGES + 1, device=x.device, dtype=x.dtype)
    shifted = (torch.remainder(x + 0.5, 1.0) - 0.5)[..., None] + images
    variance = sigma.square()[..., None]
    weights = torch.softmax(-shifted.square() / (2 * variance), dim=-1)
    return (weights * shifted / variance).sum(-1)


def score_second_moment(sigma: Tensor, points: int = 401) -> Tensor:
    """lambda = E[score^2] for each sigma (T,), by quadrature: the published code draws 10,000 samples instead.

    The trapezoidal rule is exact to rounding here: the integrand is smooth and either periodic over the cell
    or negligible at the ends of the interval.
    """
    half = torch.clamp(10 * sigma, max=0.5)[:, None]
    x = half * torch.linspace(-1, 1, points, dtype=sigma.dtype)
    images = torch.arange(-IMAGES, IMAGES + 1, dtype=sigma.dtype)
    moments = []
    for part, scale in zip(x.split(100), sigma.split(100), strict=True):
        exponent = -((part[..., None] + images) ** 2) / (2 * scale[:, None, None] ** 2)
        density = exponent.exp().sum(-1)
        weight = density / torch.trapezoid(density, part, dim=-1)[:, None]
        moments.append(torch.trapezoid(weight * score(part, scale[:, None]) ** 2, part, dim=-1))
    return torch.cat(moments)
