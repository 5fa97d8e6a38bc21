"""The variants of a campaign: what of them runs, what they share, and the table at the end."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from dao_pipeline.config.read import parse_campaign, variants
from dao_pipeline.crystals.table import read_table
from dao_pipeline.errors import UserError
from dao_pipeline.preflight import check_loaded
from dao_pipeline.workflow_support import Campaigns
from tests.workflow.support import TINY, dry_run, run_snakemake, write_crystals

VARIANTS: dict[str, Any] = {
    "scratch": {"pretrain": {"stages": 0}},
    "stable": {"pretrain": {"stages": 1, "crystals": "stable"}},
    "all": {"pretrain": {"stages": 1}},
    "full": {},
    "guided": {"generate": {"guidance_scale": 2}},
}


def ablated(folder: Path, chosen: dict[str, Any] = VARIANTS) -> Path:
    values = {
        "data": TINY["data"] | {"path": str(folder / "crystals.parquet")},
        "generate": TINY["generate"] | {"guidance_scale": 0},
        "evaluate": TINY["evaluate"] | {"baselines": []},
        "ablation": {"variants": chosen},
    }
    write_crystals(folder / "crystals.parquet")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | values, sort_keys=False))
    return path


def test_what_variants_have_in_common_is_made_once(tmp_path: Path) -> None:
    run = dry_run("--configfile", ablated(tmp_path), cwd=tmp_path)
    assert run.jobs["ablate"] == 1
    for rule in ("download", "build_crysdb", "train_energy_model", "plan_candidates", "report"):
        assert run.jobs[rule] == 1, rule
    assert run.jobs["relax_dataset"] == 2  # relax.jobs, for the one variant with stage II
    assert run.jobs["index_templates"] == run.jobs["pair_templates"] == 1
    assert run.jobs["propose_templates"] == 2  # one plan of two shards
    assert run.jobs["pretrain_generator_stage1"] == 2  # all and full share theirs
    assert run.jobs["pretrain_generator_stage2"] == 1
    assert run.jobs["finetune_generator"] == 4  # full and guided share theirs
    assert run.jobs["generate_candidates"] == 2 * 5  # full is the campaign itself
    assert run.jobs["evaluate"] == 5


def test_one_variant_is_a_target_like_any_file(tmp_path: Path) -> None:
    target = "results/tiny/ablation/scratch/evaluation/summary.parquet"
    run = dry_run(target, "--configfile", ablated(tmp_path), cwd=tmp_path)
    assert run.jobs["finetune_generator"] == run.jobs["evaluate"] == 1
    assert "pretrain_generator_stage1" not in run.jobs


@pytest.mark.slow
def test_one_call_makes_the_table_and_an_edit_reruns_one_variant(tmp_path: Path) -> None:
    chosen = {name: VARIANTS[name] for name in ("scratch", "full")}
    campaign = ablated(tmp_path, chosen)
    run = run_snakemake("-c2", "--configfile", campaign, cwd=tmp_path)
    assert run.code == 0, run.output
    rows = read_table(tmp_path / "results/tiny/ablation/summary.parquet").to_pylist()
    assert [row["variant"] for row in rows] == ["scratch", "full"]
    assert [row["training"].count(":") for row in rows] == [1, 3]
    assert (tmp_path / "results/tiny/ablation/table.md").read_text().count("\n| ") == 2
    assert not (tmp_path / "results/tiny/ablation/scratch/crysdb").exists()
    assert "Nothing to be done" in dry_run("--configfile", campaign, cwd=tmp_path).output
    edited = ablated(
        tmp_path, chosen | {"scratch": VARIANTS["scratch"] | {"finetune": {"training": {"steps": 5}}}}
    )
    again = dry_run("--configfile", edited, cwd=tmp_path)
    assert again.jobs["finetune_generator"] == again.jobs["evaluate"] == again.jobs["ablate"] == 1
    assert "train_energy_model" not in again.jobs
    assert "pretrain_generator_stage1" not in again.jobs


# Without Snakemake


def campaigns(**values: Any) -> Campaigns:
    return Campaigns({"x": parse_campaign({"name": "x", **values}, "x")})


def test_a_variant_is_the_campaign_with_other_keys() -> None:
    base = parse_campaign({"name": "x", "seed": 3, "ablation": {"variants": {"b": {"relax": {"steps": 7}}}}}, "x")
    variant = variants(base, "x.yaml")["b"]
    assert variant.name == "x/ablation/b"
    assert variant.relax.steps == 7
    assert not variant.ablation.variants
    assert variant.model_dump(exclude={"name", "relax", "ablation"}) == base.model_dump(
        exclude={"name", "relax", "ablation"}
    )


def test_files_of_a_shared_stage_are_those_of_its_owner() -> None:
    found = campaigns(
        ablation={
            "variants": {
                "wide": {"relax": {"steps": 7}},
                "wide_guided": {"relax": {"steps": 7}, "generate": {"guidance_scale": 9}},
            }
        }
    )
    shard = {"shard": "00003", "round": "001"}
    wildcards = SimpleNamespace(campaign="x/ablation/wide_guided", items=shard.items, **shard)
    assert found.owner("build_crysdb", wildcards.campaign).name == "x"
    assert found.owner("finetune_generator", wildcards.campaign).name == "x/ablation/wide"
    assert found.owner("generate_candidates", wildcards.campaign).name == wildcards.campaign
    planned = found.at("plan_candidates", "candidates/planned/shard-{shard}-{round}.parquet")(wildcards)
    assert planned == "results/x/candidates/planned/shard-00003-001.parquet"
    assert found.rounds("plan_candidates", "candidates/planned")(wildcards) == [
        "results/x/candidates/planned/shard-00003-000.parquet"
    ]
    assert found.stage_input("relax_dataset")(wildcards) == ["results/x/ablation/wide/relaxed/shard-000.parquet"]
    assert list(found) == ["x"]  # variants are no targets
    assert all("/ablation/" not in path for path in found.stage("evaluate"))


def test_a_named_dao_p_is_taken_as_it_is() -> None:
    found = campaigns(energy_model={"pretrained": "/models/p"})
    wildcards = SimpleNamespace(campaign="x", items=list)
    assert found.at("train_energy_model", "models/dao_p/model.safetensors")(wildcards) == (
        "/models/p/model.safetensors"
    )
    assert not found.stage("train_energy_model")


@pytest.mark.parametrize(
    ("differing", "message"),
    [
        ({"relax": {"step": 3}}, r"x.yaml: ablation.variants.v: relax.step: unknown key"),
        ({"name": "other"}, r"x.yaml: ablation.variants.v.name: no variant can set it"),
        ({"generate": {"samples": 0}}, r"ablation.variants.v: generate.samples = 0"),
        (
            {"generator": {"pretrained": "/nowhere"}},
            r"variants.v: generator.pretrained = /nowhere: .*not found",
        ),
        ({"energy_model": {"pretrained": "/nowhere"}}, r"energy_model.pretrained = /nowhere: .*not found"),
        (
            {"generate": {"compositions": [{"formula": "NaCl"}]}},
            r"variants.v: generate.compositions is set",
        ),
    ],
)
def test_a_wrong_variant_is_named_before_any_job(differing: dict[str, Any], message: str) -> None:
    campaign = parse_campaign({"name": "x", "ablation": {"variants": {"v": differing}}}, "x.yaml")
    with pytest.raises(UserError, match=message):
        check_loaded({"x.yaml": campaign})
