from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from dao_pipeline.crysdb import hull
from dao_pipeline.crysdb.hull import Phases, energies_above_hull
from dao_pipeline.crystals.crystal import Crystal, reduced_formula, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.table import read_about, write_table
from dao_pipeline.sources.files import read_crystals
from tests.crysdb.test_build import build
from tests.make import binary, crystal, shared_data


def reference(names: list[str], energies: np.ndarray) -> np.ndarray:
    """pymatgen's own answer, with one phase diagram of everything."""
    elements = sorted({el.symbol for name in names for el in Composition(name)})
    entries = [PDEntry(Composition(n), e * Composition(n).num_atoms) for n, e in zip(names, energies, strict=True)]
    diagram = PhaseDiagram([*entries, *(PDEntry(Composition(el), 0.0) for el in elements)])
    return np.array([diagram.get_e_above_hull(entry) for entry in entries])


def made_up(elements: list[str], count: int, seed: int) -> tuple[list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    names = set()
    while len(names) < count:
        chosen = sorted(rng.choice(elements, rng.integers(1, len(elements) + 1), replace=False))
        numbers = [ATOMIC_NUMBERS[symbol] for symbol in chosen]
        names.add(reduced_formula(np.repeat(numbers, rng.integers(1, 4, len(numbers)))))
    return sorted(names), rng.normal(-0.5, 0.6, count)


@pytest.mark.parametrize("largest", [0, hull.MAX_DIMENSION])
def test_hull_is_pymatgens(monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """Both ways: by decomposition alone, and by facets."""
    monkeypatch.setattr(hull, "MAX_DIMENSION", largest)
    names, energy = made_up(["Li", "Fe", "O", "Cl"], 40, seed=largest)
    code = np.arange(len(names))
    found = energies_above_hull(names, code, energy, [Phases("PBE", names, code, energy)])
    np.testing.assert_allclose(found, reference(names, energy), atol=1e-9)
    assert (found > 0.01).any()
    assert (found == 0).any()


def test_more_crystals_never_lower_a_hull_distance() -> None:
    names, energy = made_up(["Li", "Fe", "O", "Cl", "S", "Na"], 80, seed=3)
    code = np.arange(len(names))
    before = np.full(len(names), -np.inf)
    for count in (20, 50, 80):
        part = code[:count]
        found = energies_above_hull(names, part, energy[part], [Phases("PBE", names, part, energy[part])])
        assert (found >= before[:count] - 1e-9).all()
        before[:count] = found


def test_real_formation_energies(tmp_path: Path) -> None:
    table = read_crystals(shared_data("mp20/val.parquet"), energy_method="PBE").table.slice(0, 400)
    names = [str(name) for name in table["formula"].to_pylist()]
    keys = sorted(set(names))
    code = np.array([keys.index(name) for name in names])
    energy = table["formation_energy"].to_numpy()
    found = energies_above_hull(keys, code, energy, [Phases("PBE", keys, code, energy)])
    for row in range(0, 400, 40):
        elements = {el.symbol for el in Composition(names[row])}
        inside = [i for i, name in enumerate(names) if {el.symbol for el in Composition(name)} <= elements]
        expected = reference([names[i] for i in inside], energy[inside])
        assert found[row] == pytest.approx(expected[inside.index(row)], abs=1e-8)


def oxides(**extra: Any) -> list[Crystal]:
    """Two polymorphs of LiF 0.3 eV/atom apart, and others."""
    return [
        binary(48, formation_energy=-3.0, e_above_hull=None, **extra),
        crystal("high", ["Li", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.0, **_facts(-2.7, extra)),
        crystal("Li", ["Li"], [[0, 0, 0]], 3.0, **_facts(0.1, extra)),
        *(binary(i, formation_energy=-1.0, e_above_hull=0.25, **extra) for i in range(20)),
    ]


def _facts(energy: float, extra: dict[str, Any]) -> dict[str, Any]:
    return {"formation_energy": energy, "e_above_hull": None} | extra


def test_fill_computes_what_is_missing_and_own_computes_all(tmp_path: Path) -> None:
    methods = ["PBE", "PBE, hull of this set"]
    filled = build(tmp_path / "fill", oxides(), crysdb={"hull": "fill", "energy_methods": methods})
    found = {row["id"]: row for name in ("train", "val", "test") for row in filled[name]}
    assert not filled["rejected"]
    expected = {"t-48": 0.0, "high": 0.3, "Li": 0.1}
    for name, value in expected.items():
        assert found[name]["e_above_hull"] == pytest.approx(value)
        assert found[name]["energy_method"] == "PBE, hull of this set"
    assert found["t-0"]["e_above_hull"] == 0.25
    assert found["t-0"]["energy_method"] == "PBE"
    assert read_about(tmp_path / "fill" / "crysdb" / "val.parquet")["own_hull"] == {"PBE": 3}
    own = build(tmp_path / "own", oxides(), crysdb={"hull": "own"})
    found = {row["id"]: row for name in ("train", "val", "test") for row in own[name]}
    assert found["t-0"]["e_above_hull"] == 0.0
    assert {row["energy_method"] for row in found.values()} == {"PBE, hull of this set"}


def test_levels_of_theory_have_hulls_of_their_own(tmp_path: Path) -> None:
    one = oxides()[:3]
    other = [
        crystal("other", ["Li", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.6, **_facts(-9.0, {"energy_method": "LDA"})),
        *oxides()[3:],
    ]
    methods = ["PBE, hull of this set", "LDA, hull of this set"]
    rows = build(tmp_path, [*one, *other], crysdb={"hull": "own", "energy_methods": methods})
    found = {row["id"]: row["e_above_hull"] for name in ("train", "val", "test") for row in rows[name]}
    assert found["high"] == pytest.approx(0.3)  # not 6.3 above the other method's LiF
    assert found["other"] == 0.0


def test_phases_of_the_source_count(tmp_path: Path) -> None:
    lower = crystal("phase", ["Li", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.6, formation_energy=-3.2)
    other = crystal(
        "phase2", ["Li", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]], 4.6, **_facts(-8.0, {"energy_method": "r2SCAN"})
    )
    write_table(to_table([lower, other]), tmp_path / "phases.parquet", {})
    rows = build(tmp_path, oxides(), crysdb={"hull": "own"})
    found = {row["id"]: row["e_above_hull"] for name in ("train", "val", "test") for row in rows[name]}
    assert found["t-48"] == pytest.approx(0.2)
    assert found["high"] == pytest.approx(0.5)
    assert "phases" in read_about(tmp_path / "crysdb" / "train.parquet")["inputs"]


def test_far_above_the_own_hull_is_rejected(tmp_path: Path) -> None:
    rows = build(tmp_path, oxides(), crysdb={"hull": "own", "max_e_above_hull": 0.2})
    assert [(row["id"], row["reason"]) for row in rows["rejected"]] == [("high", "e_above_hull")]
