"""Stage relax_dataset: unstable training crystals move down in DAO-P's energy (paper 4).

Every training crystal has a row in the output. Stable ones, and those far above the hull, stay as they are;
a relaxed one replaces its original only if it passes the checks of ``relax_table.verdicts``.

Work is cut into shards. Finished shards are kept; inside one, outcomes and the state of the crystals under way
are saved every ``relax.flush`` crystals, in one file that is renamed into place.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dao_pipeline.config import Campaign, Relax, stage_settings
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.held_out import held_out
from dao_pipeline.crystals.table import (
    file_hash,
    is_finished,
    iter_tables,
    provenance,
    read_table,
    replacing,
    write_table,
    writing,
)
from dao_pipeline.device import pick_device
from dao_pipeline.energy.predict import load_energy_model
from dao_pipeline.energy.relax import start
from dao_pipeline.energy.relax_table import relaxed_table, selected
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.interrupt import Interruptible
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.progress import Reporter

_log = logging.getLogger("dao_pipeline")


def relax_dataset(campaign: Campaign, crysdb: Path, model: Path, out: Path, work: Path, job: int) -> None:
    """Relax the shards job, job + jobs, job + 2 jobs, ... of the training split and write them to ``out``.

    What is done is kept in ``work`` and not redone. Raises ContinueLater when interrupted.
    """
    settings = campaign.relax
    if job >= settings.jobs:
        raise UserError(f"--job {job}: relax.jobs is {settings.jobs}, so jobs are 0 to {settings.jobs - 1}.")
    train = crysdb / "train.parquet"
    inputs = {"train": train, "model": model / "model.safetensors"}
    hashes = {name: file_hash(path) for name, path in inputs.items()}
    about = provenance(
        "relax_dataset",
        campaign=campaign.name,
        settings=stage_settings(campaign, "relax_dataset"),
        inputs=inputs,
        job=job,
        held_out=held_out(train),
    )
    identity = {"hashes": hashes, "settings": about["settings_hash"]}
    energy_model = load_energy_model(model, pick_device())
    rows = sum(piece.num_rows for piece in iter_tables(train, columns=["id"]))
    numbers = range(job, -(-rows // settings.shard_size), settings.jobs)
    parts = []
    with Interruptible() as interrupt, Reporter("relax_dataset", len(numbers)) as progress:
        for number, table in enumerate(iter_tables(train, settings.shard_size)):
            if number not in numbers:
                continue
            part = work / f"shard-{number:05d}.parquet"
            if not is_finished(part, identity):
                first = number * settings.shard_size
                saved = work / f"shard-{number:05d}.safetensors"
                relaxed = _Shard(energy_model, table, settings, first).run(saved, identity, interrupt)
                write_table(relaxed, part, {**about, "identity": identity})
                saved.unlink(missing_ok=True)
            parts.append(part)
            progress.advance()
            if interrupt.requested and len(parts) < len(numbers):
                raise ContinueLater(f"relax_dataset after shard {number}; finished shards are in {work}")
    statuses: Counter[str] = Counter()
    nothing = relax_table(energy_model, read_table(train).slice(0, 0), settings) if not parts else None
    schema = nothing.schema if nothing is not None else read_table(parts[0]).schema
    with writing(out, schema, about) as writer:
        for part in parts:
            table = read_table(part)
            writer.write(table)
            statuses.update(table["relax_status"].to_pylist())
        writer.about["statuses"] = dict(statuses)
    shutil.rmtree(work, ignore_errors=True)
    _log.info("relax_dataset job %d: %s", job, dict(statuses))


def relax_table(model: DaoModel, table: pa.Table, settings: Relax) -> pa.Table:
    """The crystals of ``table`` in the same order, those in the window relaxed where that is sound."""
    return _Shard(model, table, settings, 0).run()


class _Shard:
    """A piece of the training set, the rows from ``first`` on, on its way."""

    def __init__(self, model: DaoModel, table: pa.Table, settings: Relax, first: int) -> None:
        self.table, self.settings = table, settings
        self.chosen = selected(table, settings)
        rows = first + np.flatnonzero(self.chosen)
        self.relaxation = start(model, flatten(table).select(self.chosen), settings, rows)

    def run(
        self,
        saved: Path | None = None,
        identity: dict[str, Any] | None = None,
        interrupt: Interruptible | None = None,
    ) -> pa.Table:
        """The relaxed piece. ``saved``: where the state is kept, and taken from if it has this ``identity``."""
        relaxation = self.relaxation
        if saved is not None and (state := _read_state(saved, identity)) is not None:
            relaxation.restore(state)
        kept = int(relaxation.result.done.sum())
        while not relaxation.finished:
            relaxation.advance()
            leaving = interrupt is not None and interrupt.requested
            done = int(relaxation.result.done.sum())
            if saved is not None and (leaving or done - kept >= self.settings.flush):
                _write_state(saved, relaxation.state(), identity)
                kept = done
            if leaving and not relaxation.finished:
                raise ContinueLater(f"relax_dataset inside a shard; its state is in {saved}")
        return relaxed_table(self.table, self.chosen, relaxation.result, self.settings)


def _write_state(path: Path, state: dict[str, Tensor], identity: dict[str, Any] | None) -> None:
    with replacing(path) as temporary:
        save_file(state, temporary, metadata={"identity": json.dumps(identity, sort_keys=True)})


def _read_state(path: Path, identity: dict[str, Any] | None) -> dict[str, Tensor] | None:
    """None if there is none, of this ``identity``, that can be read: the shard then begins anew."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            if (stored.metadata() or {}).get("identity") == json.dumps(identity, sort_keys=True):
                return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError) as error:
        _log.warning("%s cannot be read (%s); its shard begins anew", path, error)
    return None
