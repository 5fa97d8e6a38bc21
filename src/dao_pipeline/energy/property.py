"""The property that a fine-tuned DAO-P predicts in place of an energy (paper 3.4)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from dao_pipeline.model.dao import About

_KEY = "property"
"""Where the property stands in the history of a model: an entry with this key."""


@dataclass(frozen=True)
class Target:
    """``name`` in ``unit``; with ``log`` the model learns its natural logarithm."""

    name: str
    unit: str
    log: bool

    def encode(self, values: np.ndarray) -> np.ndarray:
        """What the model learns, from values in ``unit``; not finite where there is no logarithm."""
        if not self.log:
            return values
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.log(values)

    def decode(self, learnt: np.ndarray) -> np.ndarray:
        """Values in ``unit``, from what the model says; infinite where they are beyond all numbers."""
        if not self.log:
            return learnt
        with np.errstate(over="ignore"):
            return np.exp(learnt)

    def note(self) -> dict[str, Any]:
        """Entry of a model's history."""
        return {_KEY: asdict(self)}

    @classmethod
    def of(cls, about: About) -> Self | None:
        """The property of a model; None if it was never fine-tuned on one."""
        notes = [entry[_KEY] for entry in about.history if _KEY in entry]
        return cls(**notes[-1]) if notes else None
