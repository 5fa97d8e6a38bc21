"""Volumes from compositions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import volumes
from dao_pipeline.crystals.volume import element_counts
from dao_pipeline.sources.files import read_crystals
from dao_pipeline.templates.volume import VolumeModel
from tests.make import crystal, shared_data
from tests.templates.test_index import to_table

SITES = [[0, 0, 0], [0.5, 0.5, 0.5]]


def test_pairs_of_elements_that_shrink_each_other_are_learned() -> None:
    edges = {("Na", "Na"): 4.0, ("Cl", "Cl"): 4.0, ("Na", "Cl"): 3.6}
    known = [crystal(f"{a}{b}{i}", [a, b], SITES, edge) for (a, b), edge in edges.items() for i in range(30)]
    model = VolumeModel.fit(to_table(known))
    expected = model.expected(flatten(to_table(known[-1:])))
    np.testing.assert_allclose(expected, 3.6**3, rtol=0.03)


def test_on_crystals_it_never_saw_it_is_better_than_element_volumes_alone() -> None:
    table = read_crystals(shared_data("mp20/train_part.parquet"), limit=3000).table
    test = read_crystals(shared_data("mp20/val.parquet"), limit=500).table
    model, flat = VolumeModel.fit(table), flatten(test)
    known = volumes(flat.lattice)
    plain = np.abs(element_counts(flat) @ model.elements / known - 1).mean()
    assert np.abs(model.expected(flat) / known - 1).mean() < 0.95 * plain


def test_the_size_of_the_cell_does_not_matter() -> None:
    model = VolumeModel.fit(to_table([crystal("a", ["Na", "Cl"], SITES, 3.6)]))
    single = flatten(to_table([crystal("a", ["Na", "Cl"], SITES, 3.6)]))
    double = flatten(pa.table(to_table([crystal("a", ["Na", "Cl"] * 2, SITES * 2, 3.6)])))
    assert model.expected(double)[0] == pytest.approx(2 * model.expected(single)[0])
