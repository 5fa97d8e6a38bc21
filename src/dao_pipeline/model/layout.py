"""How the atoms of a flat batch are laid out: size classes that view as dense blocks.

Crystals of one size, lying next to each other, form a block ``[crystals, atoms, ...]`` that is a plain view.
Everything that couples atoms of a crystal works on such blocks: no padding, no mask, no edge list, no scatter.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CPU_PART_ATOMS = 768
"""Atoms that go through the network together on a CPU: few enough for the caches, enough for matrix products."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Size classes of a batch of B crystals with N atoms.

    ptr: (B + 1,) int64, first atom of each crystal as stored by the caller.
    crystal: (N,) int64, crystal of each atom, in the caller's order.
    classes: (atoms per crystal, crystals) of each block, in sorted order.
    crystal_order: (B,) permutation that sorts crystals by size, or None if they are sorted.
    atom_order: (N,) the same for atoms.
    """

    ptr: Tensor
    crystal: Tensor
    classes: tuple[tuple[int, int], ...]
    crystal_order: Tensor | None = None
    atom_order: Tensor | None = None

    @classmethod
    def from_ptr(cls, ptr: Tensor) -> Layout:
        """The layout of a flat batch. Raises ValueError if ``ptr`` does not start at 0 or a crystal is empty."""
        counts = ptr.diff()
        crystal = torch.repeat_interleave(torch.arange(len(counts), device=ptr.device), counts)
        sizes = counts.tolist()
        if int(ptr[0]) != 0 or (sizes and min(sizes) < 1):
            raise ValueError("ptr must start at 0 and every crystal needs at least one atom")
        crystal_order = atom_order = None
        if any(a > b for a, b in itertools.pairwise(sizes)):
            crystal_order = torch.argsort(counts, stable=True)
            counts = counts[crystal_order]
            starts = ptr[:-1][crystal_order]
            first = torch.cumsum(counts, 0) - counts
            atom_order = torch.arange(int(ptr[-1]), device=ptr.device) + torch.repeat_interleave(
                starts - first, counts
            )
            sizes = counts.tolist()
        classes: list[tuple[int, int]] = []
        for size in sizes:
            if classes and classes[-1][0] == size:
                classes[-1] = (size, classes[-1][1] + 1)
            else:
                classes.append((size, 1))
        return cls(
            ptr=ptr,
            crystal=crystal,
            classes=tuple(classes),
            crystal_order=crystal_order,
            atom_order=atom_order,
        )

    def parts(self, atoms: int) -> list[Layout]:
        """Layouts of consecutive crystals in sorted order, of at most ``atoms`` atoms each (at least one crystal).

        What they split, in sorted order, lies in a row: values of one part are a slice.
        """
        groups: list[list[tuple[int, int]]] = [[]]
        room = atoms
        for size, count in self.classes:
            while count:
                take = min(count, max(room // size, 0 if groups[-1] else 1))
                if take:
                    groups[-1].append((size, take))
                    count, room = count - take, room - take * size
                if count:
                    groups.append([])
                    room = atoms
        return [self] if len(groups) == 1 else [Layout.of_classes(classes, self.ptr.device) for classes in groups]

    @classmethod
    def of_classes(cls, classes: Sequence[tuple[int, int]], device: torch.device) -> Layout:
        """The layout of sorted crystals, from (atoms per crystal, crystals) of each size class."""
        sizes, counts = torch.tensor(classes, device=device).unbind(1)
        each = sizes.repeat_interleave(counts)
        ptr = torch.cat([each.new_zeros(1), each.cumsum(0)])
        crystal = torch.arange(len(each), device=device).repeat_interleave(each)
        return cls(ptr=ptr, crystal=crystal, classes=tuple(classes))

    @property
    def num_crystals(self) -> int:
        """B."""
        return sum(count for _, count in self.classes)

    def sort_atoms(self, values: Tensor) -> Tensor:
        """Per-atom values in sorted order."""
        return values if self.atom_order is None else values[self.atom_order]

    def sort_crystals(self, values: Tensor) -> Tensor:
        """Per-crystal values in sorted order."""
        return values if self.crystal_order is None else values[self.crystal_order]

    def unsort_atoms(self, values: Tensor) -> Tensor:
        """Per-atom values back in the caller's order."""
        return (
            values if self.atom_order is None else torch.empty_like(values).index_copy(0, self.atom_order, values)
        )

    def unsort_crystals(self, values: Tensor) -> Tensor:
        """Per-crystal values back in the caller's order."""
        if self.crystal_order is None:
            return values
        return torch.empty_like(values).index_copy(0, self.crystal_order, values)

    def blocks(self, values: Tensor) -> list[Tensor]:
        """Sorted per-atom values (N, ...) as one (crystals, atoms, ...) view per size class."""
        # split, not slicing: the gradient of a slice is a zero tensor of full size for every class
        parts = values.split([n * count for n, count in self.classes])
        return [
            part.view(count, n, *values.shape[1:]) for part, (n, count) in zip(parts, self.classes, strict=True)
        ]

    def crystal_blocks(self, values: Tensor) -> Sequence[Tensor]:
        """Sorted per-crystal values (B, ...) as one (crystals, ...) view per size class."""
        return values.split([count for _, count in self.classes])

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the atoms of each crystal, (N, ...) -> (B, ...), both sorted."""
        return torch.cat([block.mean(1) for block in self.blocks(values)])

    def remove_mean(self, values: Tensor) -> Tensor:
        """Per-atom values (N, ...) in the caller's order, less the mean over the atoms of their crystal."""
        means = self.unsort_crystals(self.mean(self.sort_atoms(values)))
        return values - means[self.crystal]

    def expand(self, values: Tensor) -> Tensor:
        """Each crystal's value on all its atoms, (B, ...) -> (N, ...), both sorted."""
        parts = zip(self.crystal_blocks(values), self.classes, strict=True)
        return torch.cat(
            [part.unsqueeze(1).expand(-1, n, *part.shape[1:]).flatten(0, 1) for part, (n, _) in parts]
        )
