"""A process's share of a step, computed piece by piece, and what happens when memory runs out.

The batch of a step is sorted by size. Process r of W takes crystals r, r + W, r + 2 W, ... of it, so that all
have about the same sizes and number of atoms, and computes them in chunks of neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch_geometric.data import Data

from dao_pipeline.crystals.batch import cut_evenly, part
from dao_pipeline.device import out_of_memory
from dao_pipeline.errors import UserError
from dao_pipeline.training.distributed import Processes

CPU_CHUNK_ATOMS = 1024
"""Of 256, 512, 1024 and 4000 atoms the fastest at preset tiny; at small as fast as 512 (one thread, measured)."""

_log = logging.getLogger("dao_pipeline")


def chunk_budget(chunk_atoms: int | None, batch_atoms: int, processes: Processes) -> int:
    """Atoms of a chunk: as configured, or what suits the device."""
    share = batch_atoms // processes.count
    if processes.count > 1:
        share += share // 8  # shares differ a little, and none should be cut for that
    if chunk_atoms is None:
        chunk_atoms = share if processes.device.type == "cuda" else CPU_CHUNK_ATOMS
    return min(chunk_atoms, share)


def compute_share(
    batch: Data, sizes: np.ndarray, budget: int, processes: Processes, compute: Callable[[Data], None]
) -> bool:
    """Call ``compute`` on every chunk of this process's share of ``batch``; did memory run out on the way?

    sizes: (B,), atoms of each crystal, on the host. A chunk that does not fit is cut in two, again and again;
    ``compute`` must leave nothing behind when it fails. No process waits for another in here. Raises UserError
    when one crystal alone does not fit.
    """
    todo = cut_evenly(np.arange(processes.rank, len(sizes), processes.count), sizes, budget)[::-1]
    ran_out = False
    while todo:
        crystals = todo.pop()
        try:
            compute(part(batch, crystals, sizes))
            continue
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # outside of the handler: the exception keeps the failed chunk's tensors alive
        ran_out = True
        atoms = int(sizes[crystals].sum())
        if len(crystals) == 1:
            raise UserError(
                f"a single crystal of {atoms} atoms does not fit into memory. Raise compute.training.mem_mb, use "
                "a GPU with more memory, lower crysdb.max_atoms, or choose a smaller backbone.preset."
            )
        _log.warning("out of memory with a chunk of %d atoms: it is computed in two halves", atoms)
        if processes.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(crystals) // 2
        todo += [crystals[half:], crystals[:half]]
    return ran_out
