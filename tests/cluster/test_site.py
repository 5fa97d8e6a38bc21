"""The site's file: what jobs ask for, what their shell does first, which mistakes are named."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dao_pipeline.cluster.site import Partition, Site, load_site, parse_site
from dao_pipeline.config import Resources
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.errors import UserError
from tests.workflow.support import REPOSITORY, TINY, run_snakemake, write_crystals

SHIPPED = REPOSITORY / "slurm/site.yaml"
TWO = {
    "cpu": {"max_runtime": 1000, "max_mem_mb": 190_000, "max_threads": 48},
    "gpu": {"max_runtime": 3000, "max_mem_mb": 90_000, "max_threads": 64, "max_gpu": 4}
    | {"available_gpu_models": ["a100", "h100"]},
}


def test_the_shipped_file_asks_for_nothing_in_particular() -> None:
    assert load_site(SHIPPED) == Site()
    assert Site().defaults() == {"slurm_extra": "--signal=USR1@300"}


def test_the_example_in_the_shipped_file_is_sound() -> None:
    lines = SHIPPED.read_text().splitlines()
    start = lines.index("# partitions:")
    example = "\n".join(line.removeprefix("# ") for line in lines[start:] if line.startswith("#"))
    assert list(parse_site(yaml.safe_load(example), "example").partitions) == ["cpu", "gpu"]


def test_memory_and_time_grow_as_far_as_one_partition_gives_both() -> None:
    site = parse_site({"partitions": TWO | {"fat": {"max_runtime": 200, "max_mem_mb": 900_000}}}, "x")
    wanted = Resources(threads=2, mem_mb=50_000, runtime=300)
    grown = [site.bounded(wanted, attempt) for attempt in (1, 2, 3, 4, 9)]
    # cpu gives both up to the third attempt, the memory of which fits; then no partition does
    assert grown[:3] == [(50_000, 300), (100_000, 600), (150_000, 900)]
    assert grown[3] == (190_000, 1000)
    for memory, minutes in grown:
        assert any(memory <= p.max_mem_mb and minutes <= p.max_runtime for p in site.partitions.values())
    assert Site().bounded(wanted, 9) == (450_000, 2700)


def test_gpus_bound_by_the_partition_that_has_them() -> None:
    site = parse_site({"partitions": TWO, "gpu_model": "a100"}, "x")
    assert site.bounded(Resources(gpus=2, mem_mb=60_000, runtime=2000), 2) == (90_000, 3000)
    assert list(site.fitting(Resources(gpus=2))) == ["gpu"]
    assert list(site.fitting(Resources(threads=64))) == ["gpu"]  # too many cores for the others
    assert list(site.fitting(Resources(threads=4))) == ["cpu"]


@pytest.mark.parametrize(
    ("values", "gpus", "model", "gres"),
    [
        ({}, 2, None, None),
        ({"gpu_model": "a100"}, 2, "a100", None),
        ({"gpu_request": "gres"}, None, None, "gpu:2"),
        ({"gpu_request": "gres", "gpu_model": "a100"}, None, None, "gpu:a100:2"),
    ],
)
def test_gpus_in_the_style_of_the_site(
    values: dict[str, str], gpus: int | None, model: str | None, gres: str | None
) -> None:
    site = parse_site(values, "x")
    assert (site.gpus(two := Resources(gpus=2)), site.model(two), site.gres(two)) == (gpus, model, gres)
    assert (site.gpus(none := Resources()), site.model(none), site.gres(none)) == (None, None, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"acount": "x"}, r"s.yaml: acount: unknown key; see slurm/site.yaml"),
        ({"account": "a; rm -rf /"}, r"s.yaml: account = "),
        ({"warning": -1}, r"warning = -1: .*greater than or equal to 0"),
        ({"setup": ["a\nb"]}, r"setup.*without line breaks"),
        ({"partitions": {"gpu": {"max_gpus": 4}}}, r"partitions.gpu.max_gpus: unknown key"),
        ({"partitions": {"gpu": {"max_runtime": None}}}, r"partitions.gpu.max_runtime"),
        ({"partitions": TWO, "gpu_model": "v100"}, r"gpu_model is v100, which is in .* no partition"),
    ],
)
def test_mistakes_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_site(values, "s.yaml")


def test_a_campaign_that_asks_for_too_much_is_named() -> None:
    site = parse_site({"partitions": TWO}, "x")
    campaign = parse_campaign({"name": "x", "compute": {"training": {"gpus": 8}, "cpu": {"mem_mb": 200_000}}}, "x")
    found = site.problems(campaign, "site.yaml")
    assert [re.split(r" asks| which", text)[0] for text in found] == ["compute.cpu", "compute.training"]
    assert not Site().problems(campaign, "site.yaml")


def test_the_executor_reads_the_same_file(tmp_path: Path) -> None:
    plugin = pytest.importorskip("snakemake_executor_plugin_slurm.partitions")
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump({"account": "x", "partitions": TWO}))
    limits = {partition.name: partition.limits for partition in plugin.read_partition_file(path)}
    for name, ours in load_site(path).partitions.items():
        for key, value in ours.model_dump(exclude_unset=True).items():
            assert getattr(limits[name], key) == value
    assert set(Partition.model_fields) <= {field.name for field in dataclasses.fields(plugin.PartitionLimits)}


def test_the_executor_takes_our_options() -> None:
    validation = pytest.importorskip("snakemake_executor_plugin_slurm.validation")
    validation.validate_slurm_extra(SimpleNamespace(resources=SimpleNamespace(**Site().defaults())))


def shell(site: Site, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", site.prefix() + script], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_job_finds_scratch_and_set_up(tmp_path: Path) -> None:
    site = Site(scratch="$PWD/fast", setup=["export A=${UNSET}b", "f() { echo $1; }"])
    done = shell(site, 'f "$A $TMPDIR"; test -d "$TMPDIR"; echo $STILL_UNSET', tmp_path)
    assert done.stdout == f"b {tmp_path}/fast\n"
    assert "STILL_UNSET: unbound variable" in done.stderr  # as strict as Snakemake's own shell
    assert shell(Site(setup=["false"]), "echo on", tmp_path).stdout == ""
    assert shell(Site(), "false | true; echo on", tmp_path).stdout == ""


def test_the_shell_of_a_job_outlives_the_request_to_stop(tmp_path: Path) -> None:
    """The stage takes SIGTERM, saves and ends; its shell must be there to pass on the exit code."""
    stage = "trap 'sleep 0.3; echo saved; exit 75' TERM; touch begun; while :; do sleep 0.05; done"
    (tmp_path / "stage.sh").write_text(stage)
    script = Site().prefix() + "bash stage.sh && true"
    process = subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    start = time.monotonic()
    while not (tmp_path / "begun").exists():
        assert time.monotonic() - start < 30
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 75


GPU_RULES = {
    "train_energy_model": 2,
    "pretrain_generator_stage1": 2,
    "pretrain_generator_stage2": 2,
    "finetune_generator": 2,
    "finetune_property": 2,
    "relax_dataset": 1,
    "generate_candidates": 1,
    "predict_property": 1,
}
"""GPUs of each rule that asks for some, in the campaign below."""


@pytest.mark.parametrize("request_style", ["gpus", "gres"])
def test_gpu_rules_ask_for_gpus_and_no_other_rule_does(tmp_path: Path, request_style: str) -> None:
    """Of all rules that the workflow has, in a campaign with every stage."""
    write_crystals(crystals := tmp_path / "crystals.parquet")
    (tmp_path / "Na.upf").write_text("")
    every = {
        "data": TINY["data"] | {"path": str(crystals)},
        "ranking": {"enabled": True},
        "property": {"enabled": True, "path": str(crystals), "column": "formation_energy"},
        "qe": {"enabled": True, "command": "true", "pseudo_dir": str(tmp_path)},
        "ablation": {"variants": {"guided": {"generate": {"guidance_scale": 3}}}},
        "compute": {"training": {"gpus": 2, "threads": 8}, "sampling": {"gpus": 1}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY | every))
    site = {"gpu_request": request_style, "gpu_model": "a100", "account": "acc", "partitions": TWO}
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(site))
    run = run_snakemake(
        *("-n", "--profile", "slurm", "--configfile", tmp_path / "tiny.yaml"),
        cwd=tmp_path,
        started_in=REPOSITORY,
        DAO_PIPELINE_SITE=str(tmp_path / "site.yaml"),
    )
    assert run.code == 0, run.output
    jobs = re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    resources: (.*)$", run.output, re.MULTILINE)
    asked = {rule: dict(item.split("=", 1) for item in text.split(", ")) for rule, text in jobs}
    rules = set(
        re.findall(r"^rule (\w+):", "".join(p.read_text() for p in REPOSITORY.glob("workflow/rules/*.smk")), re.M)
    )
    assert set(asked) == rules | {"all"}
    for rule, resources in asked.items():
        assert resources["slurm_account"] == "acc"
        found = {key: value for key, value in resources.items() if key.startswith(("gpu", "gres"))}
        if rule not in GPU_RULES:
            assert not found, rule
        elif request_style == "gpus":
            assert found == {"gpu": str(GPU_RULES[rule]), "gpu_model": "a100"}, rule
        else:
            assert found == {"gres": f"gpu:a100:{GPU_RULES[rule]}"}, rule
