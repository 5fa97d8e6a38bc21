"""The processes of one training: who am I, and sums over all of us.

Set up from the environment that torchrun writes (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), on one
node or many. With a single process every function returns at once and torch.distributed is not touched.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dao_pipeline.device import pick_device


def environment_rank() -> int:
    """Number of this process among those of its training, from the environment; 0 for a single one."""
    return int(os.environ.get("RANK", "0"))


@dataclass(frozen=True)
class Processes:
    """This process among ``count``. The first one writes and logs."""

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Is this the one that writes?"""
        return self.rank == 0

    def sum(self, values: Tensor) -> None:
        """Replace ``values`` by their sum over all processes, the same bits in each."""
        if self.count > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)

    def maximum(self, values: Tensor) -> None:
        """Replace ``values`` by their maximum over all processes."""
        if self.count > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)

    def wait(self) -> None:
        """Until all processes are here."""
        self.sum(torch.zeros(1, device=self.device))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def join_processes() -> Iterator[Processes]:
    """Join the training that torchrun started: nccl on GPUs, one each, gloo on CPUs."""
    device, count = pick_device(), int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(device)
        return
    _end_with_launcher()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # not in a finally: after an error others may never answer, and the launcher ends them all
    yield Processes(device, dist.get_rank(), count)
    dist.destroy_process_group()


def _end_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies: it starts us in a session of our own, out of reach."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM))
