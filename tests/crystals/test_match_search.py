"""The fast matcher against pymatgen's own, bit by bit: real crystals, distortions around the tolerances,
faults."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pymatgen.core.structure_matcher import StructureMatcher

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.convert import from_structure, to_structure
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.match_search import displacement, is_match
from dao_pipeline.crystals.matching import Sameness, comparable, reduced, structure_matcher
from dao_pipeline.sources import embedded
from tests.make import crystal, shared_data

STRICT = Matcher(ltol=0.2, stol=0.3, angle_tol=5)
LOOSE = Matcher()


def distorted(crystal: Crystal, move: float, strain: float, seed: int) -> Crystal:
    """Atoms moved by ``move`` (V/n)^(1/3), each component, and a strained cell in another basis and
    orientation."""
    rng = np.random.default_rng(seed)
    cell = crystal.lattice @ (np.eye(3) + strain * rng.normal(size=(3, 3)))
    length = (crystal.volume / crystal.num_atoms) ** (1 / 3)
    cart = crystal.frac_coords @ cell + move * length * rng.normal(size=(crystal.num_atoms, 3))
    basis = np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]]) @ cell
    order = rng.permutation(crystal.num_atoms)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return replace(
        crystal,
        atomic_numbers=crystal.atomic_numbers[order],
        frac_coords=(cart @ np.linalg.inv(basis))[order],
        lattice=basis @ turn,
    )


def agree(pairs: list[tuple[Crystal, Crystal]], settings: Matcher) -> tuple[int, int]:
    """Compare every pair both ways; how many match, and how many there are."""
    same, direct = Sameness(settings), structure_matcher(settings)
    matches = 0
    for first, second in pairs:
        ours = same.reduce(first), same.reduce(second)
        # pymatgen takes crystals that differ by less than 1e-8 for one and keeps what it has reduced
        StructureMatcher._get_reduced_istructure.cache_clear()
        theirs = comparable(first), comparable(second)
        decision = bool(direct.fit(*theirs))
        assert same(*ours) == decision, (first.id, second.id)
        rms = direct.get_rms_dist(*theirs)
        assert np.array_equal(same.rms(*ours), np.nan if rms is None else rms[0], equal_nan=True), first.id
        matches += decision
    return matches, len(pairs)


@pytest.fixture(scope="module")
def crystals() -> list[Crystal]:
    table = embedded.load()
    small = table.filter(pc.less_equal(table["num_atoms"], 12))
    return list(from_table(small.take(pa.array(range(0, small.num_rows, 150)))))


@pytest.mark.parametrize("settings", [STRICT, LOOSE], ids=["strict", "loose"])
@pytest.mark.parametrize(("move", "strain"), [(0.0, 0.0), (0.05, 0.03), (0.25, 0.06)])
def test_distorted_copies(crystals: list[Crystal], settings: Matcher, move: float, strain: float) -> None:
    pairs = [(distorted(c, move, strain, i), c) for i, c in enumerate(crystals)]
    matches, count = agree(pairs, settings)
    assert count > 20
    assert matches > 10 if move < 0.1 else matches < count


def test_different_crystals_of_one_formula() -> None:
    table = embedded.load()
    formulas = [e["values"] for e in pc.value_counts(table["formula"]).to_pylist() if e["counts"] > 3][:12]
    pairs = []
    for formula in formulas:
        rows = table.filter(pc.equal(table["formula"], formula)).slice(0, 4)
        pairs += list(combinations(from_table(rows), 2))
    matches, count = agree(pairs, STRICT)
    assert 0 < matches < count > 50


def published(name: str, rows: list[int]) -> list[Crystal]:
    table = pq.read_table(shared_data(name), columns=["atomic_numbers", "frac_coords", "lattice"])
    return [
        Crystal(
            id=f"{name}:{row}",
            atomic_numbers=np.array(entry["atomic_numbers"]),
            frac_coords=np.array(entry["frac_coords"]).reshape(-1, 3),
            lattice=np.array(entry["lattice"]).reshape(3, 3),
        )
        for row, entry in zip(rows, table.take(pa.array(rows)).to_pylist(), strict=True)
    ]


def test_large_published_crystals() -> None:
    crystals = published("mpts52/val.parquet", list(range(3, 5000, 499)))
    matches, count = agree([(distorted(c, 0.04, 0.02, i), c) for i, c in enumerate(crystals)], STRICT)
    assert 3 < matches <= count


def test_polymorphs_of_carbon() -> None:
    crystals = published("carbon24/val.parquet", list(range(0, 2000, 167)))
    matches, _ = agree(list(combinations(crystals, 2))[::2], STRICT)
    assert matches >= 0
    _, count = agree([(distorted(c, 0.05, 0.02, i), c) for i, c in enumerate(crystals)], LOOSE)
    assert count == len(crystals)


@pytest.mark.parametrize("size", [(1, 1, 2), (2, 1, 1), (1, 3, 1)])
def test_cells_are_reduced_as_pymatgen_does(crystals: list[Crystal], size: tuple[int, int, int]) -> None:
    """Supercells, and distorted ones that are within the tolerance for a smaller cell or just outside."""
    for i, one in enumerate(crystals[::6]):
        large = from_structure(to_structure(one).make_supercell(size), "large")
        for move in (0.0, 0.02, 0.06):
            cell = distorted(large, move, 0.0, i)
            wanted = comparable(cell).get_reduced_structure().get_primitive_structure()
            found = reduced(cell).structure
            assert np.array_equal(found.frac_coords, wanted.frac_coords), (one.id, move)
            assert np.array_equal(found.lattice.matrix, wanted.lattice.matrix)


def test_one_atom_and_two() -> None:
    fcc = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
    single = crystal("fcc", ["Cu"], [[0, 0, 0]], 3.6 * fcc)
    cubic = crystal("cubic", ["Cu"], [[0.3, 0.3, 0.3]], 2.4)
    body = crystal("bcc", ["Cu"], [[0, 0, 0]], 2.9 * (np.ones((3, 3)) - 2 * np.eye(3)) / 2)
    zinc = crystal("zinc", ["Zn"], [[0, 0, 0]], 3.6 * fcc)
    pairs = list(combinations([single, cubic, body, zinc, distorted(single, 0, 0.02, 1)], 2))
    assert 1 <= agree(pairs, STRICT)[0] < len(pairs)
    assert 1 <= agree(pairs, LOOSE)[0] < len(pairs)


def test_decisions_next_to_a_tolerance_are_pymatgens() -> None:
    """One atom moved so that the displacement is the tolerance, and a little less or more."""
    rutile = crystal(
        "rutile",
        ["Ti", "Ti", "O", "O", "O", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.3, 0.3, 0], [0.7, 0.7, 0], [0.2, 0.8, 0.5], [0.8, 0.2, 0.5]],
        np.diag([4.6, 4.6, 2.96]),
    )
    length = (rutile.volume / 6) ** (1 / 3)
    decisions = []
    for factor in (0.9, 1 - 1e-9, 1 - 1e-13, 1.0, 1 + 1e-13, 1 + 1e-9, 1.1):
        coords = rutile.frac_coords.copy()
        coords[2, 2] += factor * STRICT.stol * length / 2.96 * 6 / 5  # the translation takes a sixth of it back
        decisions.append(agree([(replace(rutile, frac_coords=coords), rutile)], STRICT)[0])
    assert decisions[0] == 1
    assert decisions[-1] == 0
    for factor in (1.19, 1.2 - 1e-12, 1.2, 1.2 + 1e-12, 1.21):  # of one axis: the length tolerance
        cell = rutile.lattice * np.array([[1], [1], [factor]])
        agree([(replace(rutile, lattice=cell), rutile)], STRICT)


@pytest.mark.parametrize(
    "cell",
    [np.zeros((3, 3)), np.full((3, 3), np.nan), np.diag([5, 5, 1e-9]), np.diag([1e-3] * 3), np.diag([1e4] * 3)],
    ids=["zero", "nan", "flat", "tiny", "huge"],
)
def test_what_is_no_crystal_matches_as_in_pymatgen(cell: np.ndarray) -> None:
    good = crystal("good", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.0)
    bad = replace(good, lattice=cell)
    same = Sameness(STRICT)
    assert same(same.reduce(bad), same.reduce(good)) == (cell[0, 0] == 1e4)
    assert np.isnan(same.rms(same.reduce(bad), same.reduce(good))) == (cell[0, 0] != 1e4)


def test_other_atoms_have_no_placement() -> None:
    one = reduced(crystal("one", ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.0))
    for symbols in (["Na", "Na"], ["Na", "Cl", "Cl"]):
        other = reduced(crystal("other", symbols, [[0, 0, 0], [0.5, 0.5, 0.5], [0.2, 0, 0]][: len(symbols)], 4.0))
        assert not is_match(StructureMatcher(), one, other)
        assert displacement(StructureMatcher(), one, other) is None
