from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from dao_pipeline.config import STAGE_SETTINGS, Campaign, stage_settings
from dao_pipeline.config.read import load_campaign, parse_campaign
from dao_pipeline.config.write import default_yaml, schema_json, write_config_files, write_resolved
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.errors import UserError

CONFIG = Path(__file__).resolve().parents[1] / "config"


def test_files_in_config_are_up_to_date(tmp_path: Path) -> None:
    write_config_files(tmp_path)
    for name in ("default.yaml", "schema.json"):
        assert (CONFIG / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8"), (
            f"config/{name} differs from the models; run: dao-pipeline generate-config"
        )


def test_default_yaml_holds_the_defaults() -> None:
    assert parse_campaign(yaml.safe_load(default_yaml()), "default.yaml") == Campaign(name="my-campaign")


def keys(values: object, prefix: str = "") -> set[str]:
    if not isinstance(values, dict):
        return {prefix}
    return {key for name, value in values.items() for key in keys(value, f"{prefix}.{name}".lstrip("."))}


def test_default_yaml_has_every_key_with_a_comment() -> None:
    text = default_yaml()
    assert keys(yaml.safe_load(text)) == keys(Campaign(name="x").model_dump(mode="json"))
    lines = [line for line in text.splitlines() if line.strip()]
    for before, line in pairwise(lines):
        if not line.lstrip().startswith("#"):
            assert before.lstrip().startswith("#"), f"no comment above {line.strip()!r}"


def test_schema_names_keys_and_limits() -> None:
    schema = json.loads(schema_json())
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["name"]
    assert schema["$defs"]["CrysDB"]["properties"]["val_fraction"]["exclusiveMaximum"] == 0.5


def test_resolved_campaign_loads_equal(tmp_path: Path) -> None:
    values = {
        "name": "mine",
        "generate": {"compositions": [{"formula": "SrTiO3"}, {"formula": "TiO2", "formula_units": 2}]},
        "energy_model": {"training": {"learning_rate": 1e-5}},
    }
    campaign = parse_campaign(values, "test")
    write_resolved(campaign, tmp_path / "resolved.yaml")
    assert load_campaign(tmp_path / "resolved.yaml") == campaign


@pytest.mark.parametrize(
    "path", [*sorted(CONFIG.glob("campaigns/*.yaml")), CONFIG / "demo.yaml"], ids=lambda p: p.name
)
def test_campaigns_in_the_repository_load(path: Path) -> None:
    assert load_campaign(path).name


def test_stage_settings_exist_and_change_only_their_stages() -> None:
    one, two = Campaign(name="a"), parse_campaign({"name": "a", "crysdb": {"max_atoms": 20}}, "test")
    changed = {stage for stage in STAGE_SETTINGS if stage_settings(one, stage) != stage_settings(two, stage)}
    assert changed == {"build_crysdb"}
    json.dumps({stage: stage_settings(one, stage) for stage in STAGE_SETTINGS})


TEMPLATES_ALONE = {
    "generator": {"enabled": False},
    "generate": {"template_share": 1},
}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generate": {"template_share": 0.5}}, r"needed for generate\.template_share \(0\.5\); set 1"),
        (
            {"generate": {"template_refinement": "noise", "template_share": 1}},
            "needed for generate.template_refine",
        ),
        ({"ablation": {"variants": {"a": {}}}}, "needed for ablation.variants"),
        ({"energy_model": {"enabled": False}, "ranking": {"enabled": False}}, "DAO-P is needed for the order of"),
        ({"energy_model": {"enabled": False}, "ranking": {"energy": True}}, "DAO-P is needed for ranking.energy"),
        ({"energy_model": {"enabled": False}, "generator": {}}, "DAO-P is needed for the generator"),
    ],
)
def test_models_are_left_out_only_where_nothing_needs_them(values: dict[str, object], message: str) -> None:
    assert parse_campaign({"name": "a", "energy_model": {"enabled": False}, **TEMPLATES_ALONE}, "a").ranks()
    with pytest.raises(UserError, match=message):
        parse_campaign({"name": "a", **TEMPLATES_ALONE, **values}, "a")


@pytest.mark.parametrize(
    ("share", "ranking", "ranks", "trains"),
    [
        (0.5, {}, True, True),
        (0, {}, False, False),
        (0, {"enabled": True}, True, True),
        (0.5, {"enabled": False}, False, False),
        (0, {"model": "there"}, True, False),
        (0.5, {"model": "there", "enabled": True}, True, False),
    ],
)
def test_candidates_from_templates_are_ranked_by_probability(
    share: float, ranking: dict[str, object], ranks: bool, trains: bool
) -> None:
    campaign = parse_campaign({"name": "a", "generate": {"template_share": share}, "ranking": ranking}, "a")
    assert (campaign.ranks(), campaign.trains_ranker()) == (ranks, trains)


def test_overrides_are_merged(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: a\ncrysdb: {max_atoms: 20, min_atoms: 2}\n")
    campaign = load_campaign(path, {"crysdb": {"max_atoms": 10}})
    assert (campaign.crysdb.max_atoms, campaign.crysdb.min_atoms) == (10, 2)


def test_every_problem_of_a_file_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("name: a\nsed: 1\ncrysdb: {max_atoms: 0, min_distance: -1}\n")
    with pytest.raises(UserError) as caught:
        load_campaign(path)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("formula", "counts"), [("SrTiO3", {"Sr": 1, "Ti": 1, "O": 3}), ("CH3CH3", {"C": 2, "H": 6})]
)
def test_formula(formula: str, counts: dict[str, int]) -> None:
    assert parse_formula(formula) == counts


@pytest.mark.parametrize("formula", ["", "Xx2", "srTiO3", "Ti0O2", "Ti1.5O", "(OH)2", "Md", "O" * 300])
def test_no_formula(formula: str) -> None:
    with pytest.raises(ValueError, match=r"formula|element|atoms|beyond"):
        parse_formula(formula)


def test_giving_one_key_keeps_the_other_defaults_of_its_stage() -> None:
    campaign = parse_campaign(
        {
            "name": "x",
            "compute": {"training": {"threads": 64}},
            "energy_model": {"training": {"steps": 7}},
            "screen": {"matcher": {"stol": 0.25}},
        },
        "x.yaml",
    )
    default = Campaign(name="x")
    assert campaign.compute.training == default.compute.training.model_copy(update={"threads": 64})
    assert campaign.energy_model.training == default.energy_model.training.model_copy(update={"steps": 7})
    assert campaign.screen.matcher == default.screen.matcher.model_copy(update={"stol": 0.25})


def test_every_process_of_a_training_has_a_gpu_if_there_are_any() -> None:
    def training(**values: int) -> Campaign:
        return parse_campaign({"name": "a", "compute": {"training": values}}, "a.yaml")

    assert training().compute.training.num_processes == 1
    assert training(gpus=4).compute.training.num_processes == 4
    assert training(processes=3).compute.training.num_processes == 3
    assert training(gpus=4, processes=2).compute.training.num_processes == 2
    with pytest.raises(UserError, match=r"processes \(3\) exceeds gpus \(2\): each process needs its own"):
        training(gpus=2, processes=3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"process": {"lattice_scale": "none"}}, "lattice_scale"),
        ({"process": {"remove_drift": False}}, "remove_drift"),
        ({"process": {"sigma_max": 0.3}}, "sigma_max belongs to kind: diffusion"),
        ({"generate": {"corrector": False}}, "generate.corrector"),
        ({"process": {"kind": "diffusion"}, "generate": {"method": "midpoint"}}, "generate.method"),
        ({"process": {"kind": "diffusion"}, "generate": {"annealing": 0}}, "generate.annealing"),
        ({"generate": {"steps": 1001}}, r"generate.steps \(1001\) exceeds 1000"),
        ({"generate": {"method": "midpoint", "steps": 501}}, r"generate.steps \(501\) exceeds 500"),
    ],
)
def test_settings_of_a_process_belong_to_it(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_campaign({"name": "x"} | values, "x")


@pytest.mark.parametrize(
    ("process", "generate", "expected"),
    [
        ({}, {}, ("flow", "euler", 50, 50, 5.0)),
        ({"kind": "diffusion"}, {}, ("diffusion", "predictor-corrector", 1000, 2000, None)),
        (
            {"kind": "diffusion", "timesteps": 100},
            {"corrector": False},
            ("diffusion", "predictor", 100, 100, None),
        ),
        ({"timesteps": 60}, {"method": "midpoint", "annealing": 0}, ("flow", "midpoint", 30, 60, 0.0)),
        ({}, {"steps": 250, "method": "midpoint"}, ("flow", "midpoint", 250, 500, 5.0)),
    ],
)
def test_how_crystals_are_drawn(process: dict[str, object], generate: dict[str, object], expected: object) -> None:
    campaign = parse_campaign({"name": "x", "process": process, "generate": generate}, "x")
    assert campaign.generate.sampling(campaign.process) == expected


def test_a_subsection_given_in_part_keeps_the_defaults_of_its_section() -> None:
    """DAO-G's backbone sees no distances and DAO-P's axes are permuted, whatever else a campaign sets there."""
    campaign = Campaign.model_validate(
        {
            "name": "x",
            "generator": {"backbone": {"preset": "tiny"}},
            "energy_model": {"backbone": {"layers": 3}, "training": {"steps": 10}},
            "crysdb": {"dedup": {"matcher": {"stol": 0.25}}},
        }
    )
    assert (campaign.generator.backbone.distances, campaign.generator.backbone.residual) == ("none", "gated")
    assert (campaign.energy_model.backbone.distances, campaign.energy_model.backbone.residual) == ("values", "sum")
    assert (campaign.energy_model.training.permute_axes, campaign.energy_model.training.learning_rate) == (
        True,
        3e-4,
    )
    assert (campaign.crysdb.dedup.matcher.ltol, campaign.crysdb.dedup.matcher.stol) == (0.2, 0.25)
