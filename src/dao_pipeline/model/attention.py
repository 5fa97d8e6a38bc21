r"""Attention on the torus: all pairs of atoms in a cell, without any pair tensor of model width.

Published form (paper 1.3, 1.4), for query atom i and atom j of the same crystal::

    psi_ij = [cos 2 pi k (f_j - f_i), sin 2 pi k (f_j - f_i)]      k = 0 .. F-1, three axes: 6 F numbers
    u_ij   = W_e edge_ij + b_e
    a_ij   = softmax_j( q_i . (k_j + u_ij) / sqrt(d/H) )
    o_i    = W_o concat_heads( sum_j a_ij (v_j + u_ij) ) + b_o

joint (published): edge_ij = LayerNorm_{9+6F}([G, psi_ij]), G = L L^T. The norm's gain and its centring are
linear, so they go into the weight: W = W_e diag(gamma), less the mean of each of its rows. What remains of the
norm is one scalar per pair, the inverse deviation r_ij of the raw vector, the same in every layer::

    u_ij = r_ij (W_G G + W_psi psi_ij) + const

separate: edge_ij = [asinh G, psi_ij] unnormalised: the same with r_ij = 1. Then W_G G is the same for all pairs
of a crystal: it drops out of the softmax and is added to the values once. Fourier features say where an atom
lies in the cell but not how far it is in space, so separate mode may add RADIAL Gaussians of the distance, of
the nearest image or summed over all, as a bias to the logits and also to the values: the one tensor over pairs
that is wider than the heads, made once for all layers.

Why no psi_ij is ever formed: read each (cos, sin) pair as a complex number. psi_ij = conj(z_i) z_j with the
phasors z_j = exp(2 pi i k f_j), and the scalar product of pairs is Re(conj(a) b). Hence, with P_i = W_psi^T q_i::

    q_i . W_psi psi_ij            = (P_i z_i) . z_j
    sum_j w_ij W_psi psi_ij       = W_psi ( conj(z_i) sum_j w_ij z_j )

a rotary embedding on the torus: keys [k_j ; z_j], values [v_j ; z_j], the z shared by heads and layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dao_pipeline.model.layout import Layout
from dao_pipeline.model.torus import edge_logits, edge_values, turn

NORM_EPS = 1e-5
RADIAL = 16
"""Gaussians per distance."""
LARGEST_DISTANCE = 3.0
"""Centre of the last Gaussian of nearest images, in units of (expected volume per atom)^(1/3)."""
CUTOFF = 5.0
"""Centre of the last Gaussian of all images, angstrom."""

Distances = Literal["none", "bias", "values"]
"""Where minimum-image distances enter: nowhere, the logits, or the logits and the values."""


@dataclass(frozen=True, kw_only=True)
class EdgeFeatures:
    """Per-atom phases and per-crystal lattice features of a batch, computed once and used by every layer.

    phasor: (N, 6 F), pairs (cos, sin) of 2 pi k f for each axis and k.
    phases: per size class (crystals, atoms, 6 F), the phasors as keys and values: damped, if so asked.
    gram: (B, 9), lattice features: L L^T (joint) or asinh of it (separate).
    rstd: per size class (crystals, atoms, atoms), only joint: inverse deviation of the raw edge vector.
    radial: per size class (crystals, atoms, atoms, RADIAL), only separate and where asked for: distances.
    """

    phasor: Tensor
    phases: list[Tensor]
    gram: Tensor
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
        unit: Tensor | None = None,
    ) -> EdgeFeatures:
        """From sorted coordinates (N, 3) and lattices (B, 3, 3), in the precision of the coordinates.

        unit: (B,), of the lattices, angstrom, if distances are to be those of all images, else nearest ones.

        sigma: (B,), noise of the coordinates, if frequencies that drown in it are to be damped: a difference
        of two noisy coordinates keeps exp(-(2 pi k sigma)^2) of the amplitude of its k-th harmonic.
        """
        with torch.autocast(frac_coords.device.type, enabled=False):
            # separate mode starts at k = 1: k = 0 is a constant; published code has it
            k = torch.arange(frequencies, device=frac_coords.device, dtype=frac_coords.dtype) + (0 if joint else 1)
            # whole turns are left out before rounding can hurt: k times a multiple of 1/4096 is exact
            coarse = (frac_coords.detach() * 4096).round() / 4096
            turns = (coarse[:, :, None] * k) % 1.0 + (frac_coords - coarse)[:, :, None] * k
            angles = (2 * math.pi) * turns.flatten(1)
            phasor = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)
            damped = phasor
            if sigma is not None:
                damping = torch.exp(-((2 * math.pi * k * sigma[:, None]).square())).repeat(1, 3)  # (B, 3 F)
                damped = phasor * layout.expand(damping.repeat_interleave(2, dim=1))
            phases = layout.blocks(damped)
            metric = lattice @ lattice.transpose(1, 2)
            gram = metric.flatten(1)
            if not joint:
                radial = None
                if distances and unit is None:
                    pairs = zip(layout.blocks(frac_coords), layout.crystal_blocks(metric), strict=True)
                    radial = [radial_features(coords, g) for coords, g in pairs]
                elif distances and unit is not None:
                    in_angstrom = metric * unit.square()[:, None, None]
                    pairs = zip(layout.blocks(frac_coords), layout.crystal_blocks(in_angstrom), strict=True)
                    radial = [radial_density(coords, g) for coords, g in pairs]
                return cls(phasor=phasor, phases=phases, gram=torch.asinh(gram), radial=radial)
            width = 9 + 6 * frequencies
            # sum over the cosines and sines of the differences: a turned vector of ones times z_j
            ones = turn(torch.ones_like(phasor)[:, None], phasor)[:, 0]
            rstd = []
            for block, phase, g in zip(layout.blocks(ones), phases, layout.crystal_blocks(gram), strict=True):
                mean = (block @ phase.transpose(1, 2) + g.sum(-1)[:, None, None]) / width
                square = (g.square().sum(-1) + 3 * frequencies) / width  # sin^2 + cos^2 = 1
                rstd.append(torch.rsqrt(square[:, None, None] - mean.square() + NORM_EPS))
            return cls(phasor=phasor, phases=phases, gram=gram, rstd=rstd)


def fused_is_faster(x: Tensor, width: int) -> bool:
    """Whether to leave keys and values of ``width`` to a fused kernel: such kernels end at 256."""
    return x.is_cuda and width <= 256


class TorusAttention(nn.Module):
    """Multi-head attention with the Fourier edge term in factorised form (see the module's text)."""

    def __init__(self, width: int, heads: int, frequencies: int, joint: bool, distances: Distances) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.edge_norm = nn.LayerNorm(9 + 6 * frequencies, eps=NORM_EPS) if joint else None
        self.edge = nn.Linear(9 + 6 * frequencies, width)
        self.radial = nn.Linear(RADIAL, heads, bias=False) if distances != "none" else None
        self.radial_value = nn.Linear(RADIAL * heads, width, bias=False) if distances == "values" else None
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, edges: EdgeFeatures, layout: Layout) -> Tensor:
        """(N, d) sorted -> (N, d)."""
        heads, size = self.heads, x.shape[-1] // self.heads
        w_gram, w_psi, bias = self._edge_weights()
        query = (self.query(x) / math.sqrt(size)).view(-1, heads, size)
        key, value = self.key_value(x).view(-1, 2, heads, size).unbind(1)
        lattice = layout.expand(edges.gram.to(w_gram.dtype) @ w_gram.T).view(-1, heads, size)
        if edges.rstd is None and self.radial_value is None and fused_is_faster(x, size + w_psi.shape[-1]):
            out = self._fused(query, key, value, w_psi, edges, layout) + lattice
        else:
            out = self._explicit(query, key, value, w_psi, lattice, edges, layout)
        return self.out((out + bias.view(heads, size)).flatten(1))

    def _explicit(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        w_psi: Tensor,
        lattice: Tensor,
        edges: EdgeFeatures,
        layout: Layout,
    ) -> Tensor:
        """sum_j a_ij (v_j + u_ij), (N, H, d/H), less the constant of u; the weights a are formed."""
        logits = [_dot(*pair) for pair in zip(layout.blocks(query), layout.blocks(key), strict=True)]
        edge_terms = list(edge_logits(query, w_psi, edges.phasor, edges.phases))
        if edges.rstd is not None:
            rstd = [r.unsqueeze(2) for r in edges.rstd]
            offsets = layout.blocks((query * lattice).sum(-1, keepdim=True))
            edge_terms = [r * (e + o) for r, e, o in zip(rstd, edge_terms, offsets, strict=True)]
        weights = [
            torch.softmax(a + b, dim=-1) for a, b in zip(logits, self._near(edge_terms, edges), strict=True)
        ]
        summed = [_sum(*pair).flatten(0, 1) for pair in zip(weights, layout.blocks(value), strict=True)]
        out = torch.cat(summed)
        if edges.rstd is not None:
            weights = [a * r for a, r in zip(weights, rstd, strict=True)]
            lattice = lattice * torch.cat([a.sum(-1, keepdim=True).flatten(0, 1) for a in weights])
        out = out + lattice + edge_values(weights, w_psi, edges.phasor, edges.phases)
        if self.radial_value is not None:
            assert edges.radial is not None
            pairs = zip(weights, edges.radial, strict=True)
            near = [torch.einsum("bihj,bijr->bihr", a, radial).flatten(2).flatten(0, 1) for a, radial in pairs]
            out = out + self.radial_value(torch.cat(near)).view_as(out)
        return out

    def _near(self, terms: list[Tensor], edges: EdgeFeatures) -> list[Tensor]:
        """Logits (b, n, H, n) with the bias of distances, if there is one."""
        if self.radial is None or edges.radial is None:
            return terms
        return [term + self.radial(r).transpose(2, 3) for term, r in zip(terms, edges.radial, strict=True)]

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, w_psi: Tensor, edges: EdgeFeatures, layout: Layout
    ) -> Tensor:
        """The same without joint norm and without distances in the values, by a fused kernel."""
        size = query.shape[-1]
        turned = turn(torch.einsum("nhc,hcf->nhf", query, w_psi), edges.phasor)
        queries = layout.blocks(torch.cat([query, turned], dim=-1))
        outs = []
        for c, (q, k, v, psi) in enumerate(
            zip(queries, layout.blocks(key), layout.blocks(value), edges.phases, strict=True)
        ):
            shared = psi.to(q.dtype)[:, :, None].expand(-1, -1, self.heads, -1)
            keys, values = torch.cat([k, shared], dim=-1), torch.cat([v, shared], dim=-1)
            bias = None
            if self.radial is not None and edges.radial is not None:
                bias = self.radial(edges.radial[c]).permute(0, 3, 1, 2)
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), attn_mask=bias, scale=1.0
            )
            outs.append(out.transpose(1, 2).flatten(0, 1))
        direct, phase = torch.cat(outs).split([size, w_psi.shape[-1]], dim=-1)
        return direct + torch.einsum("nhf,hcf->nhc", turn(phase, edges.phasor, back=True), w_psi)

    def _edge_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Edge projection with the norm folded in: W_G (d, 9), W_psi (H, d/H, 6 F), constant (d,).

        Stored columns are [G, all sines, all cosines]; here they are [G, pairs (cos, sin)].
        """
        weight: Tensor = self.edge.weight
        bias: Tensor = self.edge.bias
        if self.edge_norm is not None:
            bias = bias + weight @ self.edge_norm.bias
            weight = weight * self.edge_norm.weight
            weight = weight - weight.mean(dim=1, keepdim=True)
        sin, cos = weight[:, 9:].view(self.heads, len(weight) // self.heads, -1).chunk(2, dim=-1)
        return weight[:, :9], torch.stack([cos, sin], dim=-1).flatten(2), bias


def radial_features(frac_coords: Tensor, metric: Tensor) -> Tensor:
    """Gaussians of the minimum-image distance of each pair, (b, n, 3), (b, 3, 3) -> (b, n, n, RADIAL).

    metric: L L^T in units in which the expected cell volume is 1. Distances are multiplied by n^(1/3), so that
    neighbours lie near 1 in cells of any size. An atom and itself have distance 0. The nearest of 27 images is
    exact for reduced cells; in the skewed cells that noise makes it is an upper bound.
    """
    n = frac_coords.shape[1]
    difference = frac_coords[:, None, :] - frac_coords[:, :, None]
    square, _ = _image_distances(difference.flatten(1, 2), metric)
    distance = (square.amin(-1).clamp(min=0) + 1e-6).sqrt() * n ** (1 / 3)
    return _gaussians(distance, LARGEST_DISTANCE).unflatten(1, (n, n))


def radial_density(frac_coords: Tensor, metric: Tensor) -> Tensor:
    """Gaussians of the distances of each atom to all images of each other, summed: (b, n, n, RADIAL).

    metric: L L^T in angstrom^2. A bond length means the same in all crystals, and the sum counts neighbours,
    which the nearest image alone does not in small cells. Where an axis is shorter than CUTOFF, images are
    missing; they fade in smoothly between 1 and 1.5 cells along each axis, so that the sum is smooth.
    """
    b, n, _ = frac_coords.shape
    first, second = torch.triu_indices(n, n, device=metric.device)
    square, difference = _image_distances(frac_coords[:, second] - frac_coords[:, first], metric)
    steps = torch.arange(-1, 2, device=metric.device, dtype=metric.dtype)
    beyond = ((difference[..., None] + steps).abs() - 1).clamp(min=0)  # (b, pairs, axis, step)
    fade = (math.pi * beyond).cos().square()
    weight = (fade[..., 0, :, None, None] * fade[..., 1, None, :, None] * fade[..., 2, None, None, :]).flatten(-3)
    # most images are beyond the last Gaussian: they are left out before anything is made of them
    near = (square.detach() < (CUTOFF + 3 * CUTOFF / (RADIAL - 1)) ** 2).flatten(0, 1)
    pair = near.nonzero()[:, 0]
    distance = (square.flatten(0, 1)[near].clamp(min=0) + 1e-6).sqrt()
    each = _gaussians(distance, CUTOFF) * weight.flatten(0, 1)[near][:, None]
    summed = each.new_zeros(b * len(first), RADIAL).index_add(0, pair, each).unflatten(0, (b, len(first)))
    of_pair = torch.empty(n, n, dtype=torch.int64, device=metric.device)
    of_pair[first, second] = of_pair[second, first] = torch.arange(len(first), device=metric.device)
    return summed[:, of_pair]


def _image_distances(difference: Tensor, metric: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances to 27 images, (b, p, 27), and differences in [-1/2, 1/2], (b, p, 3).

    difference: (b, p, 3), fractional. metric: (b, 3, 3).
    """
    difference = difference - difference.detach().round()
    shifts = torch.cartesian_prod(*[torch.arange(-1, 2, device=metric.device, dtype=metric.dtype)] * 3)
    # |(d + s) L|^2 = d G d + 2 d G s + s G s, without a (b, p, 27, 3) tensor
    along = difference @ metric
    cross = along @ shifts.T
    shifted = torch.einsum("si,bij,sj->bs", shifts, metric, shifts)[:, None]
    return (along * difference).sum(-1, keepdim=True) + 2 * cross + shifted, difference


def _gaussians(distance: Tensor, largest: float) -> Tensor:
    """(...) -> (..., RADIAL): evenly spaced from 0 to ``largest``, as wide as their spacing."""
    centres = torch.linspace(0, largest, RADIAL, device=distance.device, dtype=distance.dtype)
    width = largest / (RADIAL - 1)
    return torch.exp(-((distance[..., None] - centres) / width).square())


def _dot(query: Tensor, key: Tensor) -> Tensor:
    """q_i . k_j for each head: (b, n, H, c), (b, n, H, c) -> (b, n, H, n)."""
    return torch.einsum("bihc,bjhc->bihj", query, key)


def _sum(weights: Tensor, value: Tensor) -> Tensor:
    """sum_j a_ij v_j: (b, n, H, n), (b, n, H, c) -> (b, n, H, c)."""
    return torch.einsum("bihj,bjhc->bihc", weights, value)
