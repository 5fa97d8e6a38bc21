"""Relaxation of many crystals at once with DAO-P: L-BFGS, each crystal with its own curvature and step.

Variables are Cartesian displacements and a symmetric strain times a length of the cell, so that all of them
are in angstrom and a step has a physical size. A step is taken only if the crystal's own energy falls
(sufficient decrease), else its length is cut; nothing of one crystal enters another.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from dao_pipeline.config import Relax
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.model.layout import Layout

HISTORY = 8
"""Pairs of steps and gradient changes that L-BFGS remembers."""
FIRST_STEP = 0.02
"""angstrom^2 per eV: inverse curvature assumed before anything is known."""
SUFFICIENT = 1e-4
"""Share of the expected decrease that a step must bring (Armijo)."""
CUT = 0.4
SMALLEST_STEP = 1e-5
"""angstrom; a crystal whose step is cut below this is at its minimum as far as single precision sees."""


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """Result for B crystals with N atoms.

    frac_coords: (N, 3). lattice: (B, 3, 3) angstrom. energy_before, energy_after: (B,) eV/atom.
    steps: (B,) steps taken. displacement: (B,) angstrom, largest of an atom. volume_change: (B,) relative.
    converged: (B,) bool, all forces below the tolerance.
    """

    frac_coords: Tensor
    lattice: Tensor
    energy_before: Tensor
    energy_after: Tensor
    steps: Tensor
    displacement: Tensor
    volume_change: Tensor
    converged: Tensor


@dataclass(frozen=True)
class _Point:
    """A vector per crystal in the space of displacements (N, 3) and scaled strains (B, 3, 3)."""

    atoms: Tensor
    cell: Tensor

    def __add__(self, other: _Point) -> _Point:
        return _Point(self.atoms + other.atoms, self.cell + other.cell)

    def __sub__(self, other: _Point) -> _Point:
        return _Point(self.atoms - other.atoms, self.cell - other.cell)

    def scaled(self, factor: Tensor, layout: Layout) -> _Point:
        """Each crystal's vector times its own factor (B,)."""
        return _Point(self.atoms * factor[layout.crystal][:, None], self.cell * factor[:, None, None])


def _dot(a: _Point, b: _Point, layout: Layout) -> Tensor:
    """Scalar product per crystal, (B,)."""
    atoms = (a.atoms * b.atoms).sum(-1)
    return (a.cell * b.cell).sum((1, 2)).index_add(0, layout.crystal, atoms)


def _largest(point: _Point, layout: Layout) -> Tensor:
    """Longest displacement, or norm of the scaled strain if that is longer, of each crystal, (B,)."""
    atoms = point.atoms.norm(dim=-1)
    largest = torch.zeros(layout.num_crystals, dtype=atoms.dtype, device=atoms.device)
    largest = largest.scatter_reduce(0, layout.crystal, atoms, "amax", include_self=True)
    return torch.maximum(largest, point.cell.norm(dim=(1, 2)))


def relax(
    model: DaoModel, atomic_numbers: Tensor, frac_coords: Tensor, lattice: Tensor, ptr: Tensor, settings: Relax
) -> Relaxed:
    """Move B crystals down in DAO-P's energy of clean crystals (t = 0).

    atomic_numbers (N,), frac_coords (N, 3), lattice (B, 3, 3) in angstrom, ptr (B + 1,).
    """
    layout = Layout.from_ptr(ptr)
    device, crystals = lattice.device, layout.num_crystals
    t = torch.zeros(crystals, dtype=torch.int64, device=device)
    atoms_each = ptr.diff().to(lattice.dtype)
    start_volume = torch.linalg.det(lattice)
    length = start_volume.abs().pow(1 / 3)[:, None, None]
    start_inverse = torch.linalg.inv(lattice)

    def crystal_at(point: _Point) -> tuple[Tensor, Tensor]:
        strain = 0.5 * (point.cell + point.cell.transpose(1, 2)) / length
        moved = torch.einsum("ni,nij->nj", point.atoms, start_inverse[layout.crystal])
        return frac_coords + moved, lattice @ (torch.eye(3, dtype=lattice.dtype, device=device) + strain)

    def evaluate(point: _Point) -> tuple[Tensor, _Point]:
        """Total energy of each crystal (B,) in eV, and its gradient in eV/angstrom."""
        leaf = _Point(point.atoms.detach().requires_grad_(), point.cell.detach().requires_grad_())
        with torch.enable_grad():
            coords, cell = crystal_at(leaf)
            energy = model.energy(atomic_numbers, coords, cell, t, layout) * atoms_each
            gradient = torch.autograd.grad(energy.sum(), (leaf.atoms, leaf.cell))
        return energy.detach(), _Point(*gradient)

    point = _Point(torch.zeros_like(frac_coords), torch.zeros_like(lattice))
    energy, gradient = evaluate(point)
    before = energy
    trust = torch.full((crystals,), settings.max_step, dtype=lattice.dtype, device=device)
    steps = torch.zeros(crystals, dtype=torch.int32, device=device)
    history: deque[tuple[_Point, _Point, Tensor]] = deque(maxlen=HISTORY)
    active = _largest(gradient, layout) > settings.force_tolerance
    for _ in range(settings.steps):
        if not bool(active.any()):
            break
        direction = _direction(gradient, history, layout)
        # a direction that does not descend (noise in the curvature): steepest descent for that crystal
        slope = _dot(direction, gradient, layout)
        uphill = slope >= 0
        steepest = gradient.scaled(torch.full_like(slope, -FIRST_STEP), layout)
        direction = _where(uphill, steepest, direction, layout)
        size = _largest(direction, layout)
        direction = direction.scaled((trust / size.clamp(min=1e-12)).clamp(max=1.0), layout)
        direction = direction.scaled(active.to(trust.dtype), layout)
        slope = _dot(direction, gradient, layout)
        trial = point + direction
        trial_energy, trial_gradient = evaluate(trial)
        accepted = active & (trial_energy <= energy + SUFFICIENT * slope) & torch.isfinite(trial_energy)
        moved = _where(accepted, trial, point, layout)
        new_gradient = _where(accepted, trial_gradient, gradient, layout)
        step, change = moved - point, new_gradient - gradient
        curvature = _dot(step, change, layout)
        # pairs without positive curvature, and crystals that stood still, enter with weight zero
        useful = accepted & (curvature > 1e-10)
        inverse = torch.where(useful, 1 / curvature.clamp(min=1e-10), torch.zeros_like(curvature))
        history.append((step, change, inverse))
        point, gradient = moved, new_gradient
        energy = torch.where(accepted, trial_energy, energy)
        steps += accepted.to(steps.dtype)
        trust = torch.where(accepted, (trust * 1.5).clamp(max=settings.max_step), trust * CUT)
        active = active & (_largest(gradient, layout) > settings.force_tolerance) & (trust > SMALLEST_STEP)
    coords, cell = crystal_at(point)
    displacement = point.atoms.norm(dim=-1)
    largest = torch.zeros(crystals, dtype=displacement.dtype, device=device)
    return Relaxed(
        frac_coords=coords % 1.0,
        lattice=cell,
        energy_before=before / atoms_each,
        energy_after=energy / atoms_each,
        steps=steps,
        displacement=largest.scatter_reduce(0, layout.crystal, displacement, "amax"),
        volume_change=(torch.linalg.det(cell) / start_volume - 1),
        converged=_largest(gradient, layout) <= settings.force_tolerance,
    )


def _where(choose: Tensor, a: _Point, b: _Point, layout: Layout) -> _Point:
    """``a`` for crystals where ``choose`` (B,), else ``b``."""
    return _Point(
        torch.where(choose[layout.crystal][:, None], a.atoms, b.atoms),
        torch.where(choose[:, None, None], a.cell, b.cell),
    )


def _direction(gradient: _Point, history: deque[tuple[_Point, _Point, Tensor]], layout: Layout) -> _Point:
    """Two-loop recursion, per crystal; pairs of weight zero leave it unchanged (Nocedal and Wright, 7.4)."""
    q = gradient
    factors = []
    scale = torch.full((layout.num_crystals,), FIRST_STEP, dtype=gradient.cell.dtype, device=gradient.cell.device)
    for _, change, inverse in history:  # the newest useful pair sets the scale
        square = _dot(change, change, layout)
        known = (inverse > 0) & (square > 0)
        scale = torch.where(known, 1 / (inverse.clamp(min=1e-30) * square.clamp(min=1e-30)), scale)
    for step, change, inverse in reversed(history):
        alpha = inverse * _dot(step, q, layout)
        q = q - change.scaled(alpha, layout)
        factors.append(alpha)
    q = q.scaled(scale, layout)
    for (step, change, inverse), alpha in zip(history, reversed(factors), strict=True):
        q = q + step.scaled(alpha - inverse * _dot(change, q, layout), layout)
    return q.scaled(torch.full_like(scale, -1.0), layout)
