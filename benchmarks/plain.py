"""Crysformer by gathering and scattering over edges: what the optimised model is measured against.

The published form, written down directly. A dense block-diagonal matrix of the whole batch gives the list of
ordered pairs; queries, keys and values are projected per pair, after the gather; the edge vector
LayerNorm([G, psi_ij]) is made anew in every layer; softmax and sum are scatters; the gate sees a concatenation.
Parameters carry the names of ``dao_pipeline.model.crysformer`` in paper mode, so a state can be loaded as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dao_pipeline.model.crysformer import TIME_WIDTH, Crysformer, Output, time_embedding
from dao_pipeline.model.descriptors import NUM_DESCRIPTORS
from dao_pipeline.model.layout import Layout


class _Pairs:
    """Ordered pairs (query, other) of atoms of the same crystal, and the crystal of each pair."""

    def __init__(self, ptr: Tensor, crystal: Tensor) -> None:
        ones = [torch.ones(n, n, device=ptr.device) for n in ptr.diff().tolist()]
        self.query, self.other = torch.block_diag(*ones).nonzero().unbind(1)
        self.crystal = crystal[self.query]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, frequencies: int) -> None:
        super().__init__()
        self.heads = heads
        self.frequencies = frequencies
        edge_width = 9 + 6 * frequencies
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.edge_norm = nn.LayerNorm(edge_width)
        self.edge = nn.Linear(edge_width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, coords: Tensor, gram: Tensor, pairs: _Pairs) -> Tensor:
        atoms, width = x.shape
        shape = (-1, self.heads, width // self.heads)
        difference = (coords[pairs.other] - coords[pairs.query]) % 1.0
        k = torch.arange(self.frequencies, device=x.device, dtype=coords.dtype)
        angle = (2 * math.pi * difference[:, :, None] * k).flatten(1)
        raw = torch.cat([gram[pairs.crystal], angle.sin(), angle.cos()], dim=-1)
        edge = self.edge(self.edge_norm(raw)).view(shape)
        query = self.query(x[pairs.query]).view(shape)
        key, value = (part.view(shape) for part in self.key_value(x[pairs.other]).chunk(2, dim=-1))
        logits = (query * (key + edge)).sum(-1) / math.sqrt(shape[-1])
        weights = _scatter_softmax(logits, pairs.query, atoms)
        messages = (weights[:, :, None] * (value + edge)).flatten(1)
        return self.out(messages.new_zeros(atoms, width).index_add(0, pairs.query, messages))


def _scatter_softmax(logits: Tensor, index: Tensor, rows: int) -> Tensor:
    """Softmax of (E, H) logits over the entries that share an index."""
    with torch.no_grad():
        spread = index[:, None].expand_as(logits)
        largest = logits.new_full((rows, logits.shape[1]), -torch.inf).scatter_reduce(0, spread, logits, "amax")
    weights = (logits - largest[index]).exp()
    total = weights.new_zeros(rows, weights.shape[1]).index_add(0, index, weights)
    return weights / total[index]


class _Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(3 * width, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        g = torch.sigmoid(self.gate(torch.cat([x, y, x - y], dim=-1)))
        return g * x + (1 - g) * y


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, frequencies: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = _Attention(width, heads, frequencies)
        self.attention_gate = _Gate(width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_gate = _Gate(width)

    def forward(self, x: Tensor, coords: Tensor, gram: Tensor, pairs: _Pairs) -> Tensor:
        x = self.attention_gate(x, self.attention(self.attention_norm(x), coords, gram, pairs))
        return self.mlp_gate(x, self.mlp(self.mlp_norm(x)))


class PlainCrysformer(nn.Module):
    """The same function as ``Crysformer`` in paper mode, with the same interface."""

    descriptors: Tensor

    def __init__(self, model: Crysformer) -> None:
        """With a copy of the weights of ``model``. Raises ValueError if it is not in paper mode."""
        super().__init__()
        if not model.joint or model.noise_aware:
            raise ValueError("the plain implementation is of the paper's mode: edge_norm joint, no additions")
        width = model.element.out_features
        self.register_buffer("descriptors", torch.empty_like(model.descriptors))
        self.element = nn.Linear(NUM_DESCRIPTORS, width)
        self.node = nn.Linear(width + TIME_WIDTH, width)
        self.blocks = nn.ModuleList(_Block(width, model.heads, model.frequencies) for _ in model.blocks)
        self.coords_head = nn.Linear(width, 3, bias=False)
        self.lattice_head = nn.Linear(width, 9, bias=False)
        self.energy_head = (
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)) if model.energy_head else None
        )
        weight = model.node.weight
        self.to(weight.device, weight.dtype).load_state_dict(model.state_dict())

    def forward(
        self,
        atomic_numbers: Tensor,
        frac_coords: Tensor,
        lattice: Tensor,
        ptr: Tensor,
        t: Tensor,
        layout: Layout | None = None,
        from_template: None = None,
    ) -> Output:
        """See ``Crysformer.forward``; of the layout only the atoms' crystals are used. Nothing is a template."""
        layout = layout or Layout.from_ptr(ptr)
        x, mean = self._features(atomic_numbers, frac_coords, lattice, layout, t)
        noise = self.lattice_head(mean).view(-1, 3, 3) @ lattice
        energy = self.energy_head(mean)[:, 0] if self.energy_head else None
        return Output(self.coords_head(x), noise, energy)

    def energy(
        self, atomic_numbers: Tensor, frac_coords: Tensor, lattice: Tensor, t: Tensor, layout: Layout
    ) -> Tensor:
        """See ``Crysformer.energy``."""
        assert self.energy_head is not None
        return self.energy_head(self._features(atomic_numbers, frac_coords, lattice, layout, t)[1])[:, 0]

    def _features(
        self, atomic_numbers: Tensor, frac_coords: Tensor, lattice: Tensor, layout: Layout, t: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features of atoms (N, d) and their means over crystals (B, d)."""
        crystal, ptr = layout.crystal, layout.ptr
        pairs = _Pairs(ptr, crystal)
        time = time_embedding(t).to(lattice.dtype)[crystal]
        x = self.node(torch.cat([self.element(self.descriptors[atomic_numbers]), time], dim=-1))
        gram = (lattice @ lattice.transpose(1, 2)).flatten(1)
        for block in self.blocks:
            x = block(x, frac_coords, gram, pairs)
        total = x.new_zeros(len(ptr) - 1, x.shape[1]).index_add(0, crystal, x)
        return x, total / ptr.diff()[:, None]
