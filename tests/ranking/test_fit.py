"""Probabilities: sums, permutations, calibration, learning, and what must not be learned from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from dao_pipeline.config import Ranking
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.table import write_table
from dao_pipeline.crystals.volume import fit_element_volumes
from dao_pipeline.errors import UserError
from dao_pipeline.ranking.examples import STRUCTURE
from dao_pipeline.ranking.features import FEATURES, Features, describe
from dao_pipeline.ranking.files import TrainedRanker, kept_columns, load_ranker, save_ranker
from dao_pipeline.ranking.fit import Labelled, calibrate, fit_ranker
from dao_pipeline.ranking.known import KnownTypes
from dao_pipeline.ranking.model import Groups, Ranker, likelihood
from dao_pipeline.ranking.pool import pool
from dao_pipeline.ranking.structure_type import structure_types
from dao_pipeline.ranking.train import ground_states, without_shared
from dao_pipeline.ranking.votes import VoteData, Votes, fit_votes
from tests.make import crystal
from tests.ranking.test_known import caesium_chloride, perovskite

SHARE = FEATURES.index("log_share")
CLOSEST = FEATURES.index("closest")


def synthetic(groups: int, seed: int, slope: float = 0.0) -> tuple[Features, np.ndarray, np.ndarray]:
    """Features whose true log odds are log_share + slope * closest, with one draw of what is the case.

    Returns the features, (rows,) whether each candidate is right, and (rows,) its true probability.
    """
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 7, groups)
    group = np.repeat(np.arange(groups), sizes)
    values = random.normal(size=(len(group), len(FEATURES)))
    values[:, SHARE] = random.normal(0, 1.5, len(group))
    none = random.normal(0, 1, groups)
    weight = np.exp(values[:, SHARE] + slope * values[:, CLOSEST])
    total = np.bincount(group, weight, groups) + np.exp(none)
    probability = weight / total[group]
    hit = np.zeros(len(group), dtype=bool)
    for g in range(groups):
        rows = np.flatnonzero(group == g)
        drawn = random.choice(len(rows) + 1, p=[*probability[rows], np.exp(none[g]) / total[g]])
        if drawn < len(rows):
            hit[rows[drawn]] = True
    energy = np.where(hit, 0.0, random.exponential(0.1, len(group)))
    features = Features(
        group=torch.from_numpy(group),
        values=torch.from_numpy(values).float(),
        none=torch.from_numpy(none).float(),
        energy=torch.from_numpy(energy).float(),
        rows=np.arange(len(group)),
    )
    return features, hit, probability


def labelled(features: Features, hit: np.ndarray) -> Labelled:
    return Labelled.of(Groups.of(features), hit)


def calibration_error(probability: np.ndarray, hit: np.ndarray) -> float:
    """Expected calibration error over ten bins."""
    where = np.minimum((probability * 10).astype(int), 9)
    gaps = [abs(probability[where == b].mean() - hit[where == b].mean()) * (where == b).mean() for b in set(where)]
    return float(sum(gaps))


def test_probabilities_of_a_composition_sum_to_at_most_one() -> None:
    features, _, _ = synthetic(50, 1)
    ranker = Ranker(8)
    assert ranker.head is not None
    torch.nn.init.normal_(ranker.head[-1].weight)
    found = ranker.probabilities(features)
    total = np.bincount(features.group.numpy(), found)
    assert (found >= 0).all()
    assert (total < 1).all()
    log_probability = ranker(Groups.of(features))
    assert torch.allclose(log_probability.exp().sum(1), torch.ones(50), atol=1e-5)


def test_calibration_finds_the_temperature_that_was_hidden() -> None:
    features, hit, probability = synthetic(3000, 2)
    features.values[:, SHARE] *= 2.0  # overconfident: true temperature 2
    overconfident = Features(
        group=features.group,
        values=features.values,
        none=features.none * 2.0,
        energy=features.energy,
        rows=features.rows,
    )
    ranker = Ranker(8)
    before = calibration_error(ranker.probabilities(overconfident), hit)
    calibrate(ranker, labelled(overconfident, hit), energy=False)
    found = ranker.probabilities(overconfident)
    assert float(ranker.log_temperature.detach().exp()) == pytest.approx(2.0, rel=0.1)
    assert calibration_error(found, hit) < 0.02 < before
    assert np.abs(found - probability).mean() < 0.02


def test_known_probabilities_are_learned_with_their_features() -> None:
    train, val, held = (synthetic(n, seed, slope=1.0) for n, seed in ((2000, 3), (600, 4), (1500, 5)))
    ranker, records = fit_ranker(labelled(*train[:2]), labelled(*val[:2]), seed=0, without=["energy"])
    found = ranker.probabilities(held[0])
    assert np.abs(found - held[2]).mean() < 0.05
    assert calibration_error(found, held[1]) < 0.03
    assert min(r["stop"] for r in records) < records[0]["stop"]
    blind, _ = fit_ranker(labelled(*train[:2]), labelled(*val[:2]), seed=0, without=["closest", "energy"])
    data = labelled(*held[:2])
    with torch.no_grad():
        assert (
            likelihood(ranker(data.groups), data.hit).mean()
            > likelihood(blind(data.groups), data.hit).mean() + 0.05
        )


def test_an_energy_that_tells_gets_weight_and_one_that_does_not_gets_none() -> None:
    features, hit, _ = synthetic(800, 6)
    data = labelled(features, hit)
    ranker = Ranker(8)
    calibrate(ranker, data)
    assert float(ranker.energy_weight.detach()) > 5
    noise = torch.from_numpy(np.random.default_rng(0).exponential(0.1, len(hit))).float()
    useless = Features(
        group=features.group, values=features.values, none=features.none, energy=noise, rows=features.rows
    )
    ranker = Ranker(8)
    calibrate(ranker, labelled(useless, hit))
    assert float(ranker.energy_weight.detach()) < 1


def test_pooled_probabilities_add_up_and_variants_come_last() -> None:
    mass = [0.1, 0.3, 0.25, 0.2]
    order = pool(mass, lambda a, b: {a, b} == {2, 3})
    assert [i for i, _ in order] == [2, 1, 0, 3]
    assert order[0][1] == pytest.approx(0.45)
    assert order[-1][1] is None
    assert sum(p for _, p in order if p is not None) == pytest.approx(sum(mass))


# On crystals


KNOWN = [
    *(
        perovskite(a, b, x)
        for a, b, x in (("Sr", "Ti", "O"), ("Ba", "Ti", "O"), ("Ca", "Zr", "O"), ("K", "Mg", "F"))
    ),
    *(caesium_chloride(a, b) for a, b in (("Cs", "Cl"), ("Cs", "Br"), ("Rb", "I"))),
]


@pytest.fixture(scope="module")
def trained() -> TrainedRanker:
    table = to_table(KNOWN)
    described = structure_types(KNOWN, 0.1)
    known = KnownTypes.build(table, described)
    torch.manual_seed(0)
    ranker = Ranker(8)
    assert ranker.head is not None
    torch.nn.init.normal_(ranker.head[-1].weight)
    return TrainedRanker(
        settings=Ranking(enabled=True, hidden=8, suggestions=16),
        symprec=0.1,
        table=kept_columns(table),
        described=described,
        known=known,
        votes=Votes().eval(),
        ranker=ranker.eval(),
        element_volumes=fit_element_volumes(table),
        energy_model="0",
        history=[{"stage": "train_ranker", "campaign": "t", "held_out": None}],
    )


def candidates() -> pa.Table:
    made: list[Crystal] = [
        perovskite("Sr", "Zr", "O"),
        perovskite("Zr", "Sr", "O"),
        crystal("odd", ["Sr", "Zr", "O", "O", "O"], np.random.default_rng(0).random((5, 3)).tolist(), 4.4),
        caesium_chloride("K", "Cl"),
        crystal("rock", ["K", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]], [[0, 3, 3], [3, 0, 3], [3, 3, 0]]),
    ]
    table = to_table(made).select([*STRUCTURE, "num_atoms"])
    return table.append_column("energy_pred", pa.array([-1.0, -0.9, None, -0.5, -0.6]))


NAMES = ["SrZrO3", "SrZrO3", "SrZrO3", "KCl", "KCl"]


def test_the_order_of_siblings_and_other_compositions_do_not_matter(trained: TrainedRanker) -> None:
    table = candidates()
    found = trained.probabilities(table, NAMES)
    assert (found > 0).all()
    assert found[:3].sum() < 1
    assert found[3:].sum() < 1
    order = np.array([4, 2, 0, 3, 1])
    assert trained.probabilities(table.take(pa.array(order)), [NAMES[i] for i in order]) == pytest.approx(
        found[order]
    )
    assert trained.probabilities(table.slice(3), NAMES[3:]) == pytest.approx(found[3:], rel=1e-5)
    assert trained.probabilities(table.slice(0, 0), []).shape == (0,)


def test_a_saved_ranker_says_the_same(trained: TrainedRanker, tmp_path: Path) -> None:
    save_ranker(trained, tmp_path / "ranker", {})
    again = load_ranker(tmp_path / "ranker")
    assert again.probabilities(candidates(), NAMES) == pytest.approx(trained.probabilities(candidates(), NAMES))
    assert again.history == trained.history
    (tmp_path / "ranker" / "known.parquet").write_bytes(b"else")
    with pytest.raises(UserError, match=r"known\.parquet is not the file"):
        load_ranker(tmp_path / "ranker")
    with pytest.raises(UserError, match="not a sound ranker"):
        load_ranker(tmp_path / "nowhere")


def test_votes_learn_which_type_goes_with_which_elements(trained: TrainedRanker) -> None:
    """Two types of the same stoichiometry, told apart by their anion: oxides one, sulfides the other."""
    rutile = [[0, 0, 0], [0.5, 0.5, 0.5]]
    made = []
    for i, metal in enumerate(("Ti", "Zr", "Hf", "Sn", "Ge", "Pb", "Mo", "W", "Nb", "Ta")):
        anion, lattice = ("O", 3.0) if i % 2 else ("Br", [[0, 3, 3], [3, 0, 3], [3, 3, 0]])
        made.append(crystal(f"{metal}{anion}", [metal, anion], rutile, lattice))
    table = to_table(made)
    described = structure_types(made, 0.1)
    known = KnownTypes.build(table, described)
    kind = torch.tensor([known.kind_of(d) for d in described])
    found = known.suggest([c.atomic_numbers for c in made], table["formula"].to_pylist(), 16)
    data = VoteData.of(found, known)
    votes, losses = fit_votes(data, kind, seed=0, epochs=40, batch=10, learning_rate=3e-2)
    assert losses[-1] < 0.2 < losses[0]
    features = describe(table, [c.id for c in made], known, votes, fit_element_volumes(table), 16, 0.1)
    assert (features.values[:, SHARE] > np.log(0.7)).all()


# What must not be learned from


def test_compositions_of_other_splits_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_table(to_table(KNOWN[:3]), tmp_path / "train.parquet", {})
    assert without_shared(tmp_path, "train").num_rows == 3
    write_table(to_table(KNOWN[2:]), tmp_path / "test.parquet", {})
    kept = without_shared(tmp_path, "train")
    assert kept["formula"].to_pylist() == [c.formula for c in KNOWN[:2]]
    assert "1 train crystals are left out" in caplog.text


def test_only_ground_states_of_wanted_sources_teach() -> None:
    made = [
        perovskite("Sr", "Ti", "O", e_above_hull=0.05),
        crystal(
            "better",
            ["Sr", "Ti", "O", "O", "O"],
            np.random.default_rng(0).random((5, 3)).tolist(),
            4,
            e_above_hull=0.0,
        ),
        perovskite("Ba", "Ti", "O", e_above_hull=0.5),
        perovskite("Ca", "Zr", "O", e_above_hull=None),
    ]
    table = to_table(made)
    assert [table["id"][i].as_py() for i in ground_states(table, Ranking())] == ["better", "CaZrO3"]
    assert len(ground_states(table, Ranking(sources=["elsewhere"]))) == 0
