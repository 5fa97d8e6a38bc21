r"""L-BFGS for many crystals at once, each with its own state: history, trust radius, energy.

The variables of a crystal are the Cartesian displacements of its atoms in the cell it came in, and a symmetric
strain \epsilon times a length, all in angstrom: the cell is L (1 + \epsilon), and coordinates are F + u L^-1. The
length makes a cell about as stiff as an atom, so that one number can scale the first step.

A number of atoms is under way. Whoever has converged, or has used up its steps, leaves, and the next crystals
come in. Each crystal is a row of padded tensors, so that sums over its variables see nothing of the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dao_pipeline.config import Relax
from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.energy.relax_base import Relaxation
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout

HISTORY = 8
"""Pairs of steps and gradient changes that L-BFGS remembers."""
STIFFNESS = 15.0
"""eV/angstrom^2 of an atom in a typical solid: the curvature assumed before anything is known."""
BULK = 0.6
"""eV/angstrom^3 (100 GPa): the same of a cell."""
SUFFICIENT = 1e-4
"""Share of the expected decrease that a step must bring (Armijo)."""
CUTS = (0.1, 0.5)
"""Limits of the factor by which a refused step becomes shorter."""
SMALLEST_RADIUS = 1e-4
"""Of the full trust radius: a crystal that gets no step beyond is as low as its precision shows."""
EXCHANGE = 0.05
"""Share of the atoms under way that must have stopped before crystals are exchanged, which has its cost."""
GPA = 160.21766208
"""GPa per eV/angstrom^3."""

_UNDER_WAY = (
    *("index", "point", "gradient", "energy", "before", "radius", "steps", "trials"),
    *("moves", "changes", "inverse", "scale", "stopped", "converged"),
)
"""Tensors with one row per crystal under way."""


class _Places(NamedTuple):
    """What does not change while the same B crystals with N atoms, at most A each, are under way.

    numbers (N,); frac (B, A, 3); slots (N,), where atoms are among the B A places; lattice, inverse (B, 3, 3);
    volume, length, atoms (B,).
    """

    numbers: Tensor
    frac: Tensor
    slots: Tensor
    lattice: Tensor
    inverse: Tensor
    volume: Tensor
    length: Tensor
    atoms: Tensor
    layout: Layout


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Scalar product of each crystal, (B, V, 3), (B, V, 3) -> (B,)."""
    return (a * b).sum((-2, -1))


class Lbfgs(Relaxation):
    """At most ``settings.batch_atoms`` atoms under way (at least one crystal), large crystals first.

    Tensors of the crystals under way, B rows; V = A + 3 triples of variables, the last three the scaled strain:
    index, position among all crystals; point, gradient (B, V, 3), angstrom and eV/angstrom; energy, before (B,)
    eV, infinite until the first look; radius (B,), at most 1; moves, changes (B, HISTORY, V, 3), newest last,
    inverse (B, HISTORY), 1 over their scalar products or 0 where there is no pair; scale (B,), inverse curvature.
    """

    def __init__(self, model: DaoModel, crystals: FlatCrystals, settings: Relax) -> None:
        super().__init__(model, crystals, settings)
        self._device = model.element_volumes.device
        self._order = np.argsort(-crystals.counts, kind="stable")
        self._ends = np.concatenate([[0], np.cumsum(crystals.counts[self._order])])
        self._next = 0
        self._width = 0
        self._batch: dict[str, Tensor] = self._newcomers(np.zeros(0, dtype=np.int64))
        self._places: _Places | None = None

    def advance(self) -> None:
        """Exchange crystals, then one trial step for each that is under way."""
        self._exchange()
        assert self._places is not None
        b = self._batch
        step = self._step()
        slope = _dot(step, b["gradient"])
        energy, gradient = self._evaluate(self._places, b["point"] + step)
        sound = torch.isfinite(energy) & torch.isfinite(gradient).all(2).all(1)
        first = torch.isinf(b["energy"])
        going = ~b["stopped"]
        down = going & sound & (energy <= b["energy"] + SUFFICIENT * slope)
        b["before"] = torch.where(first, energy, b["before"])
        self._remember(step, gradient, down & ~first)
        taken = down[:, None, None]
        b["radius"] = torch.where(
            going & ~first, self._radius(step, slope, energy - b["energy"], down), b["radius"]
        )
        b["point"] = torch.where(taken, b["point"] + step, b["point"])
        b["gradient"] = torch.where(taken, gradient, b["gradient"])
        b["energy"] = torch.where(down, energy, b["energy"])
        b["steps"] += (down & ~first).to(b["steps"].dtype)
        b["trials"] += going.to(b["trials"].dtype)
        lost = first & ~sound  # not even a first energy: nothing to go down in
        b["energy"] = torch.where(lost, float("nan"), b["energy"])
        b["converged"] = b["converged"] | (down & self._converged())
        limits = self.settings
        b["stopped"] = (
            b["stopped"]
            | b["converged"]
            | lost
            | (b["trials"] > limits.steps)
            | (b["radius"] < SMALLEST_RADIUS)
            | (self._displacement() > limits.max_displacement)  # it will not be accepted
            | (self._volume_change().abs() > limits.max_volume_change)
        )
        if bool(b["stopped"].all()):  # the last ones leave
            self._exchange()

    def state(self) -> dict[str, Tensor]:
        """Outcomes, and the crystals under way with their histories."""
        under_way = {f"batch.{name}": values.cpu().contiguous() for name, values in self._batch.items()}
        return super().state() | under_way | {"next": torch.tensor(self._next)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The same crystals under way, in the same order."""
        super().restore(state)
        self._batch = {name: state[f"batch.{name}"].to(self._device) for name in _UNDER_WAY}
        self._next = int(state["next"])
        self._width = self._batch["point"].shape[1] - 3
        self._places = self._settle(self._batch["index"].cpu().numpy())

    def _exchange(self) -> None:
        """Who has stopped leaves, if they are enough, and others come in."""
        sizes = self.crystals.counts
        index = self._batch["index"].cpu().numpy()
        stays = ~self._batch["stopped"].cpu().numpy()
        staying = index[stays]
        atoms = int(sizes[staying].sum())
        if sizes[index].sum() - atoms < EXCHANGE * sizes[index].sum():
            return
        self._leave(np.flatnonzero(~stays))
        room = self._ends[self._next] + self.settings.batch_atoms - atoms
        end = int(np.searchsorted(self._ends, room, side="right")) - 1
        if not len(staying):
            end = max(end, min(self._next + 1, len(self._order)))
        coming, self._next = self._order[self._next : end], max(self._next, end)
        together = np.concatenate([staying, coming])
        self._width = int(sizes[together].max(initial=0))
        old, new = self._resized(np.flatnonzero(stays)), self._newcomers(coming)
        order = np.argsort(sizes[together], kind="stable")  # so that size classes lie in a row
        where = torch.from_numpy(order).to(self._device)
        self._batch = {name: torch.cat([old[name], new[name]])[where] for name in _UNDER_WAY}
        self._places = self._settle(together[order]) if len(together) else None

    def _resized(self, rows: np.ndarray) -> dict[str, Tensor]:
        """``rows`` of the crystals under way, with room for as many atoms as the largest of the next ones has."""
        chosen = torch.from_numpy(rows).to(self._device)
        found = {name: values[chosen] for name, values in self._batch.items()}
        for name in ("point", "gradient", "moves", "changes"):
            values = found[name]
            atoms, cell = values[..., :-3, :][..., : self._width, :], values[..., -3:, :]
            room = atoms.new_zeros(*atoms.shape[:-2], self._width - atoms.shape[-2], 3)
            found[name] = torch.cat([atoms, room, cell], dim=-2)
        return found

    def _newcomers(self, index: np.ndarray) -> dict[str, Tensor]:
        """Rows of crystals that nothing is known of yet."""
        count, shape = len(index), (len(index), self._width + 3, 3)
        history = (count, HISTORY, *shape[1:])
        options: dict[str, Any] = {"dtype": torch.float64, "device": self._device}
        flag = torch.zeros(count, dtype=torch.bool, device=self._device)
        number = torch.zeros(count, dtype=torch.int32, device=self._device)
        return {
            "index": torch.from_numpy(np.asarray(index, dtype=np.int64)).to(self._device),
            "point": torch.zeros(shape, **options),
            "gradient": torch.zeros(shape, **options),
            "energy": torch.full((count,), float("inf"), **options),
            "before": torch.full((count,), float("nan"), **options),
            "radius": torch.ones(count, **options),
            "steps": number,
            "trials": number.clone(),
            "moves": torch.zeros(history, **options),
            "changes": torch.zeros(history, **options),
            "inverse": torch.zeros(history[:2], **options),
            "scale": torch.full((count,), 1 / STIFFNESS, **options),
            "stopped": flag,
            "converged": flag.clone(),
        }

    def _settle(self, index: np.ndarray) -> _Places:
        """The constants of crystals, which are sorted by size."""
        counts = self.crystals.counts[index]
        real = np.arange(self._width) < counts[:, None]
        rows = (self.crystals.ptr[index][:, None] + np.arange(self._width))[real]
        frac = np.zeros((*real.shape, 3))
        frac[real] = self.crystals.frac[rows]
        lattice = torch.from_numpy(self.crystals.lattice[index].astype(np.float64)).to(self._device)
        volume = torch.linalg.det(lattice).abs()
        return _Places(
            numbers=torch.from_numpy(self.crystals.numbers[rows]).to(self._device),
            frac=torch.from_numpy(frac).to(self._device),
            slots=torch.from_numpy(np.flatnonzero(real)).to(self._device),
            lattice=lattice,
            inverse=torch.linalg.inv(lattice),
            volume=volume,
            length=(volume * (BULK / STIFFNESS)).sqrt(),
            atoms=torch.from_numpy(counts.astype(np.float64)).to(self._device),
            layout=Layout.from_ptr(torch.from_numpy(np.concatenate([[0], counts.cumsum()])).to(self._device)),
        )

    def _strain(self, places: _Places, point: Tensor) -> Tensor:
        """(B, 3, 3), symmetric."""
        cell = point[:, -3:]
        return 0.5 * (cell + cell.transpose(1, 2)) / places.length[:, None, None]

    def _evaluate(self, places: _Places, point: Tensor) -> tuple[Tensor, Tensor]:
        """Energy of each crystal (B,) in eV, and its gradient (B, V, 3) in eV/angstrom."""
        p, dtype = places, self.model.dtype
        t = torch.zeros(len(point), dtype=torch.int64, device=self._device)
        leaf = point.detach().requires_grad_()
        with torch.enable_grad():
            coords = (p.frac + leaf[:, :-3] @ p.inverse).flatten(0, 1)[p.slots]
            cell = p.lattice @ (torch.eye(3, dtype=point.dtype, device=self._device) + self._strain(p, leaf))
            energy = self.model.energy(p.numbers, coords.to(dtype), cell.to(dtype), t, p.layout)
            total = energy.to(point.dtype) * p.atoms
            (gradient,) = torch.autograd.grad(total.sum(), leaf)
        return total.detach(), gradient

    def _step(self) -> Tensor:
        """The next step of each crystal: its L-BFGS direction, cut to its trust radius; 0 for who has stopped."""
        b = self._batch
        step = -self._two_loops(b["gradient"])
        # a direction that does not descend (noise in the curvature): steepest descent for that crystal
        uphill = _dot(step, b["gradient"]) >= 0
        step = torch.where(uphill[:, None, None], -b["gradient"] / STIFFNESS, step)
        factor = (b["radius"] / self._size(step).clamp(min=1e-12)).clamp(max=1.0)
        return step * torch.where(b["stopped"], 0.0, factor)[:, None, None]

    def _size(self, step: Tensor) -> Tensor:
        """Of each step (B,): 1 where an atom moves, or the cell is strained, by the most that one step may."""
        assert self._places is not None
        move = step[:, :-3].norm(dim=2).amax(1) / self.settings.max_step
        strain = self._strain(self._places, step).norm(dim=(1, 2)) / self.settings.max_strain
        return torch.maximum(move, strain)

    def _two_loops(self, gradient: Tensor) -> Tensor:
        """Inverse curvature times gradient (Nocedal and Wright, algorithm 7.4), for each crystal."""
        b = self._batch
        q, alphas = gradient, []
        for k in reversed(range(HISTORY)):  # where there is no pair, inverse is 0 and nothing changes
            alphas.append(b["inverse"][:, k] * _dot(b["moves"][:, k], q))
            q = q - b["changes"][:, k] * alphas[-1][:, None, None]
        q = q * b["scale"][:, None, None]
        for k in range(HISTORY):
            beta = b["inverse"][:, k] * _dot(b["changes"][:, k], q)
            q = q + b["moves"][:, k] * (alphas.pop() - beta)[:, None, None]
        return q

    def _remember(self, step: Tensor, gradient: Tensor, taken: Tensor) -> None:
        """Append step and change of gradient of each crystal that took one, where curvature is positive."""
        b = self._batch
        change = gradient - b["gradient"]
        curvature, square = _dot(step, change), _dot(change, change)
        useful = taken & (curvature > 1e-8 * (_dot(step, step) * square).sqrt()) & (curvature > 0)
        pairs = {"moves": step, "changes": change, "inverse": 1 / torch.where(useful, curvature, 1.0)}
        for name, newest in pairs.items():
            rolled = torch.cat([b[name][:, 1:], newest[:, None]], dim=1)
            b[name] = torch.where(useful.view(-1, *[1] * (rolled.ndim - 1)), rolled, b[name])
        b["scale"] = torch.where(useful, curvature / torch.where(useful, square, 1.0), b["scale"])

    def _radius(self, step: Tensor, slope: Tensor, rise: Tensor, taken: Tensor) -> Tensor:
        """Next trust radius: larger after a step, else where a parabola through what is known has its minimum."""
        size = self._size(step)
        lowest = -slope / (2 * (rise - slope)).clamp(min=1e-30)
        cut = size * torch.nan_to_num(lowest, nan=CUTS[0], posinf=CUTS[1]).clamp(*CUTS)
        grown = torch.maximum(self._batch["radius"], 2 * size).clamp(max=1.0)
        return torch.where(taken, grown, cut)

    def _converged(self) -> Tensor:
        """Whether forces and stress of each crystal are below their tolerances."""
        assert self._places is not None
        gradient, settings = self._batch["gradient"], self.settings
        force = gradient[:, :-3].norm(dim=2).amax(1)
        by_strain = gradient[:, -3:].norm(dim=(1, 2)) * self._places.length
        return (force <= settings.force_tolerance) & (
            by_strain / self._places.volume * GPA <= settings.stress_tolerance
        )

    def _displacement(self) -> Tensor:
        return self._batch["point"][:, :-3].norm(dim=2).amax(1)

    def _volume_change(self) -> Tensor:
        assert self._places is not None
        strain = self._strain(self._places, self._batch["point"])
        return torch.linalg.det(torch.eye(3, dtype=strain.dtype, device=strain.device) + strain) - 1

    def _leave(self, gone: np.ndarray) -> None:
        """Write down the outcomes of the rows ``gone`` of the crystals under way."""
        if not len(gone) or self._places is None:
            return
        b, p, result = self._batch, self._places, self.result
        rows = torch.from_numpy(gone).to(self._device)
        one = torch.eye(3, dtype=torch.float64, device=self._device)
        cells = p.lattice @ (one + self._strain(p, b["point"]))
        coords = (p.frac + b["point"][:, :-3] @ p.inverse)[rows].cpu() % 1.0
        index = b["index"][rows].cpu()
        real = np.arange(self._width) < self.crystals.counts[index.numpy()][:, None]
        atoms = (self.crystals.ptr[index.numpy()][:, None] + np.arange(self._width))[real]
        result.frac_coords[torch.from_numpy(atoms)] = coords[torch.from_numpy(real)]
        result.lattice[index] = cells[rows].cpu()
        result.energy_before[index] = (b["before"] / p.atoms)[rows].cpu()
        result.energy_after[index] = (b["energy"] / p.atoms)[rows].cpu()
        result.steps[index] = b["steps"][rows].cpu()
        result.displacement[index] = self._displacement()[rows].cpu()
        result.volume_change[index] = self._volume_change()[rows].cpu()
        result.converged[index] = b["converged"][rows].cpu()
        result.done[index] = True
