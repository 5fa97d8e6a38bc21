"""Documents of the Materials Project as crystals and phases."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.config import MaterialsProject
from dao_pipeline.crystals.crystal import Crystal, reduced_formula
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.errors import UserError
from dao_pipeline.sources.imported import Imported, from_crystals, rejected_row
from dao_pipeline.sources.parse import parse_structure

THERMO_FIELDS = ["material_id", "thermo_type", "formation_energy_per_atom", "energy_above_hull"]
SUMMARY_FIELDS = ["material_id", "structure", "symmetry"]
PROVENANCE_FIELDS = ["material_id", "references"]
PHASE_FIELDS = [
    "material_id",
    "thermo_type",
    "chemsys",
    "composition",
    "energy_per_atom",
    "formation_energy_per_atom",
    "energy_above_hull",
]

PHASES = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("formula", pa.string()),
        pa.field("chemical_system", pa.string()),
        pa.field("elements", pa.list_(pa.string())),
        pa.field("amounts", pa.list_(pa.float64())),
        pa.field("energy_per_atom", pa.float64()),
        pa.field("formation_energy", pa.float64()),
        pa.field("e_above_hull", pa.float64()),
        pa.field("energy_method", pa.string()),
    ]
)
"""Columns of phases.parquet: energies in eV/atom; ``amounts`` of ``elements`` in the same order."""

ON_HULL = 1e-6
"""eV/atom: rounding in the hull distance of a phase that lies on the hull."""

_YEAR = re.compile(r"\byear\s*=\s*[{\"']*\s*(1[89]\d\d|20\d\d)", re.IGNORECASE)


class _NotACrystal(Exception):  # noqa: N818 - it says what the document is
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def by_id(documents: Iterable[Any], what: str, required: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Documents by material id, the same one once.

    Raises UserError when the answer is not what this code knows: no dictionaries, no ids, or a required field
    in none of them.
    """
    found: dict[str, dict[str, Any]] = {}
    for document in documents:
        if not isinstance(document, dict) or not document.get("material_id"):
            raise UserError(format_changed(f"a {what} document without material_id"))
        found[str(document["material_id"])] = document
    for name in required:
        if found and not any(name in document for document in found.values()):
            raise UserError(format_changed(f"no {what} document has {name}"))
    return found


def format_changed(what: str) -> str:
    """The message for an answer in an unknown format."""
    return (
        f"Materials Project: the server's answer has another format than this version knows ({what}); update "
        "mp-api and dao-pipeline, or check data.materials_project.endpoint."
    )


def chunk_of_crystals(
    ids: list[str],
    thermo: dict[str, dict[str, Any]],
    summary: dict[str, dict[str, Any]],
    provenance: dict[str, dict[str, Any]],
    query: MaterialsProject,
) -> Imported:
    """The crystals of ``ids``, in order; the others with a reason."""
    crystals: list[Crystal] = []
    rejected: list[dict[str, str]] = []
    for name in ids:
        try:
            crystals.append(_crystal(name, thermo, summary, provenance, query))
        except _NotACrystal as error:
            rejected.append(rejected_row(name, error.reason, error.detail))
    return from_crystals(crystals, rejected, len(ids))


def in_range(document: dict[str, Any] | None, query: MaterialsProject) -> bool:
    """Whether a thermo document has an energy above hull within the query's limits."""
    above = (document or {}).get("energy_above_hull")
    lowest = query.min_e_above_hull
    return above is not None and above <= query.max_e_above_hull and (lowest is None or above >= lowest)


def _crystal(
    name: str,
    thermo: dict[str, dict[str, Any]],
    summary: dict[str, dict[str, Any]],
    provenance: dict[str, dict[str, Any]],
    query: MaterialsProject,
) -> Crystal:
    energies = thermo.get(name)
    if energies is None or energies.get("energy_above_hull") is None:
        raise _NotACrystal("no_energy", f"no {query.thermo_type} energy above hull")
    if not in_range(energies, query):
        lowest = f"{query.min_e_above_hull:g} to " if query.min_e_above_hull is not None else "at most "
        limits = f"{lowest}{query.max_e_above_hull:g}"
        raise _NotACrystal(
            "e_above_hull", f"{energies['energy_above_hull']:.4g} eV/atom above the hull, not {limits}"
        )
    if name not in summary:
        raise _NotACrystal("vanished", "it was in the list of ids, but is no longer sent")
    document = summary[name]
    if not document.get("structure"):
        raise _NotACrystal("no_structure", "the server sent none")
    extra = {
        "spacegroup": (document.get("symmetry") or {}).get("number"),
        "formation_energy": energies.get("formation_energy_per_atom"),
        "e_above_hull": energies["energy_above_hull"],
        "energy_method": query.thermo_type,
        "published": first_year(provenance.get(name, {}).get("references") or []),
    }
    parsed = parse_structure(document["structure"])
    if parsed.reason:
        raise _NotACrystal(parsed.reason, parsed.detail)
    return Crystal(
        id=name,
        source="materials_project",
        atomic_numbers=np.array(parsed.atomic_numbers, dtype=np.int64),
        frac_coords=np.array(parsed.frac_coords).reshape(-1, 3),
        lattice=np.array(parsed.lattice).reshape(3, 3),
        extra=extra,
    )


def first_year(references: Iterable[Any]) -> str | None:
    """The earliest year in BibTeX entries: that of first publication, where any is cited."""
    years = [year for text in references for year in _YEAR.findall(str(text))]
    return min(years, default=None)


def phase_rows(documents: dict[str, dict[str, Any]], query: MaterialsProject) -> pa.Table:
    """Phases on the hull as a table, by id."""
    rows = [
        {
            "id": name,
            "formula": _formula(document["composition"]),
            "chemical_system": document.get("chemsys"),
            "elements": list(document["composition"]),
            "amounts": [float(amount) for amount in document["composition"].values()],
            "energy_per_atom": document["energy_per_atom"],
            "formation_energy": document.get("formation_energy_per_atom"),
            "e_above_hull": document.get("energy_above_hull"),
            "energy_method": query.thermo_type,
        }
        for name, document in sorted(documents.items())
        if document.get("composition") and document.get("energy_per_atom") is not None
    ]
    return pa.Table.from_pylist(rows, schema=PHASES)


def _formula(composition: dict[str, Any]) -> str | None:
    """Reduced formula as in the crystal table: the server's has brackets."""
    if not set(composition) <= set(ATOMIC_NUMBERS):
        return None
    numbers = [ATOMIC_NUMBERS[symbol] for symbol, amount in composition.items() for _ in range(round(amount))]
    return reduced_formula(np.array(numbers))


def check_thermo_type(documents: dict[str, dict[str, Any]], query: MaterialsProject) -> None:
    """Raise UserError when an energy is of another level of theory than was asked for."""
    for name, document in documents.items():
        found = document.get("thermo_type")
        if found is not None and str(found).upper() != query.thermo_type.upper():
            raise UserError(format_changed(f"{name} is {found}, asked for {query.thermo_type}"))
