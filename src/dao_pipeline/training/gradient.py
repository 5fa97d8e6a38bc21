"""The gradient of a step in one flat buffer: summed over chunks, then over processes, then clipped.

Not DistributedDataParallel: it wants the same number of backward passes from every process, and every parameter
in each of them. Here processes differ in chunks, and a failed chunk is computed anew. One buffer needs one
all-reduce, and a parameter without gradient simply adds zero, the same in all processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dao_pipeline.config import Training


class Gradient:
    """``values``: (P + extra,): gradients of P weights, each parameter's ``grad`` being a view, then ``extra``."""

    def __init__(self, parameters: Sequence[nn.Parameter], extra: int) -> None:
        self.parameters = list(parameters)
        self.length = sum(p.numel() for p in self.parameters)
        self.values = torch.zeros(
            self.length + extra, device=self.parameters[0].device, dtype=self.parameters[0].dtype
        )
        self.weights, self.extra = self.values[: self.length], self.values[self.length :]
        parts = self.weights.split([p.numel() for p in self.parameters])
        self._views = [part.view_as(p) for p, part in zip(self.parameters, parts, strict=True)]
        for parameter, view in zip(self.parameters, self._views, strict=True):
            parameter.grad = view

    def add(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``: all of it or, if memory runs out, nothing."""
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        used = [(view, g) for view, g in zip(self._views, found, strict=True) if g is not None]
        torch._foreach_add_([view for view, _ in used], [g for _, g in used])

    def norm(self) -> Tensor:
        """Euclidean norm of the weights' gradient, a scalar; not finite if any entry is not."""
        return torch.linalg.vector_norm(self.weights)

    def clip(self, settings: Training, norm: Tensor) -> None:
        """Limit the gradient, whose ``norm`` is known."""
        if settings.clip == "norm":
            self.weights.mul_((settings.clip_value / (norm + 1e-6)).clamp(max=1))
        elif settings.clip == "value":
            self.weights.clamp_(-settings.clip_value, settings.clip_value)
