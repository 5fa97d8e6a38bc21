"""Crysformer: equality with a plain reference, symmetries, and independence of batch neighbours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dao_pipeline.model.attention import LARGEST_DISTANCE, RADIAL, radial_features
from dao_pipeline.model.crysformer import Crysformer, Noise, orthogonal_factor
from dao_pipeline.model.layout import Layout
from tests.model import reference


def make_model(
    joint: bool, seed: int = 0, distances: bool = False, aware: bool = False, **sizes: int
) -> Crysformer:
    torch.manual_seed(seed)
    noise = Noise(torch.linspace(0, 0.5, 1001), torch.linspace(1, 1e-6, 1001)) if aware else None
    shape = {"layers": 2, "width": 32, "heads": 4, "frequencies": 8} | sizes
    where = "values" if distances else "none"
    model = Crysformer(**shape, joint=joint, distances=where, noise=noise, energy_head=True).double()
    for parameter in model.parameters():  # norms and biases away from their trivial start
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def random_batch(sizes: list[int], seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    ptr = torch.tensor([0, *sizes]).cumsum(0)
    n, b = int(ptr[-1]), len(sizes)
    numbers = torch.randint(1, 101, (n,), generator=g)
    coords = torch.rand(n, 3, generator=g, dtype=torch.float64)
    lattice = 4 * torch.eye(3, dtype=torch.float64) + torch.randn(b, 3, 3, generator=g, dtype=torch.float64)
    t = torch.randint(0, 1001, (b,), generator=g)
    return numbers, coords, lattice, ptr, t


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
@pytest.mark.parametrize("sizes", [[1], [3, 1, 2], [5, 5, 7, 2], [24]])
def test_equals_the_plain_reference(joint: bool, sizes: list[int]) -> None:
    model = make_model(joint)
    numbers, coords, lattice, ptr, t = random_batch(sizes)
    with torch.no_grad():
        out = model(numbers, coords, lattice, ptr, t)
        for i in range(len(sizes)):
            atoms = slice(int(ptr[i]), int(ptr[i + 1]))
            eps_f, eps_l, energy = reference.crysformer(
                model, numbers[atoms], coords[atoms], lattice[i], int(t[i])
            )
            torch.testing.assert_close(out.coords[atoms], eps_f, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(out.lattice[i], eps_l, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(out.energy[i], energy, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
def test_single_precision_agrees_with_double(joint: bool) -> None:
    model = make_model(joint)
    batch = random_batch([4, 9, 9, 1])
    with torch.no_grad():
        exact = model(*batch)
        model.float()
        numbers, coords, lattice, ptr, t = batch
        single = model(numbers, coords.float(), lattice.float(), ptr, t)
    for a, b in zip(single, exact, strict=True):
        scale = b.abs().max()
        assert (a.double() - b).abs().max() <= 1e-5 * max(scale, 1.0) * 3


MODES = pytest.mark.parametrize(
    ("joint", "distances", "aware"),
    [(True, False, False), (False, False, False), (False, True, False), (False, True, True)],
    ids=["joint", "separate", "with distances", "noise-aware"],
)


@MODES
def test_symmetries(joint: bool, distances: bool, aware: bool) -> None:
    model = make_model(joint, distances=distances, aware=aware)
    numbers, coords, lattice, ptr, t = random_batch([3, 6, 2, 6])
    layout = Layout.from_ptr(ptr)
    with torch.no_grad():
        base = model(numbers, coords, lattice, ptr, t)
        # rotation and reflection: L -> L Q leaves coordinates and energy, turns the lattice noise
        q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))[0]
        for turn in (q, q @ torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))):
            turned = model(numbers, coords, lattice @ turn, ptr, t)
            torch.testing.assert_close(turned.coords, base.coords)
            torch.testing.assert_close(turned.energy, base.energy)
            torch.testing.assert_close(turned.lattice, base.lattice @ turn)
        # translation of each crystal, integer shifts of each atom
        shift = torch.rand(4, 3, dtype=torch.float64)[torch.repeat_interleave(torch.arange(4), ptr.diff())]
        for moved in ((coords + shift) % 1.0, coords + torch.randint(-3, 4, coords.shape)):
            for a, b in zip(model(numbers, moved, lattice, ptr, t), base, strict=True):
                torch.testing.assert_close(a, b)
        # permutation of the atoms inside each crystal
        order = torch.cat(
            [int(ptr[i]) + torch.randperm(int(ptr[i + 1] - ptr[i])) for i in range(layout.num_crystals)]
        )
        permuted = model(numbers[order], coords[order], lattice, ptr, t)
        torch.testing.assert_close(permuted.coords, base.coords[order])
        torch.testing.assert_close(permuted.lattice, base.lattice)
        torch.testing.assert_close(permuted.energy, base.energy)


@MODES
def test_result_does_not_depend_on_the_batch(joint: bool, distances: bool, aware: bool) -> None:
    model = make_model(joint, distances=distances, aware=aware)
    numbers, coords, lattice, ptr, t = random_batch([7, 2, 4, 2, 1])
    with torch.no_grad():
        together = model(numbers, coords, lattice, ptr, t)
        for i in range(5):
            atoms = slice(int(ptr[i]), int(ptr[i + 1]))
            alone = model(numbers[atoms], coords[atoms], lattice[i : i + 1], ptr[i : i + 2] - ptr[i], t[i : i + 1])
            torch.testing.assert_close(alone.coords, together.coords[atoms])
            torch.testing.assert_close(alone.lattice[0], together.lattice[i])
            torch.testing.assert_close(alone.energy[0], together.energy[i])


@MODES
def test_energy_gradient_agrees_with_finite_differences(joint: bool, distances: bool, aware: bool) -> None:
    model = make_model(joint, distances=distances, aware=aware)
    numbers, coords, lattice, ptr, t = random_batch([3, 2])

    def energy(f: Tensor, cell: Tensor) -> Tensor:
        return model(numbers, f, cell, ptr, t).energy

    assert torch.autograd.gradcheck(
        energy, (coords.requires_grad_(), lattice.requires_grad_()), eps=1e-6, atol=1e-6
    )


def test_distances_are_those_of_the_nearest_image() -> None:
    """Gaussians peak at the distance that pymatgen finds, whatever the orientation of the cell."""
    from pymatgen.core import Lattice

    cell = Lattice.from_parameters(1.0, 1.2, 0.9, 80, 95, 110)
    coords = torch.rand(1, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    lattice = torch.tensor(cell.matrix)[None]
    found = radial_features(coords, lattice @ lattice.transpose(1, 2))[0]
    exact = torch.tensor(cell.get_all_distances(coords[0].numpy(), coords[0].numpy())) * 5 ** (1 / 3)
    centres = torch.linspace(0, LARGEST_DISTANCE, RADIAL, dtype=torch.float64)
    expected = torch.exp(-(((exact[..., None] - centres) * (RADIAL - 1) / LARGEST_DISTANCE) ** 2))
    off = ~torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(found[off], expected[off], rtol=0, atol=1e-4)


def test_orthogonal_factor() -> None:
    g = torch.Generator().manual_seed(0)
    cells = torch.eye(3, dtype=torch.float64) + 0.2 * torch.randn(20, 3, 3, generator=g, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(cells)
    torch.testing.assert_close(orthogonal_factor(cells, iterations=30), u @ vt, rtol=0, atol=1e-8)


def test_parameter_counts_of_the_paper() -> None:
    for energy_head, count in ((False, 25_211_352), (True, 25_359_577)):
        model = Crysformer(layers=12, width=384, heads=8, frequencies=128, joint=True, energy_head=energy_head)
        assert sum(p.numel() for p in model.parameters()) == count


def test_layout_refuses_empty_crystals() -> None:
    with pytest.raises(ValueError, match="at least one atom"):
        Layout.from_ptr(torch.tensor([0, 2, 2, 3]))
