"""After a campaign has run: what an edit reruns. Exactly the edited stage and what follows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.compute as pc
import pytest

from dao_pipeline.crystals.table import read_table
from tests.workflow.support import STAGES, Finished, follow, run_snakemake


def test_a_second_run_has_nothing_to_do(finished: Finished) -> None:
    run = finished.dry_run()
    assert "Nothing to be done" in run.output
    assert not run.stages


def test_results_explain_themselves(finished: Finished) -> None:
    """Resolved configuration, timings of all stages, logs."""
    results = finished.folder / "results/tiny"
    assert "max_e_above_hull" in (results / "config.yaml").read_text()
    timed = {path.stem.split("-")[0] for path in (results / "timings").glob("*.tsv")}
    assert timed == STAGES
    logged = {path.stem.split("-")[0] for path in (finished.folder / "logs/tiny").glob("*.log")}
    assert logged == STAGES | {"plan_shard"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("data={limit: 140}", follow("download")),
        ("crysdb={min_distance: 0.6}", follow("build_crysdb")),
        ("energy_model={clean_fraction: 0.3}", follow("train_energy_model")),
        ("relax={steps: 3}", follow("relax_dataset")),
        ("pretrain={stage1: {steps: 5}}", follow("pretrain_generator_stage1")),
        ("pretrain={stage2: {steps: 5}}", follow("pretrain_generator_stage2")),
        ("finetune={training: {steps: 5}}", follow("finetune_generator")),
        ("generate={samples: 5}", follow("plan_candidates")),
        ("generate={guidance_scale: 2}", follow("generate_candidates")),
        ("generate={template_steps: 3}", follow("generate_candidates")),
        ("generate={template_share: 0.25}", follow("plan_candidates", "propose_templates")),
        ("templates={same_type: 0.1}", follow("index_templates")),
        ("templates={exclude: composition}", follow("propose_templates")),
        ("templates={max_pair_rmse: 0.2}", follow("pair_templates")),
        ("ranking={epochs: 2}", follow("train_ranker")),
        ("screen={top_k: 3}", follow("screen_candidates")),
        ("screen={symprec: 0.2}", follow("train_ranker")),
        ("evaluate={bootstrap: 20}", {"evaluate", "report"}),
        ("report={title: Tiny}", {"report"}),
        ("compute={training: {threads: 2, mem_mb: 9999}}", set()),
        ("qe={ecutwfc: 70}", set()),
        ("process={timesteps: 12}", follow("train_energy_model", "pretrain_generator_stage1")),
    ],
)
def test_an_edit_of_the_configuration(finished: Finished, values: str, expected: set[str]) -> None:
    extra = {"evaluate"} if "samples" in values else set()
    assert finished.dry_run("--config", values).stages == expected | extra


def test_an_edit_of_two_sections(finished: Finished) -> None:
    run = finished.dry_run("--config", "screen={top_k: 3}", "relax={steps: 3}", "generate={guidance_scale: 2}")
    assert run.stages == follow("relax_dataset")


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("sources/download.py", follow("download")),
        ("crysdb/labels.py", follow("build_crysdb")),
        ("training/energy_model.py", follow("train_energy_model")),
        ("energy/relax.py", follow("relax_dataset")),
        ("training/generator.py", follow("pretrain_generator_stage1")),
        ("process/sampler.py", follow("generate_candidates")),
        ("ranking/votes.py", follow("train_ranker")),
        ("screening/table.py", follow("screen_shard")),
        ("candidates/screened.py", follow("screen_candidates")),
        ("candidates/references.py", follow("sort_references")),
        ("candidates/from_templates.py", follow("generate_candidates")),
        ("templates/propose.py", follow("propose_templates")),
        ("templates/align.py", follow("pair_templates")),
        ("evaluation/metrics.py", {"evaluate", "report"}),
        ("report/page.py", {"report"}),
        ("qe/run.py", set()),
        ("cli.py", set()),
    ],
)
def test_an_edit_of_the_code(finished: Finished, edited: Path, module: str, expected: set[str]) -> None:
    path = edited / "dao_pipeline" / module
    path.write_text(path.read_text() + "\n\nEDITED = True\n")
    assert finished.dry_run(source=edited).stages == expected


def test_an_edit_of_a_comment_reruns_nothing(finished: Finished, edited: Path) -> None:
    path = edited / "dao_pipeline/training/loop.py"
    path.write_text(path.read_text() + "\n# A remark.\n")
    assert not finished.dry_run(source=edited).stages


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["build_crysdb"], follow("build_crysdb")),
        (["pretrain_generator"], follow("pretrain_generator_stage1")),
        (["generate_candidates"], follow("generate_candidates")),
        (["screen_candidates"], follow("screen_shard")),
        (["evaluate"], {"evaluate", "report"}),
        (["relax_dataset", "report"], follow("relax_dataset")),
    ],
)
def test_a_stage_can_be_forced_by_its_name(finished: Finished, stages: list[str], expected: set[str]) -> None:
    assert finished.dry_run("-R", *stages).stages == expected


def test_a_forced_stage_stops_at_the_target(finished: Finished) -> None:
    run = finished.dry_run("screen_candidates", "-R", "generate_candidates")
    assert run.stages == {"generate_candidates", "screen_shard", "screen_candidates"}
    run = finished.dry_run("-R", "generate_candidates", "--until", "screen_candidates")
    assert run.stages == {"generate_candidates", "screen_shard", "screen_candidates"}


GROWN = ("plan_shard", "propose_templates", "generate_candidates")


@pytest.mark.parametrize(
    ("more", "new", "shards"),
    [
        ("{test_split: {limit: 3}}", ["00002-000"], 1),  # compositions: one more shard
        ("{samples: 8}", ["00000-001", "00001-001"], 2),  # samples: one more round of each
    ],
)
def test_a_campaign_that_grows_computes_only_what_is_new(
    finished: Finished, tmp_path: Path, more: str, new: list[str], shards: int
) -> None:
    folder = tmp_path / "grown"
    shutil.copytree(finished.folder, folder)
    options = ("screen_candidates", "--configfile", finished.campaign, "--config", f"generate={more}")
    run = run_snakemake(*options, cwd=folder, PYTHONPATH=str(finished.source))
    assert run.code == 0, run.output
    assert run.jobs == dict.fromkeys(GROWN, len(new)) | {
        "screen_shard": shards,
        "plan_candidates": 1,
        "screen_candidates": 1,
    }
    old = finished.folder / "results/tiny/candidates"
    for name in ("planned", "templates", "generated"):
        before = {path.name: path for path in (old / name).iterdir()}
        after = {path.name: path for path in (folder / "results/tiny/candidates" / name).iterdir()}
        assert after.keys() - before.keys() == {f"shard-{number}.parquet" for number in new}
        for file, path in before.items():
            assert after[file].stat().st_mtime_ns == path.stat().st_mtime_ns
            assert after[file].read_bytes() == path.read_bytes()
    was, now = (read_table(place / "screened.parquet") for place in (old, folder / "results/tiny/candidates"))
    assert now.num_rows > was.num_rows
    kept = now.filter(pc.is_in(now["id"], value_set=was["id"].combine_chunks()))
    same = ["id", "composition", "origin", "template_id", "frac_coords", "lattice", "energy_pred", "valid"]
    assert kept.select(same).equals(was.select(same))


def test_a_campaign_that_shrinks_leaves_no_shards_behind(finished: Finished, tmp_path: Path) -> None:
    """Stages read whole folders: a shard of the larger campaign would be refused, or worse, read."""
    folder = tmp_path / "shrunk"
    shutil.copytree(finished.folder, folder)
    less = ("--config", "generate={test_split: {limit: 1}}", "--configfile", finished.campaign)
    run = run_snakemake("screen_candidates", *less, cwd=folder, PYTHONPATH=str(finished.source))
    assert run.code == 0, run.output
    assert run.jobs == {"plan_candidates": 1, "screen_candidates": 1}
    results = folder / "results/tiny/candidates"
    for name, file in (
        ("planned", "shard-00001-000.parquet"),
        ("generated", "shard-00001-000.parquet"),
        ("screened", "shard-00001.parquet"),
    ):
        assert len(list((results / name).iterdir())) == 1
        moved = f"work/tiny/earlier/candidates/{name}/{file}"
        assert (folder / moved).exists()
        assert f"moved to {moved}" in run.output
    assert len(list((folder / "results/tiny/relaxed").iterdir())) == 2


def test_a_lost_shard_is_made_again(finished: Finished, tmp_path: Path) -> None:
    """Asked for by its stage, as Snakemake asks no further back than what is there."""
    folder = tmp_path / "lost"
    shutil.copytree(finished.folder, folder)
    (folder / "results/tiny/candidates/generated/shard-00001-000.parquet").unlink()
    run = Finished(folder, finished.campaign, finished.source).dry_run("generate_candidates")
    assert run.jobs == {"generate_candidates": 1}
