"""Flow matching of lattice and fractional coordinates along straight paths (Lipman et al. 2023).

The time of a path is s = t / T, from 0 (crystal) to 1 (noise). Coordinates: F_s = F_0 + s u, where u leads from
F_0 to uniformly random points by the shortest way: a translation of all of them is free, because a model that
ignores the origin cannot see it, and so are their periodic images. So u has no mean over a crystal's atoms.
Lattice: Y_s = (1 - s) Y_0 + s Y_1 in the logarithm of the metric (``log_metric``), Y_1 from a normal prior fitted
on the training crystals.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dao_pipeline.config import Process
from dao_pipeline.model.layout import Layout
from dao_pipeline.process.base import Drawn, GenerativeProcess, Noisy
from dao_pipeline.process.log_metric import log_metric, metric_cell, pack, unpack
from dao_pipeline.process.prior import LatticePrior

if TYPE_CHECKING:
    # Only then: training does not use it, and an edit of it must not retrain models.
    from dao_pipeline.process.noise_stream import NoiseStream

COORDS_VARIANCE = 1 / 12
"""Of a uniformly random point on [-1/2, 1/2): what displacements of many atoms have."""


TensorPair = tuple[Tensor, Tensor]


class Flow(GenerativeProcess):
    """Straight paths and what a network learns of them.

    The velocity of the coordinates is dF/ds = u; the network says sqrt(12) u. The velocity of the lattice is
    dY/ds = Y_1 - Y_0; the network says the part of it that is not already in Y_s, see ``lattice_velocity``.

    prior_mean: (6,) and prior_factor: (6, 6), the prior of the packed Y_1 (``LatticePrior``); they are saved with
    the weights. Without ``prior`` a standard normal, to be replaced by what is loaded.
    template_errors: units of the velocities of paths from templates, see ``template_path``.
    """

    prior_mean: Tensor
    prior_factor: Tensor

    def __init__(
        self,
        process: Process,
        prior: LatticePrior | None = None,
        template_errors: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.template_errors = None if template_errors is None else (template_errors[0], template_errors[1])
        self.timesteps = process.timesteps
        levels = torch.linspace(0, 1, self.timesteps + 1, dtype=torch.float64)
        self.register_buffer("sigma", levels * math.sqrt(COORDS_VARIANCE), persistent=False)
        mean, factor = prior or LatticePrior(torch.zeros(6), torch.eye(6))
        self.register_buffer("prior_mean", mean.float().clone())
        self.register_buffer("prior_factor", factor.float().clone())

    def draw(self, layout: Layout, generator: torch.Generator, dtype: torch.dtype) -> Drawn:
        """Uniform coordinates (N, 3) and Y_1 from the prior (B, 3, 3)."""
        lattice = self.draw_lattice(layout.num_crystals, generator, dtype)
        shape, device = (len(layout.crystal), 3), layout.ptr.device
        return Drawn(torch.rand(shape, generator=generator, device=device, dtype=dtype), lattice)

    def draw_for(self, noise: NoiseStream, dtype: torch.dtype) -> Drawn:
        """The same for sampling: where it starts."""
        return Drawn(noise.uniform_coords(dtype), self._from_prior(noise.normal_lattice(6, dtype)))

    def at_level(self, frac_coords: Tensor, lattice: Tensor, layout: Layout, t: Tensor, drawn: Drawn) -> Noisy:
        """Crystals on their way to random noise; the cell comes out symmetric, exp(Y_s).

        Targets: sqrt(12) u; of the lattice ((1 - s) (Y_1 - m) - s (Y_0 - m)) / (r std), see ``lattice_velocity``.
        """
        dtype, start = frac_coords.dtype, drawn.lattice
        u = shortest_displacements(drawn.coords - 0.5, layout)
        s = (t.to(dtype) / self.timesteps)[:, None, None]
        y = log_metric(lattice)
        center = self.center(dtype)
        target = ((1 - s) * (start - center) - s * (y - center)) / (_radius(s) * self.lattice_std(dtype))
        return Noisy(
            (frac_coords + s[layout.crystal, 0] * u) % 1.0,
            metric_cell((1 - s) * y + s * start),
            u / math.sqrt(COORDS_VARIANCE),
            target,
        )

    def template_path(self, crystal: TensorPair, template: TensorPair, layout: Layout, t: Tensor) -> Noisy:
        """Crystals on their way to aligned templates, at t = T the templates themselves; nothing is random.

        crystal, template: coordinates (N, 3) and lattices (B, 3, 3) in the unit of the process. F_s = F_0 + s u
        with the smallest images u, without drift; Y_s = (1 - s) Y_0 + s Y_1. Targets: u and Y_1 - Y_0, each over
        its root mean square in training, so that an output of zero leaves a template as it is.
        """
        coords_error, lattice_error = self._template_errors()
        s = (t.to(crystal[0].dtype) / self.timesteps)[:, None, None]
        u = template[0] - crystal[0]
        u = layout.remove_mean(u - u.round())
        y = log_metric(crystal[1])
        change = log_metric(template[1]) - y
        return Noisy(
            (crystal[0] + s[layout.crystal, 0] * u) % 1.0,
            metric_cell(y + s * change),
            u / coords_error,
            change / lattice_error,
        )

    def template_velocity(self, out_coords: Tensor, out_lattice: Tensor, layout: Layout) -> TensorPair:
        """dF/ds (N, 3), without drift, and dY/ds (B, 3, 3) of paths from templates, from what the network says."""
        coords_error, lattice_error = self._template_errors()
        return layout.remove_mean(out_coords) * coords_error, out_lattice * lattice_error

    def _template_errors(self) -> tuple[float, float]:
        if self.template_errors is None:
            raise ValueError("this model has not learned paths from templates")
        return self.template_errors

    def draw_lattice(self, crystals: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """Y_1 of so many crystals from the prior, (B, 3, 3)."""
        device = self.prior_mean.device
        noise = torch.randn((crystals, 6), generator=generator, device=device, dtype=dtype)
        return self._from_prior(noise)

    def _from_prior(self, noise: Tensor) -> Tensor:
        """Y_1 from standard normal numbers (B, 6)."""
        return unpack(self.prior_mean.to(noise.dtype) + noise @ self.prior_factor.to(noise.dtype).T)

    def coords_velocity(self, output: Tensor, layout: Layout) -> Tensor:
        """dF/ds, (N, 3), from the network's output, without drift."""
        return layout.remove_mean(output) * math.sqrt(COORDS_VARIANCE)

    def lattice_velocity(self, output: Tensor, y: Tensor, s: float) -> Tensor:
        """dY/ds, (B, 3, 3), from the network's output w at Y_s.

        With r^2 = s^2 + (1 - s)^2 and m the prior's mean, w = ((1 - s) (Y_1 - m) - s (Y_0 - m)) / (r std) and
        Y_1 - Y_0 = w std / r + (2 s - 1) (Y_s - m) / r^2. If crystals had the prior's covariance, w would be
        uncorrelated with Y_s and of unit variance at every level: what the network need not learn is
        not asked of it.
        """
        radius = _radius(s)
        return output * self.lattice_std(y.dtype) / radius + (2 * s - 1) / radius**2 * (y - self.center(y.dtype))

    def lattice_covariance(self, y: Tensor) -> Tensor:
        """The prior's covariance applied to symmetric matrices, (B, 3, 3) -> (B, 3, 3)."""
        factor = self.prior_factor.to(y.dtype)
        return unpack(pack(y) @ factor @ factor.T)

    def center(self, dtype: torch.dtype) -> Tensor:
        """Mean of the prior as a matrix, (1, 3, 3)."""
        return unpack(self.prior_mean.to(dtype)[None])

    def lattice_std(self, dtype: torch.dtype) -> Tensor:
        """Root mean square deviation of the nine entries of Y_1, a scalar."""
        return (self.prior_factor.to(dtype).square().sum() / 9).sqrt()


def shortest_displacements(u: Tensor, layout: Layout) -> Tensor:
    """The smallest displacements, (N, 3), to the points of ``u`` (N, 3) up to one translation per crystal.

    Of all images of the points and all translations they have the least sum of squares; their mean is zero. On
    each axis the best images of n points on a circle are those of one of its n cuttings: in rising order, the
    first k of them moved by 1. With cumulative sums all n are compared at once.
    """
    parts = []
    for block in layout.blocks(layout.sort_atoms(u % 1.0)):
        n = block.shape[1]
        ordered, order = block.sort(1)
        below = ordered.cumsum(1) - ordered  # sum of the first k, k = 0 .. n - 1
        k = torch.arange(n, device=u.device, dtype=u.dtype)[:, None]
        spread = 2 * below + k - (ordered.sum(1, keepdim=True) + k) ** 2 / n
        best = spread.argmin(1, keepdim=True)
        moved = ordered + (torch.arange(n, device=u.device)[:, None] < best)
        moved = moved - moved.mean(1, keepdim=True)
        parts.append(torch.empty_like(block).scatter_(1, order, moved).flatten(0, 1))
    return layout.unsort_atoms(torch.cat(parts))


@cache
def displacement_variance(atoms: int) -> float:
    """Variance of the shortest displacements in each of the n - 1 directions that are not the translation.

    1/24 for two atoms, 5/108 for three, rising towards 1/12; 0 for one atom. From some 60,000 draws of a fixed
    seed, to one per cent.
    """
    if atoms == 1:
        return 0.0
    count = 20_000 // (atoms - 1) + 1
    layout = Layout.from_ptr(torch.arange(0, atoms * count + 1, atoms))
    u = torch.rand(atoms * count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return float(shortest_displacements(u, layout).square().sum()) / (3 * count * (atoms - 1))


def _radius(s: Tensor | float) -> Tensor | float:
    """r = sqrt(s^2 + (1 - s)^2): size of Y_s relative to the prior."""
    result: Tensor | float = (s**2 + (1 - s) ** 2) ** 0.5
    return result
