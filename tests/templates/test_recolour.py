"""Known structures with other numbers of elements: which patterns give which, orbits, and what is proposed."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest

from dao_pipeline.config import Templates
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.sources.files import read_crystals
from dao_pipeline.templates.index import TemplateIndex
from dao_pipeline.templates.patterns import slots_of
from dao_pipeline.templates.prints import site_prints, slot_prints
from dao_pipeline.templates.recolour import alike, merges, splits
from tests.make import crystal, shared_data

SETTINGS = Templates(distance="mendeleev")


def numbers(*symbols: str) -> np.ndarray:
    return np.array([ATOMIC_NUMBERS[s] for s in symbols])


def perovskite(name: str, a: str, b: str, x: str) -> Crystal:
    """Barium titanate's: a at the corners, b in the middle."""
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return crystal(name, [a, b, x, x, x], sites, 4.0)


@pytest.fixture(scope="module")
def one() -> TemplateIndex:
    return TemplateIndex.build(to_table([perovskite("BaTiO3", "Ba", "Ti", "O")]), SETTINGS)


@pytest.fixture(scope="module")
def real() -> TemplateIndex:
    """800 real crystals."""
    return TemplateIndex.build(read_crystals(shared_data("mp20/train_part.parquet"), limit=800).table, SETTINGS)


def test_which_patterns_give_which() -> None:
    nothing = np.zeros(0, np.int64)
    known = dict.fromkeys([(1, 1, 2), (4,), (1, 3), (2, 2), (1, 1, 1, 1)], nothing)
    assert set(merges((1, 3), known)) == {((1, 1, 2), 0, 2), ((1, 1, 2), 1, 2)}
    assert set(splits((1, 3), known)) == {((4,), 0, 1)}
    assert set(merges((2, 2), known)) == {((1, 1, 2), 0, 1)}
    assert set(splits((1, 1, 2), known)) == {((1, 3), 1, 1), ((2, 2), 0, 1), ((2, 2), 1, 1)}
    assert len(list(merges((1, 1, 2), known))) == 6


def test_sites_are_told_apart_by_what_is_around_them(real: TemplateIndex) -> None:
    slots = slots_of(real.flat)
    for pattern, rows in list(slots.groups().items())[:30]:
        elements = slots.elements[rows][:, : len(pattern)]
        sites = site_prints(real.flat, rows, elements, pattern)
        slot = (real.flat.numbers[real.flat.atoms_of(rows)][:, :, None] == elements[:, None]).argmax(2)
        for place in range(len(pattern)):
            mean = (sites * (slot == place)[:, :, None, None]).sum(1) / pattern[place]
            prints = slot_prints(real.flat, rows, elements, pattern)
            np.testing.assert_allclose(mean, prints[:, place, :, :10], atol=1e-5)


def test_equivalent_sites_are_alike_and_others_are_not() -> None:
    # the middles of a long cell's faces: two that are exchanged by a turn, one that stands apart
    sites = [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    flat = flatten(to_table([crystal("x", ["Au", "Cu", "Cu", "Cu"], sites, np.diag([3.0, 3.0, 4.0]))]))
    prints = site_prints(flat, np.array([0]), numbers("Au", "Cu")[None], (1, 3))[0]
    assert [found.tolist() for found in alike(np.array([1, 2, 3]), prints[1:])] == [[1], [2, 3]]


def test_one_element_takes_the_sites_of_two(one: TemplateIndex) -> None:
    found = one.propose([numbers("Ni", "Al", "Al", "Al", "Al")], 9)
    assert found.recoloured.all()
    assert not found.known.any()
    assert set(found.template_id) == {"BaTiO3"}
    cells = [found.crystals.numbers[a:b] for a, b in pairwise(found.crystals.ptr)]
    assert {int(np.flatnonzero(cell == 28)[0]) for cell in cells} <= {0, 1}  # the corners or the middle
    np.testing.assert_array_equal(found.crystals.frac[:5], one.flat.frac)


def test_two_elements_share_the_sites_of_one(one: TemplateIndex) -> None:
    found = one.propose([numbers("Ba", "Ti", "N", "O", "O")], 9)
    assert found.recoloured.all()
    first = found.crystal(0, "x").atomic_numbers
    assert first[:2].tolist() == numbers("Ba", "Ti").tolist()
    assert sorted(first[2:]) == sorted(numbers("N", "O", "O"))


def test_what_is_hypothetical_is_never_known(one: TemplateIndex) -> None:
    barium = numbers("Ba", "Ba", "Ba", "Ba", "Ti")  # what merging barium titanate gives
    for exclude in ("none", "composition"):
        found = one.propose([barium], 9, exclude=exclude)
        assert len(found) > 0
        assert not found.known.any()
        assert found.distance[0] == pytest.approx(0, abs=1e-6)


def test_recoloured_types_come_where_others_are_too_few(real: TemplateIndex) -> None:
    cells = [c.atomic_numbers for c in from_table(real.table.slice(0, 40))]
    plain = replace(real, recoloured=np.inf).propose(cells, 1000, exclude="composition")
    assert not plain.recoloured.any()
    found = real.propose(cells, 1000, exclude="composition")
    assert found.recoloured.any()
    own = found.select(~found.recoloured)
    assert own.template_id.tolist() == plain.template_id.tolist()
    assert (np.diff(found.probability)[np.diff(found.composition) == 0] <= 0).all()
    sums = np.bincount(found.composition, found.probability)
    assert np.allclose(sums[sums > 0], 1, atol=1e-3)


def test_asking_for_more_keeps_what_came_first(real: TemplateIndex) -> None:
    cells = [c.atomic_numbers for c in from_table(real.table.slice(0, 40))]
    few, many = (real.propose(cells, k, exclude="composition") for k in (3, 20))
    first = many.select(many.rank < 3)
    assert few.recoloured.any()
    assert few.template_id.tolist() == first.template_id.tolist()
    np.testing.assert_array_equal(few.crystals.numbers, first.crystals.numbers)


def test_recoloured_types_are_not_among_the_others(real: TemplateIndex) -> None:
    cells = [c.atomic_numbers for c in from_table(real.table.slice(0, 40)) if c.num_atoms < 12]
    found = real.propose(cells, 30, exclude="composition")
    slots = slots_of(found.crystals)
    same = other = 0
    for pattern, rows in slots.groups().items():
        prints = slot_prints(found.crystals, rows, slots.elements[rows][:, : len(pattern)], pattern)
        for i, j in combinations(range(len(rows)), 2):
            a, b = rows[i], rows[j]
            if found.composition[a] == found.composition[b] and found.recoloured[a] and not found.recoloured[b]:
                other += 1
                same += bool(np.sqrt(((prints[i] - prints[j]) ** 2).mean()) < SETTINGS.same_type)
    assert other > 50
    assert same < 0.02 * other


def test_banned_templates_are_not_recoloured(one: TemplateIndex) -> None:
    assert len(one.propose([numbers("Ni", "Al", "Al", "Al", "Al")], 9, banned=np.ones(1, bool))) == 0
