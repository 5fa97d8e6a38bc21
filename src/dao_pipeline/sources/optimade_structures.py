"""OPTIMADE structures as crystals, and what is known of the energies of single databases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.sources.imported import Imported, encodable, from_crystals, rejected_row

STRUCTURE_FIELDS = (
    "lattice_vectors",
    "cartesian_site_positions",
    "species",
    "species_at_sites",
    "structure_features",
    "dimension_types",
)
"""Properties of the OPTIMADE standard that make a crystal."""

_NO_CRYSTAL = {"disorder": "disordered", "site_attachments": "attached_atoms", "assemblies": "disordered"}
"""Structure features that a list of atoms cannot say, and the reason they are rejected with."""

_FULL = 1e-6
"""How far a concentration may be from 1."""


@dataclass(frozen=True)
class Database:
    """A public database: base address, fields of energies in eV/atom by column, and their level of theory.

    hull_below_zero: its hull distance is negative for crystals on the hull (by how much they lie below what
    they compete with); they are 0 above it.
    """

    url: str
    fields: Mapping[str, str] = field(default_factory=dict)
    energy_method: str | None = None
    hull_below_zero: bool = False


_ALEXANDRIA = {
    "formation_energy": "_alexandria_formation_energy_per_atom",
    "e_above_hull": "_alexandria_hull_distance",
}

DATABASES: dict[str, Database] = {
    "oqmd": Database(
        "https://oqmd.org/optimade",
        {"formation_energy": "_oqmd_delta_e", "e_above_hull": "_oqmd_stability"},
        "PBE",
        hull_below_zero=True,
    ),
    "alexandria": Database("https://alexandria.icams.rub.de/pbe", _ALEXANDRIA, "PBE"),
    "alexandria-pbesol": Database("https://alexandria.icams.rub.de/pbesol", _ALEXANDRIA, "PBEsol"),
    "jarvis": Database(
        "https://jarvis.nist.gov/optimade/jarvisdft",
        {"formation_energy": "_jarvis_formation_energy_peratom", "e_above_hull": "_jarvis_ehull"},
        "OptB88vdW",
    ),
    "cod": Database("https://www.crystallography.net/cod/optimade"),
    "mp": Database(
        "https://optimade.materialsproject.org",
        {
            "formation_energy": "_mp_stability.gga_gga+u.formation_energy_per_atom",
            "e_above_hull": "_mp_stability.gga_gga+u.energy_above_hull",
        },
        "GGA_GGA+U",
    ),
}
"""Databases that are known by name (``kinds.OPTIMADE_NAMES``). A dot leads into a nested value."""


def database_of(text: str) -> Database:
    """The database that ``data.optimade.url`` names; one that is not known has no known energies."""
    if text in DATABASES:
        return DATABASES[text]
    url = text.rstrip("/").removesuffix("/v1").rstrip("/")
    address = (urlsplit(url).netloc, urlsplit(url).path.rstrip("/"))
    for known in DATABASES.values():
        if (urlsplit(known.url).netloc, urlsplit(known.url).path) == address:
            return known
    return Database(url)


def page_of_crystals(
    entries: list[dict[str, Any]],
    source: str,
    fields: Mapping[str, str],
    energy_method: str | None,
    hull_below_zero: bool = False,
) -> Imported:
    """The crystals of a page, in order; the others with a reason."""
    crystals: list[Crystal] = []
    rejected: list[dict[str, str]] = []
    for entry in entries:
        crystal = _crystal(entry, source)
        if isinstance(crystal, Crystal):
            crystal.extra.update(_facts(entry["attributes"], fields, energy_method, hull_below_zero))
            crystals.append(crystal)
        else:
            rejected.append(rejected_row(str(entry["id"]), *crystal))
    return from_crystals(crystals, rejected, len(entries))


def _crystal(entry: dict[str, Any], source: str) -> Crystal | tuple[str, str]:
    """A crystal, or reason and detail of why there is none."""
    about = entry["attributes"]
    if about.get("dimension_types") not in (None, [1, 1, 1]):
        return "not_periodic", f"dimension_types are {about['dimension_types']}"
    try:
        for feature in about.get("structure_features") or []:
            if feature in _NO_CRYSTAL:
                return _NO_CRYSTAL[feature], f"structure_features name {feature}"
        species = {kind["name"]: kind for kind in about.get("species") or []}
        numbers = []
        for name in about.get("species_at_sites") or []:
            number = _element(species.get(name) or {"chemical_symbols": [name], "concentration": [1.0]})
            if isinstance(number, tuple):
                return number
            numbers.append(number)
        lattice = np.array(about["lattice_vectors"], dtype=np.float64)
        places = np.array(about["cartesian_site_positions"], dtype=np.float64).reshape(-1, 3)
        if not numbers:
            return "no_atoms", "the cell is empty"
        if lattice.shape != (3, 3) or len(places) != len(numbers):
            return "length_mismatch", f"{len(places)} positions for {len(numbers)} atoms"
        frac = np.linalg.solve(lattice.T, places.T).T
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, np.linalg.LinAlgError) as error:
        return "bad_structure", f"{type(error).__name__}: {error}"[:200]
    if not (np.isfinite(frac).all() and np.isfinite(lattice).all()):
        return "bad_structure", "lattice or positions are not finite numbers"
    return Crystal(
        id=encodable(str(entry["id"])),
        source=source,
        atomic_numbers=np.array(numbers, dtype=np.int64),
        frac_coords=frac,
        lattice=lattice,
        extra={},
    )


def _element(kind: dict[str, Any]) -> int | tuple[str, str]:
    """Atomic number of a species, or reason and detail of why it is no element."""
    symbols, shares = kind["chemical_symbols"], kind.get("concentration") or [1.0]
    if kind.get("attached"):
        return "attached_atoms", f"species {kind.get('name')} carries {', '.join(map(str, kind['attached']))}"
    if len(symbols) != 1 or symbols[0] == "vacancy" or not abs(float(shares[0]) - 1) <= _FULL:
        shown = ", ".join(f"{symbol} {share:g}" for symbol, share in zip(symbols, shares, strict=False))
        return "disordered", f"a site holds {shown}"
    if symbols[0] not in ATOMIC_NUMBERS:
        return "unknown_element", f"{symbols[0]} is no element"
    return ATOMIC_NUMBERS[symbols[0]]


def _facts(
    about: dict[str, Any], fields: Mapping[str, str], energy_method: str | None, hull_below_zero: bool
) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for column, path in fields.items():
        value: Any = about
        for key in [path] if path in about else path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if column in ("formation_energy", "e_above_hull"):
            facts[column] = _number(value)
        elif column == "spacegroup":
            number = _number(value)
            facts[column] = int(number) if number is not None and number in range(1, 231) else None
        elif value is not None:
            facts[column] = encodable(str(value))
    if hull_below_zero and facts.get("e_above_hull") is not None:
        facts["e_above_hull"] = max(0.0, facts["e_above_hull"])
    if facts.get("formation_energy") is not None or facts.get("e_above_hull") is not None:
        facts.setdefault("energy_method", energy_method)
    return facts


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
