"""Relaxation of crystals with DAO-P, by the method that the settings name."""

from __future__ import annotations

import numpy as np

from dao_pipeline.config import Relax
from dao_pipeline.crystals.flat import FlatCrystals
from dao_pipeline.energy.relax_base import Relaxation, Relaxed
from dao_pipeline.energy.relax_lbfgs import Lbfgs
from dao_pipeline.energy.relax_paper import Paper
from dao_pipeline.model.dao import DaoModel


def start(model: DaoModel, crystals: FlatCrystals, settings: Relax, rows: np.ndarray | None = None) -> Relaxation:
    """A relaxation of m crystals that has not begun.

    rows: (m,) rising position of each crystal in the training set, for ``method: paper``; default: 0, 1, 2 ...
    """
    if settings.method == "paper":
        return Paper(model, crystals, settings, np.arange(len(crystals)) if rows is None else rows)
    return Lbfgs(model, crystals, settings)


def relax(model: DaoModel, crystals: FlatCrystals, settings: Relax) -> Relaxed:
    """The outcomes of m crystals, accepted or not."""
    relaxation = start(model, crystals, settings)
    while not relaxation.finished:
        relaxation.advance()
    return relaxation.result
