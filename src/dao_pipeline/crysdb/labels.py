"""Energy labels: where they come from, at which level of theory, and which crystals can carry one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from dao_pipeline.config import CrysDB
from dao_pipeline.crysdb.facts import Coded, Facts
from dao_pipeline.crysdb.hull import Phases, energies_above_hull
from dao_pipeline.errors import UserError

log = logging.getLogger(__name__)

OWN_HULL = "hull of this set"


def own_method(method: str) -> str:
    """Level of theory of hull distances that are computed from the set itself."""
    return f"{method}, {OWN_HULL}"


def add_own_hull(facts: Facts, limits: CrysDB, phases: Sequence[Phases], workers: int) -> dict[str, int]:
    """Compute ``e_above_hull`` from formation energies, each method by itself; how many crystals got one, by
    method.

    With ``crysdb.hull`` fill, where the source gives none; with own, wherever there is a formation energy. Methods
    that ``crysdb.energy_methods`` leaves out are left out here.
    """
    computed: dict[str, int] = {}
    wanted = np.isfinite(facts.formation_energy)
    if limits.hull == "fill":
        wanted &= np.isnan(facts.e_above_hull)
    names, code = list(facts.method.names), facts.method.code.copy()
    for k, method in enumerate(facts.method.names):
        if method.endswith(OWN_HULL):
            continue  # this set was built with its own hull before
        if limits.energy_methods is not None and own_method(method) not in limits.energy_methods:
            continue
        mine = (facts.method.code == k) & np.isfinite(facts.formation_energy)
        rows = np.flatnonzero(mine & wanted)
        if not len(rows):
            continue
        entries = Phases(method, facts.formula.names, facts.formula.code[mine], facts.formation_energy[mine])
        more = [phase for phase in phases if phase.method == method]
        formula, energy = facts.formula.code[rows], facts.formation_energy[rows]
        facts.e_above_hull[rows] = energies_above_hull(
            facts.formula.names, formula, energy, [entries, *more], workers
        )
        names.append(own_method(method))
        code[rows] = len(names) - 1
        computed[method] = int(np.isfinite(facts.e_above_hull[rows]).sum())
    facts.method = Coded(names, code)
    return computed


def keep_methods(facts: Facts, allowed: Sequence[str] | None) -> dict[str, int]:
    """Leave out energies of methods that are not ``allowed``; how many crystals lost theirs, by method."""
    if allowed is None:
        return {}
    lost: dict[str, int] = {}
    for k, method in enumerate(facts.method.names):
        rows = facts.method.code == k
        if method not in allowed and rows.any():
            facts.formation_energy[rows] = facts.e_above_hull[rows] = np.nan
            lost[method] = int(rows.sum())
    dropped = np.isin(facts.method.code, [k for k, name in enumerate(facts.method.names) if name in lost])
    facts.method = Coded(facts.method.names, np.where(dropped, -1, facts.method.code))
    return lost


def labelled_methods(facts: Facts, label: np.ndarray, alive: np.ndarray) -> dict[str, int]:
    """Crystals with a ``label`` (m,) per level of theory, most frequent first."""
    code = facts.method.code[alive & np.isfinite(label)]
    counts = np.bincount(code, minlength=len(facts.method.names))
    found = {name: int(n) for name, n in zip(facts.method.names, counts, strict=True) if n}
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def require_one_method(found: dict[str, int], limits: CrysDB, label: str) -> None:
    """Raise UserError when labels of several methods stand side by side and nobody said that they may."""
    if len(found) > 1 and limits.energy_methods is None:
        named = ", ".join(f"{method} ({n} crystals)" for method, n in found.items())
        raise UserError(
            f"crysdb.energy_methods: the labels {label} come from different levels of theory: {named}. They are "
            "not comparable: name the one to keep (crysdb.require_label: false keeps the other crystals without "
            "their energies), or name all of them to train on the mixture."
        )
