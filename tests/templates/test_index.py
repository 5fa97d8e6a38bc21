"""The index: best assignments, different types, exclusion, known crystals, supercells, files."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from dao_pipeline.config import Matcher, Templates
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, COVALENT_RADIUS, MENDELEEV
from dao_pipeline.crystals.geometry import volumes
from dao_pipeline.errors import UserError
from dao_pipeline.evaluation.matching import match_target
from dao_pipeline.sources.files import read_crystals
from dao_pipeline.templates.buckets import Bucket, Choices
from dao_pipeline.templates.files import load, save
from dao_pipeline.templates.index import TemplateIndex
from dao_pipeline.templates.metric import Metric
from dao_pipeline.templates.patterns import assignments
from tests.make import crystal, shared_data

SETTINGS = Templates(distance="mendeleev")


def numbers(*symbols: str) -> np.ndarray:
    return np.array([ATOMIC_NUMBERS[s] for s in symbols])


def caesium_chloride(name: str, a: str, b: str, **extra: float) -> Crystal:
    return crystal(name, [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.0, **extra)


def rock_salt(name: str, a: str, b: str, **extra: float) -> Crystal:
    return crystal(name, [a, b], [[0, 0, 0], [0.5, 0.5, 0.5]], 3.5 * (1 - np.eye(3)), **extra)


def perovskite(name: str, a: str, b: str, x: str, **extra: float) -> Crystal:
    """Barium titanate's: a at the corners, b in the middle."""
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return crystal(name, [a, b, x, x, x], sites, 4.0, **extra)


def index_of(*crystals: Crystal, **settings: object) -> TemplateIndex:
    return TemplateIndex.build(to_table(crystals), SETTINGS.model_copy(update=settings))


@pytest.fixture(scope="module")
def real() -> TemplateIndex:
    """1,500 real crystals."""
    return TemplateIndex.build(read_crystals(shared_data("mp20/train_part.parquet"), limit=1500).table, SETTINGS)


def test_the_assignment_of_elements_is_the_best_of_all(real: TemplateIndex) -> None:
    rng = np.random.default_rng(0)
    number = np.asarray(MENDELEEV)
    patterns = [p for p in real.buckets if len(p) > 1 and len(real.buckets[p].rows) > 3]
    for pattern in [patterns[i] for i in rng.permutation(len(patterns))[:25]]:
        bucket = real.buckets[pattern]
        target = rng.choice(np.arange(3, 84), len(pattern), replace=False)
        template, *_ = bucket.entries
        distance = bucket.distances(target[None], real.metric)[0]
        for t in rng.permutation(len(bucket.rows))[:4]:
            counts = np.array(pattern)
            ways = [p for p in permutations(range(len(pattern))) if (counts[list(p)] == counts).all()]
            cost = [
                np.abs(number[target[list(way)]] - number[bucket.elements[t]]) @ np.array(pattern) / sum(pattern)
                for way in ways
            ]
            assert distance[template == t].min() == pytest.approx(min(cost), rel=1e-5)


@pytest.mark.parametrize("own_composition", [False, True])
def test_votes_are_those_of_every_template_counted_one_by_one(real: TemplateIndex, own_composition: bool) -> None:
    rng = np.random.default_rng(1)
    metric = replace(real.metric, whole=rng.normal(size=(119, 3)), width=3.0)
    patterns = [p for p in real.buckets if 1 < len(p) < 5 and len(real.buckets[p].rows) > 5]
    for pattern in [patterns[i] for i in rng.permutation(len(patterns))[:8]]:
        bucket = replace(real.buckets[pattern], weight=rng.normal(size=len(real.buckets[pattern].rows)))
        banned = rng.random(len(bucket.rows)) < 0.2
        target = bucket.sorted_slots()[rng.integers(len(bucket.rows))]
        found = bucket.choose(target[None], 10**6, metric, banned, own_composition)
        votes = plain_votes(bucket, target, metric, banned, own_composition)
        assert set(votes) == {(label, bucket.classes[t, w]) for label, t, w in zip(*options(found), strict=True)}
        for i, (label, t, w) in enumerate(zip(*options(found), strict=True)):
            own = votes[label, bucket.classes[t, w]]
            best = max(own)
            assert max(v for v, *chosen in own if chosen == [t, w]) == pytest.approx(best[0], abs=1e-5)
            assert found.score[i] == pytest.approx(np.logaddexp.reduce([v for v, *_ in own]), abs=1e-4)
            assert found.votes[i] == len({t for _, t, _ in own})
            assert found.known[i] == (best[0] > 50)
            share = np.exp([v - best[0] for v, *_ in own])
            mean = (share * bucket.log_volume[[t for _, t, _ in own]]).sum() / share.sum()
            assert found.log_volume[i] == pytest.approx(mean, abs=1e-4)
        assert (np.diff(found.score) <= 0).all()
        others = [v for own in votes.values() if max(own)[0] < 50 for v, *_ in own]
        assert found.total == pytest.approx(np.logaddexp.reduce(others), abs=1e-4)


def options(found: Choices) -> tuple[list[int], list[int], list[int]]:
    return found.label.tolist(), found.template.tolist(), found.way.tolist()


def plain_votes(
    bucket: Bucket, target: np.ndarray, metric: Metric, banned: np.ndarray, own_composition: bool
) -> dict[tuple[int, int], list[tuple[float, int, int]]]:
    """Votes, templates and assignments of every option."""
    share, weights = np.array(bucket.pattern) / sum(bucket.pattern), metric.weights(bucket.pattern)
    votes: dict[tuple[int, int], list[tuple[float, int, int]]] = {}
    for t in np.flatnonzero(~banned).tolist():
        same = np.array_equal(bucket.sorted_slots()[t], target)
        for w, way in enumerate(assignments(bucket.pattern)):
            new, old = target[way], bucket.elements[t]
            whole = share @ (metric.whole[new] - metric.whole[old])
            vote = bucket.weight[t] - (weights @ metric.cost[new, old] + whole @ whole) / metric.width
            if same and own_composition and (new == old).all():
                vote = 100 - np.nan_to_num(bucket.stability[t], nan=1.0)
            elif same and not own_composition:
                continue
            votes.setdefault((int(bucket.label[t]), int(bucket.classes[t, w])), []).append((vote, t, w))
    return votes


def test_elements_go_where_their_like_are() -> None:
    index = index_of(perovskite("BaTiO3", "Ba", "Ti", "O"))
    found = index.propose([numbers("O", "O", "O", "Zr", "Sr")], 2)
    assert len(found) == 2  # the other way round is another crystal
    assert found.votes.tolist() == [1, 1]
    assert found.crystal(0, "x").atomic_numbers.tolist() == numbers("Sr", "Zr", "O", "O", "O").tolist()
    assert found.crystal(1, "x").atomic_numbers.tolist() == numbers("Zr", "Sr", "O", "O", "O").tolist()
    assert found.distance[0] < found.distance[1]
    assert found.probability.sum() == pytest.approx(1)
    assert found.probability[0] > 0.9


def test_places_that_a_symmetry_exchanges_give_one_proposal() -> None:
    found = index_of(caesium_chloride("KBr", "K", "Br")).propose([numbers("Na", "Cl")], 5)
    assert len(found) == 1


def test_proposals_are_different_types_and_the_vote_decides() -> None:
    index = index_of(
        rock_salt("near", "K", "Cl"),
        *(caesium_chloride(f"c{i}", a, b) for i, (a, b) in enumerate([("Rb", "Cl"), ("Cs", "Cl"), ("Li", "Cl")])),
    )
    target = [numbers("Na", "Cl")]
    found = index.propose(target, 5)
    assert found.rank.tolist() == [0, 1]
    assert len(set(found.structure_type.tolist())) == 2
    votes = dict(zip(found.template_id.tolist(), found.votes.tolist(), strict=True))
    assert votes["near"] == 1
    assert sorted(votes.values()) == [1, 3]
    wide = replace(index, metric=replace(index.metric, width=1000.0)).propose(target, 5)
    assert wide.votes.tolist() == [3, 1]
    assert wide.probability[0] == pytest.approx(0.75, abs=0.01)


def test_collapsed_proposals_of_real_crystals_do_not_match_each_other(real: TemplateIndex) -> None:
    cells = [c.atomic_numbers for c in from_table(real.table.slice(0, 150)) if c.num_atoms < 10]
    found = real.propose(cells, 3, exclude="composition")
    pairs = [(i, i + 1) for i in range(len(found) - 1) if found.composition[i] == found.composition[i + 1]]
    rng = np.random.default_rng(0)
    matcher = Matcher(ltol=0.2, stol=0.2, angle_tol=5)
    same = [
        match_target(found.crystal(a, "a"), [found.crystal(b, "b")], matcher)[0].rmse is not None
        for a, b in [pairs[i] for i in rng.permutation(len(pairs))[:40]]
    ]
    assert np.mean(same) < 0.2


def test_types_do_not_depend_on_the_cell_or_the_elements() -> None:
    turned = rock_salt("turned", "Li", "F")
    change = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    turned = replace(
        turned, lattice=change @ turned.lattice, frac_coords=turned.frac_coords @ np.linalg.inv(change) % 1
    )
    index = index_of(rock_salt("a", "Na", "Cl"), turned, caesium_chloride("b", "Cs", "Cl"))
    assert index.label[0] == index.label[1] != index.label[2]


def test_own_compositions_and_whatever_is_banned_are_left_out() -> None:
    index = index_of(rock_salt("own", "Na", "Cl"), caesium_chloride("KBr", "K", "Br"), rock_salt("LiF", "Li", "F"))
    target = [numbers("Cl", "Na")]
    assert set(index.propose(target, 5, exclude="composition").template_id) == {"KBr", "LiF"}
    assert not index.propose(target, 5, exclude="composition").known.any()
    banned = index.rows_of(["LiF", "KF"])
    assert banned.tolist() == [False, False, True]
    assert set(index.propose(target, 5, exclude="composition", banned=banned).template_id) == {"KBr"}
    assert len(index.propose(target, 5, banned=np.ones(3, bool))) == 0


def test_own_compositions_in_larger_cells_are_left_out_too() -> None:
    index = index_of(rock_salt("own", "Na", "Cl"), caesium_chloride("KBr", "K", "Br"))
    target = [numbers("Na", "Na", "Cl", "Cl")]
    assert index.propose(target, 5, exclude="composition").template_id.tolist() == ["KBr"]
    assert index.propose(target, 5).template_id.tolist() == ["own", "KBr"]


def test_known_crystals_come_first_unchanged_and_the_stable_one_before_the_other() -> None:
    index = index_of(
        *(caesium_chloride(f"many{i}", a, "Br") for i, a in enumerate(("K", "Rb", "Cs", "Li"))),
        caesium_chloride("own, unstable", "Na", "Cl", e_above_hull=0.1),
        rock_salt("own", "Na", "Cl", e_above_hull=0.0),
    )
    found = index.propose([numbers("Na", "Cl"), numbers("Ag", "Cl")], 5)
    first = found.select(found.composition == 0)
    assert first.template_id.tolist() == ["own", "own, unstable"]
    assert first.known.tolist() == [True, True]
    assert first.distance.tolist() == [0, 0]
    assert first.probability.tolist() == [1, 1]
    assert not found.known[found.composition == 1].any()
    np.testing.assert_allclose(volumes(first.crystals.lattice), [volumes(index.flat.lattice)[5], 64.0])


def test_doubled_cells_are_supercells_of_the_same_crystal() -> None:
    index = index_of(rock_salt("KBr", "K", "Br"), perovskite("BaTiO3", "Ba", "Ti", "O"))
    single, double, triple = (numbers(*(["Na"] * n + ["Cl"] * n)) for n in (1, 2, 3))
    found = index.propose([single, double, triple, numbers("H", "H", "O")], 3)
    assert found.composition.tolist() == [0, 1, 2]
    assert found.multiple.tolist() == [1, 2, 3]
    assert found.crystals.counts.tolist() == [2, 4, 6]
    made = [found.crystal(i, str(i)) for i in range(3)]
    assert all(m.rmse == pytest.approx(0, abs=1e-4) for m in match_target(made[0], made[1:], Matcher()))


def test_templates_in_conventional_cells_serve_primitive_ones() -> None:
    flat = rock_salt("x", "K", "Br")
    double = np.concatenate([flat.frac_coords, flat.frac_coords + np.array([1, 0, 0])]) / [2, 1, 1]
    cell = flat.lattice * np.array([[2], [1], [1]])
    index = index_of(crystal("double", ["K", "Br"] * 2, double, cell))
    assert index.flat.counts.tolist() == [2]
    assert index.propose([numbers("Na", "Cl")], 1).template_id.tolist() == ["double"]


def test_the_volume_follows_the_elements() -> None:
    edges = {a: 1.25 * (COVALENT_RADIUS[ATOMIC_NUMBERS[a]] + 1.2) for a in ("Li", "Na", "K", "Rb", "Cs")}
    known = [crystal(a, [a, "Br"], [[0, 0, 0], [0.5, 0.5, 0.5]], edge) for a, edge in edges.items()]
    found = index_of(*known).propose([numbers("K", "Br")], 1, exclude="composition")
    assert volumes(found.crystals.lattice)[0] == pytest.approx(edges["K"] ** 3, rel=0.25)


def test_one_composition_gets_the_same_proposals_in_any_company(real: TemplateIndex) -> None:
    cells = [c.atomic_numbers for c in from_table(real.table.slice(0, 60))]
    together = real.propose(cells, 4)
    for i in (0, 17, 59):
        alone = real.propose([cells[i]], 4)
        mine = together.select(together.composition == i)
        assert alone.template_id.tolist() == mine.template_id.tolist()
        np.testing.assert_allclose(alone.crystals.lattice, mine.crystals.lattice)
    counts = [np.unique(c, return_counts=True) for c in cells]
    ptr = together.crystals.ptr
    for i, composition in enumerate(together.composition):
        own = np.unique(together.crystals.numbers[ptr[i] : ptr[i + 1]], return_counts=True)
        assert all(np.array_equal(a, b) for a, b in zip(own, counts[composition], strict=True))


def test_nothing_asked_and_nothing_known() -> None:
    index = index_of(rock_salt("KBr", "K", "Br"))
    assert len(index.propose([], 5)) == 0
    assert len(index.propose([numbers("H", "H", "O")], 5)) == 0
    assert len(TemplateIndex.build(to_table([]), SETTINGS).propose([numbers("Na", "Cl")], 5)) == 0


def test_a_saved_index_proposes_the_same(real: TemplateIndex, tmp_path: Path) -> None:
    save(real, tmp_path / "index", {"stage": "test"})
    again = load(tmp_path / "index")
    cells = [c.atomic_numbers for c in from_table(real.table.slice(100, 40))]
    first, second = real.propose(cells, 5), again.propose(cells, 5)
    assert first.template_id.tolist() == second.template_id.tolist()
    np.testing.assert_array_equal(first.probability, second.probability)
    np.testing.assert_array_equal(first.crystals.frac, second.crystals.frac)
    np.testing.assert_array_equal(first.crystals.lattice, second.crystals.lattice)


def test_half_an_index_is_refused(tmp_path: Path) -> None:
    index = index_of(rock_salt("KBr", "K", "Br"))
    save(index, tmp_path, {})
    (tmp_path / "index.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="Build it again"):
        load(tmp_path)
    save(index, tmp_path, {})
    (tmp_path / "index.json").unlink()
    with pytest.raises(UserError, match="Build it again"):
        load(tmp_path)
    save(index, tmp_path, {})
    other = index_of(rock_salt("KBr", "K", "Br"), rock_salt("KCl", "K", "Cl"))
    save(other, tmp_path / "other", {})
    (tmp_path / "other" / "templates.parquet").replace(tmp_path / "templates.parquet")
    with pytest.raises(UserError, match="do not belong together"):
        load(tmp_path)
