"""Template substitution as a baseline: the structure of the known crystal of nearest composition.

Published comparisons find that this simple retrieval beats most generators, so it is always shown. It is the plain
one: elements are compared by Mendeleev number, and the nearest template goes first, however many others disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Templates
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.templates.index import TemplateIndex

_LAST = 1e7
_NEAREST = 1e-3
"""Width of votes, in steps of Mendeleev number per atom: so narrow that only the nearest template counts."""


def plain_index(table: pa.Table) -> TemplateIndex:
    """Templates whose nearest is proposed first; of equally near ones the more stable (e_above_hull).

    Supercells come after all that need none; structures with another number of elements are not asked.
    """
    index = TemplateIndex.build(table, Templates(distance="mendeleev", exclude="composition"))
    return replace(
        index, metric=replace(index.metric, width=_NEAREST), instability=1.0, supercell=_LAST, recoloured=np.inf
    )


@dataclass(frozen=True)
class Substitution:
    """A crystal made from a template."""

    crystal: Crystal
    template_id: str
    distance: float


def substitutions(index: TemplateIndex, targets: Sequence[Crystal], k: int) -> list[list[Substitution]]:
    """Up to ``k`` crystals of different structure types for each target, nearest template first.

    Templates of the target's own reduced formula are left out. The order of the atoms is the template's.
    """
    made = index.propose([np.asarray(target.atomic_numbers) for target in targets], k)
    found: list[list[Substitution]] = [[] for _ in targets]
    for i, (target, rank) in enumerate(zip(made.composition.tolist(), made.rank.tolist(), strict=True)):
        crystal = made.crystal(i, f"substitution:{targets[target].id}:{rank}")
        crystal = replace(crystal, source="substitution")
        found[target].append(Substitution(crystal, str(made.template_id[i]), float(made.distance[i])))
    return found
