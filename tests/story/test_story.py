"""Stories of candidates, and what show says about crystals and campaigns."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from dao_pipeline.cli import app
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.crystals.find import find_rows, similar_ids
from dao_pipeline.crystals.table import read_table, write_table, write_text, writing
from dao_pipeline.errors import UserError
from dao_pipeline.story.story import Chapter, story
from dao_pipeline.story.text import print_story, show_campaign, show_crystal
from tests.make import binary
from tests.report.build import build_results

MODELS = ("generator", "energy_model")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_results(tmp_path_factory.mktemp("results") / "made_up")
    (folder / "config.yaml").write_text("name: made_up\n")
    return folder


def told(results: Path, candidate: str) -> dict[str, Chapter]:
    return {chapter.title: chapter for chapter in story(results, candidate)}


def row_of(results: Path, candidate: str) -> dict[str, object]:
    rows = read_table(results / "candidates" / "screened.parquet").to_pylist()
    return next(row for row in rows if row["id"] == candidate)


def test_a_candidate_with_a_target(results: Path) -> None:
    rows = read_table(results / "candidates" / "screened.parquet").to_pylist()
    own = next(row for row in rows if row["rank"] == 2 and row["composition"] == "Sr1Ti1O3")
    chapters = told(results, own["id"])
    asked = chapters["Asked for"].facts
    assert asked["composition"] == "Sr1Ti1O3"
    assert asked["asked_by"] == "the test split, for its crystal known:0"
    assert chapters["Planned"].facts["sample"] == own["sample"]
    assert chapters["Energies"].facts == {"energy_pred": own["energy_pred"]}
    assert chapters["Checked"].facts["valid"] is True
    ranked = chapters["Ranked"]
    assert ranked.facts["rank"] == 2
    assert ranked.facts["of_composition"] == 12
    assert [row["rank"] for row in ranked.rows] == [1, 2, 3, 4, 5]
    assert ranked.rows[1]["id"] == own["id"]
    compared = chapters["Compared with the known crystal"].facts
    assert compared["matched"] is True
    assert compared["rmse"] == 0.043
    assert compared["target first_match_rank"] == 2


def test_members_of_a_group_find_one_another(results: Path) -> None:
    rows = read_table(results / "candidates" / "screened.parquet").to_pylist()
    own = next(row for row in rows if row["unique"] is False and row["group"] is not None)
    chapters = told(results, own["id"])
    assert own["rank"] is None
    group = {row["id"] for row in rows if (row["composition"], row["group"]) == (own["composition"], own["group"])}
    assert {row["id"] for row in chapters["Others of its group"].rows} == group - {own["id"]}
    assert chapters["Ranked"].rows  # those around the best of its group


def test_a_failed_candidate_has_a_story_too(results: Path) -> None:
    rows = read_table(results / "candidates" / "screened.parquet").to_pylist()
    own = next(row for row in rows if row["status"] == "diverged")
    chapters = told(results, own["id"])
    assert chapters["Made"].facts["status"] == "diverged"
    assert "energy_pred" not in chapters.get("Energies", Chapter("")).facts


def test_shard_template_and_models_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "x"
    known = binary(0, formation_energy=-2.0, e_above_hull=0.0)
    write_table(to_table([known]), folder / "crysdb" / "train.parquet", {"stage": "build_crysdb"})
    rows = {"composition": "CaO", "sample": 21, "shard": 1, "round": 2, "status": "ok", "guidance_scale": 3.0}
    rows |= {
        "origin": "template_refined",
        "template_id": known.id,
        "template_distance": 0.25,
        "rank": 1,
        "group": 0,
    }
    candidate = Crystal(**{**vars(known), "id": "cand:50:21", "extra": rows})
    other = Crystal(**{**vars(known), "id": "cand:50:22", "extra": rows | {"sample": 22, "rank": None}})
    inputs = {name: {"path": f"results/x/models/{name}/model.safetensors", "hash": "12e4"} for name in MODELS}
    made = {"sampling": {"process": "flow", "annealing": None}, "settings": {"generate.guidance": {"start": 0.5}}}
    shard = folder / "candidates" / "generated" / "shard-00001-002.parquet"
    write_table(to_table([candidate, other]), shard, made | {"inputs": inputs})
    write_table(to_table([other]), shard.with_name("shard-00001-001.parquet"), {})
    write_table(to_table([candidate, other]), folder / "candidates" / "screened.parquet", {"symprec": 0.1})
    history = [
        {"stage": "finetune_generator", "crystals": 7, "steps": 5, "seed": 1, "inputs": {"train": "a" * 16}}
    ]
    for name in MODELS:
        write_text(folder / "models" / name / "config.json", json.dumps({"history": history, "weights_hash": "f"}))
    chapters = told(folder, "cand:50:21")
    facts = chapters["Made"].facts
    assert facts["file"] == "candidates/generated/shard-00001-002.parquet"
    assert facts["process"] == "flow"
    assert facts["guidance.start"] == 0.5
    assert "annealing" not in facts
    template = chapters["Template"].facts
    assert template["template_id"] == "t-0"
    assert template["its source"] == "test"
    assert template["its formation_energy"] == -2.0
    for title in ("DAO-G", "DAO-P"):
        assert chapters[title].facts["weights_hash"] == "f"
        assert chapters[title].rows == [
            {"stage": "finetune_generator", "crystals": 7, "steps": 5, "seed": 1, "data": "train aaaaaaaa"}
        ]
    assert [row["id"] for row in chapters["Others of its group"].rows] == ["cand:50:22"]


def test_stages_that_have_not_run_are_named(tmp_path: Path) -> None:
    plan = pa.table({"id": ["cand:0:0"], "composition": ["MgO"], "sample": pa.array([0], pa.int32())})
    write_table(plan, tmp_path / "candidates" / "plan.parquet", {"stage": "plan_candidates"})
    cells = pa.table({"composition": ["MgO"], "asked_by": ["a.txt, line 3"]})
    write_table(cells, tmp_path / "compositions.parquet", {"stage": "compositions", "plausible_by": "SMACT 4"})
    chapters = told(tmp_path, "cand:0:0")
    assert chapters["Asked for"].facts["asked_by"] == "a.txt, line 3"
    assert chapters["Asked for"].facts["plausible_by"] == "SMACT 4"
    assert chapters["Made"].note == "not generated yet"
    assert chapters["Checked"].note == "not screened yet"


def test_unknown_ids_and_campaigns(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no candidate 'cand:4:99'; ids like it: cand:4:9, cand:4:"):
        story(results, "cand:4:99")
    with pytest.raises(UserError, match=r"no candidate 'mp-1'; its ids look like cand:0:0"):
        story(results, "mp-1")
    with pytest.raises(UserError, match="no such folder"):
        story(tmp_path / "nowhere", "cand:0:0")
    with pytest.raises(UserError, match="no candidates have been planned yet"):
        story(tmp_path, "cand:0:0")


def test_the_command_and_its_json(results: Path) -> None:
    options = ["--campaign", "made_up", "--results", str(results.parent)]
    run = CliRunner().invoke(app, ["explain", "cand:1:3", *options, "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)
    assert found["id"] == "cand:1:3"
    assert [c["title"] for c in found["chapters"]][:2] == ["Asked for", "Planned"]
    run = CliRunner().invoke(app, ["explain", "cand:1:3", "--campaign", str(results)])
    assert "Na4Cl4" in run.output
    assert CliRunner().invoke(app, ["explain", "cand:9:9", *options]).exit_code == 2


def test_a_story_is_printed_with_units(results: Path) -> None:
    output = io.StringIO()
    print_story("x", story(results, "cand:1:3"), Console(file=output, width=200))
    assert "eV/atom" in output.getvalue()


# show


def test_a_crystal_by_id(results: Path) -> None:
    output = io.StringIO()
    screened = results / "candidates" / "screened.parquet"
    show_crystal(screened, "cand:0:2", Console(file=output, width=200))
    text = output.getvalue()
    for part in ("Sr1Ti1O3", "volume_per_atom", "angstrom^3", "angles"):
        assert part in text
    assert text.count("\n  O ") == 3
    with pytest.raises(UserError, match="no crystal 'cand:0:77'; ids like it: cand:0:7"):
        show_crystal(screened, "cand:0:77")
    write_table(pa.table({"x": [1]}), results.parent / "x.parquet", {})
    with pytest.raises(UserError, match="no column id"):
        show_crystal(results.parent / "x.parquet", "a")
    run = CliRunner().invoke(app, ["show", str(results), "--id", "cand:0:2"])
    assert run.exit_code == 0
    assert "Sr1Ti1O3" in run.output


def test_a_campaigns_folder(results: Path) -> None:
    output = io.StringIO()
    show_campaign(results, Console(file=output, width=200))
    text = output.getvalue()
    for part in ("candidates/screened.parquet", "crysdb/train.parquet", "evaluation/targets.parquet"):
        assert part in text
    assert "60" in next(line for line in text.splitlines() if "screened" in line)
    assert "Campaign" in CliRunner().invoke(app, ["show", str(results)]).output


# rows of large tables


def test_rows_are_found_in_every_row_group_and_shard(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("tags", pa.list_(pa.string())), ("name", pa.string())])
    ids = [f"cand:{i // 10}:{i % 10}" for i in range(25_000)]
    for shard in range(2):
        rows = [{"id": f"{shard}{i}", "tags": ["x", "y"], "name": f"n{k // 3}"} for k, i in enumerate(ids)]
        with writing(tmp_path / f"shard-{shard}.parquet", schema, {}) as out:
            for start in range(0, len(rows), 5_000):
                out.write(pa.Table.from_pylist(rows[start : start + 5_000], schema=schema))
    found = find_rows(tmp_path, "id", "1cand:2345:7")
    assert found.to_pylist() == [{"id": "1cand:2345:7", "tags": ["x", "y"], "name": "n7819"}]
    assert find_rows(tmp_path, "name", "n4000", ["id"])["id"].to_pylist() == [
        f"{shard}cand:{i // 10}:{i % 10}" for shard in range(2) for i in (12000, 12001, 12002)
    ]
    assert find_rows(tmp_path, "id", "nobody").num_rows == 0
    assert similar_ids(tmp_path, "1cand:2499:99")[0] == "1cand:2499:9"
    assert similar_ids(tmp_path, "z" * 10_000) == []
