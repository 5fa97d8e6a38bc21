"""Stage relax_dataset: unstable training crystals move down in DAO-P's energy (paper 4).

Every training crystal has a row in the output. Stable ones, and those far above the hull, stay as they are;
a relaxed one replaces its original only if it passes the checks of ``verdicts``, else the reason is kept.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Campaign, Relax, stage_settings
from dao_pipeline.crystals.dataset import CrystalDataset, size_batches
from dao_pipeline.crystals.flat import FlatCrystals, flatten, structure_columns
from dao_pipeline.crystals.geometry import shortest_distances
from dao_pipeline.crystals.held_out import held_out
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import file_hash, is_finished, iter_tables, provenance, read_table, write_table
from dao_pipeline.device import pick_device
from dao_pipeline.energy.predict import load_energy_model
from dao_pipeline.energy.relax import relax
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.interrupt import Interruptible
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.progress import Reporter

_log = logging.getLogger("dao_pipeline")

BATCH_ATOMS = 4_000
ADDED = ("energy_before", "energy_after", "relax_steps", "displacement", "volume_change", "relax_status")


def relax_dataset(campaign: Campaign, crysdb: Path, model: Path, out: Path, work: Path, job: int) -> None:
    """Relax the shards job, job + jobs, job + 2 jobs, ... of the training split and write them to ``out``.

    Finished shards are kept in ``work`` and not redone. Raises ContinueLater when interrupted.
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
                write_table(relax_table(energy_model, table, settings), part, {**about, "identity": identity})
            parts.append(part)
            progress.advance()
            if interrupt.requested and len(parts) < len(numbers):
                raise ContinueLater(f"relax_dataset after shard {number}; finished shards are in {work}")
    tables = [read_table(part) for part in parts]
    result = pa.concat_tables(tables) if tables else _unchanged(read_table(train).slice(0, 0))
    write_table(result, out, {**about, "statuses": _count(result)})
    shutil.rmtree(work, ignore_errors=True)
    _log.info("relax_dataset job %d: %s", job, _count(result))


def selected(table: pa.Table, settings: Relax) -> np.ndarray:
    """Rows, boolean, whose energy above hull lies in the window; without that label none is."""
    energy = table["e_above_hull"]
    inside = pc.and_(
        pc.greater(energy, settings.min_e_above_hull), pc.less_equal(energy, settings.max_e_above_hull)
    )
    return np.asarray(pc.fill_null(inside, False))


def relax_table(model: DaoModel, table: pa.Table, settings: Relax) -> pa.Table:
    """The crystals of ``table`` in the same order, those in the window relaxed where that is sound."""
    chosen = np.flatnonzero(selected(table, settings))
    result = _unchanged(table)
    if len(chosen) == 0:
        return result
    crystals = CrystalDataset(table.take(chosen))
    device = next(model.parameters()).device
    flat = flatten(table)
    coords, cells = flat.frac.copy(), flat.lattice.copy()
    values: dict[str, np.ndarray] = {
        name: np.full(table.num_rows, np.nan) for name in ADDED if name != "relax_status"
    }
    status = np.full(table.num_rows, "not_selected", dtype=object)
    for indices in size_batches(crystals.sizes, BATCH_ATOMS):
        batch = crystals.select(indices).to(device)
        relaxed = relax(model, batch.atomic_numbers, batch.frac_coords, batch.lattice, batch.ptr, settings)
        rows = chosen[indices]
        moved = FlatCrystals(
            numbers=batch.atomic_numbers.cpu().numpy(),
            frac=relaxed.frac_coords.double().cpu().numpy(),
            lattice=relaxed.lattice.double().cpu().numpy(),
            counts=batch.ptr.diff().cpu().numpy(),
        )
        found = {
            "energy_before": relaxed.energy_before,
            "energy_after": relaxed.energy_after,
            "relax_steps": relaxed.steps,
            "displacement": relaxed.displacement,
            "volume_change": relaxed.volume_change,
        }
        for name, value in found.items():
            values[name][rows] = value.double().cpu().numpy()
        status[rows] = verdicts(
            values["energy_after"][rows] - values["energy_before"][rows],
            values["displacement"][rows],
            values["volume_change"][rows],
            shortest_distances(moved),
            settings,
        )
        accepted = status[rows] == "accepted"
        for k in np.flatnonzero(accepted):
            coords[flat.ptr[rows[k]] : flat.ptr[rows[k] + 1]] = moved.frac[moved.ptr[k] : moved.ptr[k + 1]]
            cells[rows[k]] = moved.lattice[k]
    moved_all = FlatCrystals(numbers=flat.numbers, frac=coords, lattice=cells, counts=flat.counts)
    columns = structure_columns(moved_all, table["formula"].to_pylist())
    for name in ("frac_coords", "lattice"):
        result = result.set_column(result.schema.get_field_index(name), name, columns[name])
    for name, array in {**values, "relax_status": status}.items():
        column = pa.array(array, from_pandas=True).cast(COLUMNS[name].type)
        result = result.set_column(result.schema.get_field_index(name), name, column)
    return result


def verdicts(
    energy_change: np.ndarray,
    displacement: np.ndarray,
    volume_change: np.ndarray,
    min_distance: np.ndarray,
    settings: Relax,
) -> np.ndarray:
    """Whether each relaxed crystal replaces its original, (m,) of str: 'accepted' or the reason why not.

    energy_change in eV/atom, displacement and min_distance in angstrom, volume_change relative.
    """
    reasons = [
        (~np.isfinite(energy_change + displacement + volume_change + min_distance), "not_finite"),
        (energy_change >= 0, "energy_did_not_fall"),
        (displacement > settings.max_displacement, "moved_too_far"),
        (np.abs(volume_change) > settings.max_volume_change, "volume_changed_too_much"),
        (min_distance < settings.min_distance, "atoms_too_close"),
    ]
    return np.select([where for where, _ in reasons], [reason for _, reason in reasons], "accepted").astype(object)


def _unchanged(table: pa.Table) -> pa.Table:
    """``table`` with empty relaxation columns."""
    for name in ADDED:
        fill = pa.array(["not_selected"] * table.num_rows, pa.string())
        column = fill if name == "relax_status" else pa.nulls(table.num_rows, COLUMNS[name].type)
        table = table.append_column(name, column)
    return table


def _count(table: pa.Table) -> dict[str, int]:
    counts = pc.value_counts(table["relax_status"]).to_pylist()
    return {entry["values"]: entry["counts"] for entry in counts}
