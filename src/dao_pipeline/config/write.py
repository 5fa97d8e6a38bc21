"""Files made from the configuration models: default.yaml, schema.json, and a campaign with all defaults."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dao_pipeline.config import Campaign, Section
from dao_pipeline.crystals.table import write_text

_NAME = "my-campaign"
_WIDTH = 110
_HEADER = f"""\
# yaml-language-server: $schema=schema.json
# Every key with its default: lengths in angstrom, energies in eV/atom, angles in degrees.
# Written by `dao-pipeline generate-config`; do not edit. A campaign file holds `name` and the keys that
# differ from these; `name: {_NAME}` is the only value here that is no default.
"""

_EXAMPLES = {
    "sources": "e.g. [{source: file, path: mine.csv}, {name: oqmd, source: optimade, optimade: {url: oqmd}}]",
    "compositions": "e.g. [{formula: SrTiO3}, {formula: TiO2, formula_units: 2}]",
}


def write_config_files(folder: Path) -> None:
    """Write ``default.yaml`` and ``schema.json`` into ``folder``."""
    write_text(folder / "default.yaml", default_yaml())
    write_text(folder / "schema.json", schema_json())


def write_resolved(campaign: Campaign, out: Path) -> None:
    """Write ``campaign`` with every default filled in; loading the file gives an equal campaign."""
    text = yaml.safe_dump(campaign.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=_WIDTH)
    write_text(out, f"# Campaign {campaign.name} with every default filled in.\n{text}")


def schema_json() -> str:
    """The JSON schema of a campaign file, for editors."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Campaign.model_json_schema()
    return json.dumps(schema, indent=2) + "\n"


def default_yaml() -> str:
    """Every key with its default, meaning, unit and range, as commented YAML."""
    return _HEADER + "\n".join(_section(Campaign(name=_NAME), 0)) + "\n"


def _section(section: Section, depth: int) -> Iterator[str]:
    pad = "  " * depth
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if depth == 0:
            yield ""
        if isinstance(value, BaseModel):
            about = field.description or (type(value).__doc__ or "").strip().splitlines()[0]
            yield from _comment(about, pad)
            yield f"{pad}{name}:"
            assert isinstance(value, Section)
            yield from _section(value, depth + 1)
        else:
            parts = (field.description, _range(field), _EXAMPLES.get(name))
            yield from _comment("; ".join(part for part in parts if part), pad)
            yield f"{pad}{name}: {_scalar(value)}"


def _comment(text: str, pad: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{pad}# ", subsequent_indent=f"{pad}#   ")


def _scalar(value: Any) -> str:
    """A value on one line; floats as YAML 1.1 reads them (1.0e-05, not 1e-05)."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()


def _range(field: FieldInfo) -> str:
    """What values are allowed: choices of a Literal, bounds of a number."""
    choices = _choices(field.annotation)
    if choices:
        return "one of " + ", ".join(choices)
    words = []
    for limit in field.metadata:
        if isinstance(limit, annotated_types.Ge):
            words.append(f">= {limit.ge}")
        elif isinstance(limit, annotated_types.Gt):
            words.append(f"> {limit.gt}")
        elif isinstance(limit, annotated_types.Le):
            words.append(f"<= {limit.le}")
        elif isinstance(limit, annotated_types.Lt):
            words.append(f"< {limit.lt}")
    return " and ".join(words)


def _choices(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    if get_origin(annotation) in (Union, UnionType):
        return [choice for part in get_args(annotation) for choice in _choices(part)]
    return []
