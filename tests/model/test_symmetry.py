"""What every model and head owes to physics: symmetries, independence of the batch, and true gradients.

A new backbone option or process is one more line in ``VARIANTS``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dao_pipeline.config import Backbone, Process
from dao_pipeline.model.crysformer import Output
from dao_pipeline.model.dao import About, DaoModel
from dao_pipeline.model.layout import Layout

SMALL: dict[str, Any] = {"preset": "tiny", "layers": 2, "width": 32, "heads": 4, "frequencies": 8}
PLAIN: dict[str, Any] = {"edge_norm": "separate", "distances": "none", "noise_aware": False}


@dataclass(frozen=True)
class Variant:
    """A model: options of its backbone and of its process.

    lattice_turns: what the lattice head says turns with the lattice; otherwise it must not change.
    """

    name: str
    backbone: dict[str, Any] = field(default_factory=dict)
    process: dict[str, Any] = field(default_factory=dict)
    lattice_turns: bool = True

    @cache  # noqa: B019 - a handful of small models
    def model(self) -> DaoModel:
        """In double precision, with norms and biases away from their trivial start."""
        about = About(
            kind="dao_p",
            backbone=Backbone(**{**SMALL, **self.backbone}).model_dump(mode="json"),
            process=Process(**{"kind": "diffusion", **self.process}).model_dump(mode="json"),
            energy_mean=0.3,
            energy_std=0.7,
        )
        torch.manual_seed(0)
        model = DaoModel(about, 8 + 30 * torch.rand(101)).double().eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        return model.requires_grad_(False)

    def __hash__(self) -> int:
        return hash(self.name)


VARIANTS = [
    Variant("paper", {**PLAIN, "edge_norm": "joint"}, {"lattice_scale": "none", "remove_drift": False}),
    Variant("separate", PLAIN),
    Variant("separate in angstrom", PLAIN, {"lattice_scale": "none"}),
    Variant("distances as a bias", {**PLAIN, "distances": "bias"}),
    Variant("distances", {**PLAIN, "distances": "values"}),
    Variant("distances of nearest images", {**PLAIN, "distances": "values", "neighbours": "nearest"}),
    Variant("summed residuals", {"residual": "sum"}),
    Variant("noise-aware", {**PLAIN, "noise_aware": True}),
    Variant("default"),
    Variant("flow", process={"kind": "flow"}, lattice_turns=False),
    Variant(
        "flow on the published backbone", {**PLAIN, "edge_norm": "joint"}, {"kind": "flow"}, lattice_turns=False
    ),
]

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
every_level = pytest.mark.parametrize("level", ["crysformer", "dao"])
some = settings(max_examples=6, deadline=None)
sizes_of_crystals = st.lists(st.integers(1, 9), min_size=1, max_size=5)
seeds = st.integers(0, 2**31)


class Batch(NamedTuple):
    """Crystals in angstrom, some of them clean."""

    numbers: Tensor
    coords: Tensor
    lattice: Tensor
    ptr: Tensor
    t: Tensor

    @classmethod
    def random(cls, sizes: list[int], seed: int) -> Batch:
        g = torch.Generator().manual_seed(seed)
        ptr = torch.tensor([0, *sizes]).cumsum(0)
        n, b = int(ptr[-1]), len(sizes)
        noise = torch.randn(b, 3, 3, generator=g, dtype=torch.float64)
        return cls(
            numbers=torch.randint(1, 101, (n,), generator=g),
            coords=torch.rand(n, 3, generator=g, dtype=torch.float64),
            lattice=4 * torch.eye(3, dtype=torch.float64) + noise,
            ptr=ptr,
            t=torch.randint(0, 1001, (b,), generator=g) * torch.randint(0, 2, (b,), generator=g),
        )

    @property
    def crystal(self) -> Tensor:
        return torch.repeat_interleave(torch.arange(len(self.t)), self.ptr.diff())

    def take(self, crystals: list[int]) -> tuple[Batch, Tensor]:
        """Some of the crystals, in this order, and which atoms they are."""
        atoms = torch.cat([torch.arange(int(self.ptr[i]), int(self.ptr[i + 1])) for i in crystals])
        ptr = torch.cat([torch.zeros(1, dtype=torch.int64), self.ptr.diff()[crystals].cumsum(0)])
        return Batch(self.numbers[atoms], self.coords[atoms], self.lattice[crystals], ptr, self.t[crystals]), atoms


def evaluate(variant: Variant, level: str, batch: Batch) -> Output:
    """All heads; level crysformer: in its own unit of length, level dao: in angstrom."""
    model = variant.model()
    if level == "dao":
        return model(*batch)
    return model.crysformer(*batch._replace(lattice=batch.lattice / 4))


def same(found: Output, expected: Output) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def orthogonal(seed: int, reflect: bool) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    q = q * r.diagonal().sign()
    return q if (torch.linalg.det(q) < 0) == reflect else -q


@every_level
@every_variant
@given(sizes_of_crystals, seeds, st.booleans())
@some
def test_rotation_and_reflection(variant: Variant, level: str, sizes: list[int], seed: int, reflect: bool) -> None:
    batch, turn = Batch.random(sizes, seed), orthogonal(seed, reflect)
    base = evaluate(variant, level, batch)
    turned = evaluate(variant, level, batch._replace(lattice=batch.lattice @ turn))
    same(turned, base._replace(lattice=base.lattice @ turn if variant.lattice_turns else base.lattice))


@every_level
@every_variant
@given(sizes_of_crystals, seeds)
@some
def test_translations_and_integer_shifts(variant: Variant, level: str, sizes: list[int], seed: int) -> None:
    batch, g = Batch.random(sizes, seed), torch.Generator().manual_seed(seed + 1)
    base = evaluate(variant, level, batch)
    shift = torch.rand(len(sizes), 3, generator=g, dtype=torch.float64)[batch.crystal]
    same(evaluate(variant, level, batch._replace(coords=(batch.coords + shift) % 1.0)), base)
    whole = torch.randint(-3, 4, batch.coords.shape, generator=g)
    same(evaluate(variant, level, batch._replace(coords=batch.coords + whole)), base)


@every_level
@every_variant
@given(sizes_of_crystals, seeds)
@some
def test_permutation_of_atoms(variant: Variant, level: str, sizes: list[int], seed: int) -> None:
    batch, g = Batch.random(sizes, seed), torch.Generator().manual_seed(seed + 1)
    base = evaluate(variant, level, batch)
    order = torch.cat(
        [start + torch.randperm(n, generator=g) for start, n in zip(batch.ptr.tolist(), sizes, strict=False)]
    )
    permuted = evaluate(variant, level, batch._replace(numbers=batch.numbers[order], coords=batch.coords[order]))
    same(permuted, base._replace(coords=base.coords[order]))


@every_level
@every_variant
@given(sizes_of_crystals, seeds, st.randoms(use_true_random=False))
@some
def test_neighbours_and_order_do_not_matter(
    variant: Variant, level: str, sizes: list[int], seed: int, random: Any
) -> None:
    """Whatever the size classes: some crystals in any order give what they give in the whole batch."""
    batch = Batch.random(sizes, seed)
    base = evaluate(variant, level, batch)
    chosen = random.sample(range(len(sizes)), random.randint(1, len(sizes)))
    for crystals in (chosen, chosen[:1], sorted(range(len(sizes)), key=lambda i: sizes[i])):
        part, atoms = batch.take(crystals)
        assert base.energy is not None
        expected = Output(base.coords[atoms], base.lattice[crystals], base.energy[crystals])
        same(evaluate(variant, level, part), expected)


@every_variant
def test_a_layout_may_be_shared(variant: Variant) -> None:
    batch = Batch.random([3, 1, 3, 2], 5)
    with_layout = variant.model()(*batch, layout=Layout.from_ptr(batch.ptr))
    same(with_layout, variant.model()(*batch))


@every_variant
def test_energy_is_the_head_in_electronvolts(variant: Variant) -> None:
    batch = Batch.random([3, 1, 2], 6)
    energy = variant.model().energy(*batch[:3], batch.t, Layout.from_ptr(batch.ptr))
    torch.testing.assert_close(energy, 0.3 + 0.7 * evaluate(variant, "dao", batch).energy)


def moved(batch: Batch, displacement: Tensor, strain: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates and lattices after Cartesian displacements (N, 3) in angstrom and strains (B, 3, 3)."""
    inverse = torch.linalg.inv(batch.lattice)[batch.crystal]
    coords = batch.coords + (displacement[:, None] @ inverse)[:, 0]
    return coords, batch.lattice @ (torch.eye(3, dtype=torch.float64) + strain)


@every_variant
@pytest.mark.parametrize("clean", [True, False], ids=["clean", "noisy"])
def test_forces_and_stress(variant: Variant, clean: bool) -> None:
    """They agree with finite differences of the energy; forces sum to zero and stress is symmetric."""
    batch = Batch.random([3, 1, 2], 7)
    batch = batch._replace(t=torch.zeros(3, dtype=torch.int64) if clean else torch.tensor([1, 400, 1000]))
    layout, atoms = Layout.from_ptr(batch.ptr), batch.ptr.diff()

    def total(displacement: Tensor, strain: Tensor) -> Tensor:
        coords, lattice = moved(batch, displacement, strain)
        return (variant.model().energy(batch.numbers, coords, lattice, batch.t, layout) * atoms).sum()

    zeros = (torch.zeros(6, 3, dtype=torch.float64), torch.zeros(3, 3, 3, dtype=torch.float64))
    gradients = torch.autograd.grad(total(*(z.requires_grad_() for z in zeros)), zeros)
    g = torch.Generator().manual_seed(3)
    for which, gradient in enumerate(gradients):
        assert float(gradient.abs().max()) > 1e-4  # the model does see it
        for _ in range(3):
            way = torch.randn(gradient.shape, generator=g, dtype=torch.float64)

            def along(x: float, which: int = which, way: Tensor = way) -> float:
                with torch.no_grad():
                    return float(total(*(x * way if i == which else z for i, z in enumerate(zeros))))

            found = slope(along)
            assert found == pytest.approx(float((gradient * way).sum()), rel=1e-7, abs=1e-7)
    forces, stress = -gradients[0], gradients[1]
    sums = torch.zeros(3, 3, dtype=torch.float64).index_add(0, batch.crystal, forces)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-9)
    torch.testing.assert_close(stress, stress.transpose(1, 2), rtol=0, atol=1e-9)


def slope(function: Callable[[float], float], step: float = 1e-4) -> float:
    """Derivative at 0, by central differences of fourth order."""
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return (8 * near - far) / (12 * step)
