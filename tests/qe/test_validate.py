import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.crystal import Crystal, from_table, to_table
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.qe import run
from dao_pipeline.qe.run import failure, input_data, kpoint_grid, read_outcome
from dao_pipeline.qe.validate import VALIDATION, select_candidate, validate_qe
from dao_pipeline.report.page import write_report

PSEUDOS = Path("/usr/share/espresso/pseudo")
needs_pw = pytest.mark.skipif(
    shutil.which("pw.x") is None or not PSEUDOS.is_dir(),
    reason="pw.x and its pseudopotentials are absent: apt-get install quantum-espresso quantum-espresso-data",
)
FCC = np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0]])


@pytest.fixture(autouse=True)
def _root_may_use_mpi(monkeypatch):
    if os.getuid() == 0:
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


def silicon(id="cand:0:0", edge=5.43, z=14, **extra):  # noqa: A002
    return Crystal(
        id=id,
        source="dao_g",
        atomic_numbers=np.array([z, z]),
        frac_coords=np.array([[0, 0, 0], [0.25, 0.25, 0.25]]),
        lattice=edge / 2 * FCC,
        extra={"composition": "Si2", "target_id": None, "rank": 1, "energy_pred": 0.1, **extra},
    )


def campaign(**qe):
    quick = {"enabled": True, "pseudo_dir": str(PSEUDOS), "ecutwfc": 16, "ecutrho": 80, "kspacing": 1.0}
    return parse_campaign({"name": "dft", "qe": {**quick, "calculation": "scf", **qe}}, "test")


def validate(tmp_path, crystals, number=0, **qe):
    screened = tmp_path / "candidates" / "screened.parquet"
    write_table(to_table(crystals), screened, {})
    out = tmp_path / "validation" / f"candidate-{number:04d}.parquet"
    validate_qe(campaign(**qe), screened, number, out, tmp_path / "work")
    return read_table(out)


def test_candidates_in_order_of_composition_and_rank(tmp_path):
    rows = [
        silicon("b2", composition="B", rank=2),
        silicon("b1", composition="B", rank=1),
        silicon("b?", composition="B", rank=None),
        silicon("a3", composition="A", rank=3),
        silicon("a1", composition="A", rank=1, target_id="t"),
    ]
    path = tmp_path / "screened.parquet"
    write_table(to_table(rows), path, {})
    picked = [select_candidate(path, 2, n) for n in range(4)]
    assert [c.id if c else None for c in picked] == ["b1", "b2", "a1", None]


def test_no_candidate_is_an_empty_table(tmp_path):
    table = validate(tmp_path, [silicon()], number=7)
    assert table.num_rows == 0
    assert table.schema.names == VALIDATION.names


def test_kpoints_are_close_enough_and_thresholds_grow_with_the_cell():
    assert kpoint_grid(2 * np.pi * np.diag([1.0, 2.0, 40.0]), 0.3) == (4, 2, 1)
    settings = campaign().qe
    assert input_data(settings, 8)["electrons"]["conv_thr"] == 2 * input_data(settings, 4)["electrons"]["conv_thr"]


def test_missing_element_and_folder_are_named(tmp_path):
    (tmp_path / "pseudo").mkdir()
    with pytest.raises(UserError, match="no PBE pseudopotential for Si"):
        validate(tmp_path, [silicon()], pseudo_dir=str(tmp_path / "pseudo"))
    with pytest.raises(UserError, match=r"qe\.pseudo_dir: not given"):
        validate(tmp_path, [silicon()], pseudo_dir=None)


@pytest.mark.parametrize(
    ("text", "calculation", "reason"),
    [
        ("", "scf", ""),
        ("JOB DONE", "scf", ""),
        ("Program PWSCF v.6.7\n and then nothing", "scf", "output ends early"),
        (
            "convergence NOT achieved after 100 iterations: stopping\nJOB DONE",
            "scf",
            "self-consistency not reached",
        ),
        ("  Error in routine cdiaghg (159):\n  S matrix not positive definite\n", "scf", "cdiaghg: S matrix not"),
        ("bfgs converged in 3 steps\nJOB DONE", "relax", ""),
        ("The maximum number of steps has been reached.\nJOB DONE", "vc-relax", "not converged in 100 steps"),
        ("Maximum CPU time exceeded\nJOB DONE", "relax", "out of time"),
        ("JOB DONE", "relax", "stopped without converging"),
    ],
)
def test_outputs_are_judged(text, calculation, reason):
    found = failure(text, calculation)
    assert reason in found
    assert bool(found) == bool(reason)


def test_damaged_output_is_a_failure(tmp_path):
    text = "Program PWSCF v.6.7MaX starts\n!    total energy  =  -20.0 Ry\n Begin final coor\x00"
    (tmp_path / "espresso.pwo").write_text(text)
    outcome = read_outcome(tmp_path, silicon(), "vc-relax", "pw.x stopped: signal 9", 1.0, {})
    assert not outcome.converged
    assert outcome.reason == "output ends early"
    assert outcome.version == "6.7MaX"


@needs_pw
def test_scf_of_silicon(tmp_path):
    table = validate(tmp_path, [silicon()])
    row = table.to_pylist()[0]
    assert row["status"] == "converged"
    assert row["reason"] is None
    assert row["energy_per_atom"] == pytest.approx(-138.690, abs=0.01)
    assert row["energy"] == pytest.approx(2 * row["energy_per_atom"])
    assert row["force_max"] < 1e-3
    assert row["qe_version"].startswith(("6", "7"))
    assert json.loads(row["pseudopotentials"])["Si"]["file"].startswith("Si.pbe")
    assert json.loads(row["settings"])["input"]["system"]["ecutwfc"] == 16
    assert read_about(tmp_path / "validation" / "candidate-0000.parquet")["stage"] == "validate_qe"
    final = next(from_table(table))
    assert np.allclose(final.lattice, silicon().lattice)
    assert not (tmp_path / "work" / "scratch").exists()
    assert (tmp_path / "work" / "espresso.pwo").is_file()


@needs_pw
def test_variable_cell_relaxation_expands_a_compressed_crystal(tmp_path):
    row = validate(tmp_path, [silicon(edge=5.43)], calculation="vc-relax").to_pylist()[0]
    assert row["status"] == "converged"
    assert row["steps"] > 1
    assert row["volume_change"] > 0.02
    assert abs(row["pressure"]) < 1
    assert row["volume"] == pytest.approx(abs(np.linalg.det(np.reshape(row["lattice"], (3, 3)))))


@needs_pw
def test_no_self_consistency_is_a_failed_row(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ELECTRON_STEPS", 2)
    row = validate(tmp_path, [silicon()]).to_pylist()[0]
    assert (row["status"], row["reason"]) == ("failed", "self-consistency not reached")
    assert row["energy"] is None
    assert row["lattice"] is None
    assert row["wall_seconds"] > 0


@needs_pw
def test_overlapping_atoms_are_a_failed_row(tmp_path):
    row = validate(tmp_path, [silicon(edge=0.4)]).to_pylist()[0]
    assert row["status"] == "failed"
    assert row["reason"]


@needs_pw
@pytest.mark.parametrize("command", ["no-such-pw.x", "false", "echo"])
def test_a_wrong_command_is_a_failed_row(tmp_path, command):
    row = validate(tmp_path, [silicon()], command=command).to_pylist()[0]
    assert row["status"] == "failed"
    assert row["reason"]


@needs_pw
def test_the_report_shows_converged_and_failed(tmp_path):
    validate(tmp_path, [silicon()], number=0)
    validate(tmp_path, [silicon(), silicon("cand:1:0", composition="Si2x")], number=1, command="false")
    validate(tmp_path, [silicon()], number=2)
    (tmp_path / "candidates" / "screened.parquet").unlink()
    write_report(campaign(), tmp_path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "1 of 2 calculations converged" in page
    assert "−138.69" in page
