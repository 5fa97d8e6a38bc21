r"""Crysformer: a transformer over the atoms of a periodic cell (arXiv 2503.10471).

Attention between atoms i and j carries a Fourier embedding of f_j - f_i and of the lattice. Because
sin and cos of a difference expand into products, that edge term is a scalar product of a query rotated by
atom i's phases with atom j's phases: no tensor over pairs wider than the number of heads is ever formed.
Symbols: N atoms, B crystals, d width, H heads, F frequencies per axis.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dao_pipeline.model.attention import Distances, EdgeFeatures, TorusAttention
from dao_pipeline.model.descriptors import NUM_DESCRIPTORS, element_descriptors
from dao_pipeline.model.layout import CPU_PART_ATOMS, Layout

TIME_WIDTH = 256


LatticeOutput = Literal["product", "velocity", "symmetric"]
"""How the lattice head's numbers become a matrix, see ``Crysformer._lattice_output``."""


class Noise(NamedTuple):
    """Tables over t = 0 .. T: sigma of the fractional coordinates, alpha_bar of a diffusing lattice."""

    sigma: Tensor
    alpha_bar: Tensor | None = None


class Output(NamedTuple):
    """What the heads say about a noisy batch, in the terms of the generative process (``Noisy``).

    coords: (N, 3), of the fractional coordinates; diffusion: normalised negative score (paper: eps_F).
    lattice: (B, 3, 3); diffusion: Gaussian noise in the lattice (paper: eps_L).
    energy: (B,), standardised energy per atom, or None without that head.
    """

    coords: Tensor
    lattice: Tensor
    energy: Tensor | None


def time_embedding(t: Tensor, width: int = TIME_WIDTH) -> Tensor:
    """Sinusoidal embedding of integer steps, (B,) -> (B, width): [sin(t w), cos(t w)] (paper 1.2)."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=t.device, dtype=torch.float64) * (-math.log(10_000) / (half - 1)))
    angles = t.to(torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def orthogonal_factor(lattice: Tensor, iterations: int = 8) -> Tensor:
    """About the orthogonal matrix nearest to each lattice, (B, 3, 3); smooth, and turns with the lattice.

    Newton-Schulz iterations, which need no eigenvectors and so have gradients at cubic cells too. Nearly flat
    cells do not converge in so few; what they get is still a smooth frame that turns with them.
    """
    frame = lattice / (lattice.square().sum((1, 2), keepdim=True) + 1e-12).sqrt()
    for _ in range(iterations):
        frame = 1.5 * frame - 0.5 * frame @ frame.transpose(1, 2) @ frame
    return frame


def _symmetric(head: Tensor) -> Tensor:
    """Symmetric matrices (B, 3, 3) from nine numbers each."""
    matrix = head.view(-1, 3, 3)
    return 0.5 * (matrix + matrix.transpose(1, 2))


class GatedResidual(nn.Module):
    """out = g x + (1 - g) y with g = sigmoid(w . [x ; y ; x - y]), one scalar per atom (paper 1.5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(3 * width, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, d), (N, d) -> (N, d). The concatenation is never formed: w1.x + w2.y + w3.(x-y) regroups."""
        y = y.to(x.dtype)  # under autocast: x, the sum over layers, stays in full precision
        w1, w2, w3 = self.gate.weight[0].chunk(3)
        g = torch.sigmoid(x @ (w1 + w3) + y @ (w2 - w3))[:, None]
        return torch.lerp(y, x, g.to(x.dtype))


class SummedResidual(nn.Module):
    """out = x + y: what a layer adds to its input, which passes unweakened (not published)."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(N, d), (N, d) -> (N, d)."""
        return x + y.to(x.dtype)


class Block(nn.Module):
    """Pre-norm attention and feed-forward layer, each behind a gated (paper 1.5) or summed residual."""

    def __init__(
        self, width: int, heads: int, frequencies: int, joint: bool, distances: Distances, gated: bool
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = TorusAttention(width, heads, frequencies, joint, distances)
        self.attention_gate = GatedResidual(width) if gated else SummedResidual()
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_gate = GatedResidual(width) if gated else SummedResidual()

    def forward(self, x: Tensor, edges: EdgeFeatures, layout: Layout) -> Tensor:
        """(N, d) -> (N, d)."""
        x = self.attention_gate(x, self.attention(self.attention_norm(x), edges, layout))
        return self.mlp_gate(x, self.mlp(self.mlp_norm(x)))


class Crysformer(nn.Module):
    """The backbone of DAO-P and DAO-G, with their heads.

    ``joint``: one LayerNorm over lattice and Fourier features, as published; otherwise both enter apart.
    ``distances``: where distances enter (not published; only without ``joint``).
    ``element_volumes``: (101,), angstrom^3, if these are to be distances of all images in angstrom, and lattices
    are in units of the expected cell's edge; None: of the nearest image, in units of the expected volume.
    ``gated``: residuals as published; otherwise they are summed, and a last LayerNorm precedes the heads.
    ``noise``: tables of the noise levels, if the model is to know how much noise t stands for (not published):
    frequencies that drown in it are damped, and the lattice head predicts a velocity in the lattice's own frame.
    ``lattice_output``: see ``_lattice_output``; None: ``velocity`` with ``noise``, else ``product``.
    ``energy_head``: DAO-P has one, DAO-G has none.
    ``template_paths``: crystals may be on their way from a template, not from noise (not published); a learned
    vector beside the time embedding says so, and heads of their own, which are zero at first, tell the velocity.
    """

    descriptors: Tensor
    element_volumes: Tensor | None
    sigma: Tensor
    alpha_bar: Tensor

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        heads: int,
        frequencies: int,
        joint: bool = False,
        distances: Distances = "none",
        element_volumes: Tensor | None = None,
        gated: bool = True,
        noise: Noise | None = None,
        lattice_output: LatticeOutput | None = None,
        energy_head: bool = False,
        template_paths: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("element_volumes", element_volumes, persistent=False)
        self.noise_aware = noise is not None
        self.lattice_output = lattice_output or ("velocity" if self.noise_aware else "product")
        if noise is not None:
            self.register_buffer("sigma", noise.sigma.float(), persistent=False)
        if self.lattice_output == "velocity":
            if noise is None or noise.alpha_bar is None:
                raise ValueError("lattice output velocity needs the noise of the lattice, alpha_bar")
            self.register_buffer("alpha_bar", noise.alpha_bar.float(), persistent=False)
        self.heads, self.frequencies = heads, frequencies
        self.joint, self.distances = joint, distances
        self.register_buffer("descriptors", element_descriptors())
        self.element = nn.Linear(NUM_DESCRIPTORS, width)
        self.node = nn.Linear(width + TIME_WIDTH, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, frequencies, joint, distances, gated) for _ in range(layers)
        )
        self.last_norm = nn.Identity() if gated else nn.LayerNorm(width)
        self.coords_head = nn.Linear(width, 3, bias=False)
        self.lattice_head = nn.Linear(width, 18 if self.lattice_output == "velocity" else 9, bias=False)
        self.energy_head = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)) if energy_head else None
        )
        self.template_origin = self.template_heads = None
        if template_paths:
            self.template_origin = nn.Parameter(torch.zeros(width))
            corrections = [nn.Linear(width, n, bias=False) for n in (3, 9)]
            for head in corrections:
                nn.init.zeros_(head.weight)
            self.template_heads = nn.ModuleList(corrections)

    def forward(
        self,
        atomic_numbers: Tensor,
        frac_coords: Tensor,
        lattice: Tensor,
        ptr: Tensor,
        t: Tensor,
        layout: Layout | None = None,
        from_template: Tensor | None = None,
    ) -> Output:
        """Denoise and evaluate a flat batch.

        atomic_numbers: (N,) int64, 1 to 100. frac_coords: (N, 3). lattice: (B, 3, 3), rows a, b, c, in the
        unit of the generative process. ptr: (B + 1,). t: (B,) int64 noise level, 0 for clean crystals.
        layout: of ``ptr``, if the caller has it already. Crystals may come in any order. from_template: (B,) bool,
        crystals whose path starts at a template; None: none. Only for a model with ``template_paths``.
        """
        layout = layout or Layout.from_ptr(ptr)
        lattice_sorted = layout.sort_crystals(lattice)
        h = self.features(atomic_numbers, frac_coords, lattice, layout, t, from_template)
        with torch.autocast(h.device.type, enabled=False):  # the heads cost nothing: full precision
            pooled = layout.mean(h)
            coords = self.coords_head(h)
            out = self._lattice_output(self.lattice_head(pooled), lattice_sorted, layout.sort_crystals(t))
            if from_template is not None and self.template_heads is not None:
                by_atom, by_crystal = self.template_heads
                chosen = layout.sort_crystals(from_template)
                coords = torch.where(layout.expand(chosen)[:, None], by_atom(h), coords)
                out = torch.where(chosen[:, None, None], _symmetric(by_crystal(pooled)), out)
            energy = None
            if self.energy_head is not None:
                energy = layout.unsort_crystals(self.energy_head(pooled)[:, 0])
            return Output(layout.unsort_atoms(coords), layout.unsort_crystals(out), energy)

    def _lattice_output(self, head: Tensor, lattice: Tensor, t: Tensor) -> Tensor:
        """What the model says about the lattice, (B, 3, 3), from the head's numbers.

        ``product``: the noise K L_t with a predicted matrix K, as published (paper 1.6); turns with the lattice.
        ``velocity``: v = K L_t + K' U, where U is the orthogonal factor of L_t, is the velocity
        sqrt(abar) eps - sqrt(1 - abar) L_0, and the noise is eps = sqrt(1 - abar) L_t + sqrt(abar) v. The clean
        lattice is then a combination of L_t and v with bounded weights, where K alone would have to learn gains of
        up to 1 / sqrt(abar_T) ~ 10^5. ``symmetric``: a symmetric matrix that does not turn, for flow matching in
        the logarithm of the metric.
        """
        if self.lattice_output == "symmetric":
            return _symmetric(head)
        if self.lattice_output == "product":
            return head.view(-1, 3, 3) @ lattice
        matrices = head.view(-1, 2, 3, 3)
        velocity = matrices[:, 0] @ lattice + matrices[:, 1] @ orthogonal_factor(lattice)
        alpha_bar = self.alpha_bar.to(lattice.dtype)[t][:, None, None]
        return (1 - alpha_bar).sqrt() * lattice + alpha_bar.sqrt() * velocity

    def energy(
        self, atomic_numbers: Tensor, frac_coords: Tensor, lattice: Tensor, t: Tensor, layout: Layout
    ) -> Tensor:
        """Standardised energy per atom, (B,), without the other heads. Raises ValueError without that head."""
        if self.energy_head is None:
            raise ValueError("this model has no energy head; it is a generator, not DAO-P")
        h = self.features(atomic_numbers, frac_coords, lattice, layout, t)
        with torch.autocast(h.device.type, enabled=False):
            return layout.unsort_crystals(self.energy_head(layout.mean(h))[:, 0])

    def features(
        self,
        atomic_numbers: Tensor,
        frac_coords: Tensor,
        lattice: Tensor,
        layout: Layout,
        t: Tensor,
        from_template: Tensor | None = None,
    ) -> Tensor:
        """Node features after the last block, (N, d), in the layout's sorted order (paper 1.2 to 1.5).

        On a CPU a large batch goes through the blocks part by part, so that its intermediates fit the caches.
        """
        atoms = (layout.sort_atoms(atomic_numbers), layout.sort_atoms(frac_coords))
        if from_template is None:
            from_template = torch.zeros_like(t, dtype=torch.bool)
        elif self.template_origin is None:
            raise ValueError("this model has not learned paths from templates")
        crystals = (
            layout.sort_crystals(lattice),
            layout.sort_crystals(t),
            layout.sort_crystals(from_template),
        )
        parts = layout.parts(CPU_PART_ATOMS) if frac_coords.device.type == "cpu" else [layout]
        if len(parts) == 1:
            return self._features(*atoms, *crystals, layout)
        split = [values.split([len(part.crystal) for part in parts]) for values in atoms]
        split += [values.split([part.num_crystals for part in parts]) for values in crystals]
        return torch.cat([self._features(*inputs) for inputs in zip(*split, parts, strict=True)])

    def _features(
        self,
        atomic_numbers: Tensor,
        frac_coords: Tensor,
        lattice: Tensor,
        t: Tensor,
        from_template: Tensor,
        layout: Layout,
    ) -> Tensor:
        """The same for sorted inputs, all at once.

        Templates are ordered and near their crystals: nothing of them drowns in noise.
        """
        dtype = self.node.weight.dtype
        unit = None
        if self.element_volumes is not None:
            volumes = self.element_volumes.to(dtype)[atomic_numbers]
            unit = torch.cat([block.sum(1) for block in layout.blocks(volumes)]).pow(1 / 3)
        edges = EdgeFeatures.of(
            frac_coords,
            lattice,
            layout,
            frequencies=self.frequencies,
            joint=self.joint,
            distances=self.distances != "none",
            sigma=self.sigma.to(dtype)[t * ~from_template] if self.noise_aware else None,
            unit=unit,
        )
        width = self.element.out_features
        # Linear([element ; time]) splits by columns: time is projected once per crystal, not per atom
        by_element = self.element(self.descriptors) @ self.node.weight[:, :width].T + self.node.bias
        by_time = time_embedding(t).to(dtype) @ self.node.weight[:, width:].T
        if self.template_origin is not None:
            by_time = by_time + from_template[:, None] * self.template_origin
        x = by_element[atomic_numbers] + layout.expand(by_time)
        for block in self.blocks:
            x = block(x, edges, layout)
        return self.last_norm(x)
