"""The published relaxation, for comparison: one L-BFGS for all crystals of a group (paper 4).

The unstable ones among 100 consecutive training crystals share one optimiser over their fractional coordinates
and lattices, which minimises their mean standardised energy: ``torch.optim.LBFGS`` with a learning rate of 1, no
line search, and ``relax.steps`` iterations (published: 5). A crystal's result depends on the others of its group.
Unlike there, the energy before is that of the unrelaxed crystal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dao_pipeline.config import Relax
from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.energy.relax_base import Relaxation
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout

GROUP = 100
"""Consecutive training crystals, stable ones counted, that share an optimiser."""


class Paper(Relaxation):
    """rows: (m,) position of each crystal in the training set, which rises."""

    def __init__(self, model: DaoModel, crystals: FlatCrystals, settings: Relax, rows: np.ndarray) -> None:
        super().__init__(model, crystals, settings)
        self._groups = rows // GROUP

    def advance(self) -> None:
        """Relax the next group."""
        [first, *_] = np.flatnonzero(~self.result.done.numpy())
        chosen = self._groups == self._groups[first]
        group, device, dtype = self.crystals.select(chosen), self.model.element_volumes.device, self.model.dtype
        layout = Layout.from_ptr(torch.from_numpy(group.ptr).to(device))
        numbers = torch.from_numpy(group.numbers).to(device)
        coords = torch.from_numpy(group.frac).to(device, dtype).requires_grad_()
        lattice = torch.from_numpy(group.lattice).to(device, dtype).requires_grad_()
        t = torch.zeros(len(group), dtype=torch.int64, device=device)
        spread = float(self.model.about.energy_std)
        optimizer = torch.optim.LBFGS([coords, lattice], lr=1.0, max_iter=self.settings.steps)

        def energies() -> Tensor:
            return self.model.energy(numbers, coords, lattice, t, layout)

        def objective() -> Tensor:
            optimizer.zero_grad()
            mean = energies().mean() / spread
            coords.grad, lattice.grad = torch.autograd.grad(mean, (coords, lattice))
            return mean

        with torch.no_grad():
            before = energies()
        optimizer.step(objective)
        with torch.no_grad():
            after = energies()
        moved = coords.detach().double().cpu() - torch.from_numpy(group.frac)
        cell, start = lattice.detach().double().cpu(), torch.from_numpy(group.lattice)
        crystal = torch.from_numpy(group.crystal_of_atom)
        length = torch.einsum("ni,nij->nj", moved, start[crystal]).norm(dim=1)
        farthest = torch.zeros(len(group), dtype=torch.float64)
        result, index = self.result, torch.from_numpy(np.flatnonzero(chosen))
        atoms = torch.from_numpy(np.repeat(chosen, self.crystals.counts))
        result.frac_coords[atoms] = coords.detach().double().cpu() % 1.0
        result.lattice[index] = cell
        result.energy_before[index] = before.double().cpu()
        result.energy_after[index] = after.double().cpu()
        result.steps[index] = int(optimizer.state[coords]["n_iter"])
        result.displacement[index] = farthest.scatter_reduce(0, crystal, length, "amax")
        result.volume_change[index] = torch.linalg.det(cell).abs() / torch.linalg.det(start).abs() - 1
        result.done[index] = True
