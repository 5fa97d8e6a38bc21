"""Parts of a flat batch: the crystals that one process computes at once."""

from __future__ import annotations

import numpy as np
import torch
from torch_geometric.data import Data

PER_ATOM = frozenset({"atomic_numbers", "frac_coords", "coords_target"})
"""Names of a batch's tensors with one row per atom; all others but ``ptr`` have one per crystal."""


def cut(order: np.ndarray, sizes: np.ndarray, limit: int) -> list[np.ndarray]:
    """``order`` (crystals) cut into pieces of at most ``limit`` atoms, or of one crystal if that is larger."""
    ends = np.cumsum(sizes[order])
    pieces: list[np.ndarray] = []
    start, done = 0, 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, done + limit, side="right")))
        pieces.append(order[start:stop])
        done = int(ends[stop - 1])
        start = stop
    return pieces


def cut_evenly(order: np.ndarray, sizes: np.ndarray, limit: int) -> list[np.ndarray]:
    """Like ``cut``, but pieces of about equal size, so that no small one is left at the end."""
    chosen = sizes[order]
    if len(chosen) == 0:
        return []
    even = -(-int(chosen.sum()) // -(-int(chosen.sum()) // limit))
    return cut(order, sizes, min(limit, even + int(chosen.max()) - 1))


def part(batch: Data, crystals: np.ndarray, sizes: np.ndarray) -> Data:
    """The given crystals of ``batch``, with everything that belongs to them.

    crystals: positions in the batch. sizes: (B,), atoms of all its crystals, on the host, so that a GPU is not
    asked. Returns ``batch`` itself if all are asked for.
    """
    if len(crystals) == len(sizes):
        return batch
    counts = torch.from_numpy(sizes[crystals])
    ends = torch.from_numpy(np.cumsum(sizes))[crystals]
    ptr = torch.zeros(len(crystals) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=ptr[1:])
    atoms = torch.arange(int(ptr[-1])) + torch.repeat_interleave(ends - ptr[1:], counts)
    device = batch.lattice.device
    rows = torch.as_tensor(crystals, device=device)
    atoms = atoms.to(device)
    found = Data(ptr=ptr.to(device), num_nodes=len(atoms))
    for name, values in batch.items():
        if name not in ("ptr", "num_nodes"):
            found[name] = values[atoms if name in PER_ATOM else rows]
    return found
