"""Structure types, and what known crystals suggest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.ranking.known import NO_KIND, KnownTypes
from dao_pipeline.ranking.structure_type import structure_type, structure_types
from tests.make import crystal

PEROVSKITE = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]


def perovskite(a: str, b: str, x: str, **extra: object) -> Crystal:
    """A cubic one: ``a`` at the corner, among twelve x, ``b`` in the middle, among six."""
    return crystal(f"{a}{b}{x}3", [a, b, x, x, x], PEROVSKITE, 4.0, **extra)


def caesium_chloride(a: str, b: str) -> Crystal:
    return crystal(f"{a}{b}", [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.0)


def known(*crystals: Crystal) -> tuple[KnownTypes, pa.Table]:
    table = to_table(crystals)
    return KnownTypes.build(table, structure_types(list(crystals), 0.1)), table


def kind(types: KnownTypes, one: Crystal) -> int:
    return types.kind_of(structure_type(one, 0.1))


def elements(*symbols: str) -> np.ndarray:
    return np.array([ATOMIC_NUMBERS[s] for s in symbols])


def test_a_type_is_the_same_in_every_cell() -> None:
    one = perovskite("Sr", "Ti", "O")
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    shifted = replace(
        one, frac_coords=(one.frac_coords + np.array([0.1, 0.27, 0.4])) % 1, lattice=one.lattice @ rotation
    )
    twice = Crystal(
        id="twice",
        atomic_numbers=np.tile(one.atomic_numbers, 2),
        frac_coords=np.concatenate([one.frac_coords, one.frac_coords + np.array([1, 0, 0])]) / [2, 1, 1],
        lattice=one.lattice * np.array([[2], [1], [1]]),
    )
    first = structure_type(one, 0.1)
    assert first is not None
    for other in (shifted, twice):
        found = structure_type(other, 0.1)
        assert found is not None
        assert found[0] == first[0]
        assert found[1].tolist() == first[1].tolist()
    assert first[0].num_atoms == 5


def test_which_element_stands_where_is_part_of_the_kind() -> None:
    types, _ = known(perovskite("Sr", "Ti", "O"), caesium_chloride("Cs", "Cl"))
    right, swapped = perovskite("Ca", "Zr", "S"), perovskite("Zr", "Ca", "S")
    assert kind(types, right) != kind(types, swapped)
    assert kind(types, right) == kind(types, perovskite("Ba", "Hf", "Se"))
    # in the caesium chloride type both sites are alike
    assert kind(types, caesium_chloride("K", "Br")) == kind(types, caesium_chloride("Br", "K"))
    assert kind(types, crystal("x", ["K", "Br"], [[0, 0, 0], [0.4, 0.5, 0.5]], 4.0)) == NO_KIND


def test_suggestions_are_nearest_first_and_never_of_the_own_composition() -> None:
    types, table = known(
        perovskite("Sr", "Ti", "O"),
        perovskite("Ba", "Ti", "O"),
        perovskite("K", "Mg", "F"),
        caesium_chloride("Cs", "Cl"),
    )
    cell = elements("Sr", "Ti", "O", "O", "O")
    found = types.suggest([cell], [table["formula"][0].as_py()], 8)
    ids = [table["id"][row].as_py() for row in found.row[0] if row >= 0]
    assert "SrTiO3" not in ids
    assert "CsCl" not in ids
    assert ids[0] == "BaTiO3"
    assert len(ids) == 4  # two crystals under two assignments
    assert found.kind[0, 0] == kind(types, perovskite("Sr", "Ti", "O"))
    assert found.weight[0].sum() == pytest.approx(1.0)
    assert (found.kind[0, 4:] == NO_KIND).all()


def test_larger_cells_are_served_by_smaller_types_and_marked() -> None:
    types, _ = known(caesium_chloride("Cs", "Cl"))
    found = types.suggest([elements("K", "Br", "K", "Br"), elements("K", "Br")], ["KBr", "KBr"], 2)
    assert found.resized[:, 0].tolist() == [True, False]
    assert (found.kind[:, 0] == found.kind[0, 0]).all()
