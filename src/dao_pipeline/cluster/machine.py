"""The machine that ``dao-pipeline doctor`` runs on: versions, files, programs, keys."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from dao_pipeline.cluster.verdict import Verdict, fail, ok, warn
from dao_pipeline.errors import UserError
from dao_pipeline.sources.keys import HOW_TO, materials_project_key

INSTALL = "pip install -c constraints.txt '.[login]'"
PACKAGES = ("torch", "snakemake", "snakemake-executor-plugin-slurm", "pymatgen", "pyarrow", "pydantic")
"""Those whose versions matter most: what is computed, what submits jobs, what writes files."""

FREE_GB = (1.0, 20.0)
FREE_FILES = (10_000, 100_000)
"""Below the first nothing should be started, below the second no large campaign."""


def look_at_versions(constraints: Path) -> Iterator[Verdict]:
    """Installed versions against those tested together, where the clone's list of them is at hand."""
    pinned = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", _text(constraints), re.MULTILINE))
    allowed = {r.name.lower(): r.specifier for r in map(Requirement, requires("dao-pipeline") or [])}
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield fail(name, "not installed", f"{INSTALL} brings it")
            continue
        wanted = pinned.get(name)
        public = found.partition("+")[0]  # torch's builds for CUDA are 2.13.0+cu130
        if name in allowed and not allowed[name].contains(public, prereleases=True):
            yield fail(
                name, f"{found}, but {allowed[name]} is needed", "pip install -c constraints.txt '.[login]'"
            )
        elif wanted and public != wanted:
            remedy = f"should anything look odd: pip install {name}=={wanted}"
            yield warn(name, f"{found}; tested with {wanted}", remedy)
        else:
            yield ok(name, found)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def look_at_files(folder: Path) -> Iterator[Verdict]:
    """``results/`` and ``work/`` of a clone: on one file system, writable, with room."""
    devices = {}
    for name in ("results", "work"):
        path = folder / name
        existing = path if path.exists() else folder
        devices[name] = existing.stat().st_dev
        if not os.access(existing, os.W_OK):
            yield fail(name, f"{existing} is not writable", "correct its permissions, or work in another folder")
    if len(set(devices.values())) > 1:
        yield warn(
            "file system",
            "results/ and work/ are on different file systems",
            "have them on one, so that finished parts are moved and not copied",
        )
    space = os.statvfs(folder)
    free = space.f_bavail * space.f_frsize / 1e9
    yield _room("free space", f"{free:.0f} GB", free, FREE_GB, "free some, or work on a larger file system")
    if space.f_files:  # 0: a file system that does not count
        files = space.f_favail
        remedy = "remove small files, or ask for a larger quota of files"
        yield _room("free files", f"{files} more files can be made", files, FREE_FILES, remedy)


def _room(subject: str, found: str, value: float, limits: tuple[float, float], remedy: str) -> Verdict:
    if value < limits[0]:
        return fail(subject, found, remedy)
    return warn(subject, found, remedy) if value < limits[1] else ok(subject, found)


def look_at_programs() -> Iterator[Verdict]:
    """The commands that jobs start."""
    found = shutil.which("dao-pipeline")
    if found:
        yield ok("dao-pipeline", found)
    else:
        yield fail("dao-pipeline", "not on the path", "activate the environment that it is installed in")
    if pw := shutil.which("pw.x"):
        yield ok("pw.x", pw)
    else:
        remedy = "only for qe.enabled: install Quantum ESPRESSO, or load its module here and in setup of site.yaml"
        yield warn("pw.x", "not found on this machine", remedy)


def look_at_key() -> Verdict:
    """Whether there is a key of the Materials Project. It is not shown."""
    subject = "Materials Project key"
    try:
        key = materials_project_key()
    except UserError as error:
        return fail(subject, str(error).partition(";")[0], HOW_TO)
    if key:
        return ok(subject, "present (not shown, not sent anywhere by this)")
    return warn(subject, "none", f"only for data.source: materials_project: {HOW_TO}")
