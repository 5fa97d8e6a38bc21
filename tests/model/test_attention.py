"""The factorised attention: every path against the edge term written out, and its own gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dao_pipeline.model import attention, crysformer, torus
from dao_pipeline.model.attention import Distances, EdgeFeatures, TorusAttention
from dao_pipeline.model.layout import Layout

SIZES = [1, 1, 3, 4, 4, 9]
WIDTH, HEADS, FREQUENCIES = 24, 3, 5
MODES: list[tuple[bool, Distances]] = [(True, "none"), (False, "none"), (False, "bias"), (False, "values")]
modes = pytest.mark.parametrize(
    ("joint", "distances"), MODES, ids=["joint", "separate", "bias of distances", "distances in values"]
)


def make(joint: bool, distances: Distances, seed: int = 0) -> TorusAttention:
    torch.manual_seed(seed)
    module = TorusAttention(WIDTH, HEADS, FREQUENCIES, joint, distances).double()
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def batch(sizes: list[int] = SIZES, seed: int = 1) -> tuple[Tensor, Tensor, Tensor, Layout]:
    """Node features, coordinates, lattices and the layout; sizes rise, so nothing is reordered."""
    g = torch.Generator().manual_seed(seed)
    layout = Layout.from_ptr(torch.tensor([0, *sizes]).cumsum(0))
    atoms = sum(sizes)
    x = torch.randn(atoms, WIDTH, generator=g, dtype=torch.float64)
    coords = torch.rand(atoms, 3, generator=g, dtype=torch.float64)
    noise = torch.randn(len(sizes), 3, 3, generator=g, dtype=torch.float64)
    return x, coords, torch.eye(3, dtype=torch.float64) + 0.2 * noise, layout


def fast(module: TorusAttention, x: Tensor, coords: Tensor, lattice: Tensor, layout: Layout) -> Tensor:
    edges = EdgeFeatures.of(
        coords,
        lattice,
        layout,
        frequencies=FREQUENCIES,
        joint=module.edge_norm is not None,
        distances=module.radial is not None,
    )
    return module(x, edges, layout)


def plain(module: TorusAttention, x: Tensor, coords: Tensor, lattice: Tensor, layout: Layout) -> Tensor:
    """Crystal by crystal, with the edge vector of every pair."""
    outs = []
    for i in range(layout.num_crystals):
        atoms = slice(int(layout.ptr[i]), int(layout.ptr[i + 1]))
        h, f, gram = x[atoms], coords[atoms], lattice[i] @ lattice[i].T
        n, joint = len(h), module.edge_norm is not None
        k = torch.arange(FREQUENCIES, dtype=x.dtype) + (0 if joint else 1)
        angle = (2 * math.pi * (f[None] - f[:, None])[..., None] * k).flatten(2)
        flat = gram.flatten() if joint else torch.asinh(gram).flatten()
        edge = torch.cat([flat.expand(n, n, 9), angle.sin(), angle.cos()], -1)
        if module.edge_norm is not None:
            edge = module.edge_norm(edge)
        u = module.edge(edge).view(n, n, HEADS, -1)
        q = module.query(h).view(n, HEADS, -1)
        key, value = (part.view(n, HEADS, -1) for part in module.key_value(h).chunk(2, -1))
        logits = torch.einsum("ihc,ijhc->ijh", q, key[None] + u) / math.sqrt(WIDTH // HEADS)
        radial = attention.radial_features(f[None], gram[None])[0]
        if module.radial is not None:
            logits = logits + module.radial(radial)
        weights = torch.softmax(logits, 1)
        out = torch.einsum("ijh,ijhc->ihc", weights, value[None] + u).flatten(1)
        if module.radial_value is not None:
            out = out + module.radial_value(torch.einsum("ijh,ijr->ihr", weights, radial).flatten(1))
        outs.append(module.out(out))
    return torch.cat(outs)


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor | None]:
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out.dtype)
    return list(torch.autograd.grad((out * pull).sum(), inputs, allow_unused=True))


@modes
def test_values_and_gradients_equal_the_plain_form(joint: bool, distances: Distances) -> None:
    module = make(joint, distances)
    x, coords, lattice, layout = batch()
    inputs = [x.requires_grad_(), coords.requires_grad_(), lattice.requires_grad_(), *module.parameters()]
    ours, theirs = fast(module, x, coords, lattice, layout), plain(module, x, coords, lattice, layout)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(ours, inputs), gradients(theirs, inputs), strict=True):
        assert a is not None
        assert b is not None
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@modes
def test_single_precision(joint: bool, distances: Distances) -> None:
    module = make(joint, distances)
    x, coords, lattice, layout = batch()
    exact = plain(module, x, coords, lattice, layout)
    ours = fast(module.float(), x.float(), coords.float(), lattice.float(), layout)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.detach().abs().max()))


@modes
def test_bfloat16_stays_near(joint: bool, distances: Distances) -> None:
    module = make(joint, distances)
    x, coords, lattice, layout = batch()
    exact = plain(module, x, coords, lattice, layout).detach()
    module.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = fast(module, x.float(), coords.float(), lattice.float(), layout)
    assert ours.dtype == torch.bfloat16
    assert (ours.double() - exact).norm() < 0.03 * exact.norm()
    for gradient in gradients(ours, list(module.parameters())):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("distances", ["none", "bias"])
def test_fused_kernel_equals_the_explicit_form(distances: Distances, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(False, distances)
    x, coords, lattice, layout = batch()
    inputs = [x.requires_grad_(), coords.requires_grad_(), lattice.requires_grad_(), *module.parameters()]
    explicit = fast(module, x, coords, lattice, layout)
    monkeypatch.setattr(attention, "fused_is_faster", lambda x, width: True)
    fused = fast(module, x, coords, lattice, layout)
    torch.testing.assert_close(fused, explicit, rtol=1e-10, atol=1e-10)
    for a, b in zip(gradients(fused, inputs), gradients(explicit, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def edge_term() -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor], Layout]:
    """Queries, projection, phasors, damping and weights for the edge term alone."""
    g = torch.Generator().manual_seed(4)
    layout = Layout.from_ptr(torch.tensor([0, 1, 3, 5, 8]))
    query = torch.randn(8, 2, 3, generator=g, dtype=torch.float64)
    w_psi = torch.randn(2, 3, 12, generator=g, dtype=torch.float64)
    angles = torch.rand(8, 6, generator=g, dtype=torch.float64)
    damping = torch.rand(8, 6, generator=g, dtype=torch.float64)
    weights = [torch.randn(b, n, 2, n, generator=g, dtype=torch.float64) for n, b in layout.classes]
    return query, w_psi, angles, damping, weights, layout


def phasors(angles: Tensor, damping: Tensor, layout: Layout) -> tuple[Tensor, list[Tensor]]:
    phasor = torch.stack([angles.cos(), angles.sin()], -1)
    return phasor.flatten(1), layout.blocks((phasor * damping[..., None]).flatten(1))


def test_edge_term_equals_its_definition_and_has_its_gradients() -> None:
    query, w_psi, angles, damping, weights, layout = edge_term()

    def logits(q: Tensor, w: Tensor, a: Tensor, d: Tensor) -> tuple[Tensor, ...]:
        return torus.edge_logits(q, w, *phasors(a, d, layout))

    def values(w: Tensor, a: Tensor, d: Tensor, *pairs: Tensor) -> Tensor:
        return torus.edge_values(pairs, w, *phasors(a, d, layout))

    start = 0
    found = logits(query, w_psi, angles, damping)
    for (n, count), logit in zip(layout.classes, found, strict=True):
        for crystal in logit:
            atoms = slice(start, start + n)
            difference = angles[atoms][None] - angles[atoms][:, None]
            pair = torch.stack([difference.cos(), difference.sin()], -1) * damping[atoms][None, ..., None]
            exact = torch.einsum("ihc,hcf,ijf->ihj", query[atoms], w_psi, pair.flatten(2))
            torch.testing.assert_close(crystal, exact, rtol=1e-12, atol=1e-12)
            start += n
        assert len(logit) == count
    # adjoint: (logits, weights) = (queries, values)
    left = sum((a * b).sum() for a, b in zip(found, weights, strict=True))
    torch.testing.assert_close((values(w_psi, angles, damping, *weights) * query).sum(), left)
    leaves = [tensor.requires_grad_() for tensor in (query, w_psi, angles, damping)]
    assert torch.autograd.gradcheck(logits, leaves)
    assert torch.autograd.gradcheck(values, [*leaves[1:], *[weight.requires_grad_() for weight in weights]])


def test_own_gradients_equal_those_of_the_composed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """The form that bfloat16 and compilers take, and partial gradients: weights only, positions only."""
    query, w_psi, angles, damping, weights, layout = edge_term()
    leaves = [query, w_psi, angles, damping, *weights]
    for wanted in (leaves, leaves[:2], leaves[2:3], leaves[4:], [query], [w_psi]):
        found = []
        for own in (True, False):
            with monkeypatch.context() as patch:
                if not own:
                    patch.setattr(torus, "_own_gradient", lambda *tensors: False)
                for leaf in leaves:
                    leaf.requires_grad_(any(leaf is w for w in wanted))
                phasor, phases = phasors(angles, damping, layout)
                logits = torus.edge_logits(query, w_psi, phasor, phases)
                values = torus.edge_values(weights, w_psi, phasor, phases)
                total = sum(logit.sin().sum() for logit in logits) + values.sin().sum()
                found.append([total, *torch.autograd.grad(total, wanted)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_norm_statistics_are_those_of_the_raw_edge_vector() -> None:
    _, coords, lattice, layout = batch([3])
    edges = EdgeFeatures.of(coords, lattice, layout, frequencies=FREQUENCIES, joint=True, distances=False)
    angle = (2 * math.pi * (coords[None] - coords[:, None])[..., None] * torch.arange(FREQUENCIES)).flatten(2)
    gram = (lattice[0] @ lattice[0].T).flatten().expand(3, 3, 9)
    raw = torch.cat([gram, angle.sin(), angle.cos()], -1)
    assert edges.rstd is not None
    exact = 1 / (raw.var(-1, unbiased=False) + attention.NORM_EPS).sqrt()
    torch.testing.assert_close(edges.rstd[0][0], exact)
    scaled = F.layer_norm(raw, raw.shape[-1:], eps=attention.NORM_EPS)
    torch.testing.assert_close((raw - raw.mean(-1, keepdim=True)) * edges.rstd[0][0][..., None], scaled)


def test_parts_of_a_batch_give_what_the_batch_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = crysformer.Crysformer(layers=2, width=16, heads=2, frequencies=4, distances="values").double()
    sizes = [7, 2, 4, 2, 1, 30, 4, 4]
    layout = Layout.from_ptr(torch.tensor([0, *sizes]).cumsum(0))
    numbers, t = torch.randint(1, 101, (sum(sizes),)), torch.randint(0, 1001, (len(sizes),))
    coords = torch.rand(sum(sizes), 3, dtype=torch.float64)
    lattice = torch.eye(3, dtype=torch.float64) + 0.1 * torch.randn(len(sizes), 3, 3, dtype=torch.float64)
    whole = model.features(numbers, coords, lattice, layout, t)
    monkeypatch.setattr(crysformer, "CPU_PART_ATOMS", 9)
    torch.testing.assert_close(model.features(numbers, coords, lattice, layout, t), whole)
    parts = layout.parts(9)
    assert [part.classes for part in parts] == [((1, 1), (2, 2), (4, 1)), ((4, 2),), ((7, 1),), ((30, 1),)]
    assert layout.parts(1000) == [layout]
    for part in parts:
        assert int(part.ptr[-1]) == len(part.crystal) == sum(n * count for n, count in part.classes)


@modes
def test_compiled_graph_gives_the_same(joint: bool, distances: Distances) -> None:
    """Traced as torch.compile does it, with the plain kernels in place of generated ones."""
    torch.manual_seed(0)
    model = crysformer.Crysformer(layers=1, width=16, heads=2, frequencies=4, joint=joint, distances=distances)
    layout = Layout.from_ptr(torch.tensor([0, 3, 5, 8]))
    inputs = torch.randint(1, 101, (8,)), torch.rand(8, 3), torch.eye(3) + 0.1 * torch.randn(3, 3, 3)
    t = torch.tensor([1, 500, 0])
    compiled = torch.compile(model.features, backend="aot_eager", dynamic=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    results = []
    for features in (model.features, compiled):
        out = features(*inputs, layout, t)
        results.append([out, *torch.autograd.grad(out.square().sum(), parameters, allow_unused=True)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
