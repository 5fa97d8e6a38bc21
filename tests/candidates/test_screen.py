"""Screening of a shard, and of all shards together: checks, grouping, novelty, rank, export."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pymatgen.core import Structure

from dao_pipeline.candidates import screen as module
from dao_pipeline.candidates.compositions import requested
from dao_pipeline.candidates.plan import plan_table, shard_file
from dao_pipeline.candidates.references import sort_references
from dao_pipeline.candidates.screen import group_by_energy
from dao_pipeline.candidates.screen_shard import screen_shard
from dao_pipeline.candidates.screened import screen_candidates
from dao_pipeline.config import Backbone, Campaign, Process
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.model.dao import About, DaoModel, save_model

ROCKSALT = [[0, 0, 0], [0.5, 0.5, 0.5]]
ZINCBLENDE = [[0, 0, 0], [0.25, 0.25, 0.25]]
FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
SIMPLE = np.eye(3)
ROTATION = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]


def crystal(symbols: str, coords: Any, lattice: np.ndarray, **fields: Any) -> Crystal:
    numbers = np.asarray([ATOMIC_NUMBERS[s] for s in symbols.split()])
    name = fields.pop("id", "")
    return Crystal(
        id=name, atomic_numbers=numbers, frac_coords=np.asarray(coords), lattice=lattice, source="t", extra=fields
    )


CANDIDATES = {
    "cand:0:0": (crystal("Na Cl", ROCKSALT, 5.6 * FCC), 0.10),
    "cand:0:1": (crystal("Na Cl", ROCKSALT, 4.0 * SIMPLE), 0.30),  # CsCl type
    "cand:0:2": (crystal("Cl Na", np.array(ROCKSALT) + 0.3, 5.7 * FCC @ ROTATION), 0.05),  # rock salt again
    "cand:0:3": (crystal("Na Cl", [[0, 0, 0], [0.01, 0, 0]], 5.6 * FCC), -9.0),
    "cand:1:0": (crystal("Zn S", ZINCBLENDE, 5.4 * FCC), 0.0),
    "cand:1:1": (crystal("Zn S", ZINCBLENDE, 90 * FCC), 0.0),
    "cand:1:2": (None, 0.0),
    "cand:1:3": (crystal("Zn S", [[0, 0, 0], [np.nan, 0, 0]], 5.4 * FCC), 0.0),
}


def shards(plan: pa.Table, folder: Path) -> None:
    """Write the plan's pieces, and CANDIDATES as what was generated for them."""
    for shard, number in {(row["shard"], row["round"]): None for row in plan.to_pylist()}:
        rows = plan.filter((pc.field("shard") == shard) & (pc.field("round") == number))
        table = pa.Table.from_pylist([_row(row) for row in rows.to_pylist()], schema=_schema(plan))
        write_table(rows, folder / "planned" / shard_file(shard, number), {})
        write_table(table, folder / "generated" / shard_file(shard, number), {})


def _schema(plan: pa.Table) -> pa.Schema:
    extra = to_table([crystal("H", [[0, 0, 0]], SIMPLE, status="ok")])
    return pa.unify_schemas([plan.schema, extra.schema.remove_metadata()])


def _row(planned: dict[str, Any]) -> dict[str, Any]:
    candidate = CANDIDATES[planned["id"]][0]
    if candidate is None:
        return {**planned, "source": "dao", "status": "flat_cell"}
    return {
        **planned,
        "source": "dao",
        "status": "ok",
        "atomic_numbers": candidate.atomic_numbers.tolist(),
        "frac_coords": candidate.frac_coords.ravel().tolist(),
        "lattice": candidate.lattice.ravel().tolist(),
    }


@pytest.fixture
def plan() -> pa.Table:
    """Two shards of two rounds each."""
    return plan_table([requested("NaCl", 1, "t0"), requested("ZnS", 1, "t1")], 4, 1, 3)


@pytest.fixture
def campaign() -> Campaign:
    return Campaign.model_validate({"name": "t"})


@pytest.fixture
def folder(tmp_path: Path, plan: pa.Table) -> Path:
    write_table(plan, tmp_path / "plan.parquet", {})
    shards(plan, tmp_path)
    (tmp_path / "model").mkdir()
    known = crystal("Na Cl", ROCKSALT, 5.65 * FCC, id="known", split="train")
    other = crystal("Zn S", ROCKSALT, 5.0 * FCC, id="other", split="val")
    for name, crystals in {"train": [known], "val": [other]}.items():
        write_table(to_table(crystals), tmp_path / "crysdb" / f"{name}.parquet", {})
    sort_references(tmp_path / "crysdb", tmp_path / "references.parquet")
    return tmp_path


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes takes longer than these tests."""
    monkeypatch.setattr("dao_pipeline.parallel.available_cpus", lambda: 1)


@pytest.fixture
def energies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known energies in place of DAO-P's, so that the order is known."""

    def predict(model: Path, table: pa.Table, batch_atoms: int = 6000) -> tuple[np.ndarray, np.ndarray]:
        exists = table["lattice"].is_valid().to_pylist()
        ids = table["id"].to_pylist()
        known = np.array([CANDIDATES[i][1] if ok else np.nan for i, ok in zip(ids, exists, strict=True)])
        return known, 0.1 * known

    monkeypatch.setattr("dao_pipeline.energy.predict.predict_with_std", predict)


def run(campaign: Campaign, folder: Path, ranker: Path | None = None) -> dict[str, dict[str, Any]]:
    """Both shards screened and put together; rows by id."""
    inputs = (folder / "references.parquet", folder / "model")
    for shard in range(2):
        out = folder / "screened" / f"shard-{shard:05d}.parquet"
        screen_shard(campaign, folder / "planned", folder / "generated", shard, *inputs, out, ranker)
    screen_candidates(campaign, folder / "plan.parquet", folder / "screened", folder / "screened.parquet")
    return {row["id"]: row for row in read_table(folder / "screened.parquet").to_pylist()}


@pytest.mark.usefixtures("energies")
def test_every_planned_candidate_has_a_row_with_a_verdict(campaign: Campaign, folder: Path) -> None:
    rows = run(campaign, folder)
    assert list(rows) == list(CANDIDATES)
    assert {i: row["status"] for i, row in rows.items() if row["status"] != "ok"} == {
        "cand:0:3": "atoms_too_close",
        "cand:1:1": "too_empty",
        "cand:1:2": "flat_cell",
        "cand:1:3": "not_finite",
    }
    for row in rows.values():
        assert row["valid"] == (row["status"] == "ok")
        assert (row["group"] is not None) == row["valid"]
        assert (row["rank"] is not None) == bool(row["unique"])
    assert rows["cand:1:2"]["energy_pred"] is rows["cand:1:2"]["energy_std_pred"] is None
    assert rows["cand:0:0"]["energy_std_pred"] == pytest.approx(0.1 * rows["cand:0:0"]["energy_pred"])
    assert rows["cand:1:2"]["lattice"] is None
    assert rows["cand:1:2"]["atomic_numbers"] == [30, 16]
    assert rows["cand:0:0"]["target_id"] == "t0"


@pytest.mark.usefixtures("energies")
def test_groups_rank_novelty_and_symmetry(campaign: Campaign, folder: Path) -> None:
    rows = run(campaign, folder)
    assert [rows[f"cand:0:{s}"]["group"] for s in range(4)] == [0, 1, 0, None]
    assert [rows[f"cand:0:{s}"]["group_size"] for s in range(4)] == [2, 1, 2, None]
    assert [rows[f"cand:0:{s}"]["unique"] for s in range(4)] == [False, True, True, None]
    assert [rows[f"cand:0:{s}"]["rank"] for s in range(4)] == [None, 2, 1, None]
    assert [rows[f"cand:0:{s}"]["novel"] for s in range(4)] == [False, True, False, None]
    assert [rows[f"cand:0:{s}"]["spacegroup"] for s in range(4)] == [225, 221, 225, None]
    assert rows["cand:1:0"]["spacegroup"] == 216
    assert rows["cand:1:0"]["novel"] is True  # the known ZnS crystal has another structure
    assert rows["cand:0:0"]["min_distance"] == pytest.approx(2.8)
    assert rows["cand:0:0"]["volume_per_atom"] == pytest.approx(5.6**3 / 8)


@pytest.mark.usefixtures("energies")
def test_counts_add_up(campaign: Campaign, folder: Path) -> None:
    rows = list(run(campaign, folder).values())
    sizes = {(r["composition"], r["group"]): r["group_size"] for r in rows if r["valid"]}
    assert sum(sizes.values()) == sum(r["valid"] for r in rows)
    assert len(sizes) == sum(bool(r["unique"]) for r in rows)


@pytest.mark.usefixtures("energies")
def test_the_result_does_not_depend_on_the_number_of_processes(
    campaign: Campaign, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(campaign, folder)
    first = read_table(folder / "screened.parquet"), (folder / "top.zip").read_bytes()
    monkeypatch.setattr("dao_pipeline.parallel.available_cpus", lambda: 2)
    run(campaign, folder)
    assert read_table(folder / "screened.parquet").equals(first[0])
    assert (folder / "top.zip").read_bytes() == first[1]


@pytest.mark.usefixtures("energies")
def test_zip_holds_the_best_as_readable_cifs(campaign: Campaign, folder: Path) -> None:
    run(campaign, folder)
    with zipfile.ZipFile(folder / "top.zip") as archive:
        names = archive.namelist()
        texts = [archive.read(name).decode() for name in names]
    assert names == ["NaCl_001_cand-0-2.cif", "NaCl_002_cand-0-1.cif", "ZnS_001_cand-1-0.cif"]
    assert "id cand:0:2; composition NaCl; formula NaCl; rank 1" in texts[0]
    assert "0.050000 eV/atom; space group 225" in texts[0]
    structure = Structure.from_str(texts[0], fmt="cif")
    assert structure.composition.reduced_formula == "NaCl"
    assert structure.volume == pytest.approx(5.7**3 / 4)


def test_metadata_names_settings_and_inputs(campaign: Campaign, folder: Path, energies: None) -> None:
    run(campaign, folder)
    about = read_about(folder / "screened.parquet")
    assert about["stage"] == "screen_candidates"
    assert set(about["inputs"]) == {"plan", "screened"}
    assert about["screening"]["screen.symprec"] == about["symprec"] == 0.1
    assert about["settings"]["screen.top_k"] == 5
    about = read_about(folder / "screened" / "shard-00000.parquet")
    assert set(about["inputs"]) == {"generated_0", "generated_1", "energy_model"}
    assert set(about["references"]) == {"train", "val"}


def test_a_real_model_ranks(campaign: Campaign, folder: Path) -> None:
    backbone = Backbone(preset="tiny", layers=1, width=16, heads=2, frequencies=4)
    about = About(kind="dao_p", backbone=backbone.model_dump(), process=Process(timesteps=10).model_dump())
    save_model(DaoModel(about, np.full(101, 20.0)), folder / "model")
    rows = run(campaign, folder)
    ranked = sorted((r["rank"], r["energy_pred"]) for r in rows.values() if r["rank"] and r["id"] < "cand:1")
    assert len(ranked) == 2
    assert ranked[0][1] <= ranked[1][1]
    assert np.isfinite(rows["cand:0:3"]["energy_pred"])


def test_the_member_of_lowest_energy_stands_first() -> None:
    kinds = [0, 1, 0, 1, 2]
    groups = group_by_energy([0.3, 0.1, 0.2, 0.1, np.inf], lambda i, j: kinds[i] == kinds[j])
    assert groups == [[1, 3], [2, 0], [4]]


def test_nothing_valid_gives_a_table_and_an_empty_zip(campaign: Campaign, folder: Path, energies: None) -> None:
    strict = campaign.model_copy(update={"screen": campaign.screen.model_copy(update={"min_distance": 5.0})})
    rows = run(strict, folder)
    assert not any(row["valid"] for row in rows.values())
    with zipfile.ZipFile(folder / "top.zip") as archive:
        assert archive.namelist() == []


def test_module_names_the_columns_it_adds() -> None:
    assert set(module.COMPARED) == {"spacegroup", "group", "group_size", "unique", "novel", "rank"}


@pytest.mark.usefixtures("energies")
def test_a_ranker_ranks_by_probability_and_nothing_else_changes(
    campaign: Campaign, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(campaign, folder)
    assert "probability" not in read_table(folder / "screened.parquet").column_names
    chance = {"cand:0:0": 0.2, "cand:0:1": 0.6, "cand:0:2": 0.1, "cand:1:0": 0.3}

    def predict(ranker: Path, table: pa.Table, workers: int) -> list[float | None]:
        return [chance.get(name) for name in table["id"].to_pylist()]

    monkeypatch.setattr(module, "predict_probabilities", predict)
    write_model_note(folder / "ranker")
    after = run(campaign, folder, folder / "ranker")
    assert after["cand:0:1"]["rank"] == 1  # although its energy is higher
    assert after["cand:0:1"]["probability"] == pytest.approx(0.6)
    assert after["cand:0:0"]["rank"] == 2  # stands for its group: the more probable of the two
    assert after["cand:0:0"]["probability"] == pytest.approx(0.3)
    assert after["cand:0:2"]["rank"] is None
    assert after["cand:0:2"]["probability"] is None
    same = ("status", "valid", "novel", "spacegroup", "energy_pred", "group_size")
    assert [[row[name] for name in same] for row in after.values()] == [
        [row[name] for name in same] for row in before.values()
    ]
    for composition in ("NaCl", "ZnS"):
        chances = [row["probability"] or 0.0 for row in after.values() if row["composition"] == composition]
        assert sum(chances) <= 1


def write_model_note(folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"history": [{"stage": "train_ranker", "campaign": "t", "held_out": []}]}'
    )
    (folder / "model.safetensors").write_bytes(b"")
