"""Philox4x32-10: random numbers as a function of a key and a counter (Salmon et al., SC11, 2011).

No state: whoever knows key and counter has the number, so numbers can be drawn in any order, together or apart, on
any device. Words are held in int64, in which torch has all that is needed on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: tuple[Tensor | int, ...], key: tuple[Tensor, Tensor]) -> Words:
    """Four random words for each counter (four words) and key (two), int64 in 0 .. 2^32 - 1.

    All inputs broadcast against each other.
    """
    a, b, c, d = counter
    for number in range(ROUNDS):
        high, low = _product(a, MULTIPLIERS[0])
        other_high, other_low = _product(c, MULTIPLIERS[1])
        first, second = ((k + number * step) & _WORD for k, step in zip(key, KEY_STEPS, strict=True))
        a, b, c, d = other_high ^ b ^ first, other_low, high ^ d ^ second, low
    return a, b, c, d  # type: ignore[return-value]  # the keys have made tensors of them


def _product(word: Tensor | int, multiplier: int) -> tuple[Tensor | int, Tensor | int]:
    """Upper and lower word of a product of two words.

    Taken of word * (multiplier - 2^32), which fits a signed 64-bit integer as every multiplier is above 2^31; the
    upper word then lacks just ``word``.
    """
    product = word * (multiplier - (1 << 32))
    return (product >> 32) + word, product & _WORD


def uniform(word: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2^-24: the same in single and in double precision."""
    return (word >> 8).to(dtype) * 2.0**-24


def uniform_open(word: Tensor) -> Tensor:
    """Uniform numbers between 0 and 1, neither of them included, in double precision."""
    return (word.double() + 0.5) * 2.0**-32


def three_normals(words: Words, dtype: torch.dtype) -> Tensor:
    """Three standard normal numbers of four words, (..., 3), by Box and Muller.

    In double precision inside, so that the tails are right (they end at 6.8) and single precision rounds the same
    numbers.
    """
    (near, far), (angle, other) = (
        ((-2 * uniform_open(w).log()).sqrt() for w in words[::2]),
        (2 * math.pi * uniform_open(w) for w in words[1::2]),
    )
    return torch.stack([near * angle.cos(), near * angle.sin(), far * other.cos()], dim=-1).to(dtype)
