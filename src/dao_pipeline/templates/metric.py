"""How far two compositions are apart: what it costs to replace one element by another.

Every choice of distance comes down to a table of costs, one per pair of elements, so that all are looked up at the
same speed. The learned one adds a second part, for the composition as a whole (``learn.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, COVALENT_RADIUS, ELECTRONEGATIVITY, MENDELEEV, SYMBOLS

Distance = Literal["mendeleev", "radii", "substitution", "learned"]

NUM = len(SYMBOLS)
"""Length of tables by atomic number; 0 is a placeholder."""

WIDTHS: dict[str, float] = {"mendeleev": 2.0, "radii": 0.1, "substitution": 0.5, "learned": 1.0}
"""Distance over which a template's vote falls to 1/e, in each distance's own units."""


@dataclass(frozen=True)
class Metric:
    """Distance between compositions of one pattern, under a given assignment of elements.

    d = sum_i w_i cost[a_i, b_i] + |sum_i x_i (whole[a_i] - whole[b_i])|^2, over slots i with n_i of the n atoms,
    x_i = n_i / n, and w_i proportional to x_i^power, with sum 1.

    cost: (119, 119), symmetric, 0 on its diagonal. whole: (119, d), may have d = 0. width: see ``WIDTHS``.
    """

    name: str
    cost: np.ndarray
    width: float
    power: float = 1.0
    whole: np.ndarray = field(default_factory=lambda: np.zeros((NUM, 0)))

    def weights(self, pattern: Sequence[int]) -> np.ndarray:
        """(s,) float64, what each slot weighs; sum 1."""
        weight = np.asarray(pattern, dtype=np.float64) ** self.power
        return weight / weight.sum()

    def means(self, elements: np.ndarray, pattern: Sequence[int]) -> np.ndarray:
        """(m, d) sum_i x_i whole[a_i] of compositions with slots ``elements`` (m, s)."""
        share = np.asarray(pattern, dtype=np.float64) / sum(pattern)
        return np.asarray(np.einsum("s,msd->md", share, self.whole[elements]))


def fixed_metric(name: Distance) -> Metric:
    """One of the distances that need no training: mendeleev, radii, substitution."""
    cost = {"mendeleev": _mendeleev, "radii": _radii, "substitution": _substitution}[name]()
    return Metric(name, cost, WIDTHS[name])


def _mendeleev() -> np.ndarray:
    number = np.asarray(MENDELEEV, dtype=np.float64)
    return np.abs(number[:, None] - number)


def _radii() -> np.ndarray:
    """Relative difference of covalent radii, and difference of electronegativities in units of 1.5."""
    radius = np.log(np.maximum(COVALENT_RADIUS, 0.2))
    pauling = np.asarray(ELECTRONEGATIVITY)
    pauling = np.where(pauling > 8, pauling[pauling < 8].mean(), pauling) / 1.5
    return np.hypot(radius[:, None] - radius, pauling[:, None] - pauling)


def _substitution() -> np.ndarray:
    """How much less readily one element replaces another than each replaces itself, in known crystals.

    cost_ab = (ln g_aa + ln g_bb) / 2 - ln g_ab, where g is pymatgen's pair correlation of ions in the same place
    (Hautier et al., Inorg. Chem. 50, 656, 2011). Of the ions of two elements the pair with the largest g counts,
    so oxidation states need not be known. Elements not in that table cost as much as what was never seen.
    """
    from pymatgen.analysis.structure_prediction.substitution_probability import SubstitutionProbability

    table = SubstitutionProbability()
    ions = sorted(table.species, key=str)
    element = np.array([ATOMIC_NUMBERS[ion.element.symbol] for ion in ions])
    share = np.log([table.get_px(ion) / table.Z for ion in ions])
    seen = np.array([[table.get_lambda(a, b) for b in ions] for a in ions])
    log_g = seen - np.log(table.Z) - share[:, None] - share
    best = np.full((NUM, NUM), float(log_g.min()))
    np.maximum.at(best, (element[:, None], element), log_g)
    own = np.diagonal(best)
    own = np.where(own > log_g.min(), own, np.median(own[np.unique(element)]))
    cost = np.maximum((own[:, None] + own) / 2 - best, 0.0)
    np.fill_diagonal(cost, 0.0)
    return cost
