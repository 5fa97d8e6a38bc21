"""With the real pw.x: candidates, elements with the same settings, formation energies, comparison."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dao_pipeline.comparison.compare import compare_dft
from dao_pipeline.comparison.references import element_crystals, reference_energies
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.qe.validate import validate_qe
from tests.comparison.test_compare import FCC, rocksalt, zincblende

PSEUDOS = Path("/usr/share/espresso/pseudo")
needs_pw = pytest.mark.skipif(
    shutil.which("pw.x") is None or not PSEUDOS.is_dir(),
    reason="pw.x and its pseudopotentials are absent: apt-get install quantum-espresso quantum-espresso-data",
)


@pytest.fixture(autouse=True)
def _root_may_use_mpi(monkeypatch):
    if os.getuid() == 0:
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


def diamond(name, number, edge, **extra):
    return Crystal(
        id=name,
        source="mp",
        atomic_numbers=np.array([number, number]),
        frac_coords=np.array([[0, 0, 0], [0.25, 0.25, 0.25]]),
        lattice=edge / 2 * FCC,
        extra=extra,
    )


ELEMENTS = [
    diamond("Si", 14, 5.47, e_above_hull=0.0),
    diamond("Si-high", 14, 5.2, e_above_hull=0.3),
    diamond("C", 6, 3.57, e_above_hull=0.1),
    diamond("C-precursor", 6, 3.6, e_above_hull=0.0, precursor_of="C"),
]


def test_elements_are_the_most_stable_small_crystals(tmp_path):
    write_table(to_table(ELEMENTS), tmp_path / "train.parquet", {})
    found = element_crystals(tmp_path / "train.parquet", {"Si", "C", "Ge"}, 8)
    assert {symbol: crystal.id for symbol, crystal in found.items()} == {"Si": "Si", "C": "C"}
    assert element_crystals(tmp_path / "train.parquet", {"Si"}, 1) == {}


@needs_pw
def test_formation_energies_by_pw(tmp_path):
    campaign = parse_campaign(
        {
            "name": "dft",
            "energy_model": {"label": "formation_energy"},
            "evaluate": {"bootstrap": 20},
            "qe": {
                "enabled": True,
                "pseudo_dir": str(PSEUDOS),
                "protocol": "fast",
                "calculation": "single_point",
                "top_k": 2,
                "ecutwfc": 30,
                "ecutrho": 180,
                "kspacing": 0.8,
            },
        },
        "test",
    )
    candidates = [
        zincblende("cand:0:0", rank=1, energy_pred=-0.3, composition="SiC", target_id="known"),
        rocksalt("cand:0:1", rank=2, energy_pred=0.1, composition="SiC", target_id="known"),
    ]
    screened, crysdb = tmp_path / "screened.parquet", tmp_path / "crysdb"
    write_table(to_table(candidates), screened, {})
    write_table(to_table(ELEMENTS), crysdb / "train.parquet", {})
    for number in (0, 1):
        validate_qe(
            campaign, screened, number, tmp_path / "validation" / f"candidate-{number}.parquet", tmp_path / "w"
        )
    references = tmp_path / "references.parquet"
    reference_energies(campaign, tmp_path / "validation", crysdb, references, tmp_path / "shared")
    computed = read_table(references).to_pylist()
    assert [(row["id"], row["status"]) for row in computed] == [("C", "converged"), ("Si", "converged")]
    assert {row["method_hash"] for row in computed} == set(
        read_table(tmp_path / "validation")["method_hash"].to_pylist()
    )
    assert all(row["calculation"] == "vc-relax" for row in computed)
    compare_dft(campaign, screened, tmp_path / "out", validation=tmp_path / "validation", references=references)
    rows = {row["id"]: row for row in read_table(tmp_path / "out" / "candidates.parquet").to_pylist()}
    # zincblende SiC forms from silicon and diamond (PBE: -0.2 eV/atom), rock salt does not
    assert -0.6 < rows["cand:0:0"]["formation_energy"] < 0
    assert rows["cand:0:1"]["formation_energy"] > rows["cand:0:0"]["formation_energy"] + 0.3
    assert rows["cand:0:0"]["hull_refused"] == "no reference phases in the system C-Si"
    order = read_table(tmp_path / "out" / "compositions.parquet").to_pylist()[0]
    assert order["top1"]
    metrics = {r["metric"]: r["value"] for r in read_table(tmp_path / "out" / "summary.parquet").to_pylist()}
    assert metrics["core_seconds"] > 0
    assert metrics["pairs_right"] == 1
    assert read_about(references)["missing"] == []
    # elements are computed once: with their files in place a second campaign takes no time
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("row.parquet")}
    reference_energies(campaign, tmp_path / "validation", crysdb, references, tmp_path / "shared")
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("row.parquet")}
    assert len(before) == 2
