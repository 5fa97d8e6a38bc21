import json

import numpy as np
import pyarrow as pa
import pytest

from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.crystal import from_table, to_table
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.qe import run
from dao_pipeline.qe.validate import VALIDATION, validate_qe
from dao_pipeline.report.page import write_report
from tests.qe.make import needs_pw, quick, silicon


def campaign(**qe):
    return parse_campaign({"name": "dft", "qe": quick(**qe).model_dump()}, "test")


def validate(tmp_path, crystals, number=0, **qe):
    screened = tmp_path / "candidates" / "screened.parquet"
    write_table(to_table(crystals), screened, {})
    out = tmp_path / "validation" / f"candidate-{number:04d}.parquet"
    validate_qe(campaign(**qe), screened, number, out, tmp_path / "work")
    return read_table(out)


def test_no_candidate_is_an_empty_table(tmp_path):
    table = validate(tmp_path, [silicon()], number=7)
    assert table.num_rows == 0
    assert table.schema.names == VALIDATION.names


def test_missing_element_and_folder_are_named(tmp_path):
    (tmp_path / "pseudo").mkdir()
    with pytest.raises(UserError, match="no PBE pseudopotential for Si"):
        validate(tmp_path, [silicon()], pseudo_dir=str(tmp_path / "pseudo"))
    with pytest.raises(UserError, match=r"qe\.pseudo_dir: not given"):
        validate(tmp_path, [silicon()], pseudo_dir=None)


@needs_pw
def test_single_point_of_silicon(tmp_path):
    table = validate(tmp_path, [silicon()])
    assert table.schema.names == VALIDATION.names
    row = table.to_pylist()[0]
    assert row["status"] == "converged"
    assert row["reason"] is None
    assert row["energy_per_atom"] == pytest.approx(-138.690, abs=0.01)
    assert row["energy"] == pytest.approx(2 * row["energy_per_atom"])
    assert row["force_max"] < 1e-3
    assert np.reshape(row["forces"], (2, 3)) == pytest.approx(np.zeros((2, 3)), abs=1e-3)
    assert row["qe_version"].startswith(("6", "7"))
    assert json.loads(row["pseudopotentials"])["Si"]["file"].startswith("Si.pbe")
    assert json.loads(row["pseudopotentials"])["Si"]["electrons"] == 4
    assert json.loads(row["settings"])["input"]["system"]["ecutwfc"] == 16
    assert (row["cores"], row["actions"], row["protocol"], row["functional"]) == (1, [], "balanced", "PBE")
    assert row["magnetization"] is None
    assert 0 < row["cpu_seconds"] < 60
    assert row["expected_core_seconds"] > 0
    assert [text.strip()[:8] for text in row["inputs"]] == ["&CONTROL"]
    assert "JOB DONE" in row["outputs"][0]
    assert read_about(tmp_path / "validation" / "candidate-0000.parquet")["stage"] == "validate_qe"
    final = next(from_table(table))
    assert np.array_equal(final.lattice, silicon().lattice)
    assert np.array_equal(final.frac_coords, silicon().frac_coords)


@needs_pw
def test_a_converged_calculation_is_not_made_again(tmp_path, monkeypatch):
    first = validate(tmp_path, [silicon()]).to_pylist()[0]
    monkeypatch.setattr(run, "write_input", None)  # nothing may be started
    moved = silicon(rank=2)  # the campaign has grown, and the candidate has another place in it
    again = validate(tmp_path, [moved], top_k=2).to_pylist()[0]
    assert again == first | {"rank": 2}
    with pytest.raises(TypeError):
        validate(tmp_path, [silicon(edge=5.44)])


@needs_pw
def test_variable_cell_relaxation_expands_a_compressed_crystal(tmp_path):
    row = validate(tmp_path, [silicon(edge=5.43)], calculation="vc-relax").to_pylist()[0]
    assert row["status"] == "converged"
    assert row["steps"] > 1
    assert row["volume_change"] > 0.02
    assert abs(row["pressure"]) < 1
    assert row["volume"] == pytest.approx(abs(np.linalg.det(np.reshape(row["lattice"], (3, 3)))))


@needs_pw
def test_iron_is_computed_with_spin(tmp_path):
    iron = silicon(z=26, edge=1, composition="Fe1")
    one = type(iron)(
        id=iron.id,
        atomic_numbers=np.array([26]),
        frac_coords=np.zeros((1, 3)),
        lattice=2.85 / 2 * np.array([[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]]),
        extra=iron.extra,
    )
    row = validate(tmp_path, [one], ecutwfc=25, ecutrho=200, kspacing=0.9, degauss=0.03).to_pylist()[0]
    assert row["status"] == "converged"
    assert row["magnetization"] > 1
    assert row["absolute_magnetization"] >= row["magnetization"]


@needs_pw
def test_no_self_consistency_is_a_failed_row(tmp_path, monkeypatch):
    monkeypatch.setattr("dao_pipeline.qe.recovery.MAX_ROUNDS", 0)
    monkeypatch.setattr("dao_pipeline.qe.run.input_data", _hurried(run.input_data))
    row = validate(tmp_path, [silicon()]).to_pylist()[0]
    assert row["status"] == "failed"
    assert row["reason"].startswith("self-consistency not reached; given up after 0 rounds")
    assert row["energy"] is None
    assert row["lattice"] is None
    assert row["wall_seconds"] > 0


def _hurried(real):
    def data(*args, **kwargs):
        values = real(*args, **kwargs)
        values["electrons"]["electron_maxstep"] = 2
        return values

    return data


def test_overlapping_atoms_are_a_failed_row(tmp_path, tmp_pseudos):
    row = validate(tmp_path, [silicon(edge=0.4)], pseudo_dir=tmp_pseudos).to_pylist()[0]
    assert row["status"] == "failed"
    assert "on top of each other" in row["reason"]


@pytest.mark.parametrize("command", ["no-such-pw.x", "false", "echo"])
def test_a_wrong_command_is_an_error_of_the_set_up(tmp_path, tmp_pseudos, command):
    with pytest.raises(UserError, match=r"qe\.command"):
        validate(tmp_path, [silicon()], command=command, pseudo_dir=tmp_pseudos)
    assert not (tmp_path / "validation").exists()


def test_beyond_the_budget_is_a_row_that_was_not_run(tmp_path, tmp_pseudos):
    rows = [silicon("a"), silicon("b", composition="Si2x")]
    row = validate(tmp_path, rows, number=1, budget_core_hours=1e-9, pseudo_dir=tmp_pseudos).to_pylist()[0]
    assert (row["id"], row["status"]) == ("b", "not_run")
    assert row["reason"].startswith("beyond qe.budget_core_hours")
    assert row["expected_core_seconds"] > 0


def test_a_candidate_without_a_crystal_was_not_run(tmp_path, tmp_pseudos):
    table = to_table([silicon("a"), silicon("b", status="failed")])
    lattice = table["lattice"].to_pylist()
    table = table.set_column(
        table.schema.get_field_index("lattice"), "lattice", pa.array([lattice[0], None], table["lattice"].type)
    )
    write_table(table, tmp_path / "screened.parquet", {})
    out = tmp_path / "out.parquet"
    settings = campaign(candidates=["b"], pseudo_dir=tmp_pseudos)
    validate_qe(settings, tmp_path / "screened.parquet", 0, out, tmp_path / "work")
    row = read_table(out).to_pylist()[0]
    assert (row["status"], row["reason"]) == ("not_run", "no crystal (failed)")


@needs_pw
def test_the_report_shows_converged_and_failed(tmp_path):
    validate(tmp_path, [silicon()], number=0)
    validate(tmp_path, [silicon(), silicon("cand:1:0", edge=0.4, composition="Si2x")], number=1)
    validate(tmp_path, [silicon()], number=2)
    (tmp_path / "candidates" / "screened.parquet").unlink()
    write_report(campaign(), tmp_path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "1 of 2 calculations converged" in page
    assert "−138.69" in page
