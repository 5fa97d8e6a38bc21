"""Energy above the convex hull of known phases, with a passport, and never of two models together.

A model's errors are of the size of hull distances. Between a candidate's predicted energy and a hull of DFT
energies they stand in full; between two energies of one model they cancel in part. So candidates and phases are
judged by one model: the phases of the chemical systems at hand are evaluated as the candidates are. Energies that
a file gives are taken only if it says that this very model made them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Screen, expand_path
from dao_pipeline.crysdb.hull import Phases, hull_energies
from dao_pipeline.crystals.crystal import from_table
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.crystals.table import file_hash, package_versions
from dao_pipeline.errors import UserError
from dao_pipeline.screening.columns import STRUCTURE, set_column
from dao_pipeline.screening.entries import Entries, read_entries

CRYSDB = "crysdb"
"""Value of ``screen.hull.entries``: the campaign's own crystals."""


@dataclass(frozen=True)
class Judge:
    """What evaluates the phases when a file does not give their energies: DAO-P of a folder, or CHGNet."""

    settings: Screen
    energy_model: Path
    batch_atoms: int
    workers: int
    work: Path | None


@dataclass(frozen=True)
class Hull:
    """Phases with formation energies of one model, eV/atom.

    elements: those for which there is a reference. passport: see ``entries.Entries``, and who judged. zero: energy
    of each element, eV/atom, by symbol, to take off a candidate's total energy; empty: it is a formation energy.
    """

    phases: Phases
    elements: frozenset[str]
    passport: dict[str, Any]
    zero: dict[str, float]

    @property
    def label(self) -> str:
        """What the column ``hull`` says."""
        return f"{self.passport['name']} ({self.passport['hash'][:33]}) by {self.passport['judged_by']}"

    def status(self, formula: str, energy: float | None) -> str:
        """``ok``, or why a candidate has no energy above the hull."""
        if energy is None:
            return "no_energy"
        if not (elements := _elements(formula)):
            return "no_formula"
        missing = sorted(elements - self.elements)
        return f"no_reference_with_{'_'.join(missing)}" if missing else "ok"


def add_hull(
    table: pa.Table,
    settings: Screen,
    energy_model: Path | None,
    crysdb: Path | None,
    batch_atoms: int,
    workers: int = 1,
    work: Path | None = None,
) -> pa.Table:
    """Add e_above_hull_pred, hull, hull_phases and hull_status; unchanged where ``screen.hull.entries`` is null.

    crysdb: what ``entries: crysdb`` means, a CrysDB folder or a crystal table. work: see ``second_model``. The
    schema's metadata get the passport (``passport_of``).

    Raises UserError for phases that this model has not judged and cannot judge.
    """
    if settings.hull.entries is None:
        return table
    formulas = table["formula"].to_pylist()
    energies = _judged(table, settings)
    systems = {system for name in set(formulas) if (system := _elements(name))}
    if energy_model is None and settings.hull.model == "dao_p":
        raise UserError("screen.hull.entries: there is no DAO-P to judge phases; set energy_model.enabled: true.")
    hull = make_hull(systems, Judge(settings, energy_model or Path(), batch_atoms, workers, work), crysdb)
    statuses = [hull.status(name, energy) for name, energy in zip(formulas, energies, strict=True)]
    asked = sorted({name for name, status in zip(formulas, statuses, strict=True) if status == "ok"})
    ground = dict(zip(asked, hull_energies(asked, np.arange(len(asked)), [hull.phases], workers), strict=True))
    distances = [
        float(energy - _mixture(name, hull.zero) - ground[name]) if energy is not None and status == "ok" else None
        for name, energy, status in zip(formulas, energies, statuses, strict=True)
    ]
    table = set_column(table, "e_above_hull_pred", distances)
    table = set_column(table, "hull", [hull.label] * table.num_rows)
    known = [_elements(name) for name in hull.phases.names]
    within = {
        system: sum(phase <= system for phase in known) for system in {_elements(name) for name in set(formulas)}
    }
    counts = {name: within[_elements(name)] for name in set(formulas)}
    table = set_column(table, "hull_phases", [counts[name] for name in formulas])
    table = set_column(table, "hull_status", statuses)
    return table.replace_schema_metadata({**(table.schema.metadata or {}), b"hull": json.dumps(hull.passport)})


def passport_of(table: pa.Table) -> dict[str, Any] | None:
    """The passport that ``add_hull`` has put into a table's metadata; None: there is no hull."""
    text = (table.schema.metadata or {}).get(b"hull")
    return None if text is None else dict(json.loads(text))


def _judged(table: pa.Table, settings: Screen) -> list[float | None]:
    """Energies of the candidates by the model of the hull, eV/atom; relaxed ones where they are."""
    if settings.hull.model == "dao_p":
        return list(table["energy_pred"].to_pylist())
    return _relaxed_or_not(table["energy_second"].to_pylist(), table["energy_second_relaxed"].to_pylist())


def _relaxed_or_not(alone: list[float | None], relaxed: list[float | None]) -> list[float | None]:
    return [a if r is None else r for a, r in zip(alone, relaxed, strict=True)]


def _elements(formula: str) -> frozenset[str]:
    """Elements of a formula; none of what is no plain formula."""
    try:
        return frozenset(parse_formula(formula))
    except ValueError:
        return frozenset()


def _mixture(formula: str, zero: dict[str, float]) -> float:
    """Energy of a formula's elements by themselves, eV/atom."""
    if not zero:
        return 0.0
    counts = parse_formula(formula)
    return sum(n * zero[symbol] for symbol, n in counts.items()) / sum(counts.values())


def make_hull(systems: set[frozenset[str]], judge: Judge, crysdb: Path | None) -> Hull:
    """The hull of the chemical ``systems`` (element symbols). See ``add_hull``."""
    asked = judge.settings.hull
    path = _path(asked.entries or CRYSDB, crysdb)
    name = _dao_p(judge.energy_model) if asked.model == "dao_p" else _chgnet()
    if asked.energies == "model":
        entries = read_entries(path, systems, asked.per_formula)
        energies = _evaluate(entries, judge)
    else:
        entries = read_entries(path, systems)
        energies = _given(entries, name, path)
    formulas = entries.table["formula"].to_pylist()
    known = [(f, e) for f, e in zip(formulas, energies, strict=True) if e is not None and isfinite(e)]
    zero: dict[str, float] = {}
    if asked.model == "chgnet" and asked.energies == "model":  # total energies
        for formula, energy in known:
            if len(elements := _elements(formula)) == 1:
                (symbol,) = elements
                zero[symbol] = min(energy, zero.get(symbol, np.inf))
        known = [(f, e - _mixture(f, zero)) for f, e in known if _elements(f) <= zero.keys()]
    seen = frozenset(zero) if zero else frozenset[str]().union(*(_elements(f) for f, _ in known))
    names = sorted({formula for formula, _ in known})
    place = {formula: i for i, formula in enumerate(names)}
    phases = Phases(
        name,
        names,
        np.array([place[formula] for formula, _ in known], dtype=np.int64),
        np.array([energy for _, energy in known], dtype=np.float64),
    )
    passport = {
        **entries.passport,
        "judged_by": name,
        "energies": "evaluated by it" if asked.energies == "model" else "as the file gives them",
        "hull_libraries": package_versions(),
    }
    return Hull(phases, seen, passport, zero)


def _path(named: str, crysdb: Path | None) -> Path:
    if named == CRYSDB:
        if crysdb is None:
            raise UserError(
                "screen.hull.entries = crysdb: this command was given no crystals; name a file instead."
            )
        return crysdb
    path = expand_path(named)
    if not path.exists():
        raise UserError(f"screen.hull.entries = {named}: {path} does not exist; correct the path.")
    return path


def _dao_p(energy_model: Path) -> str:
    """What DAO-P's energies belong to. Raises UserError if they are no formation energies."""
    try:
        label = json.loads((energy_model / "config.json").read_text(encoding="utf-8")).get("energy_label")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{energy_model}: no readable config.json of a model ({error}).") from error
    if label != "formation_energy":
        raise UserError(
            f"screen.hull.entries: {energy_model} predicts {label or 'something else'}, and a hull takes "
            "formation energies. Train with energy_model.label: formation_energy; or let CHGNet judge "
            "(screen.hull.model: chgnet, screen.second_model.model: chgnet); or set screen.hull.entries: null, if "
            "the model predicts energies above a hull already."
        )
    return f"DAO-P {file_hash(energy_model / 'model.safetensors')}"


def _chgnet() -> str:
    from dao_pipeline.screening.second_model import method

    return method()


def _given(entries: Entries, judge: str, path: Path) -> list[float | None]:
    """Formation energies of the file, eV/atom. Raises UserError unless ``judge`` made them."""
    named = entries.passport["model"]
    if named != judge:
        made = f"says that {named} made its energies" if named else "does not say that a model made its energies"
        raise UserError(
            f"screen.hull.entries = {path}: candidates are judged by {judge}, and this file {made}. Energies of "
            "two origins make no hull distance. Set screen.hull.energies: model, to evaluate the phases with the "
            "same model, which needs their structures."
        )
    if "formation_energy" not in entries.table.column_names:
        raise UserError(f"{path}: no column formation_energy; set screen.hull.energies: model.")
    return list(entries.table["formation_energy"].to_pylist())


def _evaluate(entries: Entries, judge: Judge) -> list[float | None]:
    """Energies of the phases by the model, eV/atom; None or NaN where it has none."""
    if not entries.has_structures:
        raise UserError(
            f"screen.hull.entries = {entries.passport['path']}: its phases have no structures, so no model can "
            f"evaluate them; name a crystal table with {', '.join(STRUCTURE)}."
        )
    if judge.settings.hull.model == "dao_p":
        from dao_pipeline.energy.predict import predict_with_std

        return list(predict_with_std(judge.energy_model, entries.table, batch_atoms=judge.batch_atoms)[0].tolist())
    from dao_pipeline.screening.second_model import evaluate

    crystals = list(from_table(entries.table.select(STRUCTURE)))
    found = evaluate(crystals, judge.settings.second_model.relax_steps, judge.workers, judge.work)
    return _relaxed_or_not([f["energy_second"] for f in found], [f["energy_second_relaxed"] for f in found])
