"""Which candidates are computed: the named ones, or those of high rank; and how a budget is spent among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import QE, expand_path
from dao_pipeline.crystals.table import iter_tables
from dao_pipeline.errors import UserError

UNKNOWN_ERROR = 0.1
"""eV/atom: standard deviation of a predicted energy that comes without one. If all do, it only sets the scale."""

_HULL = ("e_above_hull_pred", "e_above_hull")
"""Columns with a predicted distance to the hull, if the table has one."""


def named_candidates(settings: QE) -> list[str] | None:
    """Ids that the campaign names itself or in a file (one per line, # for remarks); None: those of high rank.

    Raises UserError for a file that cannot be read, is empty, or names a candidate twice.
    """
    given = settings.candidates
    if not isinstance(given, str):
        return given
    path = expand_path(given)
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"qe.candidates = {given}: not readable ({error}); name a text file of ids.") from None
    ids = [line for line in lines if line]
    if not ids or len(set(ids)) < len(ids):
        what = "no ids in it" if not ids else f"{next(i for i in ids if ids.count(i) > 1)} stands there twice"
        raise UserError(f"qe.candidates = {given}: {what}; write each candidate once, one per line.")
    return ids


def chosen(screened: Path, settings: QE) -> pa.Table:
    """Rows of the candidates to compute, in order of their jobs: as named, or by composition, then by rank.

    Raises UserError naming ids that are not in the table.
    """
    ids = named_candidates(settings)
    pieces, empty = [], None
    for piece in iter_tables(screened):
        empty = piece.slice(0, 0) if empty is None else empty
        mask = (
            pc.less_equal(piece["rank"], settings.top_k)
            if ids is None
            else pc.is_in(piece["id"], pa.array(ids, pa.string()))
        )
        pieces.append(piece.filter(mask))
    if empty is None:
        raise UserError(f"{screened}: no candidates. Run screen_candidates.")
    found = pa.concat_tables([empty, *pieces], promote_options="default")
    if ids is not None:
        row = {name: n for n, name in enumerate(found["id"].to_pylist())}
        if missing := [name for name in ids if name not in row]:
            raise UserError(
                f"qe.candidates: {', '.join(missing[:5])}{' and more' * (len(missing) > 5)}: not among the "
                f"candidates of {screened}; correct the ids."
            )
        return found.take(pa.array([row[name] for name in ids], pa.int64()))
    keys = list(zip(found["composition"].to_pylist(), _column(found, "target_id"), strict=True))
    place = {key: n for n, key in reversed(list(enumerate(keys)))}
    ranks = found["rank"].to_pylist()
    order = sorted(range(found.num_rows), key=lambda n: (place[keys[n]], ranks[n]))
    return found.take(pa.array(order, pa.int64()))


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else [None] * table.num_rows


def affordable(table: pa.Table, costs: Sequence[float], settings: QE) -> list[bool]:
    """Which of the chosen candidates fit into ``qe.budget_core_hours``, with expected ``costs`` in core seconds.

    In order of ``qe.select`` each candidate is taken that still fits into what is left.
    """
    if settings.budget_core_hours is None:
        return [True] * table.num_rows
    if settings.select == "informative":
        gain = information(table) / np.maximum(np.asarray(costs), 1e-9)
        order = sorted(range(len(gain)), key=lambda n: (-gain[n], n))
    else:
        ranks = [math.inf if rank is None else rank for rank in _column(table, "rank")]
        order = sorted(range(len(ranks)), key=lambda n: (ranks[n], n))
    left = 3_600 * settings.budget_core_hours
    taken = [False] * len(order)
    for n in order:
        if costs[n] <= left:
            taken[n], left = True, left - costs[n]
    return taken


def information(table: pa.Table) -> np.ndarray:
    """Bits that DFT of each candidate is expected to tell: whether it is stable, or the ground state.

    The question is whether the candidate lies on the hull (distance d, where one is predicted) or below every
    other candidate of its composition (d: to the best of the others). With a predicted error s the answer is yes
    with p = Phi(-d / s), and the entropy of that answer is what there is to learn: 1 bit at even odds, next to
    nothing for what is far above or clearly below. A candidate with nothing to be compared with counts 1 bit.
    """
    energy = np.array(_column(table, "energy_pred"), dtype=np.float64)
    error = np.array(_column(table, "energy_std_pred"), dtype=np.float64)
    error = np.where(np.isfinite(error) & (error > 0), error, UNKNOWN_ERROR)
    hull = np.full(len(energy), np.nan)
    for name in _HULL:
        if name in table.column_names:
            hull = np.where(np.isnan(hull), np.array(_column(table, name), dtype=np.float64), hull)
    bits = np.ones(len(energy))
    compositions = np.array([str(c) for c in _column(table, "composition")])
    for n, (e, s) in enumerate(zip(energy, error, strict=True)):
        distance = hull[n]
        if np.isnan(distance):
            others = (compositions == compositions[n]) & (np.arange(len(energy)) != n) & np.isfinite(energy)
            if np.isnan(e) or not others.any():
                continue
            best = np.flatnonzero(others)[np.argmin(energy[others])]
            distance, s = e - energy[best], math.hypot(s, error[best])
        p = 0.5 * math.erfc(distance / (s * math.sqrt(2)))
        bits[n] = -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)
    return bits
