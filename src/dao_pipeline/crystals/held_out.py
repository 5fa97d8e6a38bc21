"""Which crystals a training set leaves out, and whether a model may be scored on a test set.

``build_crysdb`` writes into the metadata of each split what was held out of training: its own test split and the
tables of ``crysdb.exclude``. Training copies it into the model's history, so that it stays with the model.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.crystals.flat import FlatCrystals, formulas, list_lengths, list_values
from dao_pipeline.crystals.formula import MAX_ATOMIC_NUMBER
from dao_pipeline.crystals.table import iter_tables, read_about
from dao_pipeline.errors import UserError

log = logging.getLogger(__name__)

_KEPT = ("name", "hash", "digest", "crystals", "by", "removed")


def crystals_digest(ids: pa.ChunkedArray, formulas: pa.ChunkedArray) -> str:
    """Identity of a set of crystals, whatever file holds it: from their ids and reduced formulas, in any order."""
    lines = pc.binary_join_element_wise(ids, formulas, " ")
    digest = hashlib.sha256()
    for line in sorted(lines.to_pylist()):
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:16]


def held_out(table: Path, test: Path | None = None) -> list[dict[str, Any]] | None:
    """What was held out of a training table, as its metadata say; None where they say nothing.

    A table that CrysDB did not make is compared with the ``test`` split of the campaign: that was held out if they
    have no composition in common.
    """
    found = read_about(table).get("held_out")
    if found is not None:
        return [{name: entry[name] for name in _KEPT if name in entry} for entry in found]
    if test is None or not test.exists():
        return None
    asked = _crystals(test)
    if any(pc.any(pc.is_in(found, value_set=asked["formula"])).as_py() for found in _compositions(table)):
        return None
    digest = crystals_digest(asked["id"], asked["formula"])
    return [{"name": "test split", "digest": digest, "crystals": asked.num_rows, "by": "composition"}]


def training_of(model: Path) -> list[dict[str, Any]]:
    """How a model directory was trained, stage by stage, as far as ``require_held_out`` asks."""
    try:
        history = json.loads((model / "config.json").read_text(encoding="utf-8"))["history"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{model}: no readable config.json of a model ({error}). Rerun its training stage."
        ) from error
    runs = [entry for entry in history if "stage" in entry]
    return [{name: entry.get(name) for name in ("stage", "campaign", "held_out")} for entry in runs]


def require_held_out(test: Path, models: Mapping[str, Sequence[Mapping[str, Any]]], allow: bool) -> list[str]:
    """Refuse to score models on the ``test`` split unless each of their training sets excluded it.

    models: history of each (``About.history``), by name. A training set has excluded the test split if it was held
    out as a whole (same crystals), or if every file that CrysDB was made from was excluded.

    Returns what is wrong, which is something only with ``allow``. Raises UserError otherwise.
    """
    digest, sources = _identity(test)
    problems = []
    for name, history in models.items():
        for entry in history:
            known = entry.get("held_out")
            if known is None:
                what = "does not say what it left out"
            elif any(e.get("digest") == digest for e in known) or (
                sources and sources <= {str(e.get("hash")) for e in known}
            ):
                continue
            else:
                left = ", ".join(str(e.get("name")) for e in known) or "nothing"
                what = f"left out {left}, but not these crystals"
            where = entry.get("campaign") or "elsewhere"
            problems.append(f"{name}: its training set of {entry.get('stage')} ({where}) {what}")
    if problems and not allow:
        raise UserError(
            f"{test}: models may have been trained on these crystals. {'; '.join(problems)}. Name the test set in "
            "crysdb.exclude where the model is trained, or set evaluate.allow_leakage: true to score it anyway."
        )
    for problem in problems:
        log.warning("possible leakage: %s", problem)
    return problems


def _identity(test: Path) -> tuple[str, set[str]]:
    """Digest of the test crystals, and hashes of the files that they come from."""
    table = _crystals(test)
    sources = read_about(test).get("sources") or {}
    return crystals_digest(table["id"], table["formula"]), {str(value) for value in sources.values()}


def _crystals(path: Path) -> pa.Table:
    """Ids and formulas of a crystal table."""
    empty = pa.schema([("id", pa.string()), ("formula", pa.string())]).empty_table()
    pieces = iter_tables(path, columns=["id", "formula"])
    return pa.concat_tables([empty, *(piece.replace_schema_metadata().cast(empty.schema) for piece in pieces)])


def _compositions(path: Path) -> Iterator[pa.Array]:
    """Reduced formulas of a table of whatever origin, from its atoms: it may write them in another way."""
    for piece in iter_tables(path, columns=["atomic_numbers"]):
        numbers = list_values(piece["atomic_numbers"]).astype(np.int64)
        counts = list_lengths(piece["atomic_numbers"])
        counts = counts[counts > 0]
        # only what atoms are there matters, not where
        flat = FlatCrystals(
            numbers=numbers,
            frac=np.zeros((len(numbers), 3)),
            lattice=np.zeros((len(counts), 3, 3)),
            counts=counts,
        )
        known = np.ones(len(flat), dtype=bool)
        known[flat.crystal_of_atom[(numbers < 1) | (numbers > MAX_ATOMIC_NUMBER)]] = False
        yield pa.array(formulas(flat.select(known)), pa.string())
