"""Export: what is selected, and that structures and facts come back from other programs as they were."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from pymatgen.io.cif import CifParser
from typer.testing import CliRunner

from dao_pipeline.candidates import export_selected
from dao_pipeline.candidates.export_selected import export, file_name
from dao_pipeline.candidates.select import Selection, select
from dao_pipeline.cli import app
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.table import provenance, read_table, write_table
from dao_pipeline.errors import UserError
from tests.make import binary
from tests.report.build import build_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_results(tmp_path_factory.mktemp("results") / "made_up")
    (folder / "config.yaml").write_text("name: made_up\n")
    return folder


def originals(results: Path) -> dict[str, Crystal]:
    table = read_table(results / "candidates" / "screened.parquet")
    return {c.id: c for c in from_table(table.filter(table["lattice"].is_valid()))}


def chosen(results: Path, **selection: object) -> list[str]:
    table = select(results / "candidates" / "screened.parquet", Selection(**selection))  # type: ignore[arg-type]
    return list(table["id"].to_pylist())


def test_extended_xyz_comes_back_through_ase(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.extxyz"
    assert export(results, Selection(top=3), out) == 15
    frames = read(out, index=":")
    known = originals(results)
    assert len(frames) == 15
    for atoms in frames:
        crystal = known[atoms.info["id"]]
        assert atoms.numbers.tolist() == crystal.atomic_numbers.tolist()
        np.testing.assert_allclose(atoms.cell.array, crystal.lattice, atol=1e-6)
        np.testing.assert_allclose(atoms.positions, crystal.frac_coords @ crystal.lattice, atol=1e-6)
        assert atoms.pbc.all()
        assert atoms.info["energy_pred"] == pytest.approx(crystal.extra["energy_pred"], abs=1e-12)
        assert atoms.info["rank"] == crystal.extra["rank"] <= 3
        assert atoms.info["campaign"] == "made_up"
        assert atoms.info["settings_hash"].startswith("sha256:")


def test_formulas_that_look_like_values_stay_texts(tmp_path: Path) -> None:
    """ASE reads InF as infinite, NaN as no number, F as false."""
    cells = {"InF": [49, 9], "NaN": [11, 7], "F": [9, 9]}
    crystals = [
        Crystal(
            id=name,
            atomic_numbers=np.array(z),
            frac_coords=np.array([[0.0] * 3, [0.5] * 3]),
            lattice=4 * np.eye(3),
        )
        for name, z in cells.items()
    ]
    write_table(to_table(crystals), tmp_path / "crystals.parquet", {})
    export(tmp_path / "crystals.parquet", Selection(), tmp_path / "all.extxyz")
    frames = read(tmp_path / "all.extxyz", index=":")
    assert [atoms.info["formula"] for atoms in frames] == ["In1F1", "Na1N1", "F1"]


@pytest.mark.parametrize("name", ["best.zip", "best"])
def test_cif_comes_back_through_pymatgen(results: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "deep" / name
    assert export(results, Selection(top=2), out) == 10
    if name.endswith("zip"):
        with zipfile.ZipFile(out) as archive:
            texts = {entry: archive.read(entry).decode() for entry in archive.namelist()}
    else:
        texts = {path.name: path.read_text() for path in out.iterdir()}
    assert len(texts) == 10
    known = originals(results)
    for entry, text in texts.items():
        crystal = known[text.splitlines()[0].removeprefix("# id ")]
        parser = CifParser(io.StringIO(text))
        block = next(iter(parser.as_dict().values()))
        structure = parser.parse_structures(primitive=False)[0]
        assert [site.specie.Z for site in structure] == crystal.atomic_numbers.tolist()
        np.testing.assert_allclose(structure.lattice.abc, np.linalg.norm(crystal.lattice, axis=1), atol=1e-6)
        np.testing.assert_allclose(structure.distance_matrix, distances(crystal), atol=1e-6)
        assert block["_dao_id"] == crystal.id
        assert float(block["_dao_energy_pred"]) == pytest.approx(crystal.extra["energy_pred"], abs=1e-12)
        assert block["_dao_campaign"] == "made_up"
        assert entry.startswith(f"{crystal.extra['composition']}_00")


def distances(crystal: Crystal) -> np.ndarray:
    from dao_pipeline.crystals.convert import to_structure

    return np.asarray(to_structure(crystal).distance_matrix)


def test_selections(results: Path) -> None:
    known = originals(results)
    assert chosen(results, ids=("cand:3:1", "cand:0:2")) == ["cand:0:2", "cand:3:1"]
    of_titania = [name for name, c in known.items() if c.extra["composition"] == "Ti2O4"]
    assert sorted(chosen(results, compositions=("TiO2",))) == sorted(of_titania)
    assert sorted(chosen(results, compositions=("Ti2O4",))) == sorted(of_titania)
    assert sorted(chosen(results, systems=("O-Ti",))) == sorted(of_titania)
    assert {known[i].formula for i in chosen(results, systems=("alkali-halogens",))} == {"NaCl", "CsCl"}
    assert {known[i].formula for i in chosen(results, systems=("*-*-O",))} == {"SrTiO3"}
    best = chosen(results, top=1, condition="energy_pred < 100 and spacegroup > 0")
    assert [known[i].extra["rank"] for i in best] == [1] * 5
    order = [(c.extra["composition"], c.extra["rank"]) for c in map(known.__getitem__, chosen(results, top=3))]
    assert order == [(name, rank) for name in dict.fromkeys(n for n, _ in order) for rank in (1, 2, 3)]
    assert len(chosen(results)) == len(known)  # those without a structure are left out


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"ids": ("cand:0:1", "cand:99:0")}, "no crystal with the id cand:99:0"),
        ({"compositions": ("Mg(OH)2",)}, "--composition Mg.*not a plain formula"),
        ({"compositions": ("MgO",)}, "no crystal is selected"),
        ({"systems": ("Xx-O",)}, "--system: 'Xx' is neither"),
        ({"condition": "energ_pred < 1"}, "did you mean energy_pred"),
    ],
)
def test_bad_selections(results: Path, selection: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        chosen(results, **selection)


def test_any_table_of_crystals_is_exported(tmp_path: Path) -> None:
    crystals = [binary(0), binary(1)]
    path = tmp_path / "crystals.parquet"
    write_table(to_table(crystals), path, provenance("download"))
    assert export(path, Selection(systems=("alkali-O",)), tmp_path / "a.extxyz") == 2
    assert export(path, Selection(ids=("t-1",)), tmp_path / "b.zip") == 1
    with pytest.raises(UserError, match="--top 2: these crystals have no rank"):
        export(path, Selection(top=2), tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def test_hostile_names_stay_inside_their_quotes_and_folder(tmp_path: Path) -> None:
    name = "../../x'\"\n_cell_length_a 99\n; rm -rf"
    crystal = binary(0)
    evil = [Crystal(**{**vars(crystal), "id": name + end}) for end in ("", "!")]
    write_table(to_table(evil), tmp_path / "t.parquet", {"stage": "x"})
    export(tmp_path / "t.parquet", Selection(), tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "t.parquet"]
    for file in files:
        parser = CifParser(io.StringIO(file.read_text()))
        assert parser.parse_structures(primitive=False)[0].lattice.a == pytest.approx(crystal.lattice[0, 0])
    export(tmp_path / "t.parquet", Selection(), tmp_path / "out.extxyz")
    assert len(read(tmp_path / "out.extxyz", index=":")) == 2
    assert file_name({"id": "a" * 500, "formula": "MgO"}) == f"MgO_{'a' * 100}.cif"


def test_nothing_is_left_of_a_failed_export(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="exists already"):
        export(results, Selection(top=1), out)
    out.rmdir()

    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(export_selected, "cif_text", fail)
    for name in ("out", "out.zip"):
        with pytest.raises(OSError, match="disk full"):
            export(results, Selection(top=1), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_command(results: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["export", str(results), "--out", str(tmp_path / "a.zip")])
    assert run.exit_code == 0, run.output
    assert "wrote 25 crystals" in run.output  # the best five of each
    options = ["--where", "rank == 1", "--composition", "TiO2"]
    run = CliRunner().invoke(app, ["export", str(results), "--out", str(tmp_path / "b.xyz"), *options])
    assert "wrote 1 crystals" in run.output
    run = CliRunner().invoke(app, ["export", str(tmp_path / "nowhere"), "--out", str(tmp_path / "c.zip")])
    assert run.exit_code == 2
