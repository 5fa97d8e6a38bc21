"""After a campaign has run: what an edit reruns. Exactly the edited stage and what follows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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
        ("candidates/screen.py", follow("screen_candidates")),
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
        (["evaluate"], {"evaluate", "report"}),
        (["relax_dataset", "report"], follow("relax_dataset")),
    ],
)
def test_a_stage_can_be_forced_by_its_name(finished: Finished, stages: list[str], expected: set[str]) -> None:
    assert finished.dry_run("-R", *stages).stages == expected


def test_a_forced_stage_stops_at_the_target(finished: Finished) -> None:
    run = finished.dry_run("screen_candidates", "-R", "generate_candidates")
    assert run.stages == {"generate_candidates", "screen_candidates"}
    run = finished.dry_run("-R", "generate_candidates", "--until", "screen_candidates")
    assert run.stages == {"generate_candidates", "screen_candidates"}


def test_a_campaign_grows_by_shards(finished: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "grown"
    shutil.copytree(finished.folder, folder)
    options = (
        "screen_candidates",
        "--configfile",
        finished.campaign,
        "--config",
        "generate={test_split: {limit: 3}}",
    )
    run = run_snakemake(*options, cwd=folder, PYTHONPATH=str(finished.source))
    assert run.code == 0, run.output
    grown = ("plan_candidates", "plan_shard", "propose_templates", "generate_candidates", "screen_candidates")
    assert run.jobs == dict.fromkeys(grown, 1)
    shards = sorted((folder / "results/tiny/candidates/generated").iterdir())
    assert [path.name for path in shards] == [f"shard-{n:04d}.parquet" for n in range(3)]
    old = finished.folder / "results/tiny/candidates/generated"
    for path in shards[:2]:
        assert path.stat().st_mtime_ns == (old / path.name).stat().st_mtime_ns


def test_a_campaign_that_shrinks_leaves_no_shards_behind(finished: Finished, tmp_path: Path) -> None:
    """Stages read whole folders: a shard of the larger campaign would be refused, or worse, read."""
    folder = tmp_path / "shrunk"
    shutil.copytree(finished.folder, folder)
    less = ("--config", "generate={test_split: {limit: 1}}", "--configfile", finished.campaign)
    run = run_snakemake("screen_candidates", *less, cwd=folder, PYTHONPATH=str(finished.source))
    assert run.code == 0, run.output
    assert run.jobs == {"plan_candidates": 1, "screen_candidates": 1}
    assert len(list((folder / "results/tiny/candidates/generated").iterdir())) == 1
    moved = "work/tiny/earlier/candidates/generated/shard-0001.parquet"
    assert (folder / moved).exists()
    assert f"moved to {moved}" in run.output
    assert len(list((folder / "results/tiny/relaxed").iterdir())) == 2


def test_a_lost_shard_is_made_again(finished: Finished, tmp_path: Path) -> None:
    """Asked for by its stage, as Snakemake asks no further back than what is there."""
    folder = tmp_path / "lost"
    shutil.copytree(finished.folder, folder)
    (folder / "results/tiny/candidates/generated/shard-0001.parquet").unlink()
    run = Finished(folder, finished.campaign, finished.source).dry_run("generate_candidates")
    assert run.jobs == {"generate_candidates": 1}
