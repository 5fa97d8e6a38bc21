"""The learned distance."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dao_pipeline.config import LearnedDistance, Templates
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.templates.index import TemplateIndex
from dao_pipeline.templates.metric import fixed_metric
from tests.templates.test_index import caesium_chloride, numbers, rock_salt

LEARNED = LearnedDistance(steps=60, width=4, whole=2, least=10)
HALIDES = ("F", "Cl", "Br", "I")
HOSTS = ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "Ba")


def test_it_learns_what_decides_between_structure_types() -> None:
    """Here the anion alone decides, against what Mendeleev numbers say of the cations."""
    known = [
        (rock_salt if x in ("F", "Br") else caesium_chloride)(f"{a}{x}", a, x) for a, x in product(HOSTS, HALIDES)
    ]
    index = TemplateIndex.build(to_table(known), Templates(distance="learned", learned=LEARNED))
    right = 0
    for a, x in product(HOSTS, HALIDES):
        found = index.propose([numbers(a, x)], 1, exclude="composition")
        right += (found.template_id[0][-1] in ("F", "r")) == (x in ("F", "Br"))
    assert right >= 30  # of 32
    assert np.allclose(index.metric.cost, index.metric.cost.T)
    assert np.allclose(np.diagonal(index.metric.cost), 0)
    again = TemplateIndex.build(to_table(known), Templates(distance="learned", learned=LEARNED))
    assert np.array_equal(index.metric.cost, again.metric.cost)


def test_too_few_crystals_teach_nothing() -> None:
    known = [rock_salt("a", "Na", "Cl"), rock_salt("b", "K", "Cl"), caesium_chloride("c", "Cs", "I")]
    index = TemplateIndex.build(to_table(known), Templates(distance="learned"))
    assert index.metric.name == "mendeleev"


@pytest.mark.parametrize("name", ["mendeleev", "radii", "substitution"])
def test_fixed_distances_know_chemistry(name: str) -> None:
    cost = fixed_metric(name).cost  # type: ignore[arg-type]
    z = ATOMIC_NUMBERS
    assert np.isfinite(cost).all()
    assert np.allclose(cost, cost.T)
    assert np.allclose(np.diagonal(cost), 0)
    for near, far in [(("Na", "K"), ("Na", "Cl")), (("La", "Ce"), ("La", "O")), (("Cl", "Br"), ("Cl", "Mg"))]:
        assert cost[z[near[0]], z[near[1]]] < cost[z[far[0]], z[far[1]]]
