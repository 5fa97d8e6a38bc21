"""How far templates are from the crystals that they stand for: the unit of the velocities of their paths."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from dao_pipeline.crystals.dataset import paired_rows
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.process.log_metric import log_metric

SMALLEST = 1e-3
"""Unit where templates have no error at all."""


def template_errors(crystals: pa.Table, templates: pa.Table) -> tuple[float, float]:
    """Root mean square over the pairs of a fractional coordinate's and of a log metric's entry's error.

    templates: rows of the pair table; those whose crystal is not in ``crystals`` do not count.
    """
    pairs = paired_rows(crystals, templates)
    own = flatten(crystals.filter(pa.array(pairs >= 0)))
    theirs = flatten(templates.take(pa.array(pairs[pairs >= 0])))
    if not len(own):
        return SMALLEST, SMALLEST
    u = theirs.frac - own.frac
    u -= np.rint(u)
    mean = np.add.reduceat(u, own.ptr[:-1]) / own.counts[:, None]
    u -= mean[own.crystal_of_atom]
    change = log_metric(torch.from_numpy(theirs.lattice)) - log_metric(torch.from_numpy(own.lattice))
    squares = float((u**2).mean()), float(change.square().mean())
    return max(squares[0] ** 0.5, SMALLEST), max(squares[1] ** 0.5, SMALLEST)
