"""Crysformer: equality with a plain reference (symmetries: test_symmetry.py)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from dao_pipeline.model.attention import (
    CUTOFF,
    LARGEST_DISTANCE,
    RADIAL,
    EdgeFeatures,
    radial_density,
    radial_features,
)
from dao_pipeline.model.crysformer import Crysformer, GatedResidual, orthogonal_factor
from dao_pipeline.model.layout import Layout
from tests.model import reference


def make_model(joint: bool, seed: int = 0, **sizes: int) -> Crysformer:
    torch.manual_seed(seed)
    shape = {"layers": 2, "width": 32, "heads": 4, "frequencies": 8} | sizes
    model = Crysformer(**shape, joint=joint, energy_head=True).double()
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


FORMS = pytest.mark.parametrize("joint", [True, False], ids=["joint", "separate"])
SIZES = [[1], [2], [7], [20], [33], [60], [3, 1, 2], [5, 33, 5, 1, 60, 2, 20, 7]]


@FORMS
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_equals_the_plain_reference(joint: bool, sizes: list[int]) -> None:
    """In double precision to 1e-10, in single precision to 1e-5 of the exact value for the same inputs."""
    double = make_model(joint)
    single = copy.deepcopy(double).float()
    batch = random_batch(sizes)
    compare(double, batch, 1e-10)
    compare(single, batch, 1e-5)


@FORMS
def test_single_precision_with_the_frequencies_of_the_paper(joint: bool) -> None:
    compare(make_model(joint, frequencies=128).float(), random_batch([7, 1, 33, 2, 20, 60]), 1e-5)


def compare(model: Crysformer, batch: tuple[Tensor, ...], tolerance: float) -> None:
    """Model, in its own precision, against the reference in double precision with the same weights and inputs."""
    numbers, coords, lattice, ptr, t = batch
    dtype = model.node.weight.dtype
    coords, lattice = coords.to(dtype), lattice.to(dtype)
    weights = reference.of_model(copy.deepcopy(model).double())
    with torch.no_grad():
        out = model(numbers, coords, lattice, ptr, t)
        for i in range(len(ptr) - 1):
            atoms = slice(int(ptr[i]), int(ptr[i + 1]))
            exact = reference.crysformer(
                weights, numbers[atoms], coords[atoms].double(), lattice[i].double(), int(t[i])
            )
            for found, expected in zip((out.coords[atoms], out.lattice[i], out.energy[i]), exact, strict=True):
                torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@FORMS
def test_attention_alone_equals_the_plain_reference(joint: bool) -> None:
    model = make_model(joint)
    module = model.blocks[0].attention
    _, coords, lattice, ptr, _ = random_batch([4, 13, 1, 4])
    h = torch.randn(len(coords), 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    layout = Layout.from_ptr(ptr)
    features = EdgeFeatures.of(
        layout.sort_atoms(coords),
        layout.sort_crystals(lattice),
        layout,
        frequencies=model.frequencies,
        joint=joint,
        distances=False,
    )
    with torch.no_grad():
        found = layout.unsort_atoms(module(layout.sort_atoms(h), features, layout))
    weights = reference.of_attention(module)
    for i in range(4):
        atoms = slice(int(ptr[i]), int(ptr[i + 1]))
        edge = reference.edge_features(coords[atoms], lattice[i], weights.e.w.shape[1], joint)
        expected = reference.attention(weights, h[atoms], edge, module.heads)
        torch.testing.assert_close(found[atoms], expected, rtol=1e-10, atol=1e-10)


def test_gated_residual_alone_equals_the_plain_reference() -> None:
    torch.manual_seed(4)
    module = GatedResidual(16).double()
    x, y = torch.randn(2, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(
            module(x, y), reference.gate(module.gate.weight[0], x, y), rtol=1e-12, atol=1e-12
        )


def test_heads_alone_equal_the_plain_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(joint=True)
    numbers, coords, lattice, ptr, t = random_batch([2, 5, 5])
    h = torch.randn(len(numbers), 32, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    monkeypatch.setattr(model, "features", lambda *_: h)
    with torch.no_grad():
        out = model(numbers, coords, lattice, ptr, t)
        weights = reference.of_model(model)
        for i in range(3):
            atoms = slice(int(ptr[i]), int(ptr[i + 1]))
            eps_f, eps_l, energy = reference.heads(weights, h[atoms], lattice[i])
            torch.testing.assert_close(out.coords[atoms], eps_f, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(out.lattice[i], eps_l, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(out.energy[i], energy, rtol=1e-12, atol=1e-12)


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


def test_layout_refuses_empty_crystals() -> None:
    with pytest.raises(ValueError, match="at least one atom"):
        Layout.from_ptr(torch.tensor([0, 2, 2, 3]))


def random_pairs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates (2, 5, 3) and lattices (2, 3, 3) in angstrom, about cubes with edges of 6 angstrom."""
    g = torch.Generator().manual_seed(seed)
    lattice = 6 * torch.eye(3, dtype=torch.float64) + 0.6 * torch.randn(2, 3, 3, generator=g, dtype=torch.float64)
    return torch.rand(2, 5, 3, generator=g, dtype=torch.float64), lattice


def density_of(coords: torch.Tensor, lattice: torch.Tensor) -> torch.Tensor:
    return radial_density(coords, lattice @ lattice.transpose(1, 2))


def test_density_counts_the_images_that_pymatgen_finds() -> None:
    """The sum over each pair's images of a Gaussian of their distance, in a cell longer than the cutoff."""
    from pymatgen.core import Structure

    coords, lattice = random_pairs(0)
    found = density_of(coords, lattice)
    width = CUTOFF / (RADIAL - 1)
    centres = np.linspace(0, CUTOFF, RADIAL)
    for c in range(2):
        structure = Structure(lattice[c].numpy(), ["Si"] * 5, coords[c].numpy())
        i, j, _, distance = structure.get_neighbor_list(CUTOFF + 3 * width)
        expected = np.zeros((5, 5, RADIAL))
        np.add.at(expected, (i, j), np.exp(-(((distance[:, None] - centres) / width) ** 2)))
        expected[np.arange(5), np.arange(5)] += np.exp(-((centres / width) ** 2))  # the atom itself
        # Gaussians that end before 6 - 0.6 angstrom see no image that is missing or fades
        near = centres + 2 * width < 5.0
        np.testing.assert_allclose(found[c].numpy()[..., near], expected[..., near], atol=0.03)


def test_density_ignores_rotation_origin_images_and_names_of_axes() -> None:
    coords, lattice = random_pairs(1)
    found = density_of(coords, lattice)
    torch.testing.assert_close(found, found.transpose(1, 2), rtol=0, atol=0)
    turn_by, _ = torch.linalg.qr(
        torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    )
    torch.testing.assert_close(density_of(coords, lattice @ turn_by), found, rtol=1e-9, atol=1e-9)
    moved = coords + torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    torch.testing.assert_close(density_of(moved, lattice), found, rtol=1e-7, atol=1e-7)
    order = [2, 0, 1]
    torch.testing.assert_close(density_of(coords[..., order], lattice[:, order]), found, rtol=1e-9, atol=1e-9)


def test_density_is_smooth_where_the_nearest_image_changes() -> None:
    """An atom that moves by half a short cell: values on both sides of the change agree, and so do slopes."""
    lattice = 3.0 * torch.eye(3, dtype=torch.float64)[None]

    def at(x: float) -> torch.Tensor:
        return density_of(torch.tensor([[[0.0, 0, 0], [x, 0.1, 0.2]]], dtype=torch.float64), lattice)[0, 0, 1]

    step = 1e-4
    left, middle, right = at(0.5 - step), at(0.5), at(0.5 + step)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-9)
    assert float((right - 2 * middle + left).abs().max()) < 1e-5
    assert float((at(0.45) - middle).abs().max()) > 1e-3


def test_a_bond_looks_the_same_in_all_crystals() -> None:
    """Distances in angstrom: the same cell given in units of two compositions with different volumes."""
    layout = Layout.from_ptr(torch.tensor([0, 2, 4]))
    edge = torch.tensor([40.0, 80.0]).pow(1 / 3)
    cells = 10 * torch.eye(3).repeat(2, 1, 1) / edge[:, None, None]
    coords = torch.tensor([[0.0, 0, 0], [0.2, 0, 0]] * 2)
    seen = EdgeFeatures.of(coords, cells, layout, frequencies=2, joint=False, distances=True, unit=edge).radial
    assert seen is not None
    torch.testing.assert_close(seen[0][0], seen[0][1], rtol=1e-5, atol=1e-6)
    peak = seen[0][0, 0, 1].argmax() * CUTOFF / (RADIAL - 1)
    assert float(peak) == pytest.approx(2.0, abs=CUTOFF / (RADIAL - 1))
