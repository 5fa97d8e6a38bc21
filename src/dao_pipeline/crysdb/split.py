"""Train, val and test: the source's own split, a hash of the composition or chemical system, or the date.

What side a crystal is on follows from itself, the seed and the settings alone, so that growth of the data moves
nobody; except that a crystal joins the given split of others of its composition, a precursor is where its crystal
is, and nothing is put into test by its hash once the source gives test crystals of its own.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
LEFT_OUT = -1
"""In place of a side: training on this crystal would leak."""

ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
"""Other names of the sides in files."""


def position(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on the composition (or system) and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def drawn(ids: Sequence[str], count: int, seed: int) -> np.ndarray:
    """Places of ``count`` of the ids, drawn at random: those whose hash with the seed comes first."""
    return np.argsort([position(f"held out:{name}", seed) for name in ids], kind="stable")[:count]


def given_split(table: pa.Table) -> np.ndarray:
    """The source's split (m,), '' where it has none; names as written unless they are a known alias."""
    if "split" not in table.column_names:
        return np.full(table.num_rows, "", dtype=object)
    written = [(value or "").strip().lower() for value in table["split"].to_pylist()]
    return np.array([ALIASES.get(value, value) for value in written], dtype=object)


def assign(
    formulas: Sequence[str], given: np.ndarray, *, seed: int, val_fraction: float, test_fraction: float
) -> np.ndarray:
    """``assign_coded`` for plain texts: the split (m,) of each crystal by its formula, '' for those to leave out.

    Names that are no side stay as they are.
    """
    keys, code = np.unique(np.asarray(formulas, dtype=str), return_inverse=True)
    sides = np.array([SPLITS.index(name) if name in SPLITS else LEFT_OUT for name in given], dtype=np.int64)
    side = assign_coded(
        keys.tolist(), code, sides, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction
    )
    names = np.array([*SPLITS, ""], dtype=object)[side]
    return np.where((sides < 0) & (given != ""), given, names)


def assign_coded(
    keys: Sequence[str],
    code: np.ndarray,
    given: np.ndarray,
    *,
    seed: int,
    val_fraction: float,
    test_fraction: float,
) -> np.ndarray:
    """The side (m,) of each crystal: as given; else by its key (composition or chemical system).

    keys: distinct keys; code (m,): which of them each crystal has; given (m,): 0 to 2, -1 for none.

    Crystals of one key without a given split stand on one side. If others of that key have a given split, they
    join them, but never the given test split: ``LEFT_OUT`` then says that the crystal must be left out, because
    training on it would leak. If the source gives any test crystals, the hash adds none.
    """
    has = np.zeros((len(keys), 3), dtype=bool)
    stated = given >= 0
    has[code[stated], given[stated]] = True
    if overlap := int((has.sum(1) > 1).sum()):
        log.warning("%d compositions stand on more than one side of the given split", overlap)
    asked = np.unique(code[~stated])
    place = np.full(len(keys), 1.0)
    place[asked] = [position(keys[k], seed) for k in asked.tolist()]
    by_hash = np.select(
        [place < test_fraction, place < test_fraction + val_fraction],
        [TRAIN if has[:, TEST].any() else TEST, VAL],
        TRAIN,
    )
    side = np.select([has[:, TEST], has[:, TRAIN], has[:, VAL]], [LEFT_OUT, TRAIN, VAL], by_hash)
    return np.where(stated, given, side[code])


def assign_by_date(published: np.ndarray, given: np.ndarray, val_from: str, test_from: str) -> np.ndarray:
    """The side (m,) of each crystal: as given; else test or val if first published since then; else train.

    published: (m,) datetime64[D]; crystals without a date train.
    """
    val, test = (np.datetime64(text, "D") for text in (val_from, test_from))
    side = np.select([published >= test, published >= val], [TEST, VAL], TRAIN)
    return np.where(given >= 0, given, side)


def propose_dates(published: np.ndarray, val_fraction: float, test_fraction: float) -> tuple[str, str]:
    """Dates ``val_from`` and ``test_from`` that give about these shares of the dated crystals."""
    known = np.sort(published[~np.isnat(published)])
    last = len(known) - 1
    places = (round((1 - test_fraction - val_fraction) * last), round((1 - test_fraction) * last))
    val, test = (str(known[place]) for place in places)
    return val, test
