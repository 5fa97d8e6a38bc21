"""Matching against hand-made cases and against direct use of pymatgen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from pymatgen.core.structure_matcher import StructureMatcher

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.convert import from_structure, to_structure
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.crystals.matching import Sameness, comparable, structure_matcher
from dao_pipeline.evaluation.matching import match, match_target
from tests.make import crystal, shared_data

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
ROCKSALT = crystal("rocksalt", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 5.6 * FCC)
RUTILE = crystal(
    "rutile",
    ["Ti", "Ti", "O", "O", "O", "O"],
    [[0, 0, 0], [0.5, 0.5, 0.5], [0.3, 0.3, 0], [0.7, 0.7, 0], [0.2, 0.8, 0.5], [0.8, 0.2, 0.5]],
    np.diag([4.6, 4.6, 2.96]),
)
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]


def rmse(predicted: Crystal, known: Crystal) -> float | None:
    return match(predicted, known, structure_matcher(Matcher())).rmse


@pytest.mark.parametrize("known", [ROCKSALT, RUTILE], ids=["rocksalt", "rutile"])
def test_the_same_crystal_in_other_guises_has_no_displacement(known: Crystal) -> None:
    order = np.random.default_rng(0).permutation(known.num_atoms)
    basis = np.array([[1, 0, 0], [2, 1, 0], [-1, 3, 1]])
    supercell = from_structure(to_structure(known).make_supercell([2, 1, 1]), "double", "test")
    guises = {
        "identical": known,
        "rotated": replace(known, lattice=known.lattice @ ROTATION),
        "translated": replace(known, frac_coords=known.frac_coords + np.array([0.13, 0.4, 0.77])),
        "scaled": replace(known, lattice=1.2 * known.lattice),
        "permuted": replace(
            known, atomic_numbers=known.atomic_numbers[order], frac_coords=known.frac_coords[order]
        ),
        "other basis": replace(
            known, lattice=basis @ known.lattice, frac_coords=known.frac_coords @ np.linalg.inv(basis)
        ),
        "supercell": supercell,
    }
    for name, guise in guises.items():
        assert rmse(guise, known) == pytest.approx(0.0, abs=1e-6), name


def test_displacement_is_in_units_of_the_free_length() -> None:
    moved = RUTILE.frac_coords.copy()
    moved[0, 2] += 0.1
    found = rmse(replace(RUTILE, frac_coords=moved), RUTILE)
    away = 0.1 * 2.96  # of one atom; the best translation moves all by a sixth of it
    expected = np.sqrt(((5 / 6 * away) ** 2 + 5 * (away / 6) ** 2) / 6) / (RUTILE.volume / 6) ** (1 / 3)
    assert found == pytest.approx(expected, rel=1e-6)


def test_another_prototype_or_composition_does_not_match() -> None:
    caesium_chloride = crystal("cscl", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 3.4)
    potassium = replace(ROCKSALT, atomic_numbers=np.array([19, 17]))
    anti = replace(RUTILE, atomic_numbers=np.array([8, 8, 22, 22, 22, 22]))
    assert rmse(caesium_chloride, ROCKSALT) is None
    assert rmse(potassium, ROCKSALT) is None
    assert rmse(anti, RUTILE) is None


@pytest.mark.parametrize(
    "cell",
    [np.zeros((3, 3)), np.diag([5, 5, 1e-9]), np.full((3, 3), np.nan), 1e-3 * np.eye(3)],
    ids=["zero", "flat", "nan", "tiny"],
)
def test_what_is_no_crystal_counts_as_no_match_with_a_reason(cell: np.ndarray) -> None:
    found = match(replace(ROCKSALT, lattice=cell), ROCKSALT, structure_matcher(Matcher()))
    assert found.rmse is None
    assert found.error is not None
    assert found.error.startswith("ValueError")


def test_skewed_cells_are_compared_within_a_second() -> None:
    basis = np.array([[1, 0, 0], [400, 1, 0], [-900, 1300, 1]])
    skewed = replace(
        ROCKSALT, lattice=basis @ ROCKSALT.lattice, frac_coords=ROCKSALT.frac_coords @ np.linalg.inv(basis)
    )
    assert rmse(skewed, ROCKSALT) == pytest.approx(0.0, abs=1e-5)
    assert max(comparable(skewed).lattice.abc) < 10
    assert comparable(ROCKSALT).lattice == to_structure(ROCKSALT).lattice


def test_tolerances_are_those_of_the_campaign() -> None:
    moved = replace(RUTILE, frac_coords=RUTILE.frac_coords + np.random.default_rng(3).normal(0, 0.06, (6, 3)))
    wide, narrow = (match_target(RUTILE, [moved], Matcher(stol=stol))[0].rmse for stol in (0.5, 0.01))
    assert wide is not None
    assert wide > 0.01
    assert narrow is None


def real_pairs(count: int) -> list[tuple[Crystal, Crystal]]:
    """Crystals of MP-20's validation split with perturbed and with random coordinates."""
    table = pq.read_table(shared_data("mp20/val.parquet")).slice(100, count)
    rng = np.random.default_rng(0)
    pairs = []
    for i, row in enumerate(table.to_pylist()):
        coords = np.array(row["frac_coords"]).reshape(-1, 3)
        known = Crystal(
            id=row["material_id"],
            atomic_numbers=np.array(row["atomic_numbers"]),
            frac_coords=coords,
            lattice=np.array(row["lattice"]).reshape(3, 3),
        )
        noise = rng.normal(0, 0.05, coords.shape) if i % 2 else rng.random(coords.shape)
        strain = np.eye(3) + rng.normal(0, 0.03, (3, 3))
        pairs.append((replace(known, frac_coords=coords + noise, lattice=known.lattice @ strain), known))
    return pairs


def test_real_crystals_match_as_pymatgen_says() -> None:
    pairs = real_pairs(60)
    ours = [rmse(*pair) for pair in pairs]
    direct = [
        StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3).get_rms_dist(*map(to_structure, pair)) for pair in pairs
    ]
    assert ours == [None if d is None else d[0] for d in direct]
    assert 20 < sum(d is not None for d in direct) < 60


def test_sameness_decides_as_pymatgen_does() -> None:
    pairs = real_pairs(60)
    settings = Matcher(ltol=0.2, stol=0.3, angle_tol=5)
    same = Sameness(settings)
    ours = [same(same.reduce(a), same.reduce(b)) for a, b in pairs]
    assert ours == [StructureMatcher().fit(to_structure(a), to_structure(b)) for a, b in pairs]
    assert 10 < sum(ours) < 60
    flat = same.reduce(replace(ROCKSALT, lattice=np.diag([5, 5, 1e-9])))
    assert flat is None
    assert not same(flat, same.reduce(ROCKSALT))
