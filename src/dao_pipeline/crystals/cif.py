"""A crystal as CIF text in P1: every atom listed, coordinates in full precision."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.elements import SYMBOLS


def cif_text(crystal: Crystal, comment: str = "", facts: Mapping[str, str | float | bool] | None = None) -> str:
    """CIF text of a crystal; ``comment`` becomes its first line, ``facts`` become data items ``_dao_NAME``.

    Cell lengths are in angstrom, angles in degrees. The orientation of the cell in space is not kept.
    """
    lengths = np.linalg.norm(crystal.lattice, axis=1)
    unit = crystal.lattice / lengths[:, None]
    angles = [np.degrees(np.arccos(np.clip(unit[i] @ unit[j], -1, 1))) for i, j in ((1, 2), (0, 2), (0, 1))]
    lines = [f"# {' '.join(comment.split())}"] if comment else []
    lines += [
        f"data_{re.sub(r'[^A-Za-z0-9]', '_', crystal.formula)}",
        "_symmetry_space_group_name_H-M   'P 1'",
        "_symmetry_Int_Tables_number   1",
        *(f"_cell_length_{name}   {value:.10f}" for name, value in zip("abc", lengths, strict=True)),
        *(
            f"_cell_angle_{name}   {value:.10f}"
            for name, value in zip(("alpha", "beta", "gamma"), angles, strict=True)
        ),
        f"_cell_volume   {crystal.volume:.10f}",
        *(f"_dao_{name}   {_value(value)}" for name, value in (facts or {}).items()),
        "loop_",
        " _symmetry_equiv_pos_site_id",
        " _symmetry_equiv_pos_as_xyz",
        "  1  'x, y, z'",
        "loop_",
        " _atom_site_type_symbol",
        " _atom_site_label",
        " _atom_site_fract_x",
        " _atom_site_fract_y",
        " _atom_site_fract_z",
        " _atom_site_occupancy",
    ]
    for i, (z, place) in enumerate(zip(crystal.atomic_numbers, crystal.frac_coords, strict=True)):
        symbol = SYMBOLS[int(z)]
        lines.append(f"  {symbol}  {symbol}{i}  {place[0]:.12f}  {place[1]:.12f}  {place[2]:.12f}  1")
    return "\n".join(lines) + "\n"


def _value(value: str | float | bool) -> str:
    """A value as CIF writes it: numbers bare, texts in quotes on one line, in ASCII."""
    if isinstance(value, bool) or not isinstance(value, str):
        return str(value)
    text = " ".join(value.split()).encode("ascii", "backslashreplace").decode()
    quote = '"' if "'" in text else "'"
    return f"{quote}{text.replace(quote, ' ')}{quote}"
