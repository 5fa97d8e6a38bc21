"""Campaign files: YAML in, a validated campaign out, every mistake named with file, key, value and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dao_pipeline.config import Campaign
from dao_pipeline.errors import UserError


def deep_merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``override``, mapping by mapping."""
    merged = dict(base)
    for key, value in override.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_campaign(values: Mapping[str, Any], origin: str) -> Campaign:
    """Validate configuration values; ``origin`` (a file) is named in errors.

    Raises UserError listing every problem as file, key, value and remedy.
    """
    try:
        return Campaign.model_validate(values)
    except ValidationError as error:
        lines = [describe(problem, origin) for problem in error.errors()]
        raise UserError("\n".join(lines)) from None


def describe(
    problem: Mapping[str, Any], origin: str, whole: str = "(campaign)", see: str = "config/default.yaml"
) -> str:
    """A problem that pydantic found: file, key, value, remedy.

    whole: what a problem of no single key is one of. see: the file that shows all keys.
    """
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    key = "".join(parts).removeprefix(".") or whole
    if problem["type"] == "extra_forbidden":
        return f"{origin}: {key}: unknown key; see {see} for the keys there are."
    if problem["type"] == "missing":
        return f"{origin}: {key}: required, but not given."
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], (dict, BaseModel)) else f" = {problem['input']!r:.80}"
    return f"{origin}: {key}{shown}: {message}."


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file.

    Raises UserError for missing files, invalid YAML and anything that is no mapping.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give the path of a campaign, e.g. config/demo.yaml.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys and values, found {type(values).__name__}.")
    return values


def load_campaign(path: Path, overrides: Mapping[str, Any] | None = None) -> Campaign:
    """Read and validate one campaign file; ``overrides`` are merged over it."""
    return parse_campaign(deep_merge(read_yaml(path), overrides or {}), str(path))


def variants(campaign: Campaign, origin: str) -> dict[str, Campaign]:
    """The campaigns of ``ablation.variants`` by name: this one with the keys in which each differs.

    Raises UserError listing every problem of every variant.
    """
    base = campaign.model_dump(mode="json", exclude={"ablation"})
    found, problems = {}, []
    for name, differing in campaign.ablation.variants.items():
        where = f"{origin}: ablation.variants.{name}"
        if wrong := {"name", "ablation"} & set(differing):
            problems.append(f"{where}.{min(wrong)}: no variant can set it; remove the key.")
            continue
        try:
            found[name] = parse_campaign(
                deep_merge(base, differing) | {"name": f"{campaign.name}/ablation/{name}"}, where
            )
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return found
