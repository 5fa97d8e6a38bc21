"""Which crystals of a table are relaxed, which outcomes replace their originals, and what the table then says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config import Relax
from dao_pipeline.crystals.flat import FlatCrystals, flatten, structure_columns
from dao_pipeline.crystals.geometry import shortest_distances
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.energy.relax_base import Relaxed

MEASURED = {
    "energy_before": "energy_before",
    "energy_after": "energy_after",
    "relax_steps": "steps",
    "displacement": "displacement",
    "volume_change": "volume_change",
    "relax_converged": "converged",
}
"""Columns of what was measured, with the names in ``Relaxed``; null where nothing was relaxed."""

ADDED = (*MEASURED, "relax_accepted", "relax_status")


def selected(table: pa.Table, settings: Relax) -> np.ndarray:
    """Rows, boolean, whose energy above hull lies in the window; without that label none is."""
    energy = table["e_above_hull"]
    inside = pc.and_(
        pc.greater(energy, settings.min_e_above_hull), pc.less_equal(energy, settings.max_e_above_hull)
    )
    return np.asarray(pc.fill_null(inside, False))


def relaxed_table(table: pa.Table, chosen: np.ndarray, found: Relaxed, settings: Relax) -> pa.Table:
    """``table`` with the accepted ones of the relaxed rows in place of their originals, and the columns ``ADDED``.

    chosen: (rows,) bool. found: outcomes of those rows, in order.
    """
    flat, rows = flatten(table), np.flatnonzero(chosen)
    originals = flat.select(chosen)
    moved = FlatCrystals(
        numbers=originals.numbers,
        frac=found.frac_coords.numpy(),
        lattice=found.lattice.numpy(),
        counts=originals.counts,
    )
    verdict = verdicts(
        (found.energy_after - found.energy_before).numpy(),
        found.displacement.numpy(),
        found.volume_change.numpy(),
        shortest_distances(moved),
        settings,
    )
    status = np.full(table.num_rows, "not_selected", dtype=object)
    status[rows] = verdict
    accepted = status == "accepted"
    coords, cells = flat.frac.copy(), flat.lattice.copy()
    coords[np.repeat(accepted, flat.counts)] = moved.frac[np.repeat(verdict == "accepted", moved.counts)]
    cells[accepted] = moved.lattice[verdict == "accepted"]
    whole = FlatCrystals(numbers=flat.numbers, frac=coords, lattice=cells, counts=flat.counts)
    columns = structure_columns(whole, table["formula"].to_pylist())
    for name in ("frac_coords", "lattice"):
        table = table.set_column(table.schema.get_field_index(name), name, columns[name])
    where = np.full(table.num_rows, -1)
    where[rows] = np.arange(len(rows))
    place = pa.array(where, mask=where < 0)
    for name, attribute in MEASURED.items():
        values = pa.array(getattr(found, attribute).numpy(), from_pandas=True).take(place)
        table = table.append_column(name, values.cast(COLUMNS[name].type))
    table = table.append_column("relax_accepted", pa.array(accepted))
    return table.append_column("relax_status", pa.array(status, pa.string()))


def verdicts(
    energy_change: np.ndarray,
    displacement: np.ndarray,
    volume_change: np.ndarray,
    min_distance: np.ndarray,
    settings: Relax,
) -> np.ndarray:
    """Whether each relaxed crystal replaces its original, (m,) of str: 'accepted' or the reason why not.

    energy_change in eV/atom, displacement and min_distance in angstrom, volume_change relative. The published
    method asks nothing; but what is no number cannot be kept.
    """
    reasons = [
        (~np.isfinite(energy_change + displacement + volume_change + min_distance), "not_finite"),
        (energy_change >= 0, "energy_did_not_fall"),
        (displacement > settings.max_displacement, "moved_too_far"),
        (np.abs(volume_change) > settings.max_volume_change, "volume_changed_too_much"),
        (min_distance < settings.min_distance, "atoms_too_close"),
    ]
    if settings.method == "paper":
        reasons = reasons[:1]
    return np.select([where for where, _ in reasons], [reason for _, reason in reasons], "accepted").astype(object)
