"""Energies and relaxed cells of many small crystals with CHGNet on a CPU.

CHGNet's own optimiser takes one crystal at a time through ASE; here several crystals share each forward
pass, and a quasi-Newton step on positions and strain replaces FIRE, which needs three times the steps.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from dao_pipeline.crystals.crystal import Crystal, wrap

GPA = 160.21766208
"""GPa per eV/angstrom^3."""


@dataclass(frozen=True, kw_only=True)
class RelaxSettings:
    """When a relaxation ends and how it moves; lengths in angstrom, energies in eV."""

    force_max: float = 0.03
    """Convergence: largest force on an atom, eV/angstrom."""
    stress_max: float = 0.3
    """Convergence: largest component of the stress, GPa."""
    steps: int = 100
    move_max: float = 0.15
    """Largest displacement of an atom in one step."""
    strain_max: float = 0.06
    """Largest strain component of one step."""
    distance_min: float = 0.7
    """Closer atoms mean that the crystal collapsed."""
    volume_factor: float = 5.0
    """Largest factor by which the volume may grow or shrink: guessed starts of soft metals are far too dense."""
    batch_atoms: int = 40
    """Atoms per forward pass: larger batches fall out of the CPU's cache and are slower per atom."""


class Relaxation(NamedTuple):
    """Outcome of one relaxation; energies in eV/atom. ``reason`` is empty where it succeeded."""

    crystal: Crystal
    start_energy: float
    energy: float
    steps: int
    reason: str


class _Gradient(NamedTuple):
    """Energy (eV) of a cell and its derivatives with respect to fractional coordinates and lattice."""

    energy: float
    frac: np.ndarray
    lattice: np.ndarray
    distance: float


class Labeller:
    """CHGNet on one CPU thread: single-point energies and relaxations of lists of crystals."""

    def __init__(self, settings: RelaxSettings | None = None) -> None:
        from chgnet.model import CHGNet

        self.settings = settings or RelaxSettings()
        with contextlib.redirect_stdout(io.StringIO()):
            self.model = CHGNet.load(use_device="cpu", verbose=False)
        self.model.eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    @property
    def method(self) -> str:
        """Name and version of the potential, as written into the column ``energy_method``."""
        return f"CHGNet-{self.model.version}"

    def _graph(self, crystal: Crystal) -> Any:
        from pymatgen.core import Structure

        structure = Structure(crystal.lattice, crystal.atomic_numbers, crystal.frac_coords)
        return self.model.graph_converter(structure)

    def _evaluate(self, graphs: list[Any]) -> list[_Gradient]:
        """Energies and first derivatives of several cells in one pass."""
        sizes = torch.tensor([len(graph.atomic_number) for graph in graphs])
        energies = self.model(graphs, task="e")["e"] * sizes
        inputs = [g.atom_frac_coord for g in graphs] + [g.lattice for g in graphs]
        grads = [g.numpy().astype(np.float64) for g in torch.autograd.grad(energies.sum(), inputs)]
        found = zip(graphs, energies.tolist(), grads[: len(graphs)], grads[len(graphs) :], strict=True)
        return [_Gradient(e, by_frac, by_cell, _shortest(g)) for g, e, by_frac, by_cell in found]

    def energies(self, crystals: Sequence[Crystal]) -> list[float]:
        """Energy of each crystal as it stands, eV/atom; NaN where an atom has no neighbour within 6 angstrom."""
        energies = [float("nan")] * len(crystals)
        pending: list[tuple[int, Any]] = []
        atoms = 0
        for i, crystal in enumerate(crystals):
            try:
                pending.append((i, self._graph(crystal)))
            except ValueError:
                continue
            atoms += crystal.num_atoms
            if atoms >= self.settings.batch_atoms:
                self._flush(pending, energies)
                atoms = 0
        self._flush(pending, energies)
        return energies

    def _flush(self, pending: list[tuple[int, Any]], energies: list[float]) -> None:
        if pending:
            with torch.no_grad():
                found = self.model([graph for _, graph in pending], task="e")["e"].tolist()
            for (i, _), energy in zip(pending, found, strict=True):
                energies[i] = energy
        pending.clear()

    def relax(self, crystals: Sequence[Crystal]) -> Iterator[Relaxation]:
        """Relax positions and cell of each crystal; yields outcomes as they end, not in order."""
        queue = list(crystals)[::-1]
        active: list[_State] = []
        while queue or active:
            while queue and sum(s.crystal.num_atoms for s in active) < self.settings.batch_atoms:
                active.append(_State(queue.pop(), self.settings))
            graphs = []
            for state in list(active):
                try:
                    graphs.append(self._graph(state.current()))
                except ValueError:
                    active.remove(state)
                    yield state.outcome("an atom lost its neighbours")
            for state, gradient in zip(list(active), self._evaluate(graphs) if graphs else [], strict=True):
                if (reason := state.advance(gradient)) is not None:
                    active.remove(state)
                    yield state.outcome(reason)


def _shortest(graph: Any) -> float:
    """Smallest interatomic distance of a CHGNet graph, angstrom."""
    with torch.no_grad():
        pairs = graph.atom_graph.long()
        cart = graph.atom_frac_coord @ graph.lattice
        vectors = cart[pairs[:, 1]] + graph.neighbor_image @ graph.lattice - cart[pairs[:, 0]]
        return float(vectors.norm(dim=1).min())


class _State:
    """One crystal under way: a BFGS minimiser with step limits over (positions, strain).

    The variables are ``u`` (n, 3), Cartesian positions in the starting cell L0, and the deformation F (3, 3):
    the actual cell is L0 F and the actual positions are u F. A step that raises the energy is taken back.
    """

    def __init__(self, crystal: Crystal, settings: RelaxSettings) -> None:
        self.crystal, self.settings = crystal, settings
        self.start = np.concatenate([(crystal.frac_coords @ crystal.lattice).ravel(), np.eye(3).ravel()])
        self.trial = self.start.copy()
        self.best: np.ndarray | None = None
        self.gradient = np.zeros_like(self.start)
        self.energy = self.start_energy = float("nan")
        self.trust, self.steps = 1.0, 0
        n = crystal.num_atoms
        # Stiffnesses typical of solids: 15 eV/angstrom^2 per atom, 100 GPa for the cell.
        stiff = np.concatenate([np.full(3 * n, 15.0), np.full(9, crystal.volume * 0.6)])
        self.soft = np.diag(1.0 / stiff)
        self.inverse_hessian = self.soft.copy()

    def _cell(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Fractional coordinates (n, 3) and lattice (3, 3) of a point."""
        frac = x[:-9].reshape(-1, 3) @ np.linalg.inv(self.crystal.lattice)
        return frac, self.crystal.lattice @ x[-9:].reshape(3, 3)

    def current(self) -> Crystal:
        """The crystal to evaluate next."""
        frac, lattice = self._cell(self.trial)
        return replace(self.crystal, frac_coords=frac, lattice=lattice)

    def outcome(self, reason: str) -> Relaxation:
        """What the relaxation came to."""
        frac, lattice = self._cell(self.trial if self.best is None else self.best)
        final = replace(self.crystal, frac_coords=wrap(frac), lattice=lattice)
        n = self.crystal.num_atoms
        return Relaxation(final, self.start_energy / n, self.energy / n, self.steps, reason)

    def advance(self, found: _Gradient) -> str | None:
        """Take in the gradient at the trial point and choose the next; a reason ('' for success) ends it."""
        s, n = self.settings, self.crystal.num_atoms
        L0 = self.crystal.lattice
        _, lattice = self._cell(self.trial)
        by_u = found.frac @ np.linalg.inv(L0).T
        by_f = L0.T @ found.lattice
        gradient = np.concatenate([by_u.ravel(), (0.5 * (by_f + by_f.T)).ravel()])
        volume = abs(np.linalg.det(lattice))
        self.steps += 1
        if self.best is None:
            self.start_energy = found.energy
        elif found.energy > self.energy + 5e-4 * n:
            self.trust *= 0.4
            self.inverse_hessian = self.soft.copy()
            if self.steps > s.steps or self.trust < 1e-3:
                return "not converged"
            self._step()
            return None
        else:
            self._update(self.trial - self.best, gradient - self.gradient)
            self.trust = min(1.0, 1.5 * self.trust)
        self.best, self.gradient, self.energy = self.trial, gradient, found.energy
        forces = found.frac @ np.linalg.inv(lattice).T
        stress = lattice.T @ found.lattice / volume * GPA
        if found.distance < s.distance_min:
            return "atoms collapsed"
        if not 1 / s.volume_factor < volume / self.crystal.volume < s.volume_factor:
            return "volume ran away"
        if np.linalg.norm(forces, axis=1).max() < s.force_max and np.abs(stress).max() < s.stress_max:
            return ""
        if self.steps > s.steps:
            return "not converged"
        self._step()
        return None

    def _update(self, move: np.ndarray, change: np.ndarray) -> None:
        """BFGS update of the inverse Hessian, skipped where the curvature along the move is not positive."""
        product = float(move @ change)
        if product < 1e-8:
            return
        H = self.inverse_hessian
        Hy = H @ change
        H += (product + change @ Hy) / product**2 * np.outer(move, move)
        H -= (np.outer(Hy, move) + np.outer(move, Hy)) / product

    def _step(self) -> None:
        """Set the trial point: quasi-Newton direction from the best point, cut to the step limits."""
        assert self.best is not None
        step = -self.inverse_hessian @ self.gradient
        if step @ self.gradient > 0:
            self.inverse_hessian = self.soft.copy()
            step = -self.soft @ self.gradient
        move = np.linalg.norm(step[:-9].reshape(-1, 3), axis=1).max() / self.settings.move_max
        strain = np.abs(step[-9:]).max() / self.settings.strain_max
        self.trial = self.best + step * (self.trust / max(1.0, move, strain))
