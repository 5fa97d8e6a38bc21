"""What a ranker knows about candidates: numbers of each, and of each beside its siblings of one composition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from dao_pipeline.crystals.crystal import from_table
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.ranking.known import NO_KIND, KnownTypes
from dao_pipeline.ranking.plausibility import PLAUSIBILITY, plausibility
from dao_pipeline.ranking.structure_type import structure_types
from dao_pipeline.ranking.votes import VoteData, Votes

VOTED = ("log_share", "unsupported", "log_members", "best_vote", "behind", "log_none", "best_e_above_hull")
"""log_share: logarithm of the share of votes for the candidate's kind. unsupported: nobody voted for it.
log_members: logarithm of 1 + the number of votes. best_vote: weight of the heaviest. behind: log_share below the
best sibling's. log_none: log of the share that stands for other types. best_e_above_hull: eV/atom of the known
crystal that it is from.
"""

SHAPE = ("log_atoms", "log_cells", "elements", "log_order")
"""log_atoms, elements: of the composition. log_cells: log of primitive cells in the cell. log_order: log of the
number of atoms per independent site."""

BESIDE = ("closest", "contact", "contact_spread", "closest_like", "log_volume")
"""Of these the difference to the mean of the siblings counts as well."""

FEATURES = (*VOTED, *SHAPE, *PLAUSIBILITY, *(f"{name}_beside" for name in BESIDE))

_LEAST = -12.0
"""log_share where nobody voted."""

_COLUMNS = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]


@dataclass(frozen=True)
class Features:
    """Candidates in numbers, those of one composition in a row.

    group: (m,) int64, composition of each, rising. values: (m, features) float32, see ``FEATURES``.
    none: (groups,) float32, log of the share of votes for no known type. energy: (m,) float32 eV/atom above the
    lowest sibling, NaN where unknown. rows: (m,) int64, the candidate's row in the table.
    """

    group: Tensor
    values: Tensor
    none: Tensor
    energy: Tensor
    rows: np.ndarray

    @property
    def groups(self) -> int:
        """Compositions."""
        return len(self.none)


def describe(
    table: pa.Table,
    composition: Sequence[str],
    known: KnownTypes,
    votes: Votes,
    element_volumes: np.ndarray,
    suggestions: int,
    symprec: float,
    workers: int = 1,
) -> Features:
    """Features of a table of sound crystals; ``composition``: what makes rows siblings. Order of rows is free."""
    numbers = {name: i for i, name in enumerate(dict.fromkeys(composition))}
    group = np.array([numbers[name] for name in composition], dtype=np.int64)
    rows = np.argsort(group, kind="stable")
    group, table = group[rows], table.take(pa.array(rows))
    crystals = list(from_table(table.select(_COLUMNS)))
    described = structure_types(crystals, symprec, workers)
    first = np.searchsorted(group, np.arange(len(numbers)))
    cells = [crystals[i].atomic_numbers for i in first.tolist()]
    found = known.suggest(cells, [crystals[i].formula for i in first.tolist()], suggestions)
    kind = np.array([known.kind_of(one) for one in described], dtype=np.int64)
    voted, none = _voted(VoteData.of(found, known), votes, kind, group)
    shape = np.array(
        [
            [
                np.log(c.num_atoms),
                np.log(c.num_atoms / d[0].num_atoms) if d else 0.0,
                len(set(c.atomic_numbers.tolist())),
                np.log(d[0].num_atoms / sum(len(role) for role in d[0].roles)) if d else 0.0,
            ]
            for c, d in zip(crystals, described, strict=True)
        ]
    )
    geometry = plausibility(flatten(table), element_volumes)
    beside = geometry[:, [PLAUSIBILITY.index(name) for name in BESIDE]]
    beside = beside - _means(beside, group, len(numbers))[group]
    values = np.concatenate([voted, shape, geometry, beside], axis=1)
    return Features(
        group=torch.from_numpy(group),
        values=torch.from_numpy(values).float(),
        none=torch.from_numpy(none).float(),
        energy=torch.from_numpy(_above_lowest(table, group, len(numbers))).float(),
        rows=rows,
    )


def _voted(data: VoteData, votes: Votes, kind: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, 7) and (groups,), see ``VOTED``."""
    with torch.no_grad():
        score = torch.cat([votes(data.take(part)) for part in torch.arange(len(data.kind)).split(256)]).double()
        none = votes.none.double()
        total = torch.logsumexp(torch.cat([score, none.expand(len(score), 1)], dim=1), dim=1)
    log_none = (none - total).numpy()
    own = (data.kind.numpy()[group] == kind[:, None]) & (kind != NO_KIND)[:, None]
    weight = np.where(own, score.numpy()[group], -np.inf)
    members = own.sum(1)
    best = weight.max(1)
    supported = members > 0
    with np.errstate(divide="ignore"):
        log_share = np.logaddexp.reduce(weight, axis=1) - total.numpy()[group]
    log_share = np.maximum(np.where(supported, log_share, _LEAST), _LEAST)
    leading = np.full(len(log_none), _LEAST)
    np.maximum.at(leading, group, log_share)
    energy = data.facts.numpy()[group, weight.argmax(1), 1]
    columns = [
        log_share,
        ~supported,
        np.log1p(members),
        np.where(supported, np.maximum(best, _LEAST), _LEAST),
        log_share - leading[group],
        log_none[group],
        np.where(supported, energy, 0.0),
    ]
    return np.stack(columns, axis=1).astype(np.float64), log_none


def _means(values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    total = np.zeros((groups, values.shape[1]))
    np.add.at(total, group, values)
    return total / np.bincount(group, minlength=groups)[:, None]


def _above_lowest(table: pa.Table, group: np.ndarray, groups: int) -> np.ndarray:
    """(m,) eV/atom above the sibling of lowest predicted energy."""
    if "energy_pred" not in table.column_names:
        return np.full(len(group), np.nan)
    energy = table["energy_pred"].to_numpy().astype(np.float64)
    lowest = np.full(groups, np.inf)
    np.fmin.at(lowest, group, energy)
    return energy - lowest[group]
