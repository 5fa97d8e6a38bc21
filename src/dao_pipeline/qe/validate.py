"""Stage validate_qe: one top candidate through Quantum ESPRESSO, one row whatever happens."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Campaign, expand_path, stage_settings
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import provenance, read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.qe.pseudopotentials import Pseudopotential, find_pseudopotentials
from dao_pipeline.qe.run import Outcome, compute

log = logging.getLogger(__name__)

_FROM_TABLE = (
    *("id", "source", "formula", "num_atoms", "atomic_numbers", "frac_coords", "lattice"),
    *("composition", "target_id", "rank", "energy_pred", "status", "volume_change"),
)
_OWN = (
    ("reason", pa.string()),
    ("calculation", pa.string()),
    ("energy", pa.float64()),
    ("energy_per_atom", pa.float64()),
    ("force_max", pa.float64()),
    ("stress", pa.list_(pa.float64())),
    ("pressure", pa.float64()),
    ("volume", pa.float64()),
    ("steps", pa.int32()),
    ("wall_seconds", pa.float64()),
    ("qe_version", pa.string()),
    ("settings", pa.string()),
    ("pseudopotentials", pa.string()),
)
VALIDATION = pa.schema([(name, COLUMNS[name].type) for name in _FROM_TABLE] + list(_OWN))
"""Columns of validation/*.parquet. The crystal is the final one, null where there is none; energy is the total
energy in eV, force_max in eV/angstrom, stress (xx, yy, zz, yz, xz, xy) and pressure in GPa, volume in
angstrom^3, volume_change relative to the candidate; settings and pseudopotentials are JSON."""


def select_candidate(screened: Path, top_k: int, number: int) -> Crystal | None:
    """The ``number``-th of the candidates with rank up to ``top_k``: by composition in order of the table, then
    rank. None beyond the last.
    """
    keys = read_table(screened, ["composition", "target_id", "rank"])
    place: dict[tuple[Any, Any], int] = {}
    order = []
    for row, (composition, target, rank) in enumerate(zip(*(c.to_pylist() for c in keys.columns), strict=True)):
        which = place.setdefault((composition, target), len(place))
        if rank is not None and rank <= top_k:
            order.append((which, rank, row))
    if number >= len(order):
        return None
    row = sorted(order)[number][2]
    return next(from_table(read_table(screened).slice(row, 1)))


def validate_qe(campaign: Campaign, screened: Path, number: int, out: Path, work: Path) -> None:
    """Compute candidate ``number`` with pw.x and write one row, converged or failed; no row beyond the last.

    Raises UserError where the settings cannot work: no pseudo_dir, an element without a PBE pseudopotential.
    """
    settings = campaign.qe
    candidate = select_candidate(screened, settings.top_k, number)
    rows = []
    if candidate is None:
        log.info("there is no candidate %d: nothing to compute", number)
    else:
        pseudos = _pseudopotentials(settings.pseudo_dir, candidate)
        outcome = compute(candidate, settings, pseudos, work)
        rows.append(to_row(candidate, outcome, settings.calculation, pseudos))
        log.info(
            "%s (%s): %s in %.0f s",
            candidate.id,
            candidate.formula,
            "converged" if outcome.converged else f"failed, {outcome.reason}",
            outcome.seconds,
        )
    about = provenance(
        "validate_qe",
        campaign=campaign.name,
        settings=stage_settings(campaign, "validate_qe"),
        inputs={"screened": screened},
        number=number,
    )
    write_table(pa.Table.from_pylist(rows, schema=VALIDATION), out, about)


def _pseudopotentials(folder: str | None, crystal: Crystal) -> dict[str, Pseudopotential]:
    if folder is None:
        raise UserError("qe.pseudo_dir: not given. Name a folder with PBE pseudopotentials (UPF).")
    elements = [SYMBOLS[z] for z in dict.fromkeys(int(z) for z in crystal.atomic_numbers)]
    return find_pseudopotentials(expand_path(folder), elements)


def to_row(
    candidate: Crystal, outcome: Outcome, calculation: str, pseudos: dict[str, Pseudopotential]
) -> dict[str, Any]:
    """The row of one calculation (see ``VALIDATION``)."""
    final, atoms = outcome.crystal, candidate.num_atoms
    return {
        "id": candidate.id,
        "source": "quantum_espresso",
        "formula": candidate.formula,
        "num_atoms": atoms,
        "atomic_numbers": (candidate if final is None else final).atomic_numbers.astype(np.int16),
        "frac_coords": None if final is None else final.frac_coords.ravel(),
        "lattice": None if final is None else final.lattice.ravel(),
        **{name: candidate.extra.get(name) for name in ("composition", "target_id", "rank", "energy_pred")},
        "status": "converged" if outcome.converged else "failed",
        "reason": outcome.reason or None,
        "calculation": calculation,
        "energy": outcome.energy,
        "energy_per_atom": None if outcome.energy is None else outcome.energy / atoms,
        "force_max": outcome.force_max,
        "stress": outcome.stress,
        "pressure": None if outcome.stress is None else -sum(outcome.stress[:3]) / 3,
        "volume": None if final is None else final.volume,
        "volume_change": None if final is None else final.volume / candidate.volume - 1,
        "steps": outcome.steps,
        "wall_seconds": outcome.seconds,
        "qe_version": outcome.version,
        "settings": json.dumps(outcome.settings, sort_keys=True),
        "pseudopotentials": json.dumps(
            {element: {"file": p.path.name, "hash": p.checksum} for element, p in pseudos.items()}, sort_keys=True
        ),
    }
