"""The direct way for P1 CIFs gives what pymatgen gives, and leaves everything else to it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.io.cif import CifWriter

from dao_pipeline.crystals.cif import cif_text
from dao_pipeline.crystals.convert import to_structure
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.sources.cif import Parsed, parse_any_cif, parse_cif
from dao_pipeline.sources.files import read_crystals
from dao_pipeline.sources.plain_cif import parse_plain
from tests.make import binary, crystal, shared_data

PLAIN = str(CifWriter(to_structure(binary(3))))


def ordered(parsed: Parsed) -> np.ndarray:
    """(n, 4): atomic number and coordinates in [0, 1), in an order of their own."""
    frac = np.array(parsed.frac_coords).reshape(-1, 3) % 1
    frac[frac > 1 - 1e-9] = 0
    rows = np.column_stack([parsed.atomic_numbers, frac])
    return rows[np.lexsort(np.round(rows, 6).T[::-1])]


def same(text: str) -> None:
    direct, reference = parse_cif(text), parse_any_cif(text)
    assert (direct.reason, reference.reason) == ("", "")
    np.testing.assert_allclose(ordered(direct), ordered(reference), atol=1e-9)
    np.testing.assert_allclose(direct.lattice, reference.lattice, atol=1e-9)


@pytest.mark.parametrize("name", ["mp20/train_part.parquet", "mpts52/val.parquet", "carbon24/val.parquet"])
@pytest.mark.parametrize("writer", ["pymatgen", "ours"])
def test_real_crystals(name: str, writer: str) -> None:
    crystals = list(from_table(read_crystals(shared_data(name), limit=40).table))
    direct = 0
    for one in crystals:
        text = str(CifWriter(to_structure(one))) if writer == "pymatgen" else cif_text(one)
        direct += parse_plain(text) is not None
        same(text)
    assert direct >= 36, "the direct way is for such as these"


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.tuples(*[st.floats(2, 20)] * 3),
    angles=st.tuples(*[st.floats(50, 115)] * 3),
    place=st.tuples(*[st.one_of(st.floats(-1, 2), st.sampled_from([0.33333, 0.66667, 0.3334, 1.0, 0.99999]))] * 3),
)
def test_any_cell(
    lengths: tuple[float, ...], angles: tuple[float, ...], place: tuple[float, float, float]
) -> None:
    from pymatgen.core import Lattice

    matrix = Lattice.from_parameters(*lengths, *angles).matrix
    if not np.isfinite(matrix).all() or np.linalg.det(matrix) < 1:
        return
    text = cif_text(crystal("x", ["Na", "Cl"], [[0.1, 0.2, 0.7], place], matrix))
    if parse_plain(text) is not None and not parse_any_cif(text).reason:
        same(text)


NOT_PLAIN = {
    "symmetry": str(CifWriter(to_structure(binary(3)), symprec=0.1)),
    "two blocks": PLAIN + PLAIN,
    "other operation": PLAIN.replace("'x, y, z'", "'-x, y, z'"),
    "two operations": PLAIN.replace("'x, y, z'", "'x, y, z'\n  2  '-x, -y, -z'"),
    "no operation": PLAIN.replace("  1  'x, y, z'\n", ""),
    "other group": PLAIN.replace("'P 1'", "'P m -3 m'"),
    "other number": PLAIN.replace("Int_Tables_number   1", "Int_Tables_number   221"),
    "half an atom": PLAIN.replace("  1\n", "  0.5\n"),
    "charged": PLAIN.replace("  Mg  Mg0", "  Mg2+  Mg0"),
    "uncertain": PLAIN.replace("0.50000000  0.5", "0.500(2)  0.5"),
    "unknown place": PLAIN.replace("0.50000000  0.5", "?  0.5"),
    "two atoms at one place": PLAIN.replace("0.50000000", "0.00000000"),
    "text field": PLAIN + "_note\n;\nloop_\n;\n",
    "column that is not known": PLAIN.replace("_atom_site_occupancy", "_atom_site_u_iso_or_equiv"),
    "row too short": PLAIN.rstrip()[:-3],
    "quote": PLAIN.replace("_cell_volume", "_note 'it's'\n_cell_volume"),
    "flat": PLAIN.replace("_cell_angle_alpha   90.0", "_cell_angle_alpha   179.0"),
    "nothing": "",
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_everything_else_is_left_to_pymatgen(kind: str) -> None:
    assert parse_plain(PLAIN) is not None
    assert NOT_PLAIN[kind] != PLAIN
    assert parse_plain(NOT_PLAIN[kind]) is None


def test_order_of_atoms_is_that_of_the_file() -> None:
    one: Crystal = crystal("x", ["O", "Na", "O"], [[0, 0, 0], [0.5] * 3, [0.2] * 3], 5.0)
    assert parse_cif(cif_text(one)).atomic_numbers == [8, 11, 8]
