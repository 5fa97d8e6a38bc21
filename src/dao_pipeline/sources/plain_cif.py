"""CIFs that list every atom in P1, as data sets of crystals do, read directly: some 20 times faster than pymatgen.

Whatever is not exactly of that form is left to pymatgen, and what is gives the same crystal as there.
"""

from __future__ import annotations

import math
import re

import numpy as np

from dao_pipeline.crystals.elements import ATOMIC_NUMBERS

_SYMMETRY = {"_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz"}
_SYMMETRY_TAGS = _SYMMETRY | {"_symmetry_equiv_pos_site_id", "_space_group_symop_id"}
_PLACE = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
_SYMBOL = "_atom_site_type_symbol"
_ONE = ("_atom_site_occupancy", "_atom_site_symmetry_multiplicity")
_ATOM_TAGS = {_SYMBOL, "_atom_site_label", *_ONE, *_PLACE}
_CELL = tuple(f"_cell_{kind}" for kind in ("length_a", "length_b", "length_c"))
_ANGLES = tuple(f"_cell_angle_{name}" for name in ("alpha", "beta", "gamma"))
_NAMES = ("_symmetry_space_group_name_h-m", "_space_group_name_h-m_alt")
_NUMBERS = ("_symmetry_int_tables_number", "_space_group_it_number")

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)")
_TAG = re.compile(r"(_\S+)\s+('[^']*'|\"[^\"]*\"|[^\s'\"#;]+)\s*")

_IDEAL = (1 / 3, 2 / 3)
_NEAR_IDEAL = 1e-4
"""Coordinates this near to a third (relative) are set to it, as pymatgen does."""

_APART = 0.01
"""Fractional: atoms nearer than this in all three directions are left to pymatgen, which merges some."""

Plain = tuple[list[int], np.ndarray, np.ndarray]


def parse_plain(text: str) -> Plain | None:
    """Atomic numbers (n), fractional coordinates (n, 3) and lattice (3, 3) in angstrom; None if not plain P1."""
    values: dict[str, str] = {}
    atoms: list[list[str]] | None = None
    atom_tags: list[str] = []
    identity = False
    blocks = 0
    lines = [line.strip() for line in text.splitlines()]
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if not line or line.startswith("#"):
            continue
        if line.startswith("data_"):
            blocks += 1
        elif line == "loop_":
            tags: list[str] = []
            while at < len(lines) and lines[at].startswith("_"):
                tags.append(lines[at].lower())
                at += 1
            rows: list[str] = []
            while at < len(lines) and lines[at] and not lines[at].startswith(("_", "loop_", "data_", "#")):
                rows.append(lines[at])
                at += 1
            if set(tags) <= _SYMMETRY_TAGS and not identity:
                identity = len(rows) == 1 and _is_identity(rows[0], tags)
                if not identity:
                    return None
            elif set(tags) <= _ATOM_TAGS and atoms is None:
                atom_tags, atoms = tags, [row.split() for row in rows]
            else:
                return None
        elif match := _TAG.fullmatch(line):
            if match.group(1).lower() in values:
                return None
            values[match.group(1).lower()] = match.group(2).strip("'\"")
        else:
            return None
    if blocks != 1 or not identity or not atoms or not _is_p1(values):
        return None
    lattice = _lattice(values)
    sites = _sites(atom_tags, atoms)
    return (sites[0], sites[1], lattice) if sites is not None and lattice is not None else None


def _is_identity(row: str, tags: list[str]) -> bool:
    words = row.replace("'", " ").replace('"', " ").replace(",", " ").lower().split()
    if len(tags) == 2:
        words = words[1:] if tags[1] in _SYMMETRY else words[:-1]
    return words == ["x", "y", "z"]


def _is_p1(values: dict[str, str]) -> bool:
    names = [values[tag].replace(" ", "").upper() for tag in _NAMES if tag in values]
    return set(names) <= {"P1"} and {values[tag] for tag in _NUMBERS if tag in values} <= {"1"}


def _lattice(values: dict[str, str]) -> np.ndarray | None:
    """(3, 3) rows a, b, c, with c along z and a in the xz plane, as pymatgen puts them."""
    texts = [values.get(tag, "") for tag in (*_CELL, *_ANGLES)]
    if not all(_NUMBER.fullmatch(text) for text in texts):
        return None
    a, b, c, *degrees = map(float, texts)
    if min(a, b, c) < 0.1 or min(degrees) < 5 or max(degrees) > 175:
        return None
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    star = (cos[0] * cos[1] - cos[2]) / (sin[0] * sin[1])
    if abs(star) >= 0.999:
        return None
    angle = math.acos(star)
    return np.array(
        [
            [a * sin[1], 0.0, a * cos[1]],
            [-b * sin[0] * math.cos(angle), b * sin[0] * math.sin(angle), b * cos[0]],
            [0.0, 0.0, c],
        ]
    )


def _sites(tags: list[str], rows: list[list[str]]) -> tuple[list[int], np.ndarray] | None:
    """Atomic numbers and coordinates; None for anything but whole atoms of elements at places apart."""
    if len(set(tags)) != len(tags) or not {_SYMBOL, *_PLACE} <= set(tags):
        return None
    if any(len(row) != len(tags) for row in rows):
        return None
    column = {tag: [row[i] for row in rows] for i, tag in enumerate(tags)}
    for tag in _ONE:
        if any(not _NUMBER.fullmatch(text) or float(text) != 1 for text in column.get(tag, [])):
            return None
    if not all(_NUMBER.fullmatch(text) for tag in _PLACE for text in column[tag]):
        return None
    numbers = [ATOMIC_NUMBERS.get(symbol, 0) for symbol in column[_SYMBOL]]
    if not all(numbers):
        return None
    frac = np.array([column[tag] for tag in _PLACE], dtype=np.float64).T
    for ideal in _IDEAL:
        frac[np.abs(1 - frac / ideal) < _NEAR_IDEAL] = ideal
    if len(frac) > 200:  # the comparison of all pairs below would be large
        return None
    difference = frac[:, None] - frac[None]
    difference -= np.rint(difference)
    near = (np.abs(difference) < _APART).all(-1)
    return None if near.sum() > len(frac) else (numbers, frac)
