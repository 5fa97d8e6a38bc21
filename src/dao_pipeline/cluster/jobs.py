"""What Snakemake does differently where jobs run on a cluster: in the run that submits them, and inside them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dao_pipeline.cluster.site import PLUGIN_VARIABLE, VARIABLE, Site, load_site, site_file
from dao_pipeline.config import Campaign
from dao_pipeline.errors import UserError

JOB_NAME = "dao_"
"""What names of jobs begin with: slurm-jobname-prefix of the profile, and an underscore."""

PATIENCE = 180.0
"""Seconds that jobs of a dead run may take to save their state and end."""


def use_site(workflow: Any, campaigns: Mapping[str, Campaign]) -> Site:
    """The cluster's site, told to Snakemake: to the one that submits jobs, or to the one inside a job.

    Raises UserError if its file is not sound, or a campaign asks for more than the cluster has.
    """
    file = site_file(Path(str(workflow.basedir)))
    site = load_site(file) if file.exists() or VARIABLE in os.environ else Site()
    if workflow.remote_exec:
        _inside_a_job(site)
    else:
        _before_submitting(workflow, site, file)
        found = [f"{origin}: {text}" for origin, c in campaigns.items() for text in site.problems(c, str(file))]
        if found:
            raise UserError("\n".join(found))
    return site


def _inside_a_job(site: Site) -> None:
    from snakemake.shell import shell

    # Slurm's warning before the time limit goes to all processes of the job. Stages that can save their state
    # take it; the others, this process among them, must not die of it. That is inherited.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    shell.prefix(site.prefix().replace("{", "{{").replace("}", "}}"))


def retry_outside(workflow: Any) -> None:
    """Leave retries to the Snakemake that submits jobs.

    Those inside a job, one within the other, would each try again too, in what is left of its time and with the
    memory that was not enough.
    """
    for rule in workflow.rules:
        rule.restart_times = 0


def _before_submitting(workflow: Any, site: Site, file: Path) -> None:
    from snakemake.resources import Resource

    read_states_in_full()
    defaults = workflow.resource_settings._parsed_default_resources
    for name, value in site.defaults().items():
        if name not in defaults:  # --default-resources wins
            defaults[name] = Resource(name, value, raw=repr(value))
    if site.partitions:
        os.environ.setdefault(PLUGIN_VARIABLE, str(file.resolve()))


def read_states_in_full() -> None:
    """Let Snakemake's Slurm executor see that a job was cancelled.

    sacct says "CANCELLED by 1000"; snakemake-executor-plugin-slurm 2.8 knows "CANCELLED" alone, takes anything
    else for a job that still runs, and waits for it for ever.
    """
    try:
        import snakemake_executor_plugin_slurm as plugin

        ask = plugin.query_job_status
    except (ImportError, AttributeError):
        return  # another executor, or another version of this one

    async def first_words(*args: Any) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await ask(*args)
        return states and {job: state.split()[0] if state else state for job, state in states.items()}, seconds

    plugin.query_job_status = first_words


def end_orphans(folder: Path) -> None:
    """Cancel jobs that an earlier Snakemake run in ``folder`` left behind when it was killed, and wait for them.

    Snakemake does not take them up again, and would submit the same work a second time beside them. Called while
    this run holds the folder's lock, so the earlier run is dead. The jobs save their state on being cancelled.

    Raises UserError if they do not end.
    """
    if shutil.which("squeue") is None:
        return
    start, told = time.monotonic(), False
    while orphans := _jobs_of(folder):
        if not told:
            print(f"cancelling jobs of an earlier run here that was killed: {', '.join(orphans)}", file=sys.stderr)
            subprocess.run(["scancel", *orphans], capture_output=True, check=False, timeout=PATIENCE)
            told = True
        if time.monotonic() - start > PATIENCE:
            raise UserError(f"jobs {', '.join(orphans)} of an earlier run here do not end; end them with scancel.")
        time.sleep(1)


def _jobs_of(folder: Path) -> list[str]:
    """Numbers of this user's jobs that were submitted from ``folder`` by this pipeline."""
    columns = "%i|%j|%Z"
    command = ["squeue", "--noheader", f"--user={os.getuid()}", f"--format={columns}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2]
    return [
        number
        for number, name, where in rows
        if name.startswith(JOB_NAME) and Path(where).resolve() == folder.resolve()
    ]
