"""The two baselines: valid compositions, sensible cells, nearest templates."""

from __future__ import annotations

import numpy as np
import pytest

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal, reduced_formula, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, COVALENT_RADIUS, MENDELEEV
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import cell_parameters, shortest_distances, volumes
from dao_pipeline.evaluation.baselines import random_crystals, random_lattice
from dao_pipeline.evaluation.templates import Template, Templates, slots, substitute, substituted
from tests.make import crystal

VOLUMES = 10.0 + np.arange(101)
STRICT = Matcher(ltol=0.2, stol=0.3, angle_tol=5)


def numbers(*symbols: str) -> np.ndarray:
    return np.array([ATOMIC_NUMBERS[s] for s in symbols])


def cubic(name: str, a: str, b: str, edge: float = 4.0, **extra: float) -> Crystal:
    """Caesium chloride type."""
    return crystal(name, [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]], edge, **extra)


def perovskite(name: str, a: str, b: str, x: str) -> Crystal:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return crystal(name, [a, b, x, x, x], sites, 4.0)


def test_random_crystals_are_sensible_and_reproducible() -> None:
    wanted = numbers("Sr", "Ti", "O", "O", "O")
    made = random_crystals("t", wanted, VOLUMES, 50, seed=1)
    flat = flatten(to_table(made))
    assert all((c.atomic_numbers == wanted).all() for c in made)
    assert len({c.id for c in made}) == 50
    ratio = volumes(flat.lattice) / VOLUMES[wanted].sum()
    assert 0.6 < ratio.min() < ratio.max() < 1.6
    assert (shortest_distances(flat) > 0.8).all()
    again = random_crystals("t", wanted, VOLUMES, 10, seed=1)
    for a, b in zip(made, again, strict=False):
        assert np.array_equal(a.frac_coords, b.frac_coords)
        assert np.array_equal(a.lattice, b.lattice)
    other = [random_crystals("t", wanted, VOLUMES, 1, seed=2), random_crystals("u", wanted, VOLUMES, 1, seed=1)]
    assert all(not np.array_equal(made[0].lattice, o[0].lattice) for o in other)


def test_random_cells_have_the_volume_asked_for_and_are_not_flat() -> None:
    rng = np.random.default_rng(0)
    cells = np.array([random_lattice(80.0, rng) for _ in range(200)])
    assert volumes(cells) == pytest.approx(np.full(200, 80.0))
    parameters = cell_parameters(cells)
    assert (parameters[:, :3].max(1) / parameters[:, :3].min(1) < np.e + 1e-9).all()
    assert ((parameters[:, 3:] > 60 - 1e-9) & (parameters[:, 3:] < 120 + 1e-9)).all()


def test_crowded_cells_still_get_their_atoms() -> None:
    wanted = numbers(*["Cs"] * 30)
    made = random_crystals("t", wanted, np.full(101, 3.0), 2, seed=0)
    assert all(len(np.unique(c.frac_coords, axis=0)) == 30 for c in made)
    assert COVALENT_RADIUS[55] > 2


def test_slots_pair_elements_of_equal_count_by_mendeleev_number() -> None:
    pattern, elements = slots(numbers("O", "O", "O", "Ti", "Sr"))
    assert pattern == (1, 1, 3)
    assert elements.tolist() == numbers("Sr", "Ti", "O").tolist()
    assert MENDELEEV[38] < MENDELEEV[22] < MENDELEEV[8]


def test_sorted_pairing_is_the_best_assignment() -> None:
    from itertools import permutations

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (rng.choice(np.arange(1, 90), 4, replace=False) for _ in range(2))
        best = min(
            sum(abs(MENDELEEV[x] - MENDELEEV[y]) for x, y in zip(a, p, strict=True)) for p in permutations(b)
        )
        pairs = zip(slots(a)[1], slots(b)[1], strict=True)
        assert sum(abs(MENDELEEV[x] - MENDELEEV[y]) for x, y in pairs) == best


def test_nearest_template_has_the_pattern_and_similar_elements() -> None:
    table = to_table(
        [
            cubic("far", "Fe", "Al"),
            cubic("near", "K", "Br"),
            cubic("same", "Na", "Cl"),
            crystal("double", ["K", "K", "Cl", "Cl"], np.eye(4)[:, :3] * 0.5, 6.0),
            perovskite("other", "Ba", "Ti", "O"),
        ]
    )
    templates = Templates.build(table, VOLUMES)
    found = templates.nearest(numbers("Cl", "Na"), 10)
    assert [t.crystal.id for t in found] == ["near", "far"]
    assert found[0].replacement == {19: 11, 35: 17}
    assert found[0].distance == pytest.approx(
        (abs(MENDELEEV[19] - MENDELEEV[11]) + abs(MENDELEEV[35] - MENDELEEV[17])) / 2
    )
    assert [t.crystal.id for t in templates.nearest(numbers("Na", "Cl"), 1)] == ["near"]
    assert templates.nearest(numbers("H"), 5) == []


def test_of_equally_near_templates_the_stable_one_is_first() -> None:
    table = to_table([cubic("a", "K", "Br", e_above_hull=0.2), cubic("b", "K", "Br", e_above_hull=0.0)])
    found = Templates.build(table, VOLUMES).nearest(numbers("Na", "Cl"), 5)
    assert [t.crystal.id for t in found] == ["b", "a"]


def test_substitution_swaps_elements_and_scales_the_volume() -> None:
    made = substituted(Template(cubic("x", "K", "Br"), {19: 11, 35: 17}, 1.0), "new", VOLUMES)
    assert made.atomic_numbers.tolist() == [11, 17]
    assert made.volume == pytest.approx(64.0 * (VOLUMES[11] + VOLUMES[17]) / (VOLUMES[19] + VOLUMES[35]))
    assert np.array_equal(made.frac_coords, [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_substitutions_are_different_crystals_of_the_target_composition() -> None:
    rocksalt = crystal("rs", ["Rb", "I"], [[0, 0, 0], [0.5, 0.5, 0.5]], 3.5 * (1 - np.eye(3)))
    table = to_table([cubic("a", "K", "Br"), cubic("b", "K", "F", 3.0), rocksalt, cubic("d", "Cs", "I")])
    templates = Templates.build(table, VOLUMES)
    wanted = numbers("Na", "Cl")
    made = substitute("t", templates.nearest(wanted, 10), VOLUMES, 5, STRICT, 0.1)
    assert len(made) == 2  # all caesium chloride types become the same crystal
    assert {m.crystal.formula for m in made} == {reduced_formula(wanted)}
    assert [m.distance for m in made] == sorted(m.distance for m in made)
    assert made[0].template_id in {"a", "b"}
    assert made[1].template_id == "rs"
    assert len(substitute("t", templates.nearest(wanted, 10), VOLUMES, 1, STRICT, 0.1)) == 1
