"""Stage train_ranker: learn from known compositions how likely each candidate is the ground state.

Each step is on crystals that it may see: the votes of known crystals and the ranker's network, if it has one, are
trained on the training split, every composition judged without its own crystals; temperature and the weight of
DAO-P's energy are fitted on the validation split, on which DAO-P was not trained. Compositions of the test split
are in neither.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from dao_pipeline.config import Campaign, Ranking, stage_settings
from dao_pipeline.crysdb.split import SPLITS
from dao_pipeline.crystals.crystal import from_table
from dao_pipeline.crystals.held_out import held_out
from dao_pipeline.crystals.table import file_hash, provenance, read_table, write_table
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.errors import UserError
from dao_pipeline.ranking.examples import STRUCTURE, label, propose
from dao_pipeline.ranking.features import Features
from dao_pipeline.ranking.files import TrainedRanker, kept_columns, save_ranker
from dao_pipeline.ranking.fit import Labelled, calibrate, fit_ranker
from dao_pipeline.ranking.known import KnownTypes
from dao_pipeline.ranking.model import Groups, Ranker
from dao_pipeline.ranking.structure_type import structure_types
from dao_pipeline.ranking.votes import VoteData, Votes, fit_votes
from dao_pipeline.seeds import stage_seed
from dao_pipeline.templates.files import load

STAGE = "train_ranker"
FEWEST = 20
"""Compositions with proposals below which nothing can be calibrated."""

log = logging.getLogger(__name__)


def train_ranker(
    campaign: Campaign, crysdb: Path, templates: Path, out: Path, work: Path, energy_model: Path | None = None
) -> None:
    """Write a ranker's model directory (known.parquet, model.safetensors, config.json, metrics.parquet) to
    ``out``, and beside it the candidates that it was calibrated on (examples.parquet).

    templates: index of the training split. work: for the labels of candidates; an interrupted run resumes there.
    energy_model: DAO-P, for ``ranking.energy``.

    Raises UserError where too few compositions have proposals, and ContinueLater when interrupted.
    """
    settings, workers = campaign.ranking, campaign.compute.cpu.threads
    seed = stage_seed(campaign.seed, STAGE)
    train, val = without_shared(crysdb, "train"), without_shared(crysdb, "val")
    if "precursor_of" in train.column_names:
        train = train.filter(pc.is_null(train["precursor_of"]))
    index = load(templates)
    described = structure_types(list(from_table(train.select(STRUCTURE))), campaign.screen.symprec, workers)
    known = KnownTypes.build(train, described)
    lessons = np.flatnonzero(_is_lesson(train, settings) & (known.label >= 0))
    votes, vote_losses = _votes(train, known, lessons, described, settings, seed)
    base = TrainedRanker(
        settings=settings,
        symprec=campaign.screen.symprec,
        table=kept_columns(train),
        described=described,
        known=known,
        votes=votes,
        ranker=Ranker(settings.hidden),
        element_volumes=fit_element_volumes(train),
        energy_model=None if energy_model is None else file_hash(energy_model / "model.safetensors"),
    )
    random = np.random.default_rng(seed)
    parts, tables = {}, []
    for name, split in {"train": train, "val": val}.items():
        if name == "train" and not settings.hidden:
            continue  # without a network the votes decide, and they have learned from all training crystals
        chosen = random.permutation(ground_states(split, settings))[: settings.compositions]
        targets = split.take(np.sort(chosen))
        candidates = propose(index, targets, settings.proposals)
        if not _suffice(candidates, crysdb / f"{name}.parquet", settings):
            continue
        if settings.energy and energy_model is not None:
            candidates = with_energies(candidates, energy_model, campaign.generate.batch_atoms)
        candidates = label(candidates, targets, settings.matcher, workers, work / name)
        tables.append(candidates.append_column("split", pa.array([name] * candidates.num_rows, pa.string())))
        parts[name] = _labelled(base, candidates, workers)
        log.info("%s: %d candidates of %d compositions", name, candidates.num_rows, len(parts[name].hit))
    ranker, records = _fit(parts, settings, seed)
    inputs = {"train": crysdb / "train.parquet", "val": crysdb / "val.parquet", "templates": templates}
    if energy_model is not None:
        inputs["energy_model"] = energy_model
    history = {
        "stage": STAGE,
        "campaign": campaign.name,
        "lessons": len(lessons),
        "compositions": len(parts["train"].hit) if "train" in parts else 0,
        "calibrated_on": len(parts["val"].hit) if "val" in parts else 0,
        "temperature": float(ranker.log_temperature.detach().exp()),
        "energy_weight": float(ranker.energy_weight.detach()),
        "seed": seed,
        "inputs": {name: file_hash(path) for name, path in inputs.items() if path.is_file()},
        "held_out": held_out(crysdb / "train.parquet", crysdb / "test.parquet"),
    }
    about = provenance(
        STAGE, campaign=campaign.name, settings=stage_settings(campaign, STAGE), inputs=inputs, seed=seed
    )
    examples = tables or [propose(index, train.slice(0, 1), 1).slice(0, 0)]
    write_table(pa.concat_tables(examples), out / "examples.parquet", about)
    write_table(_metrics(vote_losses, records), out / "metrics.parquet", about)
    trained = TrainedRanker(**{**base.__dict__, "ranker": ranker, "history": [history]})
    save_ranker(trained, out, about)
    shutil.rmtree(work, ignore_errors=True)


def without_shared(crysdb: Path, split: str) -> pa.Table:
    """A split, ``train`` or ``val``, without crystals whose composition is in a later one (validation, test) as
    well: what is learned or calibrated on them would say nothing about compositions unseen."""
    table = read_table(crysdb / f"{split}.parquet")
    for name in SPLITS[SPLITS.index(split) + 1 :]:
        other = crysdb / f"{name}.parquet"
        if other.exists():
            shared = pc.is_in(table["formula"], value_set=read_table(other, ["formula"])["formula"])
            if count := pc.sum(shared).as_py():
                log.warning("%d %s crystals are left out: their compositions are in %s too", count, split, other)
            table = table.filter(pc.invert(shared))
    return table


def _suffice(candidates: pa.Table, source: Path, settings: Ranking) -> bool:
    """Whether enough compositions have candidates; raises UserError where they do not, but were asked for."""
    if len(set(candidates["target_id"].to_pylist())) >= FEWEST:
        return True
    text = f"{source}: fewer than {FEWEST} compositions have candidates to learn from"
    if settings.enabled or settings.hidden:
        raise UserError(
            f"{text}. Widen ranking.sources or ranking.max_e_above_hull, or set ranking.enabled: null, which then "
            "ranks by votes that are not calibrated, or false."
        )
    log.warning("%s: probabilities are the votes of known crystals, not calibrated", text)
    return False


def _fit(parts: dict[str, Labelled], settings: Ranking, seed: int) -> tuple[Ranker, list[dict[str, float]]]:
    """The ranker and the losses of its training: with a network, or calibrated votes, or votes as they are."""
    if settings.hidden:
        without = () if settings.energy else ("energy",)
        return fit_ranker(parts["train"], parts["val"], seed, hidden=settings.hidden, without=without)
    ranker = Ranker(0)
    if "val" in parts:
        calibrate(ranker, parts["val"], energy=settings.energy)
    return ranker.eval(), []


def _is_lesson(table: pa.Table, settings: Ranking) -> np.ndarray:
    """(rows,) bool: crystals of the sources that are to be learned from."""
    if settings.sources is None:
        return np.ones(table.num_rows, dtype=bool)
    return np.asarray(pc.is_in(table["source"], value_set=pa.array(settings.sources, pa.string())))


def ground_states(table: pa.Table, settings: Ranking) -> np.ndarray:
    """Rows that are the most stable known crystal of their composition, if stable enough and of a wanted source.

    Where no energy above hull is known, the only crystal of its composition counts.
    """
    energy = np.full(table.num_rows, np.nan)
    if "e_above_hull" in table.column_names:
        energy = table["e_above_hull"].to_numpy().astype(np.float64)
    formula = np.unique(np.array(table["formula"].to_pylist(), dtype=str), return_inverse=True)[1]
    order = np.lexsort((np.arange(len(energy)), np.nan_to_num(energy, nan=np.inf), formula))
    first = np.ones(len(order), dtype=bool)
    first[1:] = formula[order][1:] != formula[order][:-1]
    lowest = order[first]
    alone = np.bincount(formula)[formula[lowest]] == 1
    stable = np.where(np.isnan(energy[lowest]), alone, energy[lowest] <= settings.max_e_above_hull)
    return np.sort(lowest[stable & _is_lesson(table, settings)[lowest]])


def _votes(
    train: pa.Table,
    known: KnownTypes,
    lessons: np.ndarray,
    described: Sequence[Any],
    settings: Ranking,
    seed: int,
) -> tuple[Votes, list[float]]:
    if not len(lessons):
        raise UserError(
            "ranking.sources: no training crystal comes from them whose composition is in no other split; see "
            "columns source and split of CrysDB, or set ranking.enabled: false."
        )
    part = train.take(pa.array(lessons))
    cells = [np.asarray(numbers.values, dtype=np.int64) for numbers in part["atomic_numbers"]]
    found = known.suggest(cells, part["formula"].to_pylist(), settings.suggestions)
    kind = torch.tensor([known.kind_of(described[row]) for row in lessons])
    return fit_votes(VoteData.of(found, known), kind, seed, settings.epochs)


def with_energies(candidates: pa.Table, energy_model: Path, batch_atoms: int) -> pa.Table:
    """Candidates with ``energy_pred`` of a DAO-P."""
    from dao_pipeline.energy.predict import predict_energies

    energies = predict_energies(energy_model, candidates, batch_atoms=batch_atoms)
    return candidates.append_column("energy_pred", pa.array(energies, from_pandas=True))


def _labelled(base: TrainedRanker, candidates: pa.Table, workers: int) -> Labelled:
    features: Features = base.describe(candidates, candidates["target_id"].to_pylist(), workers)
    return Labelled.of(Groups.of(features), candidates["matched"].to_numpy(zero_copy_only=False))


def _metrics(votes: Sequence[float], records: Sequence[dict[str, float]]) -> pa.Table:
    rows = [{"part": "votes", "split": "train", "step": i + 1, "loss": loss} for i, loss in enumerate(votes)]
    rows += [
        {"part": "ranker", "split": split, "step": int(record["step"]), "loss": record[split]}
        for record in records
        for split in ("train", "stop")
    ]
    kinds = [("part", pa.string()), ("split", pa.string()), ("step", pa.int32()), ("loss", pa.float64())]
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds))
