"""What the loop asks of a loss, so that chunks and processes do not change a step's result."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch_geometric.data import Data

from dao_pipeline.model.dao import DaoModel


class Objective(Protocol):
    """A loss in three parts; the loss of a step is the sum over names ``loss_*`` of sums / weights."""

    def draw(self, model: DaoModel, batch: Data, generator: torch.Generator) -> Data:
        """A step's batch with everything random in it, as it will be shown to the network.

        Every tensor of the result has one row per atom (names in ``crystals.batch.PER_ATOM``) or per crystal.
        Randomness comes from ``generator`` only. No gradient is taken through it.
        """
        ...

    def weights(self, batch: Data) -> dict[str, Tensor]:
        """Denominators of the means over all of what ``draw`` returned, scalars by name."""
        ...

    def sums(self, model: DaoModel, batch: Data) -> dict[str, Tensor]:
        """Numerators on any crystals of what ``draw`` returned, scalars under the same names."""
        ...


def total_loss(sums: dict[str, Tensor], weights: dict[str, Tensor]) -> Tensor:
    """Sum over ``loss_*`` of sums / weights; a weight of 0 (nothing to average over) counts as 1."""
    parts = [sums[name] / weights[name].clamp(min=1) for name in sums if name.startswith("loss_")]
    return torch.stack(parts).sum()
