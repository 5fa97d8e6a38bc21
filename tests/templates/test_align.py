"""Templates laid over crystals: any cell, origin and order of atoms is found again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dao_pipeline.config import Templates
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.automorphisms import unimodular
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.flat import FlatCrystals, flatten
from dao_pipeline.crystals.niggli import niggli_reduce
from dao_pipeline.crystals.table import read_table
from dao_pipeline.sources.embedded import load as embedded
from dao_pipeline.templates.align import align
from dao_pipeline.templates.files import save
from dao_pipeline.templates.index import TemplateIndex
from dao_pipeline.templates.pairs import pair_table, pair_templates
from tests.templates.test_index import perovskite

SETTINGS = Templates(distance="mendeleev")


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_a_crystal_in_disguise_is_found_again(noise: float) -> None:
    """Another basis, mirrored or not, another origin, atoms in another order, and a little displaced."""
    rng = np.random.default_rng(1)
    flat = niggli_reduce(flatten(embedded().slice(100, 60)))[0]
    for i in range(len(flat)):
        atoms = slice(int(flat.ptr[i]), int(flat.ptr[i + 1]))
        numbers, frac, lattice = flat.numbers[atoms], flat.frac[atoms], flat.lattice[i]
        change = unimodular()[rng.integers(6960)]
        order = rng.permutation(len(numbers))
        moved = frac + noise * rng.normal(size=frac.shape)
        other = FlatCrystals(
            numbers=numbers[order],
            frac=(moved[order] + rng.random(3)) @ np.linalg.inv(change),
            lattice=(change @ lattice)[None],
            counts=np.array([len(numbers)]),
        )
        other, failures = niggli_reduce(other)
        assert not failures
        found = align(numbers, frac, lattice, other.numbers, other.frac, other.lattice[0])
        assert found is not None
        assert found.strain < 1e-3
        assert found.rmse <= 3 * noise * np.linalg.norm(lattice) / np.cbrt(abs(np.linalg.det(lattice))) + 1e-3
        u = found.frac - frac
        assert np.abs(u.mean(0)).max() < 1e-9
        assert np.abs(u).max() <= 0.5
        assert np.allclose(found.lattice @ found.lattice.T, lattice @ lattice.T, rtol=1e-2, atol=0.1)


def test_other_cells_and_compositions() -> None:
    one, two = (perovskite(x, "Ba", "Ti", "O") for x in "ab")
    arguments = [(c.atomic_numbers, c.frac_coords, c.lattice) for c in (one, two)]
    assert align(*arguments[0], *arguments[1][:2], 1.5 * two.lattice) is None
    with pytest.raises(ValueError, match="differ in composition"):
        align(*arguments[0], two.atomic_numbers + 1, *arguments[1][1:])


def test_pairs_are_crystals_with_templates_of_other_compositions(tmp_path: Path) -> None:
    known = [perovskite(a + b, a, b, "O") for a in ("Ca", "Sr", "Ba") for b in ("Ti", "Zr")]
    known.append(perovskite("alone", "Cs", "Pb", "I"))  # its volume is no other's, its type is
    table = to_table(known)
    index = TemplateIndex.build(table, SETTINGS)
    pairs = pair_table(index, 0.3)
    own = dict(zip(table["id"].to_pylist(), table["atomic_numbers"].to_pylist(), strict=True))
    for row in pairs.to_pylist():
        assert row["atomic_numbers"] == own[row["id"]]
        assert own[row["template_id"]] != own[row["id"]]
        assert row["template_rmse"] < 1e-6
    assert set(pairs["id"].to_pylist()) >= {"CaTi", "SrZr"}
    save(index, tmp_path / "index", {})
    pair_templates(parse_campaign({"name": "x"}, "x"), tmp_path / "index", tmp_path / "pairs.parquet")
    assert read_table(tmp_path / "pairs.parquet").equals(pairs)
    assert pair_table(index, 1e-12).num_rows <= pairs.num_rows
