"""The story of one candidate over all stages, from its campaign's tables and what they say about themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dao_pipeline.crystals.find import find_rows, similar_ids
from dao_pipeline.crystals.table import read_about
from dao_pipeline.errors import UserError

_NEIGHBOURS = 3
"""Siblings shown on either side in the ranking."""

_STRUCTURE = {"atomic_numbers", "frac_coords", "lattice"}
_ASKED = ("composition", "formula", "num_atoms", "target_id")
_PLANNED = ("shard", "round", "sample", "origin", "template_rank")
_MADE = ("origin", "source", "status", "guidance_scale")
_TEMPLATE = ("template_id", "template_distance", "template_rmse", "template_strain", "structure_type_known")
_RANKED = ("rank", "probability", "group", "group_size", "unique", "novel")
_NOT_CHECKS = {"id", *_ASKED, *_PLANNED, *_MADE, *_TEMPLATE, *_RANKED, *_STRUCTURE}
_SIBLINGS = ("id", "rank", "energy_pred", "probability", "spacegroup", "group", "origin", "status")
_OF_TEMPLATE = ("source", "formula", "num_atoms", "spacegroup", "formation_energy", "e_above_hull", "published")


@dataclass(frozen=True)
class Chapter:
    """One part of the story. facts: names and values; rows: a small table beside them; note: what is missing."""

    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""


def story(folder: Path, candidate: str) -> list[Chapter]:
    """Everything that the tables under ``results/<campaign>`` know about a candidate, in the order it happened.

    Raises UserError where there is no such campaign or candidate; ids like it are named.
    """
    own, made = _own_row(folder, candidate)
    chapters = [
        _asked(folder, own),
        _planned(folder, own),
        _made(folder, own, made),
        *_template(folder, own),
        *_models(folder, own, made),
        *_checked(folder, own),
        *_ranked(folder, own),
        *_evaluated(folder, own),
        *_rows_by_id("Property", folder / "properties" / "predictions.parquet", candidate),
        *_rows_by_id("Quantum ESPRESSO", folder / "validation", candidate),
    ]
    return [chapter for chapter in chapters if chapter.facts or chapter.rows or chapter.note]


def to_dict(chapters: Iterable[Chapter]) -> list[dict[str, Any]]:
    """For JSON."""
    return [{"title": c.title, "facts": c.facts, "rows": c.rows, "note": c.note or None} for c in chapters]


def _own_row(folder: Path, candidate: str) -> tuple[dict[str, Any], Path | None]:
    """The candidate's latest row, and the file of the shard that made it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give --campaign a name under results/, or a folder.")
    tables = [p for n in ("screened", "plan") if _exists(p := folder / "candidates" / f"{n}.parquet")]
    if not tables:
        raise UserError(f"{folder}: no candidates have been planned yet. Run plan_candidates first.")
    for path in tables:
        found = find_rows(path, "id", candidate)
        if found.num_rows:
            row = found.to_pylist()[0]
            return row, _shard_file(folder, row)
    near = similar_ids(tables[0], candidate)
    hint = f"ids like it: {', '.join(near)}" if near else "its ids look like cand:0:0"
    raise UserError(f"{tables[0]}: no candidate {candidate[:80]!r}; {hint}.")


def _shard_file(folder: Path, row: Mapping[str, Any]) -> Path | None:
    """The file of generated crystals with a candidate: of its shard, and round where there are some."""
    for path in sorted((folder / "candidates" / "generated").glob("shard-*.parquet")):
        numbers = [int(part) for part in path.stem.split("-")[1:] if part.isdigit()]
        if numbers[:1] == [row.get("shard")] and (len(numbers) < 2 or numbers[1] == row.get("round")):
            return path
    return None


def _exists(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.glob("*.parquet")))


def _some(row: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) is not None}


def _asked(folder: Path, own: Mapping[str, Any]) -> Chapter:
    facts = _some(own, _ASKED)
    path = folder / "compositions.parquet"
    if own.get("target_id") is not None:
        facts["asked_by"] = f"the test split, for its crystal {own['target_id']}"
    elif path.is_file():
        found = find_rows(path, "composition", own["composition"])
        if found.num_rows:
            facts["asked_by"] = found["asked_by"][0].as_py()
        if plausible := read_about(path).get("plausible_by"):
            facts["plausible_by"] = plausible
    return Chapter("Asked for", facts)


def _planned(folder: Path, own: Mapping[str, Any]) -> Chapter:
    path = folder / "candidates" / "plan.parquet"
    if not path.is_file():
        return Chapter("Planned", _some(own, _PLANNED))
    found = find_rows(path, "id", str(own["id"])).to_pylist()
    facts = _some(found[0] if found else own, _PLANNED)
    if "origin" in facts:
        facts["to_be_made"] = {"template": "from a template"}.get(facts.pop("origin"), "by DAO-G")
    settings = read_about(path).get("settings") or {}
    facts |= {f"campaign's {name}": settings[key] for name, key in (("seed", "seed"),) if key in settings}
    return Chapter("Planned", facts)


def _made(folder: Path, own: Mapping[str, Any], made: Path | None) -> Chapter:
    if made is None:
        return Chapter("Made", _some(own, _MADE), note="" if "origin" in own else "not generated yet")
    row = find_rows(made, "id", str(own["id"])).to_pylist()
    facts = _some(row[0] if row else own, _MADE)
    about = read_about(made)
    facts |= {name: value for name, value in (about.get("sampling") or {}).items() if value is not None}
    facts |= _some(about, ("seed", "code_version")) | {"file": str(made.relative_to(folder))}
    settings = about.get("settings") or {}
    if facts.get("guidance_scale") and isinstance(settings.get("generate.guidance"), dict):
        facts |= {f"guidance.{name}": value for name, value in settings["generate.guidance"].items()}
    packages = about.get("packages") or {}
    return Chapter("Made", facts | _some(packages, ("torch",)))


def _template(folder: Path, own: Mapping[str, Any]) -> list[Chapter]:
    facts = _some(own, _TEMPLATE)
    if "template_id" not in facts:
        return []
    train = folder / "crysdb" / "train.parquet"
    found = find_rows(train, "id", facts["template_id"], _OF_TEMPLATE).to_pylist() if train.is_file() else []
    known = {f"its {name}": value for name, value in _some(found[0], _OF_TEMPLATE).items()} if found else {}
    return [Chapter("Template", facts | known, note="" if found else "not in this CrysDB")]


def _models(folder: Path, own: Mapping[str, Any], made: Path | None) -> list[Chapter]:
    """Each model that had a part in it: weights, trainings and their data."""
    screened = folder / "candidates" / "screened.parquet"
    inputs: dict[str, Any] = dict(read_about(screened).get("inputs") or {}) if _exists(screened) else {}
    inputs |= (read_about(made).get("inputs") or {}) if made is not None else {}
    chapters = []
    for name, title in (("generator", "DAO-G"), ("energy_model", "DAO-P"), ("ranker", "Ranker")):
        given = inputs.get(name)
        if not isinstance(given, dict) or (name == "generator" and own.get("origin") in ("template", "known")):
            continue
        path = Path(str(given["path"]))
        directory = path.parent if path.suffix == ".safetensors" else path
        config = _read_json(_inside(folder, directory) / "config.json")
        facts: dict[str, Any] = {"folder": str(directory), "hash": given.get("hash")}
        facts |= _some(config, ("weights_hash", "energy_label"))
        rows = [
            _some(step, ("stage", "campaign", "crystals", "steps", "seed")) | _data(step)
            for step in config.get("history") or []
        ]
        chapters.append(Chapter(title, facts, rows, "" if config else "its directory is not here any more"))
    return chapters


def _data(step: Mapping[str, Any]) -> dict[str, Any]:
    inputs = step.get("inputs")
    if not isinstance(inputs, dict):
        return {}
    return {"data": ", ".join(f"{name} {str(digest)[:8]}" for name, digest in inputs.items())}


def _inside(folder: Path, directory: Path) -> Path:
    """Where a directory is that was named from the place of the run: it may have moved along with ``folder``."""
    parts = directory.parts
    if not directory.is_absolute() and len(parts) > 2 and parts[0] == "results" and parts[1] == folder.name:
        return folder.joinpath(*parts[2:])
    return directory


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _checked(folder: Path, own: Mapping[str, Any]) -> list[Chapter]:
    """Whatever the screening found, energies by themselves."""
    path = folder / "candidates" / "screened.parquet"
    if not _exists(path):
        return [Chapter("Checked", note="not screened yet")]
    found = {name: value for name, value in own.items() if name not in _NOT_CHECKS and value is not None}
    energies = {name: value for name, value in found.items() if "energy" in name or "hull" in name}
    checks = {name: value for name, value in found.items() if name not in energies}
    return [Chapter("Checked", checks | _some(read_about(path), ("symprec",))), Chapter("Energies", energies)]


def _ranked(folder: Path, own: Mapping[str, Any]) -> list[Chapter]:
    path = folder / "candidates" / "screened.parquet"
    if not _exists(path):
        return []
    siblings = find_rows(path, "composition", str(own["composition"]), _SIBLINGS).to_pylist()
    facts = _some(own, _RANKED) | {
        "of_composition": len(siblings),
        "ranked": sum(s.get("rank") is not None for s in siblings),
    }
    group = own.get("group")
    same = [s for s in siblings if group is not None and s.get("group") == group and s["id"] != own["id"]]
    place = own.get("rank")
    if place is None:
        place = next((s["rank"] for s in same if s.get("rank") is not None), None)
    ranked = sorted((s for s in siblings if s.get("rank") is not None), key=lambda s: s["rank"])
    near = [s for s in ranked if place is not None and abs(s["rank"] - place) <= _NEIGHBOURS]
    chapters = [Chapter("Ranked", facts, [_some(s, _SIBLINGS) for s in near])]
    if same:
        others = [_some(s, _SIBLINGS) for s in same[: 2 * _NEIGHBOURS]]
        chapters.append(Chapter("Others of its group", rows=others))
    return chapters


def _evaluated(folder: Path, own: Mapping[str, Any]) -> list[Chapter]:
    path, target = folder / "evaluation" / "samples.parquet", own.get("target_id")
    if target is None or not path.is_file():
        return []
    rows = find_rows(path, "target_id", str(target)).to_pylist()
    mine = [r for r in rows if r["method"] == "dao" and r.get("sample") == own.get("sample")]
    facts = _some(mine[0], ("matched", "rmse", "reason", "place", "first")) if mine else {}
    targets = folder / "evaluation" / "targets.parquet"
    found = find_rows(targets, "target_id", str(target)).to_pylist() if targets.is_file() else []
    for row in found:
        if row["method"] == "dao":
            names = ("found", "first_match_rank", "matches", "rank1_found")
            facts |= {f"target {name}": value for name, value in _some(row, names).items()}
    return [Chapter("Compared with the known crystal", facts, note="" if facts else "not evaluated")]


def _rows_by_id(title: str, path: Path, candidate: str) -> list[Chapter]:
    """What a later stage found out about the candidate, besides what is told already."""
    if not _exists(path):
        return []
    told = {"id", "source", *_ASKED, *_RANKED, *_STRUCTURE}
    return [
        Chapter(title, {name: value for name, value in row.items() if value is not None and name not in told})
        for row in find_rows(path, "id", candidate).to_pylist()
    ]
