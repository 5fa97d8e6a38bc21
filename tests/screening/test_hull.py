"""Hull distances: against hand-made hulls, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.config import Screen
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.table import write_table
from dao_pipeline.errors import UserError
from dao_pipeline.screening import second_model
from dao_pipeline.screening.columns import set_column
from dao_pipeline.screening.entries import read_entries
from dao_pipeline.screening.hull import add_hull, passport_of
from tests.make import crystal


def phase(name: str, symbols: str, energy: float | None, above: float | None = None, **extra: Any) -> Crystal:
    atoms = symbols.split()
    coords = [[i / len(atoms), 0, 0] for i in range(len(atoms))]
    return crystal(name, atoms, coords, 5.0, formation_energy=energy, e_above_hull=above, **extra)


PHASES = [
    phase("AB", "Na Cl", -1.0, 0.0),
    phase("AB-high", "Na Cl", -0.8, 0.2),
    phase("AB-unknown", "Na Cl", None),
    phase("A2B", "Na Na Cl", -0.2, 0.4),
    phase("other", "Mg O", -3.0, 0.0),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that says what a DAO-P predicts."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"kind": "dao_p", "energy_label": "formation_energy"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def phases(tmp_path: Path) -> Path:
    path = tmp_path / "phases.parquet"
    write_table(to_table(PHASES), path, {"passport": {"database_version": "2025.1", "thermo_type": "GGA_GGA+U"}})
    return path


@pytest.fixture(autouse=True)
def predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """DAO-P's energies of the phases: their own, half of them."""
    energies = {p.id: p.extra["formation_energy"] for p in PHASES}

    def predict(model: Path, table: pa.Table, batch_atoms: int = 6000) -> tuple[np.ndarray, None]:
        return np.array([0.5 * (energies[i] or np.nan) for i in table["id"].to_pylist()]), None

    monkeypatch.setattr("dao_pipeline.energy.predict.predict_with_std", predict)


def candidates(**energies: tuple[str, float | None]) -> pa.Table:
    crystals = [phase(name, symbols, None) for name, (symbols, _) in energies.items()]
    return set_column(to_table(crystals), "energy_pred", [energy for _, energy in energies.values()])


def screen(entries: Path | str, **hull: Any) -> Screen:
    return Screen.model_validate({"hull": {"entries": str(entries), **hull}, "second_model": {"model": "chgnet"}})


def test_candidates_and_phases_are_judged_by_one_model(model: Path, phases: Path) -> None:
    table = candidates(
        at=("Na Cl", -0.5),
        above=("Na Cl", -0.4),
        below=("Na Na Cl", -0.6),
        mix=("Na Cl Cl", 0.0),
        none=("Na Cl", None),
        lost=("Zr Cl", -1.0),
    )
    table = add_hull(table, screen(phases), model, None, 100)
    # the hull by the model: NaCl at -0.5, the elements at 0
    expected = [0.0, 0.1, -0.6 + 1 / 3, 1 / 3, None, None]
    for found, wanted in zip(table["e_above_hull_pred"].to_pylist(), expected, strict=True):
        assert found == (None if wanted is None else pytest.approx(wanted))
    assert table["hull_status"].to_pylist() == [*["ok"] * 4, "no_energy", "no_reference_with_Zr"]
    assert table["hull_phases"].to_pylist() == [2, 2, 2, 2, 2, 0]
    passport = passport_of(table)
    assert passport is not None
    assert passport["database_version"] == "2025.1"
    assert passport["thermo_type"] == "GGA_GGA+U"
    assert passport["correction_scheme"] is None
    assert passport["levels_of_theory"] == ["PBE"]
    assert passport["judged_by"].startswith("DAO-P ")
    assert {"python", "pymatgen"} <= set(passport["hull_libraries"])
    assert passport["hash"] in table["hull"][0].as_py()


def test_crysdb_is_its_training_and_validation_crystals(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "crysdb"
    write_table(to_table(PHASES[:1]), folder / "train.parquet", {})
    write_table(to_table(PHASES[3:]), folder / "val.parquet", {})
    write_table(to_table([phase("secret", "Na Cl", -9.0)]), folder / "test.parquet", {})
    table = add_hull(candidates(a=("Na Cl", 0.0)), screen("crysdb"), model, folder, 100)
    assert table["e_above_hull_pred"].to_pylist() == [pytest.approx(0.5)]
    with pytest.raises(UserError, match="no crystals; name a file"):
        add_hull(candidates(a=("Na Cl", 0.0)), screen("crysdb"), model, None, 100)


def test_only_the_systems_at_hand_and_the_most_stable_are_read(phases: Path) -> None:
    systems = {frozenset({"Na", "Cl"})}
    assert read_entries(phases, systems).table["id"].to_pylist() == ["AB", "AB-high", "AB-unknown", "A2B"]
    assert read_entries(phases, systems, 1).table["id"].to_pylist() == ["AB", "A2B"]
    assert read_entries(phases, systems, 2).table["id"].to_pylist() == ["AB", "AB-high", "A2B"]
    assert read_entries(phases, {frozenset({"Na"})}).table.num_rows == 0
    many = frozenset({"Na", "Cl", *("H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne")})
    assert read_entries(phases, {many}).table.num_rows == 4


def test_energies_of_another_origin_are_refused(model: Path, phases: Path, tmp_path: Path) -> None:
    asked = candidates(a=("Na Cl", -0.5))
    with pytest.raises(UserError, match=r"does not say that a model made.*screen.hull.energies: model"):
        add_hull(asked, screen(phases, energies="given"), model, None, 100)
    file = tmp_path / "own.json"
    content = {
        "entries": [{"id": "x", "formula": "NaCl", "formation_energy": -0.6}],
        "passport": {"model": "MACE"},
    }
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="says that MACE made its energies"):
        add_hull(asked, screen(file, energies="given"), model, None, 100)
    with pytest.raises(UserError, match="no structures"):
        add_hull(asked, screen(file), model, None, 100)
    name = passport_of(add_hull(asked, screen(phases), model, None, 100))
    assert name is not None
    file.write_text(json.dumps(content | {"passport": {"model": name["judged_by"], "level_of_theory": "PBE"}}))
    table = add_hull(asked, screen(file, energies="given"), model, None, 100)
    assert table["e_above_hull_pred"].to_pylist() == [pytest.approx(0.1)]


def test_a_model_of_hull_distances_makes_no_hull(model: Path, phases: Path) -> None:
    (model / "config.json").write_text('{"energy_label": "e_above_hull"}')
    with pytest.raises(UserError, match=r"predicts e_above_hull.*energy_model.label: formation_energy"):
        add_hull(candidates(a=("Na Cl", -0.5)), screen(phases), model, None, 100)


def test_total_energies_need_the_elements(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By CHGNet: energies of the elements are subtracted; without an element there is no distance."""
    total = {"Na": -1.0, "Na-high": -0.5, "Cl": -2.0, "AB": -2.1}

    def evaluate(crystals: list[Crystal], *_: Any) -> list[dict[str, float | None]]:
        return [{"energy_second": total[c.id], "energy_second_relaxed": None} for c in crystals]

    monkeypatch.setattr(second_model, "evaluate", evaluate)
    monkeypatch.setattr(second_model, "method", lambda: "CHGNet x")
    path = tmp_path / "p.parquet"
    known = [
        phase("Na", "Na", 0.0),
        phase("Na-high", "Na", 0.1),
        phase("Cl", "Cl", 0.0),
        phase("AB", "Na Cl", -1.0),
    ]
    write_table(to_table(known), path, {})
    table = candidates(a=("Na Cl", None), b=("Na Cl Cl", None), c=("Na O", None))
    table = set_column(table, "energy_second", [-2.0, -1.9, -3.0])
    table = set_column(table, "energy_second_relaxed", [None, -2.0, None])
    table = add_hull(table, screen(path, model="chgnet"), model, None, 100)
    # formation energies: NaCl -0.6, the candidates -0.5 and -1/3; the hull of NaCl2 is -0.4
    assert table["e_above_hull_pred"].to_pylist()[:2] == [pytest.approx(0.1), pytest.approx(0.4 - 1 / 3)]
    assert table["hull_status"].to_pylist() == ["ok", "ok", "no_reference_with_O"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no readable JSON"),
        ("[]", "no list named entries"),
        ('{"entries": [3]}', r"entries\[0\] is no object"),
        ('{"entries": [{"formula": "Xx2", "formation_energy": 0}]}', r"entries\[0\].formula: .*no element 'Xx'"),
        ('{"entries": [{"formula": "%s", "formation_energy": 0}]}' % ("Na" * 5000), "not a plain formula"),
        (
            '{"entries": [{"formula": "NaCl", "formation_energy": "low"}]}',
            "formation_energy = 'low': write a number",
        ),
        ('{"entries": [{"formula": "NaCl", "formation_energy": NaN}]}', "formation_energy = nan: write a number"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "entries.json"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        read_entries(file, {frozenset({"Na", "Cl"})})


def test_a_table_without_formulas_is_named(tmp_path: Path) -> None:
    write_table(to_table(PHASES).drop_columns(["formula"]), tmp_path / "t.parquet", {})
    with pytest.raises(UserError, match="no column formula; name a crystal table"):
        read_entries(tmp_path / "t.parquet", {frozenset({"Na"})})


def test_total_energies_meet_no_formation_energies() -> None:
    with pytest.raises(ValueError, match=r"hull\.energies: given has formation energies"):
        Screen.model_validate(
            {
                "second_model": {"model": "chgnet"},
                "hull": {"entries": "phases.json", "model": "chgnet", "energies": "given"},
            }
        )


def test_without_entries_nothing_is_added(model: Path) -> None:
    table = candidates(a=("Na Cl", -0.5))
    assert add_hull(table, Screen(), model, None, 100) is table
