"""Primitive cells and supercells are the same crystal."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.flat import FlatCrystals, flatten
from dao_pipeline.crystals.geometry import volumes
from dao_pipeline.evaluation.matching import match_target
from dao_pipeline.sources.files import read_crystals
from dao_pipeline.templates.cells import primitive_cells, supercells
from tests.make import crystal, shared_data


def crystals(flat: FlatCrystals) -> list[Crystal]:
    """One Crystal for each."""
    ptr = flat.ptr.tolist()
    return [
        Crystal(id=str(i), atomic_numbers=flat.numbers[a:b], frac_coords=flat.frac[a:b], lattice=flat.lattice[i])
        for i, (a, b) in enumerate(pairwise(ptr))
    ]


ROCK_SALT = crystal(
    "conventional",
    ["Na"] * 4 + ["Cl"] * 4,
    [
        [0, 0, 0],
        [0.5, 0.5, 0],
        [0.5, 0, 0.5],
        [0, 0.5, 0.5],
        [0.5, 0, 0],
        [0, 0.5, 0],
        [0, 0, 0.5],
        [0.5, 0.5, 0.5],
    ],
    5.6,
)


def test_a_centred_cell_becomes_primitive() -> None:
    primitive = primitive_cells(flatten(to_table([ROCK_SALT])))
    assert primitive.counts.tolist() == [2]
    assert volumes(primitive.lattice)[0] == pytest.approx(5.6**3 / 4)
    (match,) = match_target(ROCK_SALT, crystals(primitive), Matcher())
    assert match.rmse == pytest.approx(0, abs=1e-4)


def test_a_primitive_cell_stays_and_so_does_one_that_is_almost_centred() -> None:
    moved = ROCK_SALT.frac_coords.copy()
    moved[0] += 0.05
    table = to_table([crystal("CsCl", ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.1)])
    assert primitive_cells(flatten(table)).counts.tolist() == [2]
    almost = crystal("moved", ["Na"] * 4 + ["Cl"] * 4, moved, 5.6)
    assert primitive_cells(flatten(to_table([almost]))).counts.tolist() == [8]


@pytest.mark.parametrize("multiple", [2, 3, 4, 6])
def test_supercells_of_real_crystals_are_undone_by_primitive_cells(multiple: int) -> None:
    table = read_crystals(shared_data("mp20/val.parquet"), limit=40).table
    flat = primitive_cells(flatten(table))
    larger = supercells(flat, np.full(len(flat), multiple))
    assert larger.counts.tolist() == (multiple * flat.counts).tolist()
    np.testing.assert_allclose(volumes(larger.lattice), multiple * volumes(flat.lattice))
    again = primitive_cells(larger)
    assert again.counts.tolist() == flat.counts.tolist()
    for found, known in list(zip(crystals(again), from_table(table), strict=True))[:6]:
        assert match_target(known, [found], Matcher())[0].rmse is not None
