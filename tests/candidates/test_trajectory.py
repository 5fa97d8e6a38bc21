"""Which candidates have a trajectory, where some of the plan are made from templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from dao_pipeline.candidates import trajectory as module
from dao_pipeline.candidates.compositions import requested
from dao_pipeline.candidates.plan import plan_table, shard_file
from dao_pipeline.candidates.trajectory import write_trajectories
from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.crystal import to_table
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.templates.build import index_templates
from dao_pipeline.templates.propose import propose_templates
from tests.templates.test_index import rock_salt

CAMPAIGN = parse_campaign({"name": "t", "templates": {"distance": "mendeleev"}}, "t")


class DrawnError(Exception):
    """It has come to drawing."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan of two shards with two rounds, and the templates of each; Fe7O11 finds none."""

    def load_models(*_: object) -> None:
        raise DrawnError

    monkeypatch.setattr(module, "load_models", load_models)
    known = to_table([rock_salt("r0", "Na", "Cl"), rock_salt("r1", "K", "Br")])
    write_table(known, tmp_path / "train.parquet", {})
    index_templates(CAMPAIGN, tmp_path, tmp_path / "index")
    compositions = [requested(formula, 1) for formula in ("Fe7O11", "LiF")]
    plan = plan_table(compositions, 2, shard_compositions=1, round_samples=1, template_share=1.0)
    write_table(plan, tmp_path / "plan.parquet", {})
    for row in range(plan.num_rows):
        name = shard_file(*(plan[column][row].as_py() for column in ("shard", "round")))
        write_table(plan.slice(row, 1), tmp_path / "planned" / name, {})
        propose_templates(CAMPAIGN, tmp_path / "planned" / name, tmp_path / "index", tmp_path / "templates" / name)
    return tmp_path


def ask(folder: Path, templates: str, *ids: str) -> None:
    models = (folder / "dao_g", folder / "dao_p")
    write_trajectories(CAMPAIGN, folder / "plan.parquet", *models, ids, folder / "out", folder / templates)


@pytest.mark.parametrize("templates", [f"templates/{shard_file(0, 0)}", "templates"])
def test_who_found_no_template_is_drawn(folder: Path, templates: str) -> None:
    with pytest.raises(DrawnError):
        ask(folder, templates, "cand:0:0")


def test_templates_of_another_shard_or_round_say_nothing(folder: Path) -> None:
    """LiF is made from rock salt: drawn from noise, its trajectory would be another crystal's."""
    for templates in ("templates", f"templates/{shard_file(1, 0)}"):
        with pytest.raises(UserError, match="cand:1:0 are made from templates"):
            ask(folder, templates, "cand:1:0")
    for other in (shard_file(0, 0), shard_file(1, 1)):
        with pytest.raises(UserError, match=r"does not cover .*cand:1:0, .*shard-00001-000.parquet"):
            ask(folder, f"templates/{other}", "cand:1:0")


def test_a_table_that_does_not_say_what_it_covers(folder: Path) -> None:
    write_table(read_table(folder / "templates"), folder / "joined.parquet", {})
    with pytest.raises(UserError, match=r"joined.parquet: does not cover cand:0:0"):
        ask(folder, "joined.parquet", "cand:0:0")
