"""The evaluation from screened candidates to its three tables, with a small model with random weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dao_pipeline.config import Backbone, Campaign, Process
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.table import read_about, read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.evaluation.compare import Target, compare_methods
from dao_pipeline.evaluation.evaluate import evaluate
from dao_pipeline.evaluation.metrics import summarise, target_result
from dao_pipeline.evaluation.substitution import plain_index
from dao_pipeline.model.dao import About, DaoModel, save_model
from tests.make import crystal, shared_data

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
BODY, QUARTER = [[0, 0, 0], [0.5, 0.5, 0.5]], [[0, 0, 0], [0.25, 0.25, 0.25]]
ROCKSALT = crystal("known:NaCl", ["Na", "Cl"], BODY, 5.6 * FCC)
ZINCBLENDE = crystal("known:ZnS", ["Zn", "S"], QUARTER, 5.4 * FCC)
UNASKED = crystal("known:GaP", ["Ga", "P"], QUARTER, 5.4 * FCC)
TRAIN = [
    crystal("KBr", ["K", "Br"], BODY, 6.6 * FCC),
    crystal("CsI", ["Cs", "I"], BODY, 4.5),
    crystal("CdSe", ["Cd", "Se"], QUARTER, 6.1 * FCC),
    crystal("CdSe#0", ["Cd", "Se"], [[0, 0, 0], [0.3, 0.3, 0.3]], 6.1 * FCC, precursor_of="CdSe"),
    crystal("NaF", ["Na", "F"], BODY, 4.6 * FCC),
]


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting processes takes longer than these tests."""
    monkeypatch.setattr("dao_pipeline.parallel.available_cpus", lambda: 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    backbone = Backbone(preset="tiny", layers=1, width=16, heads=2, frequencies=4)
    about = About(kind="dao_p", backbone=backbone.model_dump(), process=Process(timesteps=10).model_dump())
    save_model(DaoModel(about, np.full(101, 20.0)), folder)
    return folder


def campaign(**generate: Any) -> Campaign:
    values = {"name": "t", "data": {"source": "file", "path": "x"}, "evaluate": {"bootstrap": 50}}
    return Campaign.model_validate({**values, "generate": {"samples": 3, **generate}})


def candidate(number: str, made: Crystal | None, target: Crystal, **fields: Any) -> Crystal:
    """A screened candidate; ``made`` None: one that has no crystal."""
    values = {
        "composition": target.formula,
        "target_id": target.id,
        "sample": int(number[-1]),
        "status": "ok",
        "valid": True,
        "energy_pred": 0.0,
        "group": None,
        "rank": None,
    }
    return replace(made or target, id=number, source="dao_g", extra=values | fields)


def screened() -> pa.Table:
    moved = replace(ROCKSALT, frac_coords=np.array([[0, 0, 0], [0.55, 0.5, 0.5]]))
    # wrong structures are of caesium chloride type: zinc blende is the same as rock salt at these tolerances
    table = to_table(
        [
            candidate("cand:0:0", moved, ROCKSALT, group=1, rank=2, energy_pred=0.2),
            candidate("cand:0:1", ROCKSALT, ROCKSALT, group=1, rank=None, energy_pred=0.3),
            candidate(
                "cand:0:2", replace(ROCKSALT, lattice=3.5 * np.eye(3)), ROCKSALT, group=0, rank=1, energy_pred=0.1
            ),
            candidate("cand:1:0", None, ZINCBLENDE, status="not_finite", valid=False, energy_pred=None),
            candidate("cand:1:1", ZINCBLENDE, ZINCBLENDE, status="too_empty", valid=False),
            candidate("cand:1:2", replace(ZINCBLENDE, lattice=3.5 * np.eye(3)), ZINCBLENDE, group=0, rank=1),
        ]
    )
    absent = pc.equal(table["status"], "not_finite")
    for name in ("frac_coords", "lattice"):
        null = pa.scalar(None, table.schema.field(name).type)
        column = pc.if_else(absent, null, table[name])
        table = table.set_column(table.column_names.index(name), name, column)
    return table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_table(to_table(TRAIN), tmp_path / "crysdb" / "train.parquet", {})
    write_table(to_table([ROCKSALT, ZINCBLENDE, UNASKED]), tmp_path / "crysdb" / "test.parquet", {})
    write_table(screened(), tmp_path / "screened.parquet", {"training": {"generator": []}})
    return tmp_path


def run(folder: Path, model: Path, asked: Campaign) -> dict[str, list[dict[str, Any]]]:
    evaluate(asked, folder / "screened.parquet", folder / "crysdb", model, folder / "out")
    names = ("samples", "targets", "summary")
    return {name: read_table(folder / "out" / f"{name}.parquet").to_pylist() for name in names}


def by(rows: Iterable[dict[str, Any]], *names: str) -> dict[Any, dict[str, Any]]:
    return {tuple(row[name] for name in names) if len(names) > 1 else row[names[0]]: row for row in rows}


def test_every_candidate_is_compared_and_says_why_it_failed(folder: Path, model: Path) -> None:
    samples = by(run(folder, model, campaign())["samples"], "id")
    ours = {name: row for name, row in samples.items() if row["method"] == "dao"}
    assert list(ours) == [f"cand:{c}:{s}" for c in range(2) for s in range(3)]
    assert [row["matched"] for row in ours.values()] == [True, True, False, False, True, False]
    assert [row["reason"] for row in ours.values()] == [None, None, "no_match", "not_finite", None, "no_match"]
    assert samples["cand:0:1"]["rmse"] == pytest.approx(0.0, abs=1e-6)
    assert samples["cand:0:0"]["rmse"] > 0.01
    assert [row["place"] for row in ours.values()] == [2, 2, 1, None, None, 1]
    assert [row["first"] for row in ours.values()] == [False, False, True, False, False, True]


def test_every_target_has_a_row_per_method(folder: Path, model: Path) -> None:
    targets = by(run(folder, model, campaign())["targets"], "target_id", "method")
    assert len(targets) == 3 * 3
    ours = targets["known:NaCl", "dao"]
    assert (ours["candidates"], ours["compared"], ours["matches"], ours["found"]) == (3, 3, 2, True)
    assert ours["rmse"] == pytest.approx(0.0, abs=1e-6)
    assert ours["rank1_found"] is False
    assert ours["first_match_rank"] == 2
    assert targets["known:ZnS", "dao"]["found"] is True  # all pairs count, valid or not
    assert targets["known:ZnS", "dao"]["first_match_rank"] is None
    assert targets["known:ZnS", "dao"]["compared"] == 2
    missed = targets["known:GaP", "dao"]
    assert (missed["candidates"], missed["found"], missed["rank1_found"]) == (0, False, False)


def test_baselines_are_made_ranked_and_compared(folder: Path, model: Path) -> None:
    tables = run(folder, model, campaign())
    samples = [row for row in tables["samples"] if row["method"] != "dao"]
    assert {row["formula"] for row in samples} == {"NaCl", "ZnS", "GaP"}
    for (target, method), count in _counts(samples).items():
        own = [r for r in samples if (r["target_id"], r["method"]) == (target, method)]
        assert count == 3 if method == "random" else 1 <= count <= 3
        assert sorted(r["rank"] for r in own if r["rank"]) == list(range(1, sum(r["valid"] for r in own) + 1))
        ranked = sorted((r for r in own if r["rank"]), key=lambda r: r["rank"])
        assert [r["energy_pred"] for r in ranked] == sorted(r["energy_pred"] for r in ranked)
        assert sum(r["first"] for r in own) == 1
    nearest = {r["target_id"]: r for r in samples if r["method"] == "substitution" and r["order"] == 1}
    assert {t: r["template_id"] for t, r in nearest.items()} == {
        "known:NaCl": "KBr", "known:ZnS": "CdSe", "known:GaP": "CdSe",
    }  # fmt: skip
    assert all(r["first"] and r["matched"] for r in nearest.values())
    targets = by(tables["targets"], "target_id", "method")
    assert targets["known:NaCl", "substitution"]["rank1_by"] == "nearest_template"
    assert targets["known:NaCl", "random"]["rank1_by"] == "predicted_energy"


def _counts(rows: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    keys = [(row["target_id"], row["method"]) for row in rows]
    return {key: keys.count(key) for key in keys}


def test_summary_adds_up_and_says_where_it_came_from(folder: Path, model: Path) -> None:
    tables = run(folder, model, campaign())
    summary = by(tables["summary"], "method", "k")
    assert list(summary) == [(m, k) for m in ("dao", "random", "substitution") for k in (1, 3)]
    for (method, k), row in summary.items():
        own = [r for r in tables["targets"] if r["method"] == method]
        assert row["n"] == len(own) == 3
        assert row["matches"] == sum(r["found" if k == 3 else "rank1_found"] for r in own)
        assert row["match_rate"] == pytest.approx(row["matches"] / 3)
        assert row["low"] <= row["match_rate"] <= row["high"]
    assert summary["dao", 3]["match_rate"] == pytest.approx(2 / 3)
    about = read_about(folder / "out" / "summary.parquet")
    assert about["settings"]["evaluate"]["matcher"] == {"ltol": 0.3, "stol": 0.5, "angle_tol": 10.0}
    assert set(about["inputs"]) == {"screened", "train", "test", "energy_model"}


def test_the_result_does_not_depend_on_processes_or_pieces(
    folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounded() -> dict[str, list[dict[str, Any]]]:
        tables = run(folder, model, campaign())
        for row in tables["samples"]:  # energies depend on the batch in the last digit
            row["energy_pred"] = None if row["energy_pred"] is None else round(row["energy_pred"], 4)
        return tables

    first = rounded()
    monkeypatch.setattr("dao_pipeline.parallel.available_cpus", lambda: 2)
    monkeypatch.setattr("dao_pipeline.evaluation.evaluate.TARGETS_AT_ONCE", 2)
    assert rounded() == first


def test_every_crystal_of_a_composition_is_a_target(folder: Path, model: Path) -> None:
    """Two more crystals of the asked cells, one of them a polymorph that is not found: same candidates."""
    twin = replace(ROCKSALT, id="known:NaCl-b", lattice=5.5 * FCC)
    other = replace(ROCKSALT, id="known:NaCl-c", lattice=np.diag([3.0, 3.0, 9.0]))
    precursor = replace(ROCKSALT, id="known:NaCl-d", extra={"precursor_of": "known:NaCl"})
    held = [ROCKSALT, ZINCBLENDE, UNASKED, twin, other, precursor]
    write_table(to_table(held), folder / "crysdb" / "test.parquet", {})
    both = {"evaluate": {"bootstrap": 50, "targets": "all", "baselines": []}}
    tables = run(folder, model, Campaign.model_validate({**campaign().model_dump(), **both}))
    targets = by(tables["targets"], "target_id")
    assert list(targets) == ["known:NaCl", "known:NaCl-b", "known:NaCl-c", "known:ZnS", "known:GaP"]
    assert {row["method"] for row in tables["targets"]} == {"dao"}
    assert [targets[f"known:NaCl{end}"]["found"] for end in ("", "-b", "-c")] == [True, True, False]
    ours = [[s["id"] for s in tables["samples"] if s["target_id"] == f"known:NaCl{end}"] for end in ("", "-b")]
    assert ours[0] == ours[1] == [f"cand:0:{i}" for i in range(3)]
    assert by(tables["summary"], "k")[3]["n"] == 5


def test_without_an_energy_model_nothing_is_ranked_by_energy(folder: Path) -> None:
    evaluate(campaign(), folder / "screened.parquet", folder / "crysdb", None, folder / "out")
    samples = read_table(folder / "out" / "samples.parquet").to_pylist()
    random = [s for s in samples if s["method"] == "random" and s["target_id"] == "known:NaCl"]
    assert [(s["energy_pred"], s["rank"], s["guess"]) for s in random] == [(None, None, i) for i in (1, 2, 3)]
    targets = by(read_table(folder / "out" / "targets.parquet").to_pylist(), "target_id", "method")
    assert targets["known:NaCl", "random"]["rank1_by"] == "as_drawn"
    assert "energy_model" not in read_about(folder / "out" / "summary.parquet")["inputs"]


def test_limit_and_explicit_compositions(folder: Path, model: Path) -> None:
    assert len(run(folder, model, campaign(test_split={"limit": 2}))["targets"]) == 6
    with pytest.raises(UserError, match=r"cand:1:0 was made for known:ZnS, which is no target.*plan_candidates"):
        run(folder, model, campaign(test_split={"limit": 1}))
    table = screened()
    index = table.column_names.index("target_id")
    write_table(
        table.set_column(index, "target_id", pa.nulls(table.num_rows, pa.string())),
        folder / "screened.parquet",
        {},
    )
    tables = run(folder, model, campaign(compositions=[{"formula": "NaCl"}]))
    assert tables == {"samples": [], "targets": [], "summary": []}


def real(file: str, rows: slice) -> list[Crystal]:
    table = pq.read_table(shared_data(file))
    return [
        Crystal(
            id=row["material_id"],
            source="mp20",
            atomic_numbers=np.array(row["atomic_numbers"]),
            frac_coords=np.array(row["frac_coords"]).reshape(-1, 3),
            lattice=np.array(row["lattice"]).reshape(3, 3),
            extra={"e_above_hull": row["e_above_hull"]},
        )
        for row in table.slice(rows.start, rows.stop - rows.start).to_pylist()
    ]


def test_substitution_beats_random_on_real_crystals(model: Path) -> None:
    known = [c for c in real("mp20/val.parquet", slice(0, 60)) if c.num_atoms <= 12][:30]
    train = to_table(real("mp20/train_part.parquet", slice(0, 3420)))
    templates = plain_index(train)
    targets = [Target(c.formula, c, []) for c in known]
    samples = compare_methods(campaign(samples=4), targets, templates, model)
    assert all(s.formula == s.composition for s in samples)
    results = [
        target_result(method, [s for s in samples if s.target_id == c.id and s.method == method])
        for c in known
        for method in ("random", "substitution")
    ]
    rates = {(row["method"], row["k"]): row["match_rate"] for row in summarise(results, 4, 0, 0)}
    assert len(known) == 30
    assert rates["substitution", 1] > rates["random", 4] + 0.2
    assert rates["substitution", 4] >= rates["substitution", 1] > 0.5


def test_models_that_may_know_the_answers_are_not_scored(folder: Path, model: Path) -> None:
    run = {"stage": "finetune_generator", "campaign": "other", "held_out": []}
    write_table(screened(), folder / "screened.parquet", {"training": {"generator": [run]}})
    arguments = (folder / "screened.parquet", folder / "crysdb", model, folder / "out")
    with pytest.raises(
        UserError, match=r"generator: .* \(other\) left out nothing, but not these .*allow_leakage"
    ):
        evaluate(campaign(), *arguments)
    assert not (folder / "out").exists()
    allowed = Campaign.model_validate(
        {**campaign().model_dump(), "evaluate": {"bootstrap": 50, "allow_leakage": True}}
    )
    evaluate(allowed, *arguments)
    assert len(read_about(folder / "out" / "summary.parquet")["possible_leakage"]) == 1


def test_candidates_that_say_nothing_about_their_model_are_not_scored(folder: Path, model: Path) -> None:
    write_table(screened(), folder / "screened.parquet", {})
    with pytest.raises(UserError, match="does not say what it left out"):
        evaluate(campaign(), folder / "screened.parquet", folder / "crysdb", model, folder / "out")
