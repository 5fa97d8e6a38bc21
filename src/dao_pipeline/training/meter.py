"""The training curve: means of the losses since the record before, throughput and memory."""

from __future__ import annotations

import math
import resource
import time
from typing import Any

import torch

from dao_pipeline.training.distributed import Processes


class Meter:
    """Collects steps, or the batches of a validation, and makes a record of them."""

    def __init__(self) -> None:
        self.last = math.nan
        self.rate = 0.0
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}
        self._norms: list[float] = []
        self._crystals = self._atoms = 0
        self._since = time.monotonic()

    def add(
        self,
        sums: dict[str, float],
        weights: dict[str, float],
        *,
        crystals: int,
        atoms: int,
        norm: float | None = None,
    ) -> None:
        """Count a step: numerators and denominators of its losses, crystals and atoms over all processes."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._weights[name] = self._weights.get(name, 0.0) + weights[name]
        self._crystals += crystals
        self._atoms += atoms
        if norm is not None:
            self._norms.append(norm)

    def pause(self, seconds: float) -> None:
        """Leave time out that was spent on something else."""
        self._since += seconds

    def record(self, processes: Processes, **facts: Any) -> dict[str, Any]:
        """The record, and start anew. Every process must call it: memory is that of the largest one."""
        seconds = time.monotonic() - self._since
        means = {
            name: total / self._weights[name] if self._weights[name] else None
            for name, total in self._sums.items()
        }
        loss = sum(value or 0.0 for name, value in means.items() if name.startswith("loss_"))
        record = {
            **facts,
            **means,
            "loss": loss if means else math.nan,
            "seconds": seconds,
            "crystals_per_second": self._crystals / seconds,
            "atoms_per_second": self._atoms / seconds,
            **_memory(processes),
        }
        if self._norms:
            record["grad_norm"] = sum(self._norms) / len(self._norms)
        self.last, self.rate = record["loss"], record["atoms_per_second"]
        self._reset()
        return record


def _memory(processes: Processes) -> dict[str, float]:
    """Largest memory of any process so far, in MB: resident, and on its GPU."""
    on_gpu = processes.device.type == "cuda"
    peaks = [
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        torch.cuda.max_memory_allocated(processes.device) / 2**20 if on_gpu else 0.0,
    ]
    both = torch.tensor(peaks, device=processes.device)
    processes.maximum(both)
    names = ("memory_mb", "gpu_memory_mb") if on_gpu else ("memory_mb",)
    return dict(zip(names, both.tolist(), strict=False))
