"""A trained ranker with all that it needs, as a model directory and in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dao_pipeline.config import Ranking
from dao_pipeline.crystals.table import file_hash, read_table, replacing, write_table, write_text
from dao_pipeline.errors import UserError
from dao_pipeline.ranking.features import FEATURES, Features, describe
from dao_pipeline.ranking.known import KnownTypes
from dao_pipeline.ranking.model import Ranker
from dao_pipeline.ranking.structure_type import StructureType
from dao_pipeline.ranking.votes import Votes

Described = tuple[StructureType, np.ndarray] | None
_KNOWN = ["id", "formula", "num_atoms", "e_above_hull"]


@dataclass(frozen=True)
class TrainedRanker:
    """known: crystals that vote, of the types ``described``. element_volumes: (101,) angstrom^3.

    table: the known crystals without their structures. history: how it was trained, as for other models.
    energy_model: hash of the DAO-P whose energies it learned to weigh, if it did.
    """

    settings: Ranking
    symprec: float
    table: pa.Table
    described: Sequence[Described]
    known: KnownTypes
    votes: Votes
    ranker: Ranker
    element_volumes: np.ndarray
    energy_model: str | None
    history: list[dict[str, Any]] = field(default_factory=list)

    def describe(self, table: pa.Table, composition: Sequence[str], workers: int = 1) -> Features:
        """Features of sound candidates; see ``features.describe``."""
        return describe(
            table,
            composition,
            self.known,
            self.votes,
            self.element_volumes,
            self.settings.suggestions,
            self.symprec,
            workers,
        )

    def probabilities(self, table: pa.Table, composition: Sequence[str], workers: int = 1) -> np.ndarray:
        """(rows,) probability that each candidate is the ground state of its composition; siblings sum to <= 1.

        table: sound crystals, with ``energy_pred`` where it is known. Candidates that are the same crystal share
        the probability among them.
        """
        if table.num_rows == 0:
            return np.zeros(0)
        return self.ranker.probabilities(self.describe(table, composition, workers))


def kept_columns(table: pa.Table) -> pa.Table:
    """What a ranker keeps of the crystals that vote."""
    if "e_above_hull" not in table.column_names:
        table = table.append_column("e_above_hull", pa.nulls(table.num_rows, pa.float64()))
    return table.select(_KNOWN)


def save_ranker(trained: TrainedRanker, folder: Path, about: dict[str, Any]) -> None:
    """Write known.parquet, model.safetensors and config.json; the last is written last and names the weights'
    hash.
    """
    roles = [None if d is None else _as_text(d) for d in trained.described]
    table = trained.table.append_column("structure_type", pa.array(roles, pa.string()))
    write_table(table, folder / "known.parquet", about)
    tensors = {
        **{f"votes.{name}": value for name, value in trained.votes.state_dict().items()},
        **{f"ranker.{name}": value for name, value in trained.ranker.state_dict().items()},
        "element_volumes": torch.from_numpy(trained.element_volumes),
    }
    weights = folder / "model.safetensors"
    with replacing(weights) as temporary:
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, temporary)
    note = {
        "kind": "ranker",
        "settings": trained.settings.model_dump(mode="json"),
        "symprec": trained.symprec,
        "features": list(FEATURES),
        "energy_model": trained.energy_model,
        "history": trained.history,
        "weights_hash": file_hash(weights),
        "known_hash": file_hash(folder / "known.parquet"),
    }
    write_text(folder / "config.json", json.dumps(note, indent=2, default=str) + "\n")


def load_ranker(folder: Path) -> TrainedRanker:
    """Read what ``save_ranker`` wrote. Raises UserError for missing, damaged or mismatched files."""
    try:
        note = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if note.get("kind") != "ranker":
            raise UserError(f"{folder}: a {note.get('kind')} model does not rank; name a ranker's directory.")
        for name, key in (("model.safetensors", "weights_hash"), ("known.parquet", "known_hash")):
            if file_hash(folder / name) != note[key]:
                raise UserError(
                    f"{folder}: {name} is not the file that config.json describes. Rerun train_ranker, or fetch "
                    "the directory again."
                )
        if note["features"] != list(FEATURES):
            raise UserError(f"{folder}: it was trained on other features than this code has. Rerun train_ranker.")
        tensors = load_file(folder / "model.safetensors")
        settings = Ranking.model_validate(note["settings"])
        votes, ranker = Votes(), Ranker(settings.hidden)
        votes.load_state_dict(_part(tensors, "votes."))
        ranker.load_state_dict(_part(tensors, "ranker."))
        table = read_table(folder / "known.parquet")
        described = [None if text is None else _from_text(text) for text in table["structure_type"].to_pylist()]
        return TrainedRanker(
            settings=settings,
            symprec=note["symprec"],
            table=table.select(_KNOWN),
            described=described,
            known=KnownTypes.build(table, described),
            votes=votes.eval(),
            ranker=ranker.eval(),
            element_volumes=tensors["element_volumes"].numpy(),
            energy_model=note["energy_model"],
            history=note["history"],
        )
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: not a sound ranker ({error}). Rerun train_ranker.") from error


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _as_text(described: tuple[StructureType, np.ndarray]) -> str:
    kind, elements = described
    return json.dumps([kind.spacegroup, kind.counts, kind.roles, kind.places, elements.tolist()])


def _from_text(text: str) -> tuple[StructureType, np.ndarray]:
    spacegroup, counts, roles, places, elements = json.loads(text)
    sites = tuple(tuple((int(n), str(letters)) for n, letters in role) for role in roles)
    return StructureType(spacegroup, tuple(counts), sites, tuple(places)), np.array(elements, dtype=np.int64)
