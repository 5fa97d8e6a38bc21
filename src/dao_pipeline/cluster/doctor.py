"""Is all in place on this site? Asked before a campaign is, and answered line by line with what to mend."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from dao_pipeline.cluster import machine, slurm
from dao_pipeline.cluster.site import Site, load_site, site_file
from dao_pipeline.cluster.verdict import Verdict, fail, ok
from dao_pipeline.errors import UserError

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}
NODE_SECONDS = 60
"""How long a node may take to become free."""


def examine(
    clone: Path, campaigns: Iterable[Path] = (), site_path: Path | None = None, wait: int = NODE_SECONDS
) -> Iterator[Verdict]:
    """Look at the site, as seen from a clone, and whether it fits these campaigns.

    wait: seconds that nodes may take to become free for a tiny job; 0: none is started.
    """
    yield from machine.look_at_versions(clone / "constraints.txt")
    yield from machine.look_at_programs()
    yield machine.look_at_key()
    yield from machine.look_at_files(clone)
    file = site_path or site_file(clone)
    try:
        site = load_site(file) if file.exists() or site_path else Site()
    except UserError as error:
        yield from (fail("site", line, f"correct {file}") for line in str(error).splitlines())
        return
    yield ok("site", str(file) if file.exists() else "no file: the defaults")
    found = list(slurm.look_at_slurm())
    yield from found
    if all(verdict.level != "fail" for verdict in found):
        yield from slurm.look_at_partitions(site, slurm.partitions())
        yield from slurm.look_at_requests(site)
        if wait:
            yield from slurm.look_at_nodes(site, clone, _torch(), wait)
    for path in campaigns:
        yield from look_at_campaign(path, site)


def report(verdicts: Iterable[Verdict], as_json: bool) -> int:
    """Print verdicts, each as soon as it is known, or as JSON at the end; the exit code: 1 if one is fail."""
    counts = {"ok": 0, "warn": 0, "fail": 0}
    found = []
    for verdict in verdicts:
        counts[verdict.level] += 1
        found.append(verdict.as_dict())
        if not as_json:
            typer.secho(f"{verdict.level:5}", fg=COLOURS[verdict.level], nl=False)
            typer.echo(f"{verdict.subject}: {verdict.found}")
            if verdict.remedy:
                typer.echo(f"     -> {verdict.remedy}")
    if as_json:
        typer.echo(json.dumps({"verdicts": found, "counts": counts}, indent=1))
    else:
        typer.echo(", ".join(f"{number} {level}" for level, number in counts.items()))
    return 1 if counts["fail"] else 0


def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return "none"


def look_at_campaign(path: Path, site: Site) -> Iterator[Verdict]:
    """Whether a campaign is sound, and asks for no more than the site has."""
    from dao_pipeline.preflight import check_campaigns

    subject = f"campaign {path}"
    try:
        [campaign] = check_campaigns([path]).values()
    except UserError as error:
        yield from (fail(subject, line, "correct the campaign") for line in str(error).splitlines())
        return
    if problems := site.problems(campaign, "site.yaml"):
        yield from (fail(subject, problem, "see config/default.yaml, compute") for problem in problems)
    else:
        yield ok(subject, "sound, and fits the site")
