"""What an index proposes: flat arrays, one entry per proposal, and their crystals."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.flat import FlatCrystals


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """p proposals, sorted by composition, then by rank.

    composition: (p,) int64, which of the asked compositions. rank: (p,) int64 from 0, most probable first.
    template: (p,) int64, row of the index's table; template_id: (p,) its ids (object array of str). recoloured:
    (p,) bool, the template has another number of elements on these sites (``recolour``).
    structure_type: (p,) int64, label in the index; no two proposals of one composition have the same type with
    equivalent assignments of elements.
    distance: (p,) float64 to the template, in units of the index's metric.
    probability: (p,) float64, the type's share of all votes for the composition, 0 to 1.
    votes: (p,) int64, templates of the type (those left out do not count).
    known: (p,) bool, a known crystal of this composition, unchanged; these come first, with distance 0.
    multiple: (p,) int64, cells of the template in one cell of the proposal.
    crystals: the p proposed crystals; lattice in angstrom.
    """

    composition: np.ndarray
    rank: np.ndarray
    template: np.ndarray
    template_id: np.ndarray
    structure_type: np.ndarray
    distance: np.ndarray
    probability: np.ndarray
    votes: np.ndarray
    known: np.ndarray
    multiple: np.ndarray
    recoloured: np.ndarray
    crystals: FlatCrystals

    def __len__(self) -> int:
        return len(self.rank)

    def select(self, keep: np.ndarray) -> Proposals:
        """The proposals where the boolean mask ``keep`` (p,) is set."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Proposals(**{n: v.select(keep) if n == "crystals" else v[keep] for n, v in values.items()})

    def crystal(self, i: int, name: str) -> Crystal:
        """Proposal ``i`` as a crystal with the id ``name``."""
        flat = self.crystals
        atoms = slice(int(flat.ptr[i]), int(flat.ptr[i + 1]))
        return Crystal(
            id=name,
            source="template",
            atomic_numbers=flat.numbers[atoms],
            frac_coords=flat.frac[atoms],
            lattice=flat.lattice[i],
        )
