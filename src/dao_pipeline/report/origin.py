"""Where the numbers come from: configuration, versions, hashes, seeds and how to get them again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dao_pipeline.config import Campaign
from dao_pipeline.crystals.table import package_versions, read_about
from dao_pipeline.report.results import MODELS, Results

TABLES = (
    "raw",
    "crysdb/train.parquet",
    "relaxed",
    "candidates/plan.parquet",
    "candidates/screened.parquet",
    "evaluation/targets.parquet",
    "validation",
)
"""Tables whose metadata say how they were made (the first shard speaks for its folder)."""


@dataclass(frozen=True)
class Made:
    """One table or model: stage, settings hash, code version and inputs with their hashes."""

    name: str
    stage: str
    settings_hash: str
    code_version: str
    inputs: list[tuple[str, str]]


@dataclass(frozen=True)
class Origin:
    """The provenance section."""

    config: str
    made: list[Made]
    versions: list[tuple[str, str]]
    mixed: list[str]
    seed: int
    command: str


def origin_section(results: Results, campaign: Campaign) -> Origin:
    """Provenance of every table and model that is there.

    ``mixed`` names packages whose version differs between stages: such numbers belong to two environments.
    """
    abouts: list[tuple[str, dict[str, Any]]] = []
    for name in TABLES:
        path = results.folder / name
        if path.exists() and (path.is_file() or any(path.glob("*.parquet"))):
            abouts.append((name, read_about(path)))
    trained = [m.folder for m in results.models if m.metrics is not None]
    abouts += [(name, read_about(results.folder / name / "metrics.parquet")) for name in trained]
    seen: dict[str, set[str]] = {}
    for _, about in abouts:
        for package, version in (about.get("packages") or {}).items():
            seen.setdefault(str(package), set()).add(str(version))
    versions = {package: ", ".join(sorted(found)) for package, found in seen.items()} or package_versions()
    saved = results.folder / "config.yaml"
    order = {name: place for place, name in enumerate([*TABLES[:2], *MODELS, *TABLES[2:]])}
    return Origin(
        config=saved.read_text(encoding="utf-8") if saved.is_file() else config_text(campaign),
        made=sorted((_made(n, a, results.folder) for n, a in abouts if a), key=lambda m: order[m.name]),
        versions=sorted(versions.items()),
        mixed=sorted(package for package, found in seen.items() if len(found) > 1),
        seed=campaign.seed,
        command=f"snakemake --cores all --configfile {campaign.name}.yaml",
    )


def config_text(campaign: Campaign) -> str:
    """The campaign with every default filled in, as YAML."""
    return yaml.safe_dump(campaign.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _made(name: str, about: dict[str, Any], folder: Path) -> Made:
    inputs = about.get("inputs") or {}
    pairs = []
    for key, value in inputs.items() if isinstance(inputs, dict) else ():
        if isinstance(value, dict):
            path = Path(str(value.get("path", key)))
            inside = folder.resolve() in path.resolve().parents
            shown = path.resolve().relative_to(folder.resolve()).as_posix() if inside else path.name
            pairs.append((shown, str(value.get("hash", ""))))
        else:
            pairs.append((str(key), str(value)))
    return Made(
        name=name,
        stage=str(about.get("stage", "")),
        settings_hash=str(about.get("settings_hash", "")),
        code_version=str(about.get("code_version", "")),
        inputs=pairs,
    )
