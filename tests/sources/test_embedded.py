"""The embedded crystals: what the shipped table promises, and that it can be made again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.table import read_about, read_table
from dao_pipeline.sources.embedded import DEMO_TARGETS, EMBEDDED_PATH, build, load


@pytest.fixture(scope="module")
def rows() -> dict[str, Crystal]:
    return {crystal.id: crystal for crystal in from_table(load())}


@pytest.fixture(scope="module")
def relaxed(rows: dict[str, Crystal]) -> list[Crystal]:
    return [c for c in rows.values() if c.extra["precursor_of"] is None]


@pytest.fixture(scope="module")
def about() -> dict[str, object]:
    return read_about(EMBEDDED_PATH)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Cells this small gain nothing from threads, and lose much when the tests share the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shortest(crystal: Crystal) -> float:
    """Smallest distance between periodic images, written out: the cells are reduced, so 27 images do."""
    images = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    difference = crystal.frac_coords[:, None, None] - crystal.frac_coords[None, :, None] + images
    distance = np.linalg.norm(difference @ crystal.lattice, axis=-1)
    return float(distance[distance > 1e-8].min())


def test_size_of_the_set(rows: dict[str, Crystal], relaxed: list[Crystal]) -> None:
    sizes = np.array([c.num_atoms for c in relaxed])
    elements = {int(z) for c in relaxed for z in c.atomic_numbers}
    types = {c.id.rsplit(":", 1)[0] for c in relaxed if c.id.startswith("sub:")}
    assert len(rows) == load().num_rows, "ids must be unique"
    assert len(relaxed) >= 1500
    assert len(rows) - len(relaxed) >= 0.8 * len(relaxed)
    assert len(elements) >= 60
    assert max(c.num_atoms for c in rows.values()) <= 12
    assert (sizes >= 8).mean() >= 0.15
    assert len(types) >= 30
    assert EMBEDDED_PATH.stat().st_size < 1_000_000


def test_geometry_is_sane(rows: dict[str, Crystal]) -> None:
    for crystal in rows.values():
        assert ((crystal.frac_coords >= 0) & (crystal.frac_coords < 1)).all(), crystal.id
        assert 0.6 < shortest(crystal) < 5.5, crystal.id
        assert 2.0 < crystal.volume / crystal.num_atoms < 150.0, crystal.id
        assert 1 <= crystal.extra["spacegroup"] <= 230


def test_cells_are_reduced(rows: dict[str, Crystal]) -> None:
    for crystal in rows.values():
        a, b, c = np.linalg.norm(crystal.lattice, axis=1)
        metric = crystal.lattice @ crystal.lattice.T
        assert a <= b + 1e-3, crystal.id
        assert b <= c + 1e-3, crystal.id
        assert abs(metric[0, 1]) <= 0.5 * a * a + 1e-2, crystal.id
        assert abs(metric[1, 2]) <= 0.5 * b * b + 1e-2, crystal.id


def test_energies_are_consistent(rows: dict[str, Crystal], relaxed: list[Crystal]) -> None:
    zero = {c.formula: c.extra["formation_energy"] for c in relaxed if c.extra["e_above_hull"] == 0}
    for crystal in rows.values():
        extra = crystal.extra
        assert extra["energy_method"] == "CHGNet-0.3.0"
        assert np.isfinite(extra["formation_energy"])
        assert 0 <= extra["e_above_hull"] <= 1.0
        assert extra["formation_energy"] >= zero.get(crystal.formula, -np.inf) - 1e-6
        if len(set(crystal.atomic_numbers)) == 1:
            assert extra["formation_energy"] == pytest.approx(extra["e_above_hull"], abs=1e-6)


def test_every_element_has_a_reference(relaxed: list[Crystal]) -> None:
    alone = {int(c.atomic_numbers[0]) for c in relaxed if len(set(c.atomic_numbers)) == 1}
    assert {int(z) for c in relaxed for z in c.atomic_numbers} == alone


def test_precursors_point_at_relaxed_rows_and_lie_above_them(rows: dict[str, Crystal]) -> None:
    for crystal in rows.values():
        parent = crystal.extra["precursor_of"]
        if parent is not None:
            end = rows[parent]
            assert crystal.id == f"{parent}#0"
            assert end.extra["precursor_of"] is None
            assert end.formula == crystal.formula
            assert crystal.extra["formation_energy"] >= end.extra["formation_energy"] - 1e-4


def test_targets_are_held_out(rows: dict[str, Crystal]) -> None:
    assert len(DEMO_TARGETS) == len(set(DEMO_TARGETS)) == 10
    formulas = {rows[name].formula for name in DEMO_TARGETS}
    assert len(formulas) == 10
    for crystal in rows.values():
        assert (crystal.extra["split"] == "test") == (crystal.formula in formulas), crystal.id
        assert crystal.extra["split"] in ("test", None)


def test_targets_are_their_structure_type_and_others_have_it_too(rows: dict[str, Crystal]) -> None:
    groups = dict(zip(DEMO_TARGETS, (221, 136, 191, 216, 221, 186, 139, 122, 167, 223), strict=True))
    for name, number in groups.items():
        assert rows[name].extra["spacegroup"] == number, name
        assert rows[name].extra["precursor_of"] is None
        assert 3 <= rows[name].num_atoms <= 10
        assert rows[name].extra["e_above_hull"] < 0.15, name
        kin = [c for c in rows.values() if c.id.startswith(name.rsplit(":", 1)[0] + ":")]
        assert sum(c.extra["split"] is None and c.extra["spacegroup"] == number for c in kin) >= 5, name


def test_metadata_says_where_it_comes_from(about: dict[str, object], relaxed: list[Crystal]) -> None:
    assert about["relaxed"] == len(relaxed)
    assert about["energy_method"] == "CHGNet-0.3.0"
    assert about["targets"] == list(DEMO_TARGETS)
    for name in ("settings", "settings_hash", "packages", "dropped", "by_source", "symprec", "licence"):
        assert about[name], name
    text = json.dumps(about)
    assert "/home" not in text
    assert "/tmp" not in text


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("kind", ["relaxed", "unstable"])
def test_energies_can_be_computed_again(rows: dict[str, Crystal], about: dict[str, object], kind: str) -> None:
    pytest.importorskip("chgnet")
    from dao_pipeline.sources.chgnet_labels import Labeller

    chosen = [c for c in rows.values() if (c.extra["precursor_of"] is None) == (kind == "relaxed")]
    some = [chosen[i] for i in np.random.default_rng(7).choice(len(chosen), 4, replace=False)]
    zero = {ATOMIC_NUMBERS[symbol]: e for symbol, e in about["elemental_energies"].items()}  # type: ignore[attr-defined]
    for crystal, energy in zip(some, Labeller().energies(some), strict=True):
        formation = energy - np.mean([zero[int(z)] for z in crystal.atomic_numbers])
        assert formation == pytest.approx(crystal.extra["formation_energy"], abs=2e-3), crystal.id


@pytest.mark.usefixtures("one_thread")
def test_relaxer_agrees_with_chgnets_own() -> None:
    pytest.importorskip("chgnet")
    from chgnet.model import StructOptimizer
    from pymatgen.core import Lattice, Structure

    from dao_pipeline.sources.chgnet_labels import Labeller

    fluorite = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.2), ["Zr", "O"], [[0, 0, 0], [0.25, 0.25, 0.25]]
    ).get_primitive_structure()
    nickel_arsenide = Structure.from_spacegroup(
        "P6_3/mmc", Lattice.hexagonal(3.7, 4.9), ["Ni", "As"], [[0, 0, 0], [1 / 3, 2 / 3, 0.25]]
    )
    structures = [fluorite, nickel_arsenide]
    crystals = [
        Crystal(
            id=str(i),
            atomic_numbers=np.array(s.atomic_numbers),
            frac_coords=s.frac_coords % 1,
            lattice=s.lattice.matrix,
        )
        for i, s in enumerate(structures)
    ]
    found = {r.crystal.id: r for r in Labeller().relax(crystals)}
    for i, structure in enumerate(structures):
        own = StructOptimizer(optimizer_class="BFGS", use_device="cpu").relax(
            structure, fmax=0.03, steps=100, verbose=False
        )
        energy = own["trajectory"].energies[-1] / len(structure)
        mine = found[str(i)]
        assert mine.reason == ""
        assert mine.energy == pytest.approx(energy, abs=0.01)
        assert mine.energy <= mine.start_energy
        assert mine.crystal.volume == pytest.approx(own["final_structure"].volume, rel=0.03)


@pytest.mark.usefixtures("one_thread")
def test_build_runs_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("chgnet")
    from dao_pipeline.sources import embedded_build

    build(tmp_path / "first.parquet", workers=1, work=tmp_path / "work", limit=3)
    first = read_table(tmp_path / "first.parquet")
    assert set(DEMO_TARGETS[:3]) <= set(first["id"].to_pylist())
    assert set(first.filter([s == "test" for s in first["split"].to_pylist()])["formula"].to_pylist()) == {
        "SrTiO3",
        "TiO2",
        "MgB2",
    }

    def refuse(*_: object) -> int:
        raise AssertionError("a finished crystal is relaxed again")

    monkeypatch.setattr(embedded_build, "_relax_piece", refuse)
    build(tmp_path / "again.parquet", workers=1, work=tmp_path / "work", limit=3)
    assert read_table(tmp_path / "again.parquet").equals(first)
