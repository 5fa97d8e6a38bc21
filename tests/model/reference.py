"""Crysformer written plainly from the equations of the paper: all pairs at once, slow, and independent of src.

``Weights`` names the tensors as the equations do, so that it can be filled from any source: our module, or the
official names of a checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dao_pipeline.model.attention import TorusAttention
from dao_pipeline.model.crysformer import Crysformer


class Affine(NamedTuple):
    """y = W x + b, or scale W and shift b of a LayerNorm."""

    w: Tensor
    b: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.w.T + self.b

    def norm(self, x: Tensor) -> Tensor:
        mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + 1e-5) * self.w + self.b


@dataclass(frozen=True)
class Attention:
    """Section 1.4; edge_norm is None where lattice and Fourier features are not normalised together."""

    q: Affine
    kv: Affine
    e: Affine
    o: Affine
    edge_norm: Affine | None


@dataclass(frozen=True)
class Layer:
    """Sections 1.4 and 1.5."""

    attention: Attention
    norm: Affine
    gate: Tensor
    ffn_norm: Affine
    ffn: tuple[Affine, Affine]
    ffn_gate: Tensor


@dataclass(frozen=True)
class Weights:
    """The whole network: descriptor table (101, 92), embedding, layers, heads."""

    table: Tensor
    element: Affine
    node: Affine
    layers: list[Layer]
    coords: Tensor
    lattice: Tensor
    energy: tuple[Affine, Affine] | None
    heads: int


def of_model(model: Crysformer) -> Weights:
    """The weights of our module, plain or joint form."""
    p = {name: value.detach() for name, value in model.state_dict().items()}

    def affine(name: str) -> Affine:
        return Affine(p[f"{name}.weight"], p[f"{name}.bias"])

    layers = [
        Layer(
            attention=of_attention(block.attention),
            norm=affine(f"blocks.{i}.attention_norm"),
            gate=p[f"blocks.{i}.attention_gate.gate.weight"][0],
            ffn_norm=affine(f"blocks.{i}.mlp_norm"),
            ffn=(affine(f"blocks.{i}.mlp.0"), affine(f"blocks.{i}.mlp.2")),
            ffn_gate=p[f"blocks.{i}.mlp_gate.gate.weight"][0],
        )
        for i, block in enumerate(model.blocks)
    ]
    return Weights(
        table=p["descriptors"],
        element=affine("element"),
        node=affine("node"),
        layers=layers,
        coords=p["coords_head.weight"],
        lattice=p["lattice_head.weight"],
        energy=(affine("energy_head.0"), affine("energy_head.2")) if model.energy_head is not None else None,
        heads=model.blocks[0].attention.heads,
    )


def of_attention(module: TorusAttention) -> Attention:
    """The weights of our attention module."""
    p = {name: value.detach() for name, value in module.state_dict().items()}

    def affine(name: str) -> Affine:
        return Affine(p[f"{name}.weight"], p[f"{name}.bias"])

    norm = affine("edge_norm") if "edge_norm.weight" in p else None
    return Attention(affine("query"), affine("key_value"), affine("edge"), affine("out"), norm)


def edge_features(coords: Tensor, lattice: Tensor, width: int, joint: bool) -> Tensor:
    """Section 1.3: (n, 3), (3, 3) -> (n, n, width), [i, j] of f_j - f_i; width = 9 + 6 frequencies."""
    n = len(coords)
    k = torch.arange((width - 9) // 6, dtype=coords.dtype) + (0 if joint else 1)
    difference = (coords[None, :, :] - coords[:, None, :]) % 1.0
    angle = (2 * math.pi * difference[..., None] * k).flatten(2)
    gram = (lattice @ lattice.T).flatten()
    gram = gram if joint else torch.asinh(gram)
    return torch.cat([gram.expand(n, n, 9), angle.sin(), angle.cos()], -1)


def attention(a: Attention, h: Tensor, edge: Tensor, heads: int) -> Tensor:
    """Section 1.4: (n, d), (n, n, edge) -> (n, d)."""
    n, width = h.shape
    c = width // heads
    q = a.q(h).view(n, heads, c)
    key, value = a.kv(h).chunk(2, -1)
    u = a.e(a.edge_norm.norm(edge) if a.edge_norm is not None else edge).view(n, n, heads, c)
    k, v = key.view(1, n, heads, c) + u, value.view(1, n, heads, c) + u
    weights = torch.softmax((q[:, None] * k).sum(-1) / math.sqrt(c), dim=1)  # (i, j, head), over j
    return a.o((weights[..., None] * v).sum(1).flatten(1))


def gate(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Section 1.5."""
    g = torch.sigmoid(torch.cat([x, y, x - y], -1) @ w)[:, None]
    return g * x + (1 - g) * y


def crysformer(p: Weights, numbers: Tensor, coords: Tensor, lattice: Tensor, t: int) -> tuple[Tensor, ...]:
    """Heads for ONE crystal: (n,), (n, 3), (3, 3) -> (n, 3), (3, 3), scalar."""
    dtype, n = coords.dtype, len(numbers)
    w = torch.exp(-torch.arange(128, dtype=torch.float64) * math.log(10_000) / 127)
    time = torch.cat([torch.sin(t * w), torch.cos(t * w)]).to(dtype)
    x = p.node(torch.cat([p.element(p.table[numbers].to(dtype)), time.expand(n, -1)], -1))
    first = p.layers[0].attention
    edge = edge_features(coords, lattice, first.e.w.shape[1], first.edge_norm is not None)
    for layer in p.layers:
        x = gate(layer.gate, x, attention(layer.attention, layer.norm.norm(x), edge, p.heads))
        wide, narrow = layer.ffn
        x = gate(layer.ffn_gate, x, narrow(F.gelu(wide(layer.ffn_norm.norm(x)))))
    return heads(p, x, lattice)


def heads(p: Weights, x: Tensor, lattice: Tensor) -> tuple[Tensor, ...]:
    """Section 1.6: (n, d) -> coordinates (n, 3), lattice (3, 3), energy."""
    mean = x.mean(0)
    energy = torch.tensor(0.0, dtype=x.dtype)
    if p.energy is not None:
        inner, outer = p.energy
        energy = outer(F.silu(inner(mean)))[0]
    return x @ p.coords.T, (p.lattice @ mean).view(3, 3) @ lattice, energy
