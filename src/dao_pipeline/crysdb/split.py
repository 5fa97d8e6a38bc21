"""Train, val and test: the source's own split, or a hash of the composition."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


def given_split(table: pa.Table) -> np.ndarray:
    """The source's split (m,), '' where it has none; names as written unless they are a known alias."""
    if "split" not in table.column_names:
        return np.full(table.num_rows, "", dtype=object)
    written = [(value or "").strip().lower() for value in table["split"].to_pylist()]
    return np.array([_ALIASES.get(value, value) for value in written], dtype=object)


def position(formula: str, seed: int) -> float:
    """A number in [0, 1) that depends on the composition and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{formula}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def assign(
    formulas: Sequence[str], given: np.ndarray, *, seed: int, val_fraction: float, test_fraction: float
) -> np.ndarray:
    """The split (m,) of each crystal: as given; else by its composition, so that growth moves nobody.

    Crystals of one composition without a given split stand on one side. If others of that composition
    have a given split, they join them, but never the given test split: '' then says that the crystal must
    be left out, because training on it would leak. If the source gives any test crystals, the hash adds none.
    """
    sides: dict[str, set[str]] = {}
    for formula, side in zip(formulas, given, strict=True):
        if side:
            sides.setdefault(formula, set()).add(side)
    overlap = sum(len(s) > 1 for s in sides.values())
    if overlap:
        log.warning("%d compositions stand on more than one side of the given split", overlap)
    source_tests = bool((given == "test").any())
    chosen: dict[str, str] = {}
    result = np.array(given, dtype=object)
    for i in np.flatnonzero(given == "").tolist():
        formula = formulas[i]
        if formula not in chosen:
            chosen[formula] = _side(
                sides.get(formula, set()), position(formula, seed), val_fraction, test_fraction, source_tests
            )
        result[i] = chosen[formula]
    return result


def _side(given: set[str], place: float, val_fraction: float, test_fraction: float, source_tests: bool) -> str:
    if "test" in given:
        return ""
    if given:
        return "train" if "train" in given else "val"
    if place < test_fraction:
        return "train" if source_tests else "test"
    return "val" if place < test_fraction + val_fraction else "train"
