"""The two baselines: valid compositions, sensible cells, nearest templates."""

from __future__ import annotations

import numpy as np
import pytest

from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, COVALENT_RADIUS, MENDELEEV
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import cell_parameters, shortest_distances, volumes
from dao_pipeline.evaluation.baselines import random_crystals, random_lattice
from dao_pipeline.evaluation.substitution import plain_index, substitutions
from tests.make import crystal

VOLUMES = 10.0 + np.arange(101)


def numbers(*symbols: str) -> np.ndarray:
    return np.array([ATOMIC_NUMBERS[s] for s in symbols])


def cubic(name: str, a: str, b: str, edge: float = 4.0, **extra: float) -> Crystal:
    """Caesium chloride type."""
    return crystal(name, [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]], edge, **extra)


def rock_salt(name: str, a: str, b: str, **extra: float) -> Crystal:
    return crystal(name, [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]], 3.5 * (1 - np.eye(3)), **extra)


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


def test_the_nearest_template_by_mendeleev_number_is_first() -> None:
    table = to_table(
        [
            cubic("far", "Fe", "Al"),
            cubic("near", "K", "Br"),
            cubic("same", "Na", "Cl"),
            rock_salt("other type", "Rb", "I"),
            perovskite("other pattern", "Ba", "Ti", "O"),
        ]
    )
    target = cubic("t", "Cl", "Na")
    (made,) = substitutions(plain_index(table), [target], 10)
    assert [m.template_id for m in made] == ["near", "other type"]
    assert made[0].distance == pytest.approx(
        (abs(MENDELEEV[19] - MENDELEEV[11]) + abs(MENDELEEV[35] - MENDELEEV[17])) / 2
    )
    assert {m.crystal.formula for m in made} == {target.formula}
    assert [m.crystal.id for m in made] == ["substitution:t:0", "substitution:t:1"]
    assert substitutions(plain_index(table), [crystal("h", ["H"], [[0, 0, 0]], 3.0)], 5) == [[]]


def test_many_templates_of_one_type_do_not_outvote_the_nearest() -> None:
    many = [cubic(f"many {i}", x, "I") for i, x in enumerate(("Li", "K", "Rb", "Cs"))]
    table = to_table([*many, rock_salt("near", "Na", "Br")])
    (made,) = substitutions(plain_index(table), [cubic("t", "Na", "Cl")], 2)
    assert made[0].template_id == "near"


def test_supercells_come_last_however_near() -> None:
    chain = [[0, 0, 0], [0.4, 0.1, 0], [0.2, 0.5, 0.5], [0.75, 0.5, 0.45]]
    known = [cubic("near", "K", "Cl"), crystal("far", ["Fe", "Fe", "Al", "Al"], chain, 5.0)]
    target = crystal("t", ["Na", "Na", "Cl", "Cl"], chain, 5.0)
    (made,) = substitutions(plain_index(to_table(known)), [target], 5)
    assert [m.template_id for m in made] == ["far", "near"]


def test_of_equally_near_templates_the_stable_one_is_taken() -> None:
    table = to_table([rock_salt("a", "K", "Br", e_above_hull=0.2), cubic("b", "K", "Br", e_above_hull=0.0)])
    (made,) = substitutions(plain_index(table), [cubic("t", "Na", "Cl")], 5)
    assert [m.template_id for m in made] == ["b", "a"]
