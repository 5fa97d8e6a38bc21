"""What Quantum ESPRESSO gave, from the tables of validate_qe and reference_energies."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dao_pipeline.comparison.computed import QUANTUM_ESPRESSO, Computed
from dao_pipeline.comparison.energies import Phase
from dao_pipeline.comparison.level import Level
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.table import read_table, table_files


def level_of(row: Mapping[str, Any]) -> Level:
    """The level of theory of a row of validate_qe."""
    method = json.loads(row["settings"] or "{}").get("method") or {}
    pseudos = json.loads(row["pseudopotentials"] or "{}")
    return Level(
        {**method, "program": f"Quantum ESPRESSO {row['qe_version']}"},
        {element: about["hash"] for element, about in pseudos.items()},
    )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for file in table_files(path):
        yield from read_table(file).to_pylist()


def read_validated(folder: Path) -> list[Computed]:
    """Converged calculations of validate_qe."""
    return [_computed(row) for row in _rows(folder) if row["status"] == "converged"]


def read_phases(path: Path) -> tuple[list[Phase], dict[str, str]]:
    """Converged calculations of reference_energies, and the formulas, by id, of those that have failed."""
    rows = list(_rows(path))
    phases = [
        Phase(row["id"], row["formula"], row["energy_per_atom"], level_of(row))
        for row in rows
        if row["status"] == "converged"
    ]
    return phases, {row["id"]: row["formula"] for row in rows if row["status"] != "converged"}


def _computed(row: Mapping[str, Any]) -> Computed:
    lattice = row["lattice"]
    crystal = None
    if lattice is not None:
        crystal = Crystal(
            id=row["id"],
            source=QUANTUM_ESPRESSO,
            atomic_numbers=np.asarray(row["atomic_numbers"], dtype=np.int64),
            frac_coords=np.asarray(row["frac_coords"], dtype=np.float64).reshape(-1, 3),
            lattice=np.asarray(lattice, dtype=np.float64).reshape(3, 3),
        )
    seconds, cores = row["wall_seconds"], row.get("cores") or 1
    return Computed(
        id=row["id"],
        source=QUANTUM_ESPRESSO,
        crystal=crystal,
        relaxed=row["calculation"] in ("relax", "vc-relax"),
        total=row["energy_per_atom"],
        level=level_of(row),
        core_seconds=None if seconds is None else seconds * cores,
        steps=row["steps"],
    )
