"""Stage validate_qe: one chosen candidate through Quantum ESPRESSO, one row whatever happens."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.config import QE, Campaign, stage_settings
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import is_finished, provenance, read_table, write_table
from dao_pipeline.qe.cost import expected_of
from dao_pipeline.qe.inputs import elements_of, method, method_hash, settings_hash
from dao_pipeline.qe.pseudopotentials import Pseudopotential, pseudopotentials_of
from dao_pipeline.qe.run import Outcome, compute, identity
from dao_pipeline.qe.select import affordable, chosen

log = logging.getLogger(__name__)

_FROM_TABLE = (
    *("id", "source", "formula", "num_atoms", "atomic_numbers", "frac_coords", "lattice"),
    *("composition", "target_id", "rank", "energy_pred", "status", "volume_change"),
)
_text, _float, _count = pa.string(), pa.float64(), pa.int32()
_OWN = (
    ("reason", _text),
    ("calculation", _text),
    ("energy", _float),
    ("energy_per_atom", _float),
    ("force_max", _float),
    ("stress", pa.list_(_float)),
    ("pressure", _float),
    ("volume", _float),
    ("steps", _count),
    ("wall_seconds", _float),
    ("qe_version", _text),
    ("settings", _text),
    ("pseudopotentials", _text),
    ("forces", pa.list_(_float)),
    ("magnetization", _float),
    ("absolute_magnetization", _float),
    ("scf_steps", _count),
    ("cpu_seconds", _float),
    ("cores", _count),
    ("expected_core_seconds", _float),
    ("functional", _text),
    ("protocol", _text),
    ("settings_hash", _text),
    ("method_hash", _text),
    ("actions", pa.list_(_text)),
    ("inputs", pa.list_(_text)),
    ("outputs", pa.list_(_text)),
)
VALIDATION = pa.schema([(name, COLUMNS[name].type) for name in _FROM_TABLE] + list(_OWN))
"""Columns of validation/*.parquet.

status: converged, failed or not_run; reason: why, null where converged.
The crystal is the final one, null where there is none. energy: total energy of the cell in eV (of the smeared
occupations: what pw.x marks with !); forces, row-major, and force_max, the longest, in eV/angstrom; stress (xx,
yy, zz, yz, xz, xy; negative where compressed) and pressure in GPa; volume in angstrom^3, volume_change relative to
the candidate; magnetization and absolute_magnetization in Bohr magnetons per cell, null without spin.
steps (geometries), scf_steps, wall_seconds and cpu_seconds (of all cores) are of all runs of pw.x together.
settings and pseudopotentials are JSON: the latter by element with file, hash and valence electrons.
settings_hash: rows of one composition may be compared if it is equal. method_hash: the same without
pseudopotentials; rows of different compositions may be compared if it is equal and so are the hashes of the
pseudopotentials of the elements they share.
actions: of recovery, in words. inputs, outputs: texts of each run of pw.x (compressed, as the whole file is).
"""


def validate_qe(
    campaign: Campaign, screened: Path, number: int, out: Path, work: Path, minutes: float | None = None
) -> None:
    """Compute the ``number``-th chosen candidate with pw.x and write one row, whatever comes of it.

    There is no row beyond the last candidate. work: folder in which every candidate has its own; a converged
    calculation stays there, and is not made again while crystal and settings are the same. minutes: that this job
    may take.

    Raises UserError where the settings cannot work (pseudopotentials, pw.x itself), and ContinueLater where the
    time was too short and another job may go on.
    """
    table = chosen(screened, campaign.qe)
    about = provenance(
        "validate_qe",
        campaign=campaign.name,
        settings=stage_settings(campaign, "validate_qe"),
        inputs={"screened": screened},
        number=number,
    )
    rows = []
    if number < table.num_rows:
        rows.append(_validated(table, number, campaign.qe, work, minutes))
    else:
        log.info("there is no candidate %d: nothing to compute", number)
    write_table(pa.Table.from_pylist(rows, schema=VALIDATION), out, about)


def _validated(table: pa.Table, number: int, settings: QE, work: Path, minutes: float | None) -> dict[str, Any]:
    """The row of one of the chosen candidates."""
    there = table["lattice"].is_valid().to_pylist()
    crystals = iter(list(from_table(table.filter(table["lattice"].is_valid()))))
    candidates = [next(crystals) if exists else None for exists in there]
    pseudos = pseudopotentials_for(settings, [c for c in candidates if c is not None])
    candidate, known = candidates[number], table.slice(number, 1).to_pylist()[0]
    if candidate is None:
        return _not_run(known, settings, f"no crystal ({known.get('status') or 'empty'})")
    costs = [0.0 if c is None else expected_of(c, settings, pseudos) for c in candidates]
    if not affordable(table, costs, settings)[number]:
        hours = costs[number] / 3600
        reason = f"beyond qe.budget_core_hours: {hours:.2g} core hours expected, others go first"
        return _not_run(known, settings, reason) | {"expected_core_seconds": costs[number]}
    own = {element: pseudos[element] for element in elements_of(candidate)}
    row = compute_row(candidate, settings, own, work, seconds=None if minutes is None else 60 * minutes)
    log.info(
        "%s (%s): %s%s in %.0f s",
        candidate.id,
        candidate.formula,
        row["status"],
        f", {row['reason']}" if row["reason"] else "",
        row["wall_seconds"],
    )
    return row


def pseudopotentials_for(settings: QE, crystals: Iterable[Crystal]) -> dict[str, Pseudopotential]:
    """Pseudopotentials of all elements of some crystals; raises one UserError with all that is wrong with them."""
    return pseudopotentials_of(settings, [element for crystal in crystals for element in elements_of(crystal)])


def compute_row(
    crystal: Crystal,
    settings: QE,
    pseudos: dict[str, Pseudopotential],
    work: Path,
    *,
    seconds: float | None = None,
    cutoffs_of: Iterable[Pseudopotential] = (),
) -> dict[str, Any]:
    """Compute a crystal in its own folder under ``work``: its row of ``VALIDATION``.

    A converged calculation is kept there, and not made again while crystal and settings are the same.
    pseudos: of the crystal's elements. cutoffs_of: of further elements whose cut-offs count, so that the energy
    may be compared with that of a compound: the references of a hull. Raises as ``run.compute`` does.
    """
    used = method(settings, [*pseudos.values(), *cutoffs_of])
    own = identity(crystal, settings, used, pseudos)
    folder = work / own
    kept = folder / "row.parquet"
    if is_finished(kept, {"calculation": own}):
        log.info("%s is computed already", crystal.id)
        row: dict[str, Any] = read_table(kept).to_pylist()[0]
        return row | _of_candidate(crystal)
    outcome = compute(crystal, settings, pseudos, folder, seconds=seconds, used=used)
    row = to_row(crystal, outcome, settings, pseudos)
    row["expected_core_seconds"] = expected_of(crystal, settings, pseudos)
    if outcome.status == "converged":
        table = pa.Table.from_pylist([row], schema=VALIDATION)
        write_table(table, kept, {"stage": "validate_qe", "identity": {"calculation": own}})
    return row


def _of_candidate(crystal: Crystal) -> dict[str, Any]:
    """What the candidate's place in the campaign decides, and not its calculation."""
    return {name: crystal.extra.get(name) for name in ("composition", "target_id", "rank", "energy_pred")}


def _not_run(known: dict[str, Any], settings: QE, reason: str) -> dict[str, Any]:
    row = {name: known.get(name) for name in ("id", "formula", "num_atoms", "atomic_numbers", "composition")}
    row |= {name: known.get(name) for name in ("target_id", "rank", "energy_pred")}
    return row | {
        "source": "quantum_espresso",
        "status": "not_run",
        "reason": reason,
        "calculation": settings.calculation,
        "functional": settings.functional,
        "protocol": settings.protocol,
        "wall_seconds": 0.0,
    }


def to_row(
    candidate: Crystal, outcome: Outcome, settings: QE, pseudos: Mapping[str, Pseudopotential]
) -> dict[str, Any]:
    """The row of one calculation (see ``VALIDATION``)."""
    output, atoms = outcome.output, candidate.num_atoms
    final = None if output is None else output.crystal
    energy, forces, stress = (
        (None, None, None) if output is None else (output.energy, output.forces, output.stress)
    )
    version = None if output is None else output.version
    checksums = {element: p.checksum for element, p in pseudos.items()}
    used = outcome.method
    return {
        "id": candidate.id,
        "source": "quantum_espresso",
        "formula": candidate.formula,
        "num_atoms": atoms,
        "atomic_numbers": (candidate if final is None else final).atomic_numbers.astype(np.int16),
        "frac_coords": None if final is None else final.frac_coords.ravel(),
        "lattice": None if final is None else final.lattice.ravel(),
        **_of_candidate(candidate),
        "status": outcome.status,
        "reason": outcome.reason or None,
        "calculation": settings.calculation,
        "energy": energy,
        "energy_per_atom": None if energy is None else energy / atoms,
        "force_max": None if forces is None else float(np.linalg.norm(forces, axis=1).max()),
        "stress": stress,
        "pressure": None if stress is None else -sum(stress[:3]) / 3,
        "volume": None if final is None else final.volume,
        "volume_change": None if final is None else final.volume / candidate.volume - 1,
        "steps": outcome.steps,
        "wall_seconds": outcome.seconds,
        "qe_version": version,
        "settings": json.dumps(outcome.settings, sort_keys=True),
        "pseudopotentials": json.dumps(
            {e: {"file": p.path.name, "hash": checksums[e], "electrons": p.electrons} for e, p in pseudos.items()},
            sort_keys=True,
        ),
        "forces": None if forces is None else forces.ravel(),
        "magnetization": None if output is None else output.magnetization,
        "absolute_magnetization": None if output is None else output.absolute_magnetization,
        "scf_steps": outcome.scf_steps,
        "cpu_seconds": outcome.cpu_seconds,
        "cores": None if output is None else output.cores,
        "functional": settings.functional,
        "protocol": settings.protocol,
        "settings_hash": None if used is None else settings_hash(used, version, checksums),
        "method_hash": None if used is None else method_hash(used, version),
        "actions": outcome.actions,
        "inputs": outcome.inputs,
        "outputs": outcome.outputs,
    }
