from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from dao_pipeline.crystals.convert import NotACrystal, from_structure, to_structure
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.crystals.flat import flatten, formulas, structure_columns
from tests.make import binary, crystal, random_flat


def test_structure_and_back() -> None:
    structure = Structure(
        Lattice([[4, 0, 0], [1, 5, 0], [0.5, 0.2, 6]]),
        ["Sr2+", "O2-", "O2-"],
        [[0, 0, 0], [0.5, 1.5, -0.25], [0, 0.1, 0]],
    )
    ours = from_structure(structure, "mp-1", "here", {"e_above_hull": 0.1})
    assert (ours.id, ours.source, ours.formula, ours.extra) == ("mp-1", "here", "SrO2", {"e_above_hull": 0.1})
    np.testing.assert_allclose(ours.frac_coords[1], [0.5, 0.5, 0.75])
    again = to_structure(ours)
    structure.remove_oxidation_states()
    assert again.species == structure.species
    np.testing.assert_allclose(again.lattice.matrix, structure.lattice.matrix)
    np.testing.assert_allclose(again.distance_matrix, structure.distance_matrix, atol=1e-12)


@pytest.mark.parametrize(
    ("species", "reason"),
    [({"Na": 0.5, "K": 0.5}, "disordered"), ({"Na": 0.7}, "disordered"), ("X", "unknown_element")],
)
def test_what_is_no_crystal(species: object, reason: str) -> None:
    with pytest.raises(NotACrystal) as caught:
        from_structure(Structure(Lattice.cubic(4), [species], [[0, 0, 0]]), "a")
    assert caught.value.reason == reason


def test_empty_cell_is_no_crystal() -> None:
    with pytest.raises(NotACrystal, match="no_atoms"):
        from_structure(Structure(Lattice.cubic(4), [], []), "a")


def test_flat_columns_rebuild_the_table() -> None:
    crystals = [
        binary(0),
        crystal("b", ["Ti", "O", "O"], [[0, 0, 0], [0.3, 0.3, 0], [0.7, 0.7, 0]], 4.6),
        binary(17),
    ]
    table = to_table(crystals)
    flat = flatten(table)
    assert len(flat) == 3
    assert formulas(flat) == table["formula"].to_pylist() == ["LiO", "TiO2", "NaS"]
    for name, column in structure_columns(flat, formulas(flat)).items():
        assert column.to_pylist() == table[name].to_pylist()
    picked = flat.select(np.array([False, True, True]))
    np.testing.assert_array_equal(picked.numbers, [22, 8, 8, 11, 16])
    np.testing.assert_array_equal(picked.ptr, [0, 3, 5])
    sliced = flatten(table.slice(1, 1))
    np.testing.assert_array_equal(sliced.numbers, [22, 8, 8])


def test_formulas_equal_pymatgen_after_reduction() -> None:
    flat = random_flat(40, seed=2, skew=0.3)
    for row, formula in enumerate(formulas(flat)):
        numbers = flat.numbers[flat.ptr[row] : flat.ptr[row + 1]].tolist()
        theirs = Composition.from_dict(Counter(SYMBOLS[z] for z in numbers))
        assert Composition(formula).reduced_composition == theirs.reduced_composition
