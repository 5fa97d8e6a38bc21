"""Crysformer written plainly from the equations of the paper: pair by pair, slow, and independent of src."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from dao_pipeline.model.crysformer import Crysformer


def crysformer(model: Crysformer, numbers: Tensor, coords: Tensor, lattice: Tensor, t: int) -> tuple[Tensor, ...]:
    """Heads for ONE crystal with the weights of ``model``: (n,), (n, 3), (3, 3) -> (n, 3), (3, 3), scalar."""
    p = dict(model.named_parameters())
    dtype = coords.dtype
    half = 128
    w = torch.exp(-torch.arange(half, dtype=torch.float64) * math.log(10_000) / (half - 1))
    emb = torch.cat([torch.sin(t * w), torch.cos(t * w)]).to(dtype)
    n = len(numbers)
    x = F.linear(model.descriptors[numbers].to(dtype), p["element.weight"], p["element.bias"])
    x = F.linear(torch.cat([x, emb.expand(n, -1)], -1), p["node.weight"], p["node.bias"])

    k = torch.arange(model.frequencies, dtype=dtype) + (0 if model.joint else 1)
    difference = (coords[None, :, :] - coords[:, None, :]) % 1.0  # [i, j] = f_j - f_i
    angle = (2 * math.pi * difference[..., None] * k).flatten(2)
    gram = (lattice @ lattice.T).flatten()
    gram = gram if model.joint else torch.asinh(gram)
    edge = torch.cat([gram.expand(n, n, 9), angle.sin(), angle.cos()], -1)

    for i, block in enumerate(model.blocks):
        h = F.layer_norm(x, x.shape[-1:], block.attention_norm.weight, block.attention_norm.bias)
        heads = block.attention.heads
        c = x.shape[-1] // heads
        q = block.attention.query(h).view(n, heads, c)
        kv = block.attention.key_value(h)
        key, value = kv[:, : heads * c].view(n, heads, c), kv[:, heads * c :].view(n, heads, c)
        e = edge
        if model.joint:
            norm = block.attention.edge_norm
            e = F.layer_norm(edge, edge.shape[-1:], norm.weight, norm.bias)
        u = block.attention.edge(e).view(n, n, heads, c)
        rows = []
        for a in range(n):
            heads_out = []
            for head in range(heads):
                logits = torch.stack([q[a, head] @ (key[b, head] + u[a, b, head]) for b in range(n)]) / math.sqrt(
                    c
                )
                weights = torch.softmax(logits, 0)
                heads_out.append(sum(weights[b] * (value[b, head] + u[a, b, head]) for b in range(n)))
            rows.append(torch.cat(heads_out))
        y = block.attention.out(torch.stack(rows))
        x = _gate(p[f"blocks.{i}.attention_gate.gate.weight"], x, y)
        h = F.layer_norm(x, x.shape[-1:], block.mlp_norm.weight, block.mlp_norm.bias)
        y = block.mlp[2](F.gelu(block.mlp[0](h)))
        x = _gate(p[f"blocks.{i}.mlp_gate.gate.weight"], x, y)
    mean = x.mean(0)
    noise = (p["lattice_head.weight"] @ mean).view(3, 3) @ lattice
    energy = model.energy_head(mean)[0] if model.energy_head is not None else torch.tensor(0.0, dtype=dtype)
    return x @ p["coords_head.weight"].T, noise, energy


def _gate(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    g = torch.sigmoid(torch.cat([x, y, x - y], -1) @ weight[0])[:, None]
    return g * x + (1 - g) * y
