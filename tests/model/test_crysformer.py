"""Crysformer: equality with a plain reference (symmetries: test_symmetry.py)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from dao_pipeline.model.attention import LARGEST_DISTANCE, RADIAL, EdgeFeatures, radial_features
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
