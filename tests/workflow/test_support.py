"""Reading campaigns, and the hash of a stage's code: without Snakemake."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dao_pipeline import stage_code
from dao_pipeline.candidates.compositions import asked_compositions
from dao_pipeline.candidates.plan import plan_table, planned_shards
from dao_pipeline.comparison.cost import Cost, measured
from dao_pipeline.config import STAGE_SETTINGS, Campaign
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.errors import UserError
from dao_pipeline.stage_code import stage_code_hash, stage_modules
from dao_pipeline.workflow_support import (
    STAGES,
    Campaigns,
    load_campaigns,
    planned_shard,
    set_aside,
    stage_files,
)


def write(path: Path, **values: object) -> Path:
    path.write_text(yaml.safe_dump({"name": path.stem, **values}))
    return path


# Campaigns


def test_without_anything_the_default_is_read(tmp_path: Path) -> None:
    default = write(tmp_path / "demo.yaml", seed=7)
    assert load_campaigns({}, default=default)[str(default)].seed == 7


def test_configfiles_are_one_campaign_and_options_win(tmp_path: Path) -> None:
    first = write(tmp_path / "a.yaml", seed=1, generate={"samples": 3, "steps": 50})
    second = write(tmp_path / "b.yaml", generate={"samples": 4})
    [(origin, campaign)] = load_campaigns({"generate": {"samples": "5"}}, [first, second]).items()
    assert origin == f"{first} + {second}"
    assert campaign.name == "b"
    assert (campaign.seed, campaign.generate.samples, campaign.generate.steps) == (1, 5, 50)


def test_files_of_all_sources_are_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SETS", "/sets")
    files = [{"source": "file", "path": path} for path in ("$SETS/a.csv", "b")]
    for data, paths in (
        ({"sources": [files[0], {"source": "embedded"}, files[1]]}, ["/sets/a.csv", "b"]),
        (files[0], ["/sets/a.csv"]),
        ({"source": "materials_project"}, []),
    ):
        campaigns = Campaigns({"x": parse_campaign({"name": "x", "data": data}, "x")})
        assert campaigns.raw_source(SimpleNamespace(campaign="x")) == paths


@pytest.mark.parametrize("several", [True, False])
def test_campaigns_are_listed_or_given_as_one(tmp_path: Path, several: bool) -> None:
    a, b = write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml", seed=3)
    listed = [str(a), str(b)] if several else str(b)
    campaigns = load_campaigns({"campaigns": listed, "relax": {"jobs": 9}})
    assert list(campaigns) == ([str(a), str(b)] if several else [str(b)])
    assert all(campaign.relax.jobs == 9 for campaign in campaigns.values())
    assert campaigns[str(b)].seed == 3


def test_null_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", generate={"compositions": [{"formula": "NaCl"}]})
    [campaign] = load_campaigns({"generate": {"compositions": "null"}}, [path]).values()
    assert campaign.generate.compositions is None


@pytest.mark.parametrize("listed", [[], {"a": "b"}, 3, [["x.yaml"]]])
def test_a_list_of_campaigns_holds_files(listed: object) -> None:
    with pytest.raises(UserError, match="campaign file or a list"):
        load_campaigns({"campaigns": listed})


def test_errors_name_file_key_and_option(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml")
    with pytest.raises(UserError, match=r"a.yaml with --config: generate.samples = '0': .* 1"):
        load_campaigns({"generate": {"samples": "0"}}, [path])
    with pytest.raises(UserError, match=r"a.yaml with --config: generate.sample: unknown key"):
        load_campaigns({"generate": {"sample": "5"}}, [path])


def test_problems_of_all_campaigns_are_named_at_once(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a.yaml", seed=-1), write(tmp_path / "b.yaml", relax={"job": 1})]
    with pytest.raises(UserError, match=r"(?s)a.yaml: seed = -1.*b.yaml: relax.job: unknown key"):
        load_campaigns({"campaigns": [str(path) for path in paths]})


# Files and shards


def test_every_stage_has_files() -> None:
    learnt = {"enabled": True, "path": "labels.parquet", "column": "bulk"}
    values = {"qe": {"enabled": True}, "property": learnt, "ablation": {"variants": {"v": {}}}}
    values |= {"generate": {"template_share": 0.5}, "generator": {"template_paths": 0.5}}
    values |= {"ranking": {"enabled": True}}
    campaign = parse_campaign({"name": "x"} | values, "x")
    names = [path for stage in STAGES for path in stage_files(campaign, stage)]
    assert len(names) == len(set(names))
    assert all(stage_files(campaign, stage) for stage in STAGES)
    assert all(path.startswith("results/x/") for path in names)


def growing(compositions: list[str], samples: int = 4, **generate: object) -> Campaign:
    values = {"compositions": [{"formula": f} for f in compositions], "samples": samples}
    values |= {"shard_compositions": 2, "round_samples": 3, "unit_atoms": 1}
    return parse_campaign({"name": "x", "generate": values | generate}, "x")


def test_a_shard_is_known_from_the_configuration_exactly() -> None:
    """Two campaigns describe a round of a shard alike where its rows of the plan are alike, and only there."""
    campaigns = [
        growing(["NaCl", "KBr", "MgO"]),
        growing(["NaCl", "KBr", "MgO", "CaO", "LiF"]),
        growing(["NaCl", "Cl1Na1", "KBr", "MgO"]),  # merged into the first
        growing(["KBr", "NaCl", "MgO"]),
        growing(["NaCl", "KBr", "MgO"], samples=7),
        growing(["NaCl", "KBr", "MgO"], shard_compositions=3),
        growing(["NaCl", "KBr", "MgO"], round_samples=2),
        growing(["NaCl", "KBr", "MgO"], template_share=0.25),
    ]
    seen: dict[str, list[dict[str, object]]] = {}
    for campaign in campaigns:
        generate = campaign.generate
        plan = plan_table(
            asked_compositions(campaign) or [],
            generate.samples,
            generate.shard_compositions,
            generate.round_samples,
            generate.template_share,
        ).to_pylist()
        for shard in range(planned_shards(campaign)):
            for number in range(generate.rounds):
                rows = [row for row in plan if (row["shard"], row["round"]) == (shard, number)]
                assert rows
                assert seen.setdefault(planned_shard(campaign, shard, number), rows) == rows
    first, longer, _, _, more, *_ = campaigns
    assert planned_shard(first, 0, 0) == planned_shard(longer, 0, 0) == planned_shard(more, 0, 0)
    assert planned_shard(first, 0, 1) != planned_shard(more, 0, 1)  # was not full
    assert planned_shard(first, 1, 0) != planned_shard(longer, 1, 0)  # nor was this


def test_the_cost_of_shards_that_are_gone_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings go where the shards of a campaign that shrank go, even if the shards went before."""
    monkeypatch.chdir(tmp_path)
    large, small = growing(["NaCl", "KBr", "MgO"], samples=6), growing(["NaCl", "KBr"])
    parts = ["00000-000", "00000-001", "00001-000", "00001-001"]
    timed = {f"generate_candidates-{part}": 10.0 for part in parts}
    timed |= {"screen_shard-00000": 1.0, "screen_shard-00001": 1.0, "screen_candidates": 0.5, "train_ranker": 99.0}
    timings = Path("results/x/timings")
    timings.mkdir(parents=True)
    for name, seconds in timed.items():
        (timings / f"{name}.tsv").write_text(f"s\tcpu_time\n{seconds}\t{seconds}\n")
    shards = Path("results/x/candidates/generated")
    shards.mkdir(parents=True)
    for part in parts[:3]:
        (shards / f"shard-{part}.parquet").touch()
    set_aside(large)
    assert measured(timings) == Cost(42.5, 7)
    set_aside(small)
    assert measured(timings) == Cost(21.5, 4)
    assert {path.stem for path in timings.iterdir()} == timed.keys() - {
        "generate_candidates-00001-000",
        "generate_candidates-00001-001",
        "screen_shard-00001",
    }
    moved = Path("work/x/earlier")
    assert [path.name for path in (moved / "candidates/generated").iterdir()] == ["shard-00001-000.parquet"]
    assert len(list((moved / "timings").iterdir())) == 3


def test_the_test_split_grows_by_shards() -> None:
    small, large = (
        parse_campaign({"name": "x", "generate": {"test_split": {"limit": limit}, "shard_compositions": 2}}, "x")
        for limit in (3, 9)
    )
    assert planned_shard(small, 0, 0) == planned_shard(large, 0, 0)
    assert planned_shard(small, 1, 0) != planned_shard(large, 1, 0)


class Wildcards(dict[str, str]):
    """As Snakemake gives them: a mapping whose values are attributes too."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize(
    ("values", "stage", "folder"),
    [
        ({}, "finetune_generator", "results/x/models/dao_g/finetuned"),
        ({}, "train_energy_model", "results/x/models/dao_p"),
        ({}, "train_ranker", "results/x/models/ranker"),
        ({"energy_model": {"pretrained": "my model"}}, "train_energy_model", "my model"),
        ({"ranking": {"model": "there"}}, "train_ranker", "there"),
        ({"ranking": {"enabled": False}}, "train_ranker", None),
        ({"generator": {"enabled": False}, "generate": {"template_share": 1}}, "finetune_generator", None),
    ],
)
def test_models_of_a_campaign_and_those_it_does_without(
    values: dict[str, object], stage: str, folder: str | None
) -> None:
    campaigns = Campaigns({"x": parse_campaign({"name": "x"} | values, "x")})
    wildcards = Wildcards(campaign="x")
    assert campaigns.model(stage)(wildcards) == ([] if folder is None else [f"{folder}/model.safetensors"])
    told = campaigns.model_option("--model", stage)(wildcards)
    assert shlex.split(told) == ([] if folder is None else ["--model", folder])


def test_the_ranker_reads_energies_only_where_it_weighs_them() -> None:
    for energy, files in ((False, []), (True, ["results/x/models/dao_p/model.safetensors"])):
        campaigns = Campaigns({"x": parse_campaign({"name": "x", "ranking": {"energy": energy}}, "x")})
        assert campaigns.weighing_model(Wildcards(campaign="x")) == files
        assert bool(campaigns.weighing_option(Wildcards(campaign="x"))) == energy


# Code of the stages

_RESULTS = ("qe", "comparison", "report")
_JUDGED = ("evaluation", *_RESULTS)
_MODELS = ("training", "energy", "process", "model")

UPSTREAM_ONLY: dict[str, tuple[str, ...]] = {
    # stage: packages that only later stages may depend on
    "download": (*_MODELS, *_JUDGED, "crysdb", "candidates"),
    "build_crysdb": (*_MODELS, *_JUDGED, "candidates"),
    "train_energy_model": (*_JUDGED, "candidates", "sources", "crysdb"),
    "relax_dataset": (*_JUDGED, "candidates", "sources", "crysdb", "process.sampler"),
    "pretrain_generator_stage1": (*_JUDGED, "candidates", "sources", "process.sampler"),
    "finetune_generator": (*_JUDGED, "candidates", "process.sampler", "energy"),
    "plan_candidates": (*_JUDGED, "training", "process", "candidates.screen_shard", "screening"),
    "generate_candidates": (*_JUDGED, "candidates.screen_shard", "screening"),
    "train_ranker": (*_JUDGED, "candidates", "screening", "sources"),
    "sort_references": (*_MODELS, "evaluation", "qe", "report", "candidates.screen_shard", "screening"),
    "screen_shard": (*_JUDGED, "candidates.screened"),
    "screen_candidates": (*_MODELS, "evaluation", "qe", "report", "candidates.screen_shard", "screening"),
    "evaluate": (*_RESULTS,),
    "finetune_property": (*_JUDGED, "candidates", "sources", "process.sampler"),
    "predict_property": (*_JUDGED, "training", "crysdb", "sources"),
    "validate_qe": ("comparison", "report"),
}


@pytest.mark.parametrize("stage", STAGE_SETTINGS)
def test_a_stage_runs_no_code_of_later_stages(stage: str) -> None:
    """Otherwise an edit of the report would train models anew."""
    modules = {module.removeprefix("dao_pipeline.") for module in stage_modules(stage)}
    assert modules
    later = UPSTREAM_ONLY.get(stage, ())
    if "process.sampler" in later:
        later = (*later, "process.flow_sampler")
    assert not {m for m in modules if any(m == name or m.startswith(f"{name}.") for name in later)}
    assert not modules & {"cli", "errors", "preflight", "workflow_support"}
    assert not any(module.split(".")[0] == "config" for module in modules)


def test_packages_define_nothing_themselves() -> None:
    """Hashes do not look into ``__init__``; of ``config`` nothing is hashed."""
    for path in set(stage_code.ROOT.glob("*/__init__.py")) - {stage_code.ROOT / "config" / "__init__.py"}:
        assert not [line for line in path.read_text().splitlines() if line.startswith(("from", "import"))], path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package with two stages; ``second`` imports lazily, relatively and for type checkers."""
    files = {
        "cli.py": "def first():\n    from dao_pipeline.a.first import run\n"
        "def second():\n    from dao_pipeline.b.second import run\n",
        "shared.py": "VALUE = 1\n",
        "a/__init__.py": "",
        "a/first.py": "from dao_pipeline.shared import VALUE\n",
        "b/__init__.py": "",
        "b/second.py": "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from dao_pipeline.a import first\n"
        "def run():\n    from . import lazy\n",
        "b/lazy.py": '"""Doc."""\nX = 1  # a comment\n',
        "b/templates/page.html": "<p>",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(stage_code, "ROOT", tmp_path)
    return tmp_path


def hashes() -> tuple[str, str]:
    for function in vars(stage_code).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
    return stage_code_hash("first"), stage_code_hash("second")


@pytest.fixture(autouse=True, scope="module")
def _forget() -> object:
    yield
    hashes_of = [f for f in vars(stage_code).values() if hasattr(f, "cache_clear")]
    for function in hashes_of:
        function.cache_clear()


@pytest.mark.parametrize(
    ("name", "text", "changed"),
    [
        ("shared.py", "VALUE = 2\n", (True, False)),
        ("a/first.py", "from dao_pipeline.shared import VALUE\nX = VALUE\n", (True, False)),
        ("b/lazy.py", '"""Doc."""\nX = 2\n', (False, True)),
        ("b/lazy.py", '"""Another."""\n\nX = (1)  # same\n', (False, False)),
        ("b/templates/page.html", "<div>", (False, True)),
        ("cli.py", None, (False, False)),
        ("b/unused.py", "X = 1\n", (False, False)),
    ],
)
def test_only_code_that_a_stage_runs_changes_its_hash(
    package: Path, name: str, text: str | None, changed: tuple[bool, bool]
) -> None:
    before = hashes()
    path = package / name
    path.write_text(text if text is not None else path.read_text() + "\nMORE = 1\n")
    after = hashes()
    assert tuple(a != b for a, b in zip(before, after, strict=True)) == changed
