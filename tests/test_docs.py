"""The docs say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from dao_pipeline.cli import app
from dao_pipeline.crystals.schema import markdown

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_crystal_table_in_the_data_guide_is_the_schema() -> None:
    assert markdown() in (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_commands_in_the_docs_exist() -> None:
    runner = CliRunner()
    names = {n for page in PAGES for n in re.findall(r"`?dao-pipeline ([a-z][a-z-]+)", page.read_text("utf-8"))}
    assert len(names) >= 3
    for name in names:
        assert runner.invoke(app, [name, "--help"]).exit_code == 0, name


def test_each_command_explains_itself() -> None:
    runner = CliRunner()
    listing = runner.invoke(app, ["--help"]).output
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.callback.__name__.replace("_", "-")
        assert name in listing
        assert (command.callback.__doc__ or "").strip()
