"""Distorted crystals: sizes, labels, identity and resumption, with a potential that can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dao_pipeline.config import Campaign
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.sources.perturbed import Perturbation, labelled_copies, perturb_crystals, perturbed
from tests.make import binary, crystal


class Springs:
    """Energy per atom: squared relative change of volume against the first cell of each formula, times 10."""

    method = "springs-1"

    def __init__(self) -> None:
        self.volumes: dict[str, float] = {}
        self.asked = 0

    def energies(self, crystals: Sequence[Crystal]) -> list[float]:
        self.asked += len(crystals)
        first = [self.volumes.setdefault(c.formula, c.volume) for c in crystals]
        return [10 * (c.volume / v - 1) ** 2 - 3.0 for c, v in zip(crystals, first, strict=True)]


def source(path: Path, crystals: Sequence[Crystal]) -> Path:
    write_table(to_table(crystals), path, {"stage": "test"})
    return path


@pytest.mark.parametrize(("displacement", "strain"), [(0.05, 0.0), (0.3, 0.06)])
def test_sizes_are_met(displacement: float, strain: float) -> None:
    before = crystal("x", ["Na", "Cl", "O"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.2, 0.4, 0.7]], 5.0)
    after = perturbed(before, displacement, strain, np.random.default_rng(0))
    deformation = np.linalg.solve(before.lattice, after.lattice)
    np.testing.assert_allclose(deformation, deformation.T, atol=1e-12)
    principal = np.linalg.eigvalsh(deformation) - 1
    assert np.sqrt((principal**2).mean()) == pytest.approx(strain, abs=1e-9)
    moves = after.frac_coords - before.frac_coords
    moves = (moves - moves.round()) @ after.lattice
    assert np.sqrt((moves**2).sum(1).mean()) == pytest.approx(displacement, rel=1e-9)
    np.testing.assert_allclose(moves.mean(0), 0, atol=1e-9)
    assert (after.extra["perturbed_by"], after.extra["strained_by"]) == (displacement, strain)


def test_a_single_atom_is_only_strained() -> None:
    copy = perturbed(crystal("x", ["Cu"], [[0, 0, 0]], 2.6), 0.2, 0.03, np.random.default_rng(0))
    np.testing.assert_allclose(copy.frac_coords, 0, atol=1e-12)
    assert copy.extra["perturbed_by"] == 0


def test_labels_are_the_crystals_own_plus_the_cost() -> None:
    crystals = [binary(i, formation_energy=-1.0 - i, e_above_hull=0.01 * i) for i in range(4)]
    springs = Springs()
    copies = labelled_copies(crystals, Perturbation(copies=3, displacement=(0.01, 0.02), strain=0.05), springs)
    assert len(copies) == 12
    for copy in copies:
        own = crystals[int(copy.extra["precursor_of"].split("-")[1])]
        cost = 10 * (copy.volume / own.volume - 1) ** 2
        assert copy.extra["formation_energy"] == pytest.approx(own.extra["formation_energy"] + cost)
        assert copy.extra["e_above_hull"] == pytest.approx(own.extra["e_above_hull"] + cost)
        assert copy.extra["energy_method"] == "PBE; difference: springs-1"
        assert copy.id.startswith(f"{own.id}#")
    assert len({copy.id for copy in copies}) == 12


def test_copies_that_are_unsound_are_left_out() -> None:
    """Atoms too close, energies that the potential does not give, and rises beyond the limit."""

    class Blind(Springs):
        def energies(self, crystals: Sequence[Crystal]) -> list[float]:
            return [
                float("nan") if c.id == "t-1#1" else e
                for c, e in zip(crystals, super().energies(crystals), strict=False)
            ]

    crystals = [binary(0), binary(1)]
    every = Perturbation(copies=2, displacement=(0.01, 0.02), strain=0.05, max_rise=9.0)
    assert {c.id for c in labelled_copies(crystals, every, Blind())} == {"t-0#1", "t-0#2", "t-1#2"}
    assert labelled_copies(crystals, replace(every, min_distance=5.0), Springs()) == []
    assert labelled_copies(crystals, replace(every, max_rise=1e-12), Springs()) == []


def test_a_copy_depends_on_its_crystal_alone(tmp_path: Path) -> None:
    settings = Perturbation(displacement=(0.01, 0.1))
    some, all_of = [binary(3)], [binary(i) for i in range(6)]
    alone = labelled_copies(some, settings, Springs())
    among = {c.id: c for c in labelled_copies(all_of, settings, Springs())}
    for copy in alone:
        np.testing.assert_array_equal(copy.frac_coords, among[copy.id].frac_coords)


def test_the_table_and_what_is_chosen(tmp_path: Path) -> None:
    """Rows without a label, precursors and large cells have no copies; rerun with the work folder asks nothing."""
    crystals = [
        binary(0),
        replace(binary(1), extra={"precursor_of": "t-0", "e_above_hull": 0.3}),
        replace(binary(2), extra={}),
        crystal("big", ["Na"] * 13, np.random.default_rng(0).random((13, 3)).tolist(), 9.0),
        binary(4),
    ]
    file, springs = source(tmp_path / "in.parquet", crystals), Springs()
    settings = Perturbation(copies=2, displacement=(0.02, 0.05))
    perturb_crystals(file, tmp_path / "out.parquet", tmp_path / "work", settings, potential=springs)
    found = list(from_table(read_table(tmp_path / "out.parquet")))
    assert [c.extra["precursor_of"] for c in found] == ["t-0", "t-0", "t-4", "t-4"]
    assert all(c.extra["strained_by"] <= settings.strain for c in found)
    asked = springs.asked
    perturb_crystals(file, tmp_path / "again.parquet", tmp_path / "work", settings, potential=springs)
    assert springs.asked == asked
    assert read_table(tmp_path / "again.parquet").equals(read_table(tmp_path / "out.parquet"))
    other = replace(settings, seed=2)
    perturb_crystals(file, tmp_path / "other.parquet", tmp_path / "work", other, potential=springs)
    assert springs.asked == 2 * asked
    limited = replace(settings, limit=1)
    perturb_crystals(file, tmp_path / "limited.parquet", tmp_path / "work", limited, potential=springs)
    assert read_table(tmp_path / "limited.parquet").num_rows == 2


def test_a_table_with_nothing_to_distort_is_refused(tmp_path: Path) -> None:
    file = source(tmp_path / "in.parquet", [replace(binary(2), extra={})])
    with pytest.raises(UserError, match="at most 12 atoms"):
        perturb_crystals(file, tmp_path / "o.parquet", tmp_path / "w", Perturbation(), potential=Springs())


def test_chgnet_says_that_rocksalt_is_a_minimum() -> None:
    """Real labels: copies of relaxed MgO cost energy, large distortions more than small ones."""
    pytest.importorskip("chgnet")
    from dao_pipeline.sources.chgnet_labels import Labeller

    a = 4.26
    lattice = np.array([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]])
    oxide = crystal("MgO", ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]], lattice, formation_energy=-3.0)
    small, large = (
        labelled_copies([oxide], Perturbation(copies=3, displacement=(size, size), strain=0.0), Labeller())
        for size in (0.05, 0.2)
    )
    rises = [[c.extra["formation_energy"] + 3.0 for c in copies] for copies in (small, large)]
    assert min(rises[0]) > 0
    assert max(rises[0]) < min(rises[1])


def test_crysdb_keeps_copies_beside_their_crystals(tmp_path: Path) -> None:
    """As a further source: no copy is taken for a duplicate, each is on its crystal's side, labels stay."""
    crystals = [binary(i) for i in range(40)]
    copies = labelled_copies(crystals, Perturbation(displacement=(0.02, 0.1), strain=0.02), Springs())
    raw = source(tmp_path / "raw.parquet", [*crystals, *copies])
    campaign = Campaign.model_validate(
        {
            "name": "test",
            "crysdb": {
                "min_atoms": 1,
                "val_fraction": 0.2,
                "test_fraction": 0.2,
                "energy_methods": ["PBE", "PBE; difference: springs-1"],
            },
        }
    )
    build_crysdb(campaign, raw, tmp_path)
    side = {}
    for split in ("train", "val", "test"):
        for row in read_table(tmp_path / f"{split}.parquet").to_pylist():
            side[row["id"]] = (split, row["precursor_of"], row["e_above_hull"])
    assert len(side) == len(crystals) + len(copies)
    for copy in copies:
        split, parent, label = side[copy.id]
        assert parent == copy.extra["precursor_of"]
        assert split == side[parent][0]
        assert label == pytest.approx(copy.extra["e_above_hull"])
    assert {split for split, _, _ in side.values()} == {"train", "val", "test"}
