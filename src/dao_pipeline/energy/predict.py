"""Energies of crystals, and their gradients, from DAO-P."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dao_pipeline.crystals.dataset import CrystalDataset, size_batches
from dao_pipeline.crystals.table import file_hash
from dao_pipeline.device import pick_device
from dao_pipeline.errors import UserError
from dao_pipeline.model.dao import DaoModel, load_model
from dao_pipeline.model.layout import Layout

if TYPE_CHECKING:
    # Only then: otherwise an edit of the sampler would change the code of relax_dataset, and retrain DAO-G.
    from dao_pipeline.process.sampler import EnergyGradient


def load_energy_model(folder: Path, device: torch.device | str = "cpu") -> DaoModel:
    """A DAO-P model. Raises UserError if ``folder`` holds something else."""
    model = load_model(folder, device)
    if model.about.kind != "dao_p":
        raise UserError(f"{folder}: a {model.about.kind} model has no energies; name a DAO-P directory.")
    return model


def predict_energies(model: Path | DaoModel, table: pa.Table, batch_atoms: int = 6000) -> np.ndarray:
    """Energies, (rows,) float64 eV/atom, of a crystal table; NaN where a row has no crystal.

    Of a model alone, or of a model directory, members included (``predict_with_std``).
    """
    if isinstance(model, Path):
        return predict_with_std(model, table, batch_atoms)[0]
    return ensemble_energies([model], table, batch_atoms)[0]


def predict_with_std(
    folder: Path, table: pa.Table, batch_atoms: int = 6000
) -> tuple[np.ndarray, np.ndarray | None]:
    """Energies and standard deviations of their errors, (rows,) float64 eV/atom both; NaN without a crystal.

    With members both come from them and the model itself: mean, and standard deviation times the scale that
    was fitted on the validation crystals. Without, the energy is the model's and there is no deviation.
    """
    models = load_ensemble(folder, pick_device())
    energies = ensemble_energies(models, table, batch_atoms)
    if len(models) == 1:
        return energies[0], None
    return energies.mean(0), energies.std(0, ddof=1) * models[0].about.std_scale


def load_ensemble(folder: Path, device: torch.device | str = "cpu") -> list[DaoModel]:
    """The model of a directory and its members, if any. Raises UserError if a member is not the right one."""
    models = [load_energy_model(folder, device)]
    for number, expected in enumerate(models[0].about.members, 1):
        member = folder / "members" / str(number)
        models.append(load_energy_model(member, device))
        if (found := file_hash(member / "model.safetensors")) != expected:
            raise UserError(
                f"{member}: its weights (hash {found}) are not those that {folder / 'config.json'} names "
                f"({expected}). Rerun train_energy_model, or fetch the whole directory again."
            )
    return models


def ensemble_energies(models: Sequence[DaoModel], table: pa.Table, batch_atoms: int = 6000) -> np.ndarray:
    """Energies by each model, (models, rows) float64 eV/atom; NaN where a row has no crystal."""
    device = next(models[0].parameters()).device
    energies = np.full((len(models), table.num_rows), np.nan)
    present = np.flatnonzero(np.asarray(table["lattice"].is_valid()))
    if len(present) == 0:
        return energies
    crystals = CrystalDataset(table.take(present))
    with torch.no_grad():
        for indices in size_batches(crystals.sizes, batch_atoms):
            batch = crystals.select(indices).to(device)
            layout = Layout.from_ptr(batch.ptr)
            t = torch.zeros(len(indices), dtype=torch.int64, device=device)
            for number, model in enumerate(models):
                value = model.energy(batch.atomic_numbers, batch.frac_coords, batch.lattice, t, layout)
                energies[number, present[indices]] = value.double().cpu().numpy()
    return energies


def fit_std_scale(energies: np.ndarray, labels: np.ndarray) -> float:
    """Factor on the standard deviation over models with which 68.3 % of the errors are within one deviation.

    energies: (models, crystals), labels: (crystals,), eV/atom, of crystals that no model was trained on. A share,
    not a mean square: a few outliers would widen all deviations.
    """
    error = np.abs(energies.mean(0) - labels)
    spread = np.maximum(energies.std(0, ddof=1), 1e-9)
    return float(np.quantile(error / spread, 0.6827))


def guidance_gradient(model: DaoModel, atomic_numbers: Tensor, edge: Tensor, layout: Layout) -> EnergyGradient:
    """Gradient of DAO-P's standardised energy E_t(F, L), summed over crystals, for the sampler (paper 5).

    edge: (B, 1, 1), unit of the generator's lattices, angstrom. DAO-P's differs where it was fitted on other
    crystals; the chain rule takes care of it: F (N, 3) and L (B, 3, 3) come and go in the generator's unit.
    """
    to_own_unit = edge / model.edge(atomic_numbers, layout)

    def gradient(frac_coords: Tensor, lattice: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            coords, cell = frac_coords.detach().requires_grad_(), lattice.detach().requires_grad_()
            energy = model.crysformer.energy(atomic_numbers, coords, cell * to_own_unit, t, layout)
            by_coords, by_lattice = torch.autograd.grad(energy.sum(), (coords, cell))
        return by_coords, by_lattice

    return gradient
