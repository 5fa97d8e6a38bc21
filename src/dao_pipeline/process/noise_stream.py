"""Noise that belongs to a candidate, whatever its batch, shard and device, and whatever else is asked for.

The key is made from the campaign's seed and the text of the composition, the counter is the candidate's number
within its composition, what the noise is for, the level, and the atom. So a candidate can be drawn again alone, a
batch can be halved, and a campaign can grow at either end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dao_pipeline.model.layout import Layout
from dao_pipeline.process.philox import Words, philox, three_normals, uniform, uniform_open

START = 0
"""Level of what is drawn before the first step; steps are numbered by the level that they leave, 1 to T."""

BLOCK = 1 << 15
"""Counters that are computed at once: levels are taken together, so that small batches cost few calls."""


class Field(IntEnum):
    """What noise is for."""

    COORDS = 0
    LATTICE = 1
    CORRECTOR = 2
    CHOICE = 3


@dataclass(frozen=True)
class Candidates:
    """Whose noise it is: key (B, 2) and number within the composition (B,), words as int64."""

    key: np.ndarray
    sample: np.ndarray

    @classmethod
    def of(cls, seed: int, compositions: Sequence[str], samples: Sequence[int] | np.ndarray) -> Candidates:
        """seed: the campaign's. compositions: (B,) texts, as asked for. samples: (B,), 0 to 2^32 - 1."""
        known = {text: _key(seed, text) for text in set(compositions)}
        key = np.array([known[text] for text in compositions], dtype=np.int64).reshape(-1, 2)
        return cls(key, np.asarray(samples, dtype=np.int64))

    def select(self, keep: np.ndarray) -> Candidates:
        """Some of them."""
        return Candidates(self.key[keep], self.sample[keep])

    def noise(self, layout: Layout) -> NoiseStream:
        """Their noise in a batch of this layout, where they are in the caller's order."""
        device = layout.ptr.device
        return NoiseStream(layout, torch.from_numpy(self.key).to(device), torch.from_numpy(self.sample).to(device))


def _key(seed: int, composition: str) -> tuple[int, int]:
    digest = hashlib.sha256(f"{seed}:{composition}".encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


class Step(NamedTuple):
    """Standard normal noise of one step: (N, 3), (B, 3, 3) and, if there is a corrector, (N, 3)."""

    coords: Tensor
    lattice: Tensor
    corrector: Tensor | None


@dataclass(frozen=True)
class NoiseStream:
    """The noise of a batch of B candidates with N atoms. draw: which of several draws of each it is for."""

    layout: Layout
    key: Tensor
    sample: Tensor
    draw: int = 0

    def of_draw(self, draw: int) -> NoiseStream:
        """The noise of another draw of the same candidates."""
        return replace(self, draw=draw)

    def uniform_coords(self, dtype: torch.dtype) -> Tensor:
        """Where atoms start: uniform in [0, 1), (N, 3)."""
        words = self._words(*self._atoms(), Field.COORDS, START)
        return torch.stack([uniform(word, dtype) for word in words[:3]], dim=-1)

    def normal_coords(self, dtype: torch.dtype) -> Tensor:
        """Standard normal noise to start from, (N, 3)."""
        return three_normals(self._words(*self._atoms(), Field.COORDS, START), dtype)

    def normal_lattice(self, numbers: int, dtype: torch.dtype) -> Tensor:
        """Standard normal noise to start from, (B, numbers); numbers: 6 or 9."""
        words = self._words(*self._rows(numbers // 3), Field.LATTICE, START)
        return three_normals(words, dtype).view(-1, numbers)

    def steps(self, levels: Sequence[int], dtype: torch.dtype, corrector: bool = False) -> Iterator[Step]:
        """Noise of the steps that leave these levels, one after another."""
        atoms = self._atoms()
        parts: list[tuple[Tensor, Tensor, Field]] = [(*atoms, Field.COORDS), (*self._rows(3), Field.LATTICE)]
        parts += [(*atoms, Field.CORRECTOR)] if corrector else []
        crystal, place = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        field = torch.cat([torch.full_like(crystal, name) for crystal, _, name in parts])
        at_once = max(1, BLOCK // len(crystal))
        for first in range(0, len(levels), at_once):
            level = torch.tensor(levels[first : first + at_once], device=crystal.device)[:, None]
            for drawn in three_normals(self._words(crystal, place, field, level), dtype):
                coords, lattice, *more = drawn.split([len(part[0]) for part in parts])
                yield Step(coords, lattice.view(-1, 3, 3), more[0] if more else None)

    def choice(self, draws: int) -> Tensor:
        """Uniform numbers between 0 and 1 that decide which draw is kept, (draws, B), in double precision."""
        crystal = torch.arange(len(self.sample), device=self.sample.device)
        number = torch.arange(draws, device=crystal.device)[:, None]
        return uniform_open(self._words(crystal, number, Field.CHOICE, START)[0])

    def _atoms(self) -> tuple[Tensor, Tensor]:
        """Crystal of each atom, and the atom's place in it, (N,)."""
        crystal = self.layout.crystal
        return crystal, torch.arange(len(crystal), device=crystal.device) - self.layout.ptr[crystal]

    def _rows(self, rows: int) -> tuple[Tensor, Tensor]:
        """The same for rows of numbers of each crystal, (B rows,)."""
        crystal = torch.arange(len(self.sample), device=self.sample.device)
        return crystal.repeat_interleave(rows), torch.arange(rows, device=crystal.device).repeat(len(crystal))

    def _words(self, crystal: Tensor, place: Tensor, field: Tensor | int, level: Tensor | int) -> Words:
        counter = (place, field + (self.draw << 8), level, self.sample[crystal])
        key = self.key[crystal]
        return philox(counter, (key[:, 0], key[:, 1]))
