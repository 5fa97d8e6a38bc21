"""What to predict: files of formulas, chemical systems, substitutions; what is dropped, and what is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dao_pipeline.candidates import asked as module
from dao_pipeline.candidates import chemistry
from dao_pipeline.candidates.asked import Asked, asked, asked_file, asked_hash, resolve
from dao_pipeline.candidates.chemistry import enumerate_formulas, neutral
from dao_pipeline.candidates.compositions import asked_compositions, campaign_compositions, count_compositions
from dao_pipeline.config import Campaign, Systems
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.element_groups import GROUPS
from dao_pipeline.crystals.formula import formula_text
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError
from tests.make import binary


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    module._in_memory.clear()
    yield
    module._in_memory.clear()


def campaign(**generate: Any) -> Campaign:
    return parse_campaign({"name": "x", "generate": generate}, "x.yaml")


def cells(**generate: Any) -> Asked:
    return resolve(campaign(**generate))


def rows(found: Asked) -> dict[str, str]:
    return dict(zip(found.names, found.table["asked_by"].to_pylist(), strict=True))


# Formulas


def test_every_number_of_formula_units_unless_given() -> None:
    given = [{"formula": "SrTiO3"}, {"formula": "NaCl", "formula_units": 3}, {"formula": "C"}]
    found = cells(compositions=given, unit_atoms=10)
    assert found.names[:3] == ["SrTiO3", "Sr2Ti2O6", "Na3Cl3"]
    assert found.names[3:] == ["C", *(f"C{n}" for n in range(2, 11))]
    assert found.table["num_atoms"].to_pylist() == [5, 10, 6, *range(1, 11)]
    assert found.table["atomic_numbers"][1].as_py() == [38, 38, 22, 22, 8, 8, 8, 8, 8, 8]


def test_a_formula_above_the_limit_has_one_cell() -> None:
    assert cells(compositions=[{"formula": "Ca3Al2Si3O12"}], unit_atoms=10).names == ["Ca3Al2Si3O12"]


def test_duplicates_after_reduction_are_merged_and_noted() -> None:
    given = [{"formula": "NaCl"}, {"formula": "Cl2Na2"}, {"formula": "NaCl", "formula_units": 2}]
    found = cells(compositions=given, unit_atoms=4)
    assert rows(found) == {"NaCl": "generate.compositions[0]", "Na2Cl2": "generate.compositions[0]"}
    assert found.dropped.to_pylist() == [
        {
            "composition": name,
            "asked_by": f"generate.compositions[{i}]",
            "reason": "duplicate",
            "detail": "of Na2Cl2, generate.compositions[0]",
        }
        for i, name in ((1, "Cl2Na2"), (2, "Na2Cl2"))
    ]
    assert found.about["dropped"] == {"duplicate": 2}


# Files


def test_files_of_formulas(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf# oxides\r\nSrTiO3  # perovskite\r\n\r\n  MgO\r\n")
    (tmp_path / "b.csv").write_text('note,formula,formula_units\n"two\nlines",NaCl,2\n,KBr,\n')
    (tmp_path / "c.tsv").write_text("formula\tformula_units\nZnS\t1.0\n")
    pq.write_table(pa.table({"formula": ["GaN", "BN"], "formula_units": [2, None]}), tmp_path / "d.parquet")
    crystals = to_table([binary(0), binary(1)])
    write_table(crystals, tmp_path / "e.parquet", {"stage": "download"})
    files = ["a.txt", "b.csv", "c.tsv", "d.parquet", "e.parquet"]
    assert rows(cells(files=files, unit_atoms=2)) == {
        "SrTiO3": "a.txt, line 2",
        "MgO": "a.txt, line 4",
        "Na2Cl2": "b.csv, row 3",
        "KBr": "b.csv, row 4",
        "ZnS": "c.tsv, row 2",
        "Ga2N2": "d.parquet, row 1",
        "BN": "d.parquet, row 2",
        "LiO": "e.parquet, row 1",
        "NaO": "e.parquet, row 2",
    }


HOSTILE: dict[str, tuple[str, str | bytes, str]] = {
    "no element": (
        "a.txt",
        "MgO\nXx2O3\n",
        r"a.txt: line 2: 'Xx2O3': there is no element 'Xx'; correct the symbol",
    ),
    "shell": ("a.txt", "; rm -rf ~\n", r"line 1: '; rm -rf ~' is not a plain formula; write"),
    "option": ("a.txt", "--config\n", r"line 1: '--config' is not a plain formula"),
    "10 kB": (
        "a.txt",
        "Na" * 5_000 + "\nMgO\nQ\n",
        r"(?s)line 1: 'NaNa.* is not a plain.*line 3: 'Q': there is no",
    ),
    "fraction": ("a.csv", "formula\nLa0.5Sr0.5MnO3\n", r"row 2: 'La0.5Sr0.5MnO3' is not a plain formula"),
    "brackets": ("a.csv", "formula\nCa(OH)2\n", r"row 2: 'Ca\(OH\)2' is not a plain formula"),
    "newline inside": ("a.csv", 'formula\n"Mg\nO"\n', r"row 3: 'Mg\\nO' is not a plain formula"),
    "no formula": ("a.csv", "formula,formula_units\n,2\n", r"row 2: no formula; write one, or remove the row"),
    "half a unit": (
        "a.csv",
        "formula,formula_units\nMgO,1.5\n",
        r"formula_units = '1.5': give a whole number from 1",
    ),
    "no unit": ("a.csv", "formula,formula_units\nMgO,0\n", r"formula_units = '0': give a whole number"),
    "infinite": ("a.csv", "formula,formula_units\nMgO,inf\n", r"formula_units = 'inf'"),
    "other columns": ("a.csv", "name;x\nMgO\n", r"no column formula \(columns: name;x\); name one so"),
    "beyond the models": ("a.txt", "LrF3\n", r"Lr is beyond Z = 100"),
    "empty": ("a.txt", "# nothing\n", r"a.txt: no formula in it; write one per line"),
    "empty table": ("a.csv", "", r"no column formula \(columns: none\)"),
    "binary": ("a.txt", b"\xff\xfe\x00MgO", r"not readable as formulas \('utf-8' codec"),
    "no Parquet": ("a.parquet", "formula\nMgO\n", r"a.parquet: not readable as formulas"),
    "missing": ("", "", r"generate.files\[0\]: nowhere.txt: no such file; correct the path"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_named_with_row_value_and_remedy(tmp_path: Path, case: str) -> None:
    name, content, message = HOSTILE[case]
    if name:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        cells(files=[name or "nowhere.txt"])
    assert str(caught.value).startswith("generate.files[0]: ")
    assert len(str(caught.value)) < 1_000


def test_a_variable_that_is_not_set_is_named_with_its_key() -> None:
    with pytest.raises(UserError, match=r"generate.files\[1\]: path '\$NOWHERE_AT_ALL/a.txt': .* is not set"):
        cells(files=["b.txt", "$NOWHERE_AT_ALL/a.txt"])


def test_a_folder_is_no_file_of_formulas(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; correct the path"):
        cells(files=["/"])


def test_numbers_in_place_of_formulas(tmp_path: Path) -> None:
    pq.write_table(pa.table({"formula": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"row 1: no formula; write one"):
        cells(files=["a.parquet"])


def test_twenty_problems_are_listed_of_each_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("?\n" * 30)
    (tmp_path / "b.txt").write_text("MgO\n!\n")
    with pytest.raises(UserError) as caught:
        cells(files=["a.txt", "b.txt"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 20 + 1 + 1
    assert "and 10 more" in lines[20]
    assert "files[1]: b.txt: line 2" in lines[21]


# Chemical systems


@pytest.mark.parametrize(
    "system", [("Li", "Fe", "O"), ("Cs", "Pb", "I"), ("Ti", "O"), ("Cu", "Fe", "S"), ("K", "H", "Cl")]
)
def test_enumeration_is_that_of_smact(system: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    from smact import Element
    from smact.screening import smact_filter

    elements = sorted((Element(s) for s in system), key=lambda e: (e.pauling_eneg, e.symbol))
    states = {e.symbol: tuple(e.oxidation_states_icsd24) for e in elements}
    monkeypatch.setattr(chemistry, "oxidation_states", lambda _: states)
    settings = Systems(of=["-".join(system)], max_coefficient=4)
    found = {formula_text(counts) for counts, _ in enumerate_formulas(settings, Counter())}
    symbols = [e.symbol for e in elements]
    expected = smact_filter(elements, threshold=4, species_unique=False, oxidation_states_set="icsd24")
    assert found == {formula_text(dict(zip(symbols, ratio, strict=True))) for _, ratio in expected}
    assert found


def test_enumerated_formulas_obey_their_limits() -> None:
    settings = Systems(of=["transition_metals-chalcogens"], exclude=["O", "3d"], max_coefficient=3, max_atoms=4)
    tally: Counter[str] = Counter()
    found = [counts for counts, _ in enumerate_formulas(settings, tally)]
    assert tally["systems"] == 19 * 4
    assert len({formula_text(c) for c in found}) == len(found) > 20
    for counts in found:
        assert max(counts.values()) <= 3
        assert sum(counts.values()) <= 4
        assert neutral(counts, "medium")
        assert not {"O", *GROUPS["3d"]} & set(counts)


def test_systems_in_any_notation_are_taken_once() -> None:
    one = rows(cells(systems={"of": ["Li-Fe-O"]}, unit_atoms=1))
    same = rows(cells(systems={"of": ["O-Fe-Li", ["Li", ["Fe", "Li"], "O"], ["alkali", "Fe", "O"]]}, unit_atoms=1))
    assert set(one) == {name for name in same if "Li" in name}
    assert set(rows(cells(systems={"of": ["*-O"], "exclude": ["*"]}, unit_atoms=1))) == set()


def test_without_rules_all_ratios_are_asked_for() -> None:
    free = {"of": ["Cr-Os"], "max_coefficient": 3, "charge_neutral": False}
    assert set(cells(systems=free, unit_atoms=1).names) == {
        "CrOs",
        "CrOs2",
        "CrOs3",
        "Cr2Os",
        "Cr2Os3",
        "Cr3Os",
        "Cr3Os2",
    }
    assert cells(systems={"of": ["Cr-Os"]}, unit_atoms=1).names == []


def test_what_made_a_formula_plausible_is_named() -> None:
    assert cells(systems={"of": ["Ti-O"]}).about["plausible_by"].startswith("SMACT ")
    assert "plausible_by" not in cells(compositions=[{"formula": "MgO"}]).about


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"of": ["Li-Fq-O"]}, "'Fq' is neither an element nor a group of elements"),
        ({"of": ["alkalis-O"]}, "did you mean alkali?"),
        ({"of": ["Li"]}, "two to six places"),
        ({"of": [["Li", []]]}, "a place of the chemical system is empty"),
        ({"of": ["; rm -rf-O"]}, "'; rm' is neither an element"),
        ({"of": ["Lr-O"]}, "Lr is beyond Z = 100"),
        ({"of": ["-" * 9]}, "two to six places"),
        ({"exclude": ["x" * 10_000]}, "neither an element nor a group"),
    ],
)
def test_bad_systems(value: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        campaign(systems=value)
    assert len(str(caught.value)) < 2_000


def test_too_many_systems_are_refused() -> None:
    with pytest.raises(UserError, match="100,000,000 chemical systems, more than 1,000,000; name fewer"):
        cells(systems={"of": ["*-*-*-*"]})


# Substitutions


def test_all_combinations_of_replacements() -> None:
    found = cells(substitutions={"of": ["SrTiO3"], "replace": {"Ti": ["Zr", "Hf"], "Sr": ["Ba"]}}, unit_atoms=1)
    assert rows(found) == {
        "SrZrO3": "generate.substitutions: SrTiO3 (Ti -> Zr)",
        "SrHfO3": "generate.substitutions: SrTiO3 (Ti -> Hf)",
        "BaTiO3": "generate.substitutions: SrTiO3 (Sr -> Ba)",
        "BaZrO3": "generate.substitutions: SrTiO3 (Sr -> Ba, Ti -> Zr)",
        "BaHfO3": "generate.substitutions: SrTiO3 (Sr -> Ba, Ti -> Hf)",
    }


def test_substitutions_that_fail_are_noted() -> None:
    found = cells(
        substitutions={"of": ["SrTiO3"], "replace": {"Ti": ["Sr", "Al", "Zr"]}, "charge_neutral": True},
        unit_atoms=1,
    )
    assert found.names == ["SrZrO3"]
    assert found.about["dropped"] == {"elements_become_one": 1, "not_neutral": 1}


def test_known_compounds_from_files(tmp_path: Path) -> None:
    (tmp_path / "known.txt").write_text("MgO\n")
    write_table(to_table([binary(3)]), tmp_path / "crystals.parquet", {"stage": "download"})
    swap = {"Mg": ["Ca"]}
    assert cells(substitutions={"path": "known.txt", "replace": swap}, unit_atoms=4).names == ["CaO", "Ca2O2"]
    one = cells(substitutions={"path": "crystals.parquet", "replace": {"metals": ["Ca"]}}, unit_atoms=20)
    assert one.names == ["CaO"]  # a crystal of one formula unit stays one
    with pytest.raises(UserError, match=r"generate.substitutions.path: nowhere.csv: no such file"):
        cells(substitutions={"path": "nowhere.csv", "replace": swap})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"of": ["MgO"]}, "say in replace which elements"),
        ({"replace": {"Mg": ["Ca"]}}, "no compounds are: name formulas"),
        ({"of": ["MgO"], "replace": {"Mg": ["Xx"]}}, "'Xx' is neither an element"),
        ({"of": ["Mg(OH)2"], "replace": {"Mg": ["Ca"]}}, "not a plain formula"),
    ],
)
def test_bad_substitutions(value: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        campaign(substitutions=value)


def test_substitutions_without_end_are_refused_before_they_begin() -> None:
    with pytest.raises(UserError, match=r"^generate.substitutions.replace: KNaTiNbO6 .*1,000,000 combinations"):
        cells(substitutions={"of": ["KNaTiNbO6"], "replace": {"*": ["*"]}})


# All of it together, and on disk


def test_ways_add_up_in_order_and_large_cells_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("MgO\nMg9Al9O30\nTiO2\n")
    found = cells(
        compositions=[{"formula": "TiO2", "formula_units": 1}],
        files=["a.txt"],
        systems={"of": ["Mg-O"]},
        substitutions={"of": ["MgO"], "replace": {"Mg": ["Ca"]}},
        max_atoms=12,
        unit_atoms=2,
    )
    assert found.names == ["TiO2", "MgO", "CaO"]
    assert found.about["dropped"] == {"too_many_atoms": 1, "duplicate": 2}


def test_the_table_is_kept_until_a_setting_or_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("MgO\n")
    values: dict[str, Any] = {"files": ["a.txt"], "unit_atoms": 2}
    first = campaign(**values)
    assert not asked_file(first).exists()
    resolve(first, write=True)
    kept = asked_file(first)
    assert kept == Path("results/x/compositions.parquet")
    about = read_about(kept)
    assert about["stage"] == "compositions"
    assert about["settings"]["generate.files"] == ["a.txt"]
    assert read_table(kept.with_name("compositions_dropped.parquet")).num_rows == 0
    before, digest = kept.stat().st_mtime_ns, asked_hash(first)

    def forbidden(*_: Any) -> None:
        raise AssertionError("resolved anew")

    module._in_memory.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "_resolve", forbidden)
        assert resolve(first, write=True).names == ["MgO"]
        path.write_text("MgO\nCaO\n")  # while jobs run: they keep to what was resolved
        module._in_memory.clear()
        assert asked(first).names == ["MgO"]
        assert count_compositions(first) == 1
    assert kept.stat().st_mtime_ns == before
    assert resolve(first, write=True).names == ["MgO", "CaO"]
    assert asked_hash(first) != digest
    assert read_table(kept)["composition"].to_pylist() == ["MgO", "CaO"]
    module._in_memory.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "stage_code_hash", lambda stage: "edited")
        patch.setattr(module, "_resolve", forbidden)
        assert asked(first).count == 2  # jobs take what there is
        module._in_memory.clear()
        with pytest.raises(AssertionError, match="resolved anew"):
            resolve(first)
    module._in_memory.clear()
    assert resolve(campaign(**values | {"unit_atoms": 4})).names == ["MgO", "Mg2O2", "CaO", "Ca2O2"]


def test_of_the_test_split_the_size_is_its_limit() -> None:
    assert count_compositions(campaign(test_split={"limit": 7})) == 7
    assert campaign().generate.known
    assert not campaign(systems={"of": ["Mg-O"]}).generate.known


def test_groups_hold_elements_once() -> None:
    for name, symbols in GROUPS.items():
        assert len(set(symbols)) == len(symbols), name
        assert set(symbols) <= set(GROUPS["*"])
    parts = ("alkali", "alkaline_earth", "transition_metals", "lanthanides", "actinides", "post_transition_metals")
    for one, other in combinations(parts, 2):
        assert not set(GROUPS[one]) & set(GROUPS[other])
    assert set(GROUPS["metals"]) == {symbol for name in parts for symbol in GROUPS[name]}


def test_compositions_are_read_by_slices() -> None:
    given = campaign(compositions=[{"formula": "MgO"}, {"formula": "TiO2"}, {"formula": "Al2O3"}], unit_atoms=1)
    every = campaign_compositions(given, Path("nowhere"))
    assert [c.composition for c in every] == ["MgO", "TiO2", "Al2O3"]
    assert every[1].atomic_numbers == (22, 8, 8)
    assert every[1].asked_by == "generate.compositions[1]"
    assert asked_compositions(given, 1, 3) == every[1:3]
    assert asked_compositions(given, 2, 9) == every[2:]
    assert asked_compositions(given, 3, 9) == []
    assert asked_compositions(campaign()) is None
    with pytest.raises(UserError, match="nothing to predict; see compositions_dropped"):
        campaign_compositions(campaign(compositions=[]), Path("nowhere"))
