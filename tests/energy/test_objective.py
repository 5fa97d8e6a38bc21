"""DAO-P's objective and the units that it learns in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dao_pipeline.config import Backbone, EnergyModel, Process
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.dataset import CrystalDataset
from dao_pipeline.energy.objective import LARGEST_EXCESS, EnergyObjective, linex
from dao_pipeline.energy.predict import predict_energies
from dao_pipeline.energy.reference import fit_element_energies
from dao_pipeline.model.dao import About, DaoModel
from tests.make import binary, crystal

BACKBONE = Backbone(preset="tiny", layers=1, width=16, heads=2, frequencies=2)


def test_linex_is_least_at_the_free_energy() -> None:
    """For any labels, the constant with the least mean loss is -log mean exp(-y); near 0 it is a square."""
    labels = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    free = -float(labels.neg().exp().mean().log())
    energy = torch.tensor(free, dtype=torch.float64, requires_grad=True)
    loss = linex(energy - labels).mean()
    (slope,) = torch.autograd.grad(loss, energy)
    assert abs(float(slope)) < 1e-9
    for other in (free - 0.05, free + 0.05, float(labels.mean())):
        assert float(linex(other - labels).mean()) > float(loss.detach())
    small = torch.tensor([-1e-3, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(linex(small), small.square(), rtol=1e-3, atol=0)


def test_linex_goes_on_straight_beyond_its_limit() -> None:
    d = (LARGEST_EXCESS + torch.tensor([-1e-6, 1e-6, 5.0, 50.0], dtype=torch.float64)).requires_grad_()
    (slope,) = torch.autograd.grad(linex(d).sum(), d)
    torch.testing.assert_close(slope, slope[0].expand(4), rtol=1e-5, atol=0)
    values = linex(d).detach()
    assert float(values[1] - values[0]) == pytest.approx(2e-6 * float(slope[0]), rel=1e-3)


def test_reference_energies_are_found_again() -> None:
    """Labels that are sums over elements leave nothing to learn; an element that never occurs gets the mean."""
    true = {z: -0.1 * z for z in range(101)}
    crystals = [binary(i) for i in range(128)]
    crystals = [
        binary(i, formation_energy=float(np.mean([true[z] for z in c.atomic_numbers])))
        for i, c in enumerate(crystals)
    ]
    table = to_table(crystals)
    found = fit_element_energies(table, "formation_energy", ridge=1e-6)
    seen = {int(z) for c in crystals for z in c.atomic_numbers}
    means = [np.mean(found[c.atomic_numbers]) for c in crystals]
    np.testing.assert_allclose(means, table["formation_energy"].to_numpy(), atol=1e-4)
    assert found[100] == pytest.approx(float(np.mean(table["formation_energy"].to_numpy())))
    assert 100 not in seen


def test_reference_energies_leave_and_return() -> None:
    """What the network is shown is the label less the reference; what is predicted has it again."""
    reference = [0.5 * z for z in range(101)]
    about = About(
        kind="dao_p",
        backbone=BACKBONE.model_dump(),
        process=Process(timesteps=50).model_dump(),
        energy_label="formation_energy",
        energy_mean=0.2,
        energy_std=2.0,
        element_energies=reference,
    )
    model = DaoModel(about, np.full(101, 15.0)).eval()
    rock = crystal("a", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 3.0, formation_energy=8.0)
    metal = crystal("b", ["Al"], [[0, 0, 0]], 2.9, formation_energy=7.0)
    table = to_table([metal, rock])
    batch = CrystalDataset(table, "formation_energy").select(np.array([0, 1]))
    objective = EnergyObjective(EnergyModel(clean_fraction=1.0))
    drawn = objective.draw(model, batch, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(drawn.energy, [(7.0 - 6.5 - 0.2) / 2, (8.0 - 7.0 - 0.2) / 2], rtol=1e-5)
    bare = DaoModel(About(**{**about.__dict__, "element_energies": []}), np.full(101, 15.0)).eval()
    bare.load_state_dict(model.state_dict())
    np.testing.assert_allclose(
        predict_energies(model, table) - predict_energies(bare, table), [6.5, 7.0], rtol=1e-5
    )


def test_the_energy_weight_scales_its_loss_alone() -> None:
    model = DaoModel(
        About(kind="dao_p", backbone=BACKBONE.model_dump(), process=Process(timesteps=50).model_dump()),
        np.full(101, 15.0),
    )
    batch = CrystalDataset(to_table([binary(i) for i in range(6)]), "e_above_hull").select(np.arange(6))
    once, thrice = (EnergyObjective(EnergyModel(energy_weight=w, clean_fraction=0.5)) for w in (1.0, 3.0))
    drawn = once.draw(model, batch, torch.Generator().manual_seed(0))
    first, second = once.sums(model, drawn), thrice.sums(model, drawn)
    torch.testing.assert_close(second["loss_energy"], 3 * first["loss_energy"])
    for name in ("loss_coords", "loss_lattice", "energy_mae"):
        torch.testing.assert_close(second[name], first[name])


@pytest.mark.parametrize("shown", ["clean", "noisy"])
def test_precursors_are_shown_without_noise_only(shown: str) -> None:
    model = DaoModel(
        About(kind="dao_p", backbone=BACKBONE.model_dump(), process=Process(timesteps=50).model_dump()),
        np.full(101, 15.0),
    )
    rows = [binary(i, precursor_of=f"t-{i - 1}" if i % 2 else None) for i in range(40)]
    batch = CrystalDataset(to_table(rows), "e_above_hull").select(np.arange(40))
    objective = EnergyObjective(EnergyModel(clean_fraction=0.0, precursors=shown))
    t = objective.draw(model, batch, torch.Generator().manual_seed(0)).t
    assert (t[::2] > 0).all()
    assert ((t[1::2] == 0) if shown == "clean" else (t[1::2] > 0)).all()


def test_models_from_before_there_was_a_choice_stay_what_they_were() -> None:
    """A config.json that states neither neighbours nor residual, nor reference energies."""
    stated = BACKBONE.model_dump()
    del stated["neighbours"], stated["residual"]
    model = DaoModel(
        About(kind="dao_p", backbone=stated, process=Process(timesteps=50).model_dump()), np.full(101, 15.0)
    )
    assert model.crysformer.element_volumes is None
    assert isinstance(model.crysformer.last_norm, torch.nn.Identity)
    assert not model.element_energies.any()
