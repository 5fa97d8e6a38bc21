"""Movements of a crystal that keep its symmetry: they are averaged over its motions onto itself.

A template's symmetry is part of what it says, and a network that does not know of rotations would break it a
little everywhere. Averaged, atoms on special positions stay there and a cubic cell stays cubic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dao_pipeline.crystals.automorphisms import symmetries
from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.process.log_metric import log_metric, metric_cell


@dataclass(frozen=True)
class Symmetrizer:
    """The motions of a batch of B crystals with N atoms, K motions in all.

    rotations: (K, 3, 3), in the crystal's basis: a displacement u becomes u W. crystal: (K,), whose motion it is.
    motion, source, target: (M,), a motion takes atom ``source`` to atom ``target``.
    atom_weight, crystal_weight: (N, 1) and (B, 1, 1), one over the number of motions.
    """

    rotations: Tensor
    crystal: Tensor
    motion: Tensor
    source: Tensor
    target: Tensor
    atom_weight: Tensor
    crystal_weight: Tensor

    @classmethod
    def of(cls, crystals: FlatCrystals, device: torch.device, dtype: torch.dtype) -> Symmetrizer:
        """Find the motions of crystals in reduced cells."""
        found = []
        ptr = crystals.ptr
        for i in range(len(crystals)):
            atoms = slice(int(ptr[i]), int(ptr[i + 1]))
            found.append(symmetries(crystals.numbers[atoms], crystals.frac[atoms], crystals.lattice[i]))
        order = np.array([len(rotations) for rotations, _ in found], dtype=np.int64)
        crystal = np.repeat(np.arange(len(crystals)), order)
        counts = crystals.counts[crystal]
        motion = np.repeat(np.arange(len(crystal)), counts)
        first = ptr[:-1][crystal][motion]
        within = np.arange(len(motion)) - np.repeat(np.cumsum(counts) - counts, counts)
        images = np.concatenate([np.zeros(0, np.int64), *(images.ravel() for _, images in found)])
        rotations = np.concatenate([np.zeros((0, 3, 3)), *(rotations for rotations, _ in found)])

        def tensor(values: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        weight = tensor(1 / order).to(dtype)
        return cls(
            rotations=tensor(rotations).to(dtype),
            crystal=tensor(crystal),
            motion=tensor(motion),
            source=tensor(first + within),
            target=tensor(first + images),
            atom_weight=weight[tensor(crystals.crystal_of_atom)][:, None],
            crystal_weight=weight[:, None, None],
        )

    def displacements(self, u: Tensor) -> Tensor:
        """The symmetric part of displacements of fractional coordinates, (N, 3)."""
        turned = torch.einsum("mi,mij->mj", u[self.source], self.rotations[self.motion])
        return torch.zeros_like(u).index_add(0, self.target, turned) * self.atom_weight

    def log_metrics(self, y: Tensor) -> Tensor:
        """The nearest log metrics of cells that have the symmetry, (B, 3, 3): metrics are averaged, W G W^T."""
        cell = metric_cell(y)
        turned = self.rotations @ cell[self.crystal]
        metric = torch.zeros_like(y).index_add(0, self.crystal, turned @ turned.transpose(1, 2))
        # not ``cholesky``: one crystal whose cell is no cell any more must not end all others
        factor, failed = torch.linalg.cholesky_ex(metric * self.crystal_weight)
        return log_metric(torch.where((failed == 0)[:, None, None], factor, torch.nan))
