r"""The Fourier edge term of the attention, without a tensor over pairs: a rotary embedding on the torus.

The term enters as a scalar that is linear in queries q (or in gradients of values) and in weights w (or in
gradients of logits)::

    S(q, w) = sum_ijh w_ijh  q_ih . W_h psi_ij        psi_ij = [cos, sin] of 2 pi k (f_j - f_i): 6 F numbers

Read each (cos, sin) pair as a complex number: psi_ij = conj(z_i) z_j with phasors z_j = exp(2 pi i k f_j), and
the scalar product of pairs is Re(conj(a) b). Hence ::

    dS/dw = Q_i . z_j              Q_i = z_i (W^T q_i)                      logits
    dS/dq = W T_i                  T_i = conj(z_i) sum_j w_ij z_j           values

``edge_logits`` is the first, ``edge_values`` the second. Each is the other's gradient, so all derivatives come
from Q and T, which are cheap to make again and are not kept. z_j may be damped in the place of psi_j.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def edge_logits(query: Tensor, w_psi: Tensor, phasor: Tensor, phases: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """q_i . W psi_ij for every pair and head.

    query: (N, H, c). w_psi: (H, c, 6 F). phasor: (N, 6 F), pairs (cos, sin). phases: per size class (b, n, 6 F).
    Returns (b, n, H, n) per size class: crystal, query atom, head, other atom.
    """
    if _own_gradient(query, w_psi, phasor):
        return _EdgeLogits.apply(query, w_psi, phasor, *phases)
    turned = turn(torch.einsum("nhc,hcf->nhf", query, w_psi), phasor)
    return tuple(_dot(*pair) for pair in zip(_split(turned, phases), phases, strict=True))


def edge_values(weights: Sequence[Tensor], w_psi: Tensor, phasor: Tensor, phases: Sequence[Tensor]) -> Tensor:
    """sum_j w_ij W psi_ij, (N, H, c), for weights (b, n, H, n) per size class; the rest as in ``edge_logits``."""
    if _own_gradient(weights[0], w_psi, phasor):
        return _EdgeValues.apply(w_psi, phasor, *weights, *phases)
    sums = [_sum(*pair).flatten(0, 1) for pair in zip(weights, phases, strict=True)]
    return torch.einsum("nhf,hcf->nhc", turn(torch.cat(sums), phasor, back=True), w_psi)


def turn(values: Tensor, phasor: Tensor, back: bool = False) -> Tensor:
    """Pairs of ``values`` (N, H, 6 F), as complex numbers, times the atom's phasor (N, 6 F) or its conjugate."""
    (a, b), (cos, sin) = (pairs.unflatten(-1, (-1, 2)).unbind(-1) for pairs in (values, phasor[:, None]))
    sin = -sin if back else sin
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(values.dtype)


def _own_gradient(*tensors: Tensor) -> bool:
    """Whether the hand-written form applies: one dtype that has complex numbers. Compilers fuse the plain form."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(tensors[0].device.type):
        return False
    kinds = {tensor.dtype for tensor in tensors}
    return len(kinds) == 1 and kinds <= {torch.float32, torch.float64}


def _complex(values: Tensor) -> Tensor:
    """Pairs (..., 2 m) as complex numbers (..., m)."""
    return torch.view_as_complex(values.unflatten(-1, (-1, 2)))


def _split(values: Tensor, phases: Sequence[Tensor]) -> list[Tensor]:
    """(N, H, 6 F) as one view (b, n, H, 6 F) per size class."""
    parts = values.split([phase.shape[0] * phase.shape[1] for phase in phases])
    return [part.unflatten(0, phase.shape[:2]) for part, phase in zip(parts, phases, strict=True)]


def _dot(turned: Tensor, phase: Tensor) -> Tensor:
    """Q_i . z_j: (b, n, H, 6 F), (b, n, 6 F) -> (b, n, H, n)."""
    return (turned.flatten(1, 2) @ phase.transpose(1, 2)).unflatten(1, turned.shape[1:3])


def _sum(weights: Tensor, phase: Tensor) -> Tensor:
    """sum_j w_ij z_j: (b, n, H, n), (b, n, 6 F) -> (b, n, H, 6 F)."""
    return (weights.flatten(1, 2) @ phase).unflatten(1, weights.shape[1:3])


def _turned(query: Tensor, w_psi: Tensor, phasor: Tensor) -> Tensor:
    """Q: written atom by atom and turned in place, so that no copy is needed."""
    out = query.new_empty(*query.shape[:2], w_psi.shape[2])
    torch.bmm(query.transpose(0, 1), w_psi, out=out.transpose(0, 1))
    _complex(out).mul_(_complex(phasor)[:, None])
    return out


def _turned_back(weights: Sequence[Tensor], phasor: Tensor, phases: Sequence[Tensor]) -> Tensor:
    """T of all size classes, (N, H, 6 F)."""
    out = _gathered(weights, phases)
    _complex(out).mul_(_complex(phasor)[:, None].conj())
    return out


def _gathered(weights: Sequence[Tensor], phases: Sequence[Tensor]) -> Tensor:
    """sum_j w_ij z_j of all size classes: (N, H, 6 F)."""
    atoms = sum(phase.shape[0] * phase.shape[1] for phase in phases)
    out = phases[0].new_empty(atoms, weights[0].shape[2], phases[0].shape[2])
    for weight, phase, part in zip(weights, phases, _split(out, phases), strict=True):
        torch.bmm(weight.flatten(1, 2), phase, out=part.flatten(1, 2))
    return out


class _EdgeLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, w_psi: Tensor, phasor: Tensor, *phases: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(query, w_psi, phasor, *phases)
        turned = _turned(query, w_psi, phasor)
        return tuple(_dot(*pair) for pair in zip(_split(turned, phases), phases, strict=True))

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        query, w_psi, phasor, *phases = ctx.saved_tensors
        of_query, of_w, *of_phases = ctx.needs_input_grad
        by_positions = _by_positions(query, weights, w_psi, phasor, phases, any(of_phases))
        by_query = by_w = None
        if of_query or of_w:
            values = _turned_back(weights, phasor, phases)
            by_query = torch.einsum("nhf,hcf->nhc", values, w_psi) if of_query else None
            by_w = torch.einsum("nhc,nhf->hcf", query, values) if of_w else None
        return by_query, by_w, *by_positions


class _EdgeValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w_psi: Tensor, phasor: Tensor, *blocks: Tensor) -> Tensor:
        ctx.save_for_backward(w_psi, phasor, *blocks)
        weights, phases = blocks[: len(blocks) // 2], blocks[len(blocks) // 2 :]
        return torch.einsum("nhf,hcf->nhc", _turned_back(weights, phasor, phases), w_psi)

    @staticmethod
    def backward(ctx: Any, query: Tensor) -> tuple[Tensor | None, ...]:
        w_psi, phasor, *blocks = ctx.saved_tensors
        weights, phases = blocks[: len(blocks) // 2], blocks[len(blocks) // 2 :]
        of_w, *of_others = ctx.needs_input_grad
        of_phases = any([of_others[0], *of_others[1 + len(weights) :]])
        by_phasor, *by_phases = _by_positions(query, weights, w_psi, phasor, phases, of_phases)
        by_w = torch.einsum("nhc,nhf->hcf", query, _turned_back(weights, phasor, phases)) if of_w else None
        turned = _turned(query, w_psi, phasor)
        by_weights = [_dot(*pair) for pair in zip(_split(turned, phases), phases, strict=True)]
        return by_w, by_phasor, *by_weights, *by_phases


def _by_positions(
    query: Tensor,
    weights: Sequence[Tensor],
    w_psi: Tensor,
    phasor: Tensor,
    phases: Sequence[Tensor],
    wanted: bool,
) -> list[Tensor | None]:
    """dS / d phasor and dS / d phases; nothing where coordinates need no gradient, as in training."""
    if not wanted:
        return [None] * (1 + len(phases))
    turned = _turned(query, w_psi, phasor)
    by_phases = [
        weight.flatten(1, 2).transpose(1, 2) @ part.flatten(1, 2)
        for weight, part in zip(weights, _split(turned, phases), strict=True)
    ]
    # S = Re(conj(P z) sum) with P = W^T q, so dS/dz = conj(P) sum = z conj(Q) sum for |z| = 1
    product = _complex(turned).conj() * _complex(_gathered(weights, phases))
    by_phasor = torch.view_as_real(product.sum(1) * _complex(phasor)).flatten(1)
    return [by_phasor, *by_phases]
