"""Charge neutrality: textbook compositions, and faults."""

from __future__ import annotations

import re
from itertools import pairwise, product

import pyarrow as pa
import pytest

from dao_pipeline.config import Screen
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.screening.charge import _states, add_charge, charge_neutral
from dao_pipeline.screening.geometry import check_geometry
from tests.make import crystal


def neutral(formula: str) -> bool | None:
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    atoms = [ATOMIC_NUMBERS[s] for s, n in parts for _ in range(int(n or 1))]
    return add_charge(pa.table({"atomic_numbers": pa.array([atoms])}), require=False)["charge_neutral"][0].as_py()


@pytest.mark.parametrize(
    ("formula", "answer"),
    [
        *(
            (name, True)
            for name in ("NaCl", "SrTiO3", "Fe3O4", "Mn3O4", "Pb3O4", "Fe2O3", "CaF2", "LaN", "BaBiO3")
        ),
        *((name, False) for name in ("NaCl2", "Na2Cl", "CaF3", "SrTiO4", "MgO3")),
        *((name, None) for name in ("TiNi", "Cu3Au", "Nb3Sn", "HeF2", "Ar")),
    ],
)
def test_known_compositions(formula: str, answer: bool | None) -> None:
    assert neutral(formula) is answer


def test_sums_are_those_of_all_combinations() -> None:
    """Against enumeration: one state for each element, or two neighbouring ones of one metal."""
    for numbers, counts in (((26, 8), (3, 4)), ((25, 26, 8), (2, 1, 5)), ((29, 16), (4, 3)), ((12, 7), (3, 4))):
        states = [_states(z) for z in numbers]
        sums = {sum(n * s for n, s in zip(counts, c, strict=True)) for c in product(*(s for s, _ in states))}
        for k, ((own, metal), n) in enumerate(zip(states, counts, strict=True)):
            rest = [s for i, (s, _) in enumerate(states) if i != k]
            more = [c for i, c in enumerate(counts) if i != k]
            others = {sum(a * b for a, b in zip(more, c, strict=True)) for c in product(*rest)}
            for low, high in pairwise(own):
                if metal:
                    sums |= {o + j * low + (n - j) * high for o in others for j in range(1, n)}
        assert charge_neutral(numbers, counts) == (0 in sums)


def test_the_cell_and_the_order_of_atoms_do_not_matter_and_nulls_stay() -> None:
    table = to_table(
        [
            crystal("a", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.0, status="ok"),
            crystal("b", ["Cl", "Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0]], 5.0, status="ok"),
            crystal("c", ["Ti", "Ni"], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.0, status="ok"),
        ]
    )
    table = check_geometry(table, Screen())
    plain = add_charge(table, require=False)
    assert plain["charge_neutral"].to_pylist() == [True, False, None]
    assert plain["valid"].to_pylist() == [True] * 3
    strict = add_charge(table, require=True)
    assert strict["valid"].to_pylist() == [True, False, True]
    assert strict["status"].to_pylist() == ["ok", "not_charge_neutral", "ok"]


def test_many_elements_and_atoms_take_no_time() -> None:
    """As many as a cell can have."""
    elements = (3, 11, 12, 22, 23, 25, 26, 9, 16, 8)
    assert charge_neutral(elements, (20,) * 10) is False
    assert charge_neutral(elements, (*(20,) * 9, 100)) is True
    assert charge_neutral((11, 9), (199, 1)) is False
    assert charge_neutral((2, 9), (1, 1)) is None


def test_rows_without_atoms_have_no_answer() -> None:
    table = to_table([crystal("a", ["Na"], [[0, 0, 0]], 4.0, status="ok")])
    table = check_geometry(table, Screen())
    empty = pa.array([[]], table["atomic_numbers"].type)
    table = table.set_column(table.column_names.index("atomic_numbers"), "atomic_numbers", empty)
    assert add_charge(table, require=True)["charge_neutral"].to_pylist() == [None]
