"""Stage report: one self-contained HTML page per campaign, about whatever stages have run."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from dao_pipeline import __version__
from dao_pipeline.config import Campaign
from dao_pipeline.crystals.table import write_text
from dao_pipeline.report import text
from dao_pipeline.report.found import outcome_text
from dao_pipeline.report.results import load_results
from dao_pipeline.report.sections import build_sections

log = logging.getLogger(__name__)


def _environment() -> Environment:
    """Templates that escape everything but markup made by this package, and refuse unknown names."""
    environment = Environment(
        loader=PackageLoader("dao_pipeline.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=text.number,
        short=text.short,
        count=text.count,
        percent=text.percent,
        reason=text.reason,
        outcome=outcome_text,
    )
    environment.globals["plural"] = text.plural
    return environment


def _asset(name: str) -> Markup:
    """A style sheet or script of the package, to be put into the page as it is."""
    return Markup((resources.files("dao_pipeline.report") / "templates" / name).read_text(encoding="utf-8"))


def render(sections: dict[str, Any], campaign: Campaign) -> str:
    """The page as text."""
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            **sections,
            campaign=campaign,
            title=campaign.report.title or campaign.name,
            version=__version__,
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            style=_asset("style.css"),
            script=_asset("page.js"),
        )
    )


def write_report(campaign: Campaign, results: Path, out: Path) -> None:
    """Write the report of ``results/<campaign>`` to ``out``; sections whose stage did not run are absent.

    Raises UserError where a table that is there is damaged.
    """
    page = render(build_sections(load_results(results), campaign), campaign)
    write_text(out, page)
    log.info("report written: %s (%.1f MB)", out, len(page.encode()) / 1e6)
