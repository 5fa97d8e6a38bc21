"""What Snakemake would run for a campaign that has not started, and what stops it before any job starts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dao_pipeline.config.read import load_campaign
from dao_pipeline.forecast.forecast import forecast
from tests.workflow.support import REPOSITORY, STAGES, TINY, before, dry_run, run_snakemake

PSEUDOS = Path("/usr/share/espresso/pseudo")


def test_all_stages_of_a_new_campaign(tiny: Path, tmp_path: Path) -> None:
    run = dry_run("--configfile", tiny, cwd=tmp_path)
    assert run.stages == STAGES
    assert run.jobs["relax_dataset"] == 2  # relax.jobs
    assert run.jobs["generate_candidates"] == 2  # 2 compositions in shards of 1, 4 samples in rounds of 4
    assert run.jobs["plan_shard"] == run.jobs["screen_shard"] == 2


@pytest.mark.parametrize(
    "stage",
    [
        "build_crysdb",
        "relax_dataset",
        "pretrain_generator",
        "generate_candidates",
        "evaluate",
        "report",
    ],
)
def test_a_stage_as_target_stops_there(tiny: Path, tmp_path: Path, stage: str) -> None:
    run = dry_run(stage, "--configfile", tiny, cwd=tmp_path)
    needed = (
        STAGES if stage == "report" else before(stage.replace("pretrain_generator", "pretrain_generator_stage2"))
    )
    if stage == "generate_candidates":  # needs the plans of its shards, not the whole
        needed = needed - {"plan_candidates"}
    assert run.stages == needed


NOTE = '{"kind": "dao_g", "process": {"kind": "flow", "timesteps": 10}, "template_errors": [0.02, 0.03]}'


def test_pretrained_weights_take_the_place_of_pretraining(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "elsewhere"
    model.mkdir()
    (model / "model.safetensors").write_text("")
    (model / "config.json").write_text(NOTE)
    options = ("--configfile", tiny, "--config", f"generator={{pretrained: '{model}'}}")
    run = dry_run(*options, cwd=tmp_path)
    assert run.stages == STAGES - {"relax_dataset", "pretrain_generator_stage1", "pretrain_generator_stage2"}
    refused = run_snakemake("-n", "relax_dataset", *options, cwd=tmp_path)
    assert refused.code != 0
    assert "generator.pretrained" in refused.output


TEMPLATES_ALONE = (
    "generator={enabled: false, template_paths: 0}",
    "generate={template_share: 1, template_refinement: none}",
)


def test_templates_alone_train_no_generator(tiny: Path, tmp_path: Path) -> None:
    run = dry_run("--configfile", tiny, "--config", *TEMPLATES_ALONE, cwd=tmp_path)
    trained = {"pair_templates", "finetune_generator", "relax_dataset"}
    trained |= {"pretrain_generator_stage1", "pretrain_generator_stage2"}
    assert run.stages == STAGES - trained
    without = dry_run(
        "--configfile", tiny, "--config", *TEMPLATES_ALONE, "energy_model={enabled: false}", cwd=tmp_path
    )
    assert without.stages == STAGES - trained - {"train_energy_model"}


@pytest.mark.parametrize(
    ("share", "ranking", "trained"),
    [(0.5, None, 1), (0, None, 0), (0, "true", 1), (0.5, "false", 0), (0.5, "null", 1)],
)
def test_templates_are_ranked_by_probability_by_default(
    tiny: Path, tmp_path: Path, share: float, ranking: str | None, trained: int
) -> None:
    chosen = [] if ranking is None else [f"ranking={{enabled: {ranking}}}"]
    values = [f"generate={{template_share: {share}}}", *chosen]
    run = dry_run("--configfile", tiny, "--config", *values, cwd=tmp_path)
    assert run.jobs["train_ranker"] == trained
    assert run.jobs["propose_templates"] == (2 if share else 0)


def test_given_compositions_are_not_evaluated_and_fan_out_by_number(tiny: Path, tmp_path: Path) -> None:
    compositions = "[{formula: NaCl}, {formula: KBr}, {formula: MgO}]"
    run = dry_run(
        "--configfile",
        tiny,
        "--config",
        f"generate={{compositions: {compositions}, samples: 6, unit_atoms: 2}}",
        cwd=tmp_path,
    )
    assert "evaluate" not in run.stages
    assert run.jobs["generate_candidates"] == 3 * 2  # 6 samples in rounds of 4
    assert run.jobs["screen_shard"] == 3


def test_quantum_espresso_gets_one_job_per_candidate(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "Na.upf").write_text("")
    values = f"{{enabled: true, top_k: 3, command: '{sys.executable}', pseudo_dir: '{tmp_path}'}}"
    run = dry_run("--configfile", tiny, "--config", f"qe={values}", cwd=tmp_path)
    assert run.jobs["validate_qe"] == 2 * 3
    (tmp_path / "ids.txt").write_text("cand:0:1\ncand:1:3\ncand:0:2\n")
    named = values.replace("top_k: 3", f"candidates: '{tmp_path}/ids.txt'")
    assert dry_run("--configfile", tiny, "--config", f"qe={named}", cwd=tmp_path).jobs["validate_qe"] == 3


def test_a_property_gets_its_two_stages(tiny: Path, crystals: Path, tmp_path: Path) -> None:
    values = f"property={{enabled: true, path: '{crystals}', column: formation_energy}}"
    run = dry_run("--configfile", tiny, "--config", values, cwd=tmp_path)
    assert run.stages == STAGES | {"finetune_property", "predict_property"}
    run = dry_run("finetune_property", "--configfile", tiny, "--config", values, cwd=tmp_path)
    assert run.stages == before("train_energy_model") | {"finetune_property"}
    refused = run_snakemake("-n", "predict_property", "--configfile", tiny, cwd=tmp_path)
    assert "property.enabled is false" in refused.output
    wrong = values.replace("formation_energy", "bulk")
    refused = run_snakemake("-n", "--configfile", tiny, "--config", wrong, cwd=tmp_path)
    assert "no column bulk; set property.column" in refused.output


def test_two_campaigns_on_one_command_line(tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load(tiny.read_text()) | {"name": "other"}))
    run = dry_run("--config", f"campaigns=[{tiny}, {other}]", "generate={samples: 8}", cwd=tmp_path)
    assert run.jobs["report"] == 2
    assert run.jobs["generate_candidates"] == 2 * 4
    single = dry_run("--config", f"campaigns={other}", cwd=tmp_path)
    assert single.jobs["report"] == 1


def test_campaigns_can_be_listed_in_a_file(tiny: Path, tmp_path: Path) -> None:
    listing = tmp_path / "all.yaml"
    listing.write_text(yaml.safe_dump({"campaigns": [str(tiny)], "relax": {"jobs": 5}}))
    assert dry_run("--configfile", listing, cwd=tmp_path).jobs["relax_dataset"] == 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["generate={samples: 0}"], ["generate.samples = '0'", "greater than or equal to 1"]),
        (["data={path: nowhere.parquet}"], ["data.path", "nowhere.parquet", "does not exist"]),
        (["generate={compositions: [{formula: UO2}]}"], ["generate.compositions[0].formula = UO2", "contains U"]),
        (["campaigns=nowhere.yaml"], ["nowhere.yaml", "no such file"]),
    ],
)
def test_a_wrong_value_stops_the_run_before_any_job(
    tiny: Path, tmp_path: Path, options: list[str], expected: list[str]
) -> None:
    run = run_snakemake("--configfile", tiny, "--config", *options, cwd=tmp_path)
    assert run.code != 0
    for text in ["error: ", *expected, "No job was started"]:
        assert text in run.output
    assert "Traceback" not in run.output
    assert "workflow_support.py" not in run.output
    assert not (tmp_path / "results").exists()


def test_every_wrong_value_is_named_at_once(tiny: Path, tmp_path: Path) -> None:
    run = run_snakemake("--configfile", tiny, "--config", "seed=-1", "screen={top_k: many}", cwd=tmp_path)
    assert run.code != 0
    assert "seed = -1" in run.output
    assert "screen.top_k = 'many'" in run.output


def test_a_misspelt_stage_is_corrected(tiny: Path, tmp_path: Path) -> None:
    run = run_snakemake("screen_candidate", "--configfile", tiny, cwd=tmp_path)
    assert run.code != 0
    assert "did you mean screen_candidates?" in run.output


def test_slurm_profile_asks_for_what_the_campaign_says(tiny: Path, tmp_path: Path) -> None:
    compute = "{training: {threads: 64, gpus: 4, mem_mb: 9000, runtime: 99}, cpu: {threads: 3}}"
    options = ("--profile", "slurm", "--configfile", tiny, "--config", f"compute={compute}")
    run = run_snakemake("-n", *options, cwd=tmp_path, started_in=REPOSITORY)
    assert run.code == 0, run.output
    jobs = {
        found[1]: found[0] for found in re.finditer(r"^(?:local)?rule (\w+):\n(?:    .*\n)+", run.output, re.M)
    }
    training = jobs["pretrain_generator_stage1"]
    # The login node's cores, which the default profile takes all of, do not limit the job.
    assert "threads: 64" in training
    for text in ("gpu=4", "mem_mb=9000", "runtime=99"):
        assert text in training
    assert "gpu=" not in jobs["build_crysdb"]
    assert "gpu=" not in jobs["generate_candidates"]


@pytest.mark.parametrize("profile", ["slurm", "workflow/profiles/slurm"])
def test_slurm_profile_runs_all_stages(tiny: Path, tmp_path: Path, profile: str) -> None:
    run = dry_run("--profile", profile, "--configfile", tiny, cwd=tmp_path, started_in=REPOSITORY)
    assert run.stages == STAGES


def test_campaigns_that_ship_with_the_repository_are_sound(tmp_path: Path, crystals: Path) -> None:
    files = [REPOSITORY / "config/demo.yaml", *sorted((REPOSITORY / "config/campaigns").glob("*.yaml"))]
    # paths of the repository's own files are relative to it, where campaigns are started
    (tmp_path / "config").symlink_to(REPOSITORY / "config")
    for path in files:
        text = path.read_text()
        if "$ESPRESSO_PSEUDO" in text and (shutil.which("pw.x") is None or not PSEUDOS.is_dir()):
            continue
        files_named = dict.fromkeys(re.findall(r"\$\{(DAO_\w+)\}", text), str(crystals))
        run = dry_run(
            "--configfile", path, cwd=tmp_path, MP_API_KEY="0" * 32, ESPRESSO_PSEUDO=str(PSEUDOS), **files_named
        )
        assert "report" in run.stages, yaml.safe_load(text)["name"]


def test_the_default_campaign_is_the_demo(tmp_path: Path) -> None:
    run = run_snakemake("-n", cwd=tmp_path)
    assert run.code == 0, run.output
    assert "results/demo/report/index.html" in run.output


def test_lint_and_format_are_clean(tmp_path: Path, tiny: Path) -> None:
    run = run_snakemake("--lint", "--configfile", tiny, cwd=tmp_path)
    assert "Congratulations" in run.output, run.output
    done = subprocess.run(
        [sys.executable, "-m", "snakefmt", "--check", "Snakefile", "workflow"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_tiny_campaign_is_a_campaign() -> None:
    """So that a change of the schema is reported here, not as a failing run."""
    from dao_pipeline.config.read import parse_campaign

    parse_campaign(TINY | {"data": TINY["data"] | {"path": "x"}}, "tiny")


@pytest.mark.parametrize("name", ["binaries", "chalcogenides", "superconductors"])
def test_the_examples_are_planned_as_they_would_run(name: str, tmp_path: Path) -> None:
    path = REPOSITORY / "config" / "campaigns" / f"{name}.yaml"
    run = dry_run("--configfile", path, cwd=tmp_path)
    found = forecast(load_campaign(path), name, tmp_path / "results")
    assert {stage.stage: stage.jobs for stage in found.stages} == {k: v for k, v in run.jobs.items() if k != "all"}
    assert not (tmp_path / "results").exists()


def test_problems_of_a_file_of_formulas_stop_the_run(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "asked.txt").write_text("NaCl\n; rm -rf /\nXx2O3\n")
    run = run_snakemake("-n", "--configfile", tiny, "--config", "generate={files: [asked.txt]}", cwd=tmp_path)
    assert run.code != 0
    assert "generate.files[0]: asked.txt: line 2: '; rm -rf /' is not a plain formula" in run.output
    assert "asked.txt: line 3: 'Xx2O3': there is no element 'Xx'" in run.output
    assert "No job was started" in run.output
    (tmp_path / "asked.txt").write_text("NaCl\nKBr\n")
    values = "generate={files: [asked.txt], unit_atoms: 4}"
    jobs = dry_run("--configfile", tiny, "--config", values, cwd=tmp_path).jobs
    assert jobs["generate_candidates"] == 4  # NaCl, Na2Cl2, KBr and K2Br2, 4 samples each in shards of 4
