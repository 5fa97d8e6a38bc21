r"""Attention on the torus: all pairs of atoms in a cell, without any pair tensor of model width.

Published form (paper 1.3, 1.4), for query atom i and atom j of the same crystal::

    psi_ij = [sin 2 pi k (f_j - f_i), cos 2 pi k (f_j - f_i)]      k = 0 .. F-1, three axes: 6 F numbers
    u_ij   = W_e edge_ij + b_e
    a_ij   = softmax_j( q_i . (k_j + u_ij) / sqrt(d/H) )
    o_i    = W_o concat_heads( sum_j a_ij (v_j + u_ij) ) + b_o

joint (published): edge_ij = LayerNorm_{9+6F}([G, psi_ij]), G = L L^T. Write the norm's affine map into the
weight, W = W_e diag(gamma). With mean m_ij and inverse deviation r_ij of the raw vector (two scalars per
pair, the same in every layer) u_ij = r_ij (W_G G + W_psi psi_ij - m_ij W 1) + const.

separate: edge_ij = [asinh G, psi_ij] unnormalised, so u_ij = W_G asinh G + W_psi psi_ij + const, whose first
term is the same for all pairs of a crystal. Fourier features say where an atom lies in the cell but not how
far it is in space, so separate mode may add RADIAL Gaussians of the minimum-image distance, as a bias to the
logits and to the values: the one tensor over pairs that is wider than the heads, made once for all layers.

Either way q_i . W_psi psi_ij = P_i . psi_j, where P_i is W_psi^T q_i rotated by the phases of atom i and
psi_j = [sin 2 pi k f_j, cos 2 pi k f_j]; and sum_j w_ij W_psi psi_ij = W_psi rotate_i^-1(sum_j w_ij psi_j).
What does not depend on j drops out of the softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dao_pipeline.model.layout import Layout

NORM_EPS = 1e-5
RADIAL = 16
"""Gaussians per distance."""
LARGEST_DISTANCE = 3.0
"""Centre of the last Gaussian, in units of (expected volume per atom)^(1/3)."""


@dataclass(frozen=True, kw_only=True)
class EdgeFeatures:
    """Per-atom phases and per-crystal lattice features of a batch, computed once and used by every layer.

    sin, cos: (N, 3 F), of 2 pi k f for each axis and k.
    phases: per size class (crystals, atoms, 6 F), [sin, cos] of each atom.
    gram: (B, 9), lattice features: L L^T (joint) or asinh of it (separate).
    gram_sum: (B,), only joint. mean, rstd: per size class (crystals, atoms, atoms), only joint: statistics of
    the raw edge vector of each pair.
    radial: per size class (crystals, atoms, atoms, RADIAL), only separate and where asked for: distances.
    """

    sin: Tensor
    cos: Tensor
    phases: list[Tensor]
    gram: Tensor
    mean: list[Tensor] | None = None
    rstd: list[Tensor] | None = None
    radial: list[Tensor] | None = None

    @classmethod
    def of(
        cls,
        frac_coords: Tensor,
        lattice: Tensor,
        layout: Layout,
        *,
        frequencies: int,
        joint: bool,
        distances: bool,
        sigma: Tensor | None = None,
    ) -> EdgeFeatures:
        """From sorted coordinates (N, 3) and lattices (B, 3, 3).

        sigma: (B,), noise of the coordinates, if frequencies that drown in it are to be damped: a difference
        of two noisy coordinates keeps exp(-(2 pi k sigma)^2) of the amplitude of its k-th harmonic.
        """
        # separate mode starts at k = 1: k = 0 is a constant; published code has it
        k = torch.arange(frequencies, device=frac_coords.device, dtype=frac_coords.dtype) + (0 if joint else 1)
        angles = (2 * math.pi) * (frac_coords[:, :, None] * k).flatten(1)
        sin, cos = angles.sin(), angles.cos()
        psi = torch.cat([sin, cos], dim=-1)
        if sigma is not None:
            damping = torch.exp(-((2 * math.pi * k * sigma[:, None]).square())).repeat(1, 6)  # (B, 6 F)
            psi = psi * layout.expand(damping)
        phases = layout.blocks(psi)
        metric = lattice @ lattice.transpose(1, 2)
        gram = metric.flatten(1)
        if not joint:
            pairs = zip(layout.blocks(frac_coords), layout.crystal_blocks(metric), strict=True)
            radial = [radial_features(coords, g) for coords, g in pairs] if distances else None
            return cls(sin=sin, cos=cos, phases=phases, gram=torch.asinh(gram), radial=radial)
        width = 9 + 6 * frequencies
        # sum over the sines and cosines of the differences: a rotated vector of ones times psi_j
        ones = torch.cat([cos + sin, cos - sin], dim=-1)
        means, rstds = [], []
        for block, phase, g in zip(layout.blocks(ones), phases, layout.crystal_blocks(gram), strict=True):
            mean = (block @ phase.transpose(1, 2) + g.sum(-1)[:, None, None]) / width
            square = (g.square().sum(-1) + 3 * frequencies) / width  # sin^2 + cos^2 = 1
            means.append(mean)
            rstds.append(torch.rsqrt(square[:, None, None] - mean.square() + NORM_EPS))
        return cls(sin=sin, cos=cos, phases=phases, gram=gram, mean=means, rstd=rstds)


class TorusAttention(nn.Module):
    """Multi-head attention with the Fourier edge term in factorised form (see the module's text)."""

    def __init__(self, width: int, heads: int, frequencies: int, joint: bool, distances: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads, self.joint = heads, joint
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.edge_norm = nn.LayerNorm(9 + 6 * frequencies, eps=NORM_EPS) if joint else None
        self.edge = nn.Linear(9 + 6 * frequencies, width)
        self.radial = nn.Linear(RADIAL, heads, bias=False) if distances else None
        self.radial_value = nn.Linear(RADIAL * heads, width, bias=False) if distances else None
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, edges: EdgeFeatures, layout: Layout) -> Tensor:
        """(N, d) sorted -> (N, d)."""
        heads, width = self.heads, x.shape[-1]
        weight: Tensor = self.edge.weight
        bias: Tensor = self.edge.bias
        if self.edge_norm is not None:
            bias = bias + weight @ self.edge_norm.bias
            weight = weight * self.edge_norm.weight
        w_gram, w_psi = weight[:, :9], weight[:, 9:].view(heads, width // heads, -1)

        query = (self.query(x) / math.sqrt(width // heads)).view(-1, heads, width // heads)
        key, value = self.key_value(x).view(-1, 2, heads, width // heads).unbind(1)
        # W_psi^T q, rotated: (N, H, 6 F)
        phase_query = _rotate(torch.einsum("nhc,hcf->nhf", query, w_psi), edges.sin, edges.cos)

        lattice_term = edges.gram.to(x.dtype) @ w_gram.T  # (B, d)
        blocks = zip(
            layout.blocks(query), layout.blocks(key), layout.blocks(value), layout.blocks(phase_query), strict=True
        )
        if not self.joint:
            constant = layout.expand(lattice_term + bias).view_as(query)
            near: list[tuple[Tensor, Tensor]] | list[None] = [None] * len(layout.classes)
            if self.radial is not None and edges.radial is not None:
                near = [(self.radial(radial), radial) for radial in edges.radial]
            parts = [_attend(*block, psi, n) for block, psi, n in zip(blocks, edges.phases, near, strict=True)]
            direct, phase = (torch.cat([part[i].flatten(0, 1) for part in parts]) for i in (0, 1))
            out = (direct + self._from_phases(phase, w_psi, edges) + constant).flatten(1)
            if self.radial_value is not None:
                out = out + self.radial_value(torch.cat([part[2].flatten(0, 1) for part in parts]))
            return self.out(out)

        ones = weight.sum(-1).view(heads, width // heads)  # W 1
        query_lattice = torch.einsum("nhc,nhc->nh", query, layout.expand(lattice_term).view_as(query))
        query_ones = torch.einsum("nhc,hc->nh", query, ones)
        assert edges.mean is not None
        assert edges.rstd is not None
        joint = [
            _attend_joint(q, k, v, p, psi, mean, rstd, ql, qo)
            for (q, k, v, p), psi, mean, rstd, ql, qo in zip(
                blocks,
                edges.phases,
                edges.mean,
                edges.rstd,
                layout.blocks(query_lattice),
                layout.blocks(query_ones),
                strict=True,
            )
        ]
        direct, phase, scale, shift = (torch.cat([part[i].flatten(0, 1) for part in joint]) for i in range(4))
        out = direct + self._from_phases(phase, w_psi, edges) + bias.view(heads, -1)
        out = out + scale[..., None] * layout.expand(lattice_term).view_as(direct) - shift[..., None] * ones
        return self.out(out.flatten(1))

    def _from_phases(self, phase: Tensor, w_psi: Tensor, edges: EdgeFeatures) -> Tensor:
        """Values of the edge term: sum_j w_ij psi_j (N, H, 6 F) -> (N, H, d/H)."""
        return torch.einsum("nhf,hcf->nhc", _rotate(phase, -edges.sin, edges.cos), w_psi)


def _rotate(values: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotate pairs (s, c) -> (s cos + c sin, c cos - s sin) ... of ``values`` (N, H, 6 F) by each atom's phases.

    With +sin: coefficients of psi_ij become coefficients of psi_j. With -sin: sums of psi_j become sums of
    psi_ij. The two differ by transposition of the same rotation.
    """
    s, c = values.chunk(2, dim=-1)
    sin, cos = sin[:, None], cos[:, None]
    return torch.cat([s * cos + c * sin, c * cos - s * sin], dim=-1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    phase: Tensor,
    psi: Tensor,
    near: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, ...]:
    """One size class, separate mode: (b, n, H, c) queries, keys, values, (b, n, H, 6 F) rotated queries,
    (b, n, 6 F) phases -> weighted values (b, n, H, c), weighted phases (b, n, H, 6 F). With distances, given as
    their bias (b, n, n, H) and their features (b, n, n, R): also weighted features (b, n, H R)."""
    logits = _key_logits(query, key) + _phase_logits(phase, psi)
    if near is None:
        weights = torch.softmax(logits, dim=-1)
        return _sum_values(weights, value), _sum_phases(weights, psi)
    bias, radial = near
    weights = torch.softmax(logits + bias.transpose(2, 3), dim=-1)
    gathered = torch.einsum("bihj,bijr->bihr", weights, radial).flatten(2)
    return _sum_values(weights, value), _sum_phases(weights, psi), gathered


def radial_features(frac_coords: Tensor, metric: Tensor) -> Tensor:
    """Gaussians of the minimum-image distance of each pair, (b, n, 3), (b, 3, 3) -> (b, n, n, RADIAL).

    metric: L L^T in units in which the expected cell volume is 1. Distances are multiplied by n^(1/3), so that
    neighbours lie near 1 in cells of any size. An atom and itself have distance 0. The nearest of 27 images is
    exact for reduced cells; in the skewed cells that noise makes it is an upper bound.
    """
    n = frac_coords.shape[1]
    difference = frac_coords[:, None, :] - frac_coords[:, :, None]
    difference = difference - difference.detach().round()
    shifts = torch.cartesian_prod(*[torch.arange(-1, 2, device=metric.device, dtype=metric.dtype)] * 3)
    # |(d + s) L|^2 = d G d + 2 d G s + s G s, without a (b, n, n, 27, 3) tensor
    along = difference @ metric[:, None]
    cross = along @ shifts.T
    shifted = torch.einsum("si,bij,sj->bs", shifts, metric, shifts)[:, None, None]
    square = (along * difference).sum(-1, keepdim=True) + 2 * cross + shifted
    distance = (square.amin(-1).clamp(min=0) + 1e-6).sqrt() * n ** (1 / 3)
    centres = torch.linspace(0, LARGEST_DISTANCE, RADIAL, device=metric.device, dtype=metric.dtype)
    width = LARGEST_DISTANCE / (RADIAL - 1)
    return torch.exp(-((distance[..., None] - centres) / width).square())


def _attend_joint(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    phase: Tensor,
    psi: Tensor,
    mean: Tensor,
    rstd: Tensor,
    query_lattice: Tensor,
    query_ones: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One size class, joint mode; also sum_j a_ij r_ij and sum_j a_ij r_ij m_ij, each (b, n, H)."""
    mean, rstd = mean[:, :, None], rstd[:, :, None]
    edge = _phase_logits(phase, psi) + query_lattice[..., None] - mean * query_ones[..., None]
    weights = torch.softmax(_key_logits(query, key) + rstd * edge, dim=-1)
    scaled = weights * rstd
    return _sum_values(weights, value), _sum_phases(scaled, psi), scaled.sum(-1), (scaled * mean).sum(-1)


def _key_logits(query: Tensor, key: Tensor) -> Tensor:
    """q_i . k_j for each head: (b, n, H, c), (b, n, H, c) -> (b, n, H, n)."""
    return torch.einsum("bihc,bjhc->bihj", query, key)


def _phase_logits(phase: Tensor, psi: Tensor) -> Tensor:
    """P_i . psi_j for each head: (b, n, H, 6 F), (b, n, 6 F) -> (b, n, H, n)."""
    b, n, heads, width = phase.shape
    return (phase.reshape(b, n * heads, width) @ psi.transpose(1, 2)).view(b, n, heads, n)


def _sum_values(weights: Tensor, value: Tensor) -> Tensor:
    """sum_j a_ij v_j: (b, n, H, n), (b, n, H, c) -> (b, n, H, c)."""
    return torch.einsum("bihj,bjhc->bihc", weights, value)


def _sum_phases(weights: Tensor, psi: Tensor) -> Tensor:
    """sum_j w_ij psi_j: (b, n, H, n), (b, n, 6 F) -> (b, n, H, 6 F)."""
    b, n, heads, _ = weights.shape
    return (weights.reshape(b, n * heads, n) @ psi).view(b, n, heads, -1)
