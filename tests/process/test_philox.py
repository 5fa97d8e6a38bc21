"""Philox against the known answers of its authors, and numbers of the distributions that are asked for."""

from __future__ import annotations

import math

import pytest
import torch

from dao_pipeline.process.philox import philox, three_normals, uniform, uniform_open

KNOWN_ANSWERS = [
    # counter, key, words: philox4x32 10 in kat_vectors of Random123 1.14.0
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def words(texts: list[str], device: str = "cpu") -> list[torch.Tensor]:
    """One tensor per word, over all texts."""
    return list(torch.tensor([[int(word, 16) for word in text.split()] for text in texts], device=device).T)


@pytest.mark.parametrize("device", DEVICES)
def test_known_answers(device: str) -> None:
    counters, keys, answers = (words(list(column), device) for column in zip(*KNOWN_ANSWERS, strict=True))
    found = philox(tuple(counters), (keys[0], keys[1]))
    assert all(torch.equal(a, b) for a, b in zip(found, answers, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_against_integers_without_bounds(device: str) -> None:
    """Random counters and keys against the definition in Python's integers; plain numbers broadcast."""
    g = torch.Generator().manual_seed(0)
    values = torch.randint(0, 1 << 32, (6, 50), generator=g)
    values[:, 0] = 0xFFFFFFFF
    values[1] = 7
    a, _, c, d, k, m = values.to(device)
    found = torch.stack(philox((a, 7, c, d), (k, m)), dim=1).tolist()
    assert found == [plain(*row) for row in values.T.tolist()]


def plain(a: int, b: int, c: int, d: int, k: int, m: int) -> list[int]:
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q % 2**32, (p >> 32) ^ d ^ m, p % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def drawn(count: int = 200_000) -> tuple[torch.Tensor, ...]:
    """Words of counters that differ as those of neighbouring atoms do."""
    key = torch.tensor([17]), torch.tensor([4])
    return philox((torch.arange(count), 0, 3, 5), key)


def test_words_are_even() -> None:
    """Every byte of every word: chi square of 256 classes, mean 255 and deviation 22.6."""
    for word in drawn():
        for shift in (0, 8, 16, 24):
            counts = ((word >> shift) & 255).bincount(minlength=256).double()
            expected = len(word) / 256
            assert abs(float((counts - expected).square().sum()) / expected - 255) < 5 * 22.6


def test_uniform_numbers() -> None:
    edges = torch.tensor([0, 255, 256, 2**32 - 1])
    single, double = uniform(edges, torch.float32), uniform(edges, torch.float64)
    assert single.tolist() == double.tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]
    assert ((uniform_open(edges) > 0) & (uniform_open(edges) < 1)).all()


def test_normal_numbers() -> None:
    z = three_normals(drawn(), torch.float64)
    n = len(z)
    for moment, value, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert ((z**moment).mean(0) - value).abs().max() < 4.5 * math.sqrt(spread / n)
    # Kolmogorov and Smirnov: beyond 1.95 in a thousandth of all cases
    ordered = z.flatten().sort().values
    exact = torch.special.ndtr(ordered)
    steps = torch.arange(1, len(ordered) + 1) / len(ordered)
    assert float((steps - exact).abs().max()) * math.sqrt(len(ordered)) < 1.95
    tail = int((z.abs() > 4).sum())  # 38 expected
    assert 15 < tail < 70
    correlation = torch.corrcoef(torch.cat([z, z.square(), z.roll(1, 0)], dim=1).T)
    assert (correlation - torch.eye(9)).abs().max() < 5 / math.sqrt(n)


def test_precisions_are_the_same_numbers() -> None:
    some = drawn(1000)
    assert torch.equal(three_normals(some, torch.float32), three_normals(some, torch.float64).float())
    largest = three_normals(tuple(torch.zeros(1, dtype=torch.int64) for _ in range(4)), torch.float64)  # type: ignore[arg-type]
    assert 6.7 < float(largest.max()) < 6.8
