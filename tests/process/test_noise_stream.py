"""Noise belongs to a candidate: nothing around it matters, and no two candidates share any."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dao_pipeline.model.layout import Layout
from dao_pipeline.process import noise_stream
from dao_pipeline.process.noise_stream import Candidates, NoiseStream, Step

COMPOSITIONS = ["Sr2Ti2O6", "NaCl", "Sr2Ti2O6", "Fe", "NaCl"]
SAMPLES = [0, 3, 1, 0, 4]
SIZES = {"Sr2Ti2O6": 10, "NaCl": 2, "Fe": 1}
LEVELS = [900, 500, 20]
F64 = torch.float64


def stream(which: list[int], seed: int = 1, device: str = "cpu") -> NoiseStream:
    """The noise of some of the candidates above, in a batch of their own."""
    sizes = [SIZES[COMPOSITIONS[i]] for i in which]
    layout = Layout.from_ptr(torch.tensor([0, *np.cumsum(sizes)], device=device))
    return Candidates.of(seed, [COMPOSITIONS[i] for i in which], [SAMPLES[i] for i in which]).noise(layout)


def everything(noise: NoiseStream) -> list[list[Tensor]]:
    """All noise, for each crystal apart."""
    sizes = noise.layout.ptr.diff().tolist()
    steps = list(noise.steps(LEVELS, F64, corrector=True))
    by_atom = [noise.uniform_coords(F64), noise.normal_coords(F64)]
    by_atom += [value for step in steps for value in (step.coords, step.corrector) if value is not None]
    by_crystal = [noise.normal_lattice(6, F64), noise.normal_lattice(9, F64), noise.choice(3).T]
    by_crystal += [step.lattice for step in steps]
    split = [value.split(sizes) for value in by_atom]
    return [[*(part[i] for part in split), *(value[i] for value in by_crystal)] for i in range(len(sizes))]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_batch_does_not_matter() -> None:
    """Alone, together and in any order: to the bit, for another number of levels at a time as well."""
    together = everything(stream([0, 1, 2, 3, 4]))
    for order in ([4, 3, 2, 1, 0], [2, 0], [3], [1, 4, 1]):
        for i, found in zip(order, everything(stream(order)), strict=True):
            assert equal(found, together[i])


def test_levels_may_be_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = stream([0, 1, 2])

    def drawn(levels: list[int], corrector: bool = True) -> list[Step]:
        return list(noise.steps(levels, F64, corrector))

    at_once = drawn(LEVELS)
    monkeypatch.setattr(noise_stream, "BLOCK", 1)
    for together, apart, alone, plain in zip(
        at_once, drawn(LEVELS), [drawn([t])[0] for t in LEVELS], drawn(LEVELS, corrector=False), strict=True
    ):
        assert torch.equal(together.coords, apart.coords)
        assert torch.equal(together.coords, alone.coords)
        assert torch.equal(together.lattice, apart.lattice)
        assert torch.equal(together.coords, plain.coords)  # the corrector has noise of its own
        assert torch.equal(together.lattice, plain.lattice)
        assert plain.corrector is None
    assert drawn([]) == []


def test_seed_composition_sample_and_draw_decide() -> None:
    ours = stream([0, 1, 2])
    base = everything(ours)
    for other in (stream([0, 1, 2], seed=2), ours.of_draw(1), stream([2, 4, 0])):
        for a, b in zip(base, everything(other), strict=True):
            assert not any(torch.isin(x, y).any() for x, y in zip(a, b, strict=True))
    assert equal(everything(ours.of_draw(1).of_draw(0))[1], base[1])


def test_no_two_numbers_are_the_same() -> None:
    """Fields, levels, atoms, axes, samples, draws: all normal numbers of a batch differ."""
    noise = stream([0, 1, 2, 3, 4])
    values = [
        value.flatten()
        for draw in range(3)
        for step in noise.of_draw(draw).steps(range(1, 40), F64, corrector=True)
        for value in step
        if value is not None
    ]
    values += [noise.normal_coords(F64).flatten(), noise.normal_lattice(9, F64).flatten()]
    everyone = torch.cat(values)
    assert len(everyone.unique()) == len(everyone) == 3 * 39 * (2 * 75 + 45) + 75 + 45


def test_streams_are_independent() -> None:
    """Correlations over 40,000 draws between fields, levels, samples, compositions, seeds and draws."""
    count = 40_000
    layout = Layout.from_ptr(torch.arange(count + 1))
    limit = 5 / math.sqrt(count)

    def column(composition: str, seed: int, first: int, draw: int, level: int) -> list[Tensor]:
        names = Candidates.of(seed, [composition] * count, np.arange(count) + first)
        step = next(names.noise(layout).of_draw(draw).steps([level], F64, corrector=True))
        assert step.corrector is not None
        return [step.coords[:, 0], step.corrector[:, 0], step.lattice[:, 0, 0]]

    columns = [
        column("NaCl", 0, 0, 0, 7),
        column("NaCl", 0, 1, 0, 7),
        column("NaCl", 0, 0, 1, 7),
        column("NaCl", 0, 0, 0, 8),
        column("NaCl", 1, 0, 0, 7),
        column("NaBr", 0, 0, 0, 7),
    ]
    z = torch.stack([value for group in columns for value in group])
    for values in (z, z.abs()):
        assert (torch.corrcoef(values) - torch.eye(len(z))).abs().max() < limit
    assert z.mean(1).abs().max() < limit
    assert (z.std(1) - 1).abs().max() < limit


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_devices_draw_the_same() -> None:
    ours, theirs = everything(stream([0, 1, 2])), everything(stream([0, 1, 2], device="cuda"))
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(y.cpu(), x, rtol=1e-14, atol=1e-14)
