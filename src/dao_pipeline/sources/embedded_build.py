"""Making the embedded table: candidates, relaxation in pieces, hull, precursors, one Parquet file."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import random
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dao_pipeline.crystals.crystal import Crystal, to_table, wrap
from dao_pipeline.crystals.elements import COVALENT_RADIUS, SYMBOLS
from dao_pipeline.crystals.table import provenance, write_table, write_text
from dao_pipeline.sources.chgnet_labels import Labeller, Relaxation, RelaxSettings

logger = logging.getLogger(__name__)

SETTINGS: dict[str, Any] = {
    "relaxation": asdict(RelaxSettings()),
    "seed": 1,
    "fillings_per_type": 13,
    "symprec": 0.01,  # angstrom
    "hull_max": 1.0,  # eV/atom above the hull, for relaxed and unstable rows
    "contact_min": 0.6,  # smallest distance as a fraction of the sum of covalent radii
    "perturb": {
        "strain": 0.04,  # largest component of a random strain
        "move": 0.08,  # angstrom, standard deviation of each coordinate
        "strength": [0.5, 2.0],  # range of a factor, drawn per crystal, on both
        "drop": [0.02, 0.8],  # eV/atom; a start outside this range above its end is replaced
    },
    "grid": 18,  # coordinates are multiples of 2**-grid, which zstd packs well
}
"""Everything that decides the numbers of the table."""

LICENCE = (
    "Starting structures: AFLOW prototype library as shipped with pymatgen (MIT), ASE's dcdft collection (LGPL), "
    "substitutions by dao-pipeline (MIT). Relaxed structures and energies: CHGNet (BSD-3-Clause, weights too)."
)

_PIECE = 32
"""Crystals per file of the work directory: what an interruption loses at most, per worker."""


# --- relaxation in pieces -------------------------------------------------------------------------------


def _key(crystal: Crystal) -> str:
    """Hash of a starting structure and the settings: a finished outcome is reused only for the same."""
    arrays = [crystal.atomic_numbers.tolist(), crystal.frac_coords.round(6).tolist()]
    settings = [SETTINGS["relaxation"], SETTINGS["perturb"], SETTINGS["seed"]]
    text = json.dumps([crystal.id, *arrays, crystal.lattice.round(6).tolist(), *settings])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def perturbed(crystal: Crystal, rng: np.random.Generator) -> Crystal:
    """The crystal after a random strain of a few percent and random displacements of about 0.1 angstrom."""
    strength = rng.uniform(*SETTINGS["perturb"]["strength"])
    strain = rng.uniform(-1, 1, (3, 3)) * SETTINGS["perturb"]["strain"] * strength
    moves = rng.normal(0.0, SETTINGS["perturb"]["move"] * strength, (crystal.num_atoms, 3))
    lattice = crystal.lattice @ (np.eye(3) + 0.5 * (strain + strain.T))
    frac = wrap(crystal.frac_coords + moves @ np.linalg.inv(lattice))
    return replace(crystal, frac_coords=frac, lattice=lattice)


def _plain(crystal: Crystal) -> dict[str, Any]:
    return {"frac": crystal.frac_coords.tolist(), "lattice": crystal.lattice.tolist()}


def _outcome(start: Crystal, found: Relaxation, labeller: Labeller) -> dict[str, Any]:
    """What is kept of one relaxation, JSON-ready: relaxed crystal, precursor and both energies (eV/atom).

    The precursor is the start or, for every second crystal and where the start lies too near the end or too
    far from it, the relaxed crystal perturbed.
    """
    record = {"id": start.id, "key": _key(start), "reason": found.reason, "steps": found.steps}
    if found.reason:
        return record
    precursor, energy, kind = start, found.start_energy, "start"
    low, high = SETTINGS["perturb"]["drop"]
    number = zlib.crc32(start.id.encode())
    if number % 2 or not low < energy - found.energy < high:
        rng = np.random.default_rng([SETTINGS["seed"], number])
        precursor, kind = perturbed(found.crystal, rng), "perturbed"
        (energy,) = labeller.energies([precursor])
    return record | {
        "relaxed": _plain(found.crystal) | {"energy": found.energy},
        "precursor": _plain(precursor) | {"energy": energy, "kind": kind},
        "method": labeller.method,
    }


_labeller: Labeller | None = None


def _relax_piece(piece: Sequence[Crystal], work: Path) -> int:
    """Relax some crystals and write their outcomes to one file of the work directory."""
    global _labeller
    if _labeller is None:
        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        _labeller = Labeller()
    starts = {crystal.id: crystal for crystal in piece}
    found = [_outcome(starts[r.crystal.id], r, _labeller) for r in _labeller.relax(piece)]
    write_text(work / f"piece-{_key(piece[0])}.json", json.dumps(found))
    return len(found)


def _relax_all(crystals: Sequence[Crystal], work: Path, workers: int) -> list[dict[str, Any]]:
    """Outcomes of all crystals, in their order; finished ones are read from the work directory."""

    def finished() -> dict[str, dict[str, Any]]:
        files = sorted(work.glob("piece-*.json"))
        return {r["key"]: r for file in files for r in json.loads(file.read_text(encoding="utf-8"))}

    work.mkdir(parents=True, exist_ok=True)
    done = finished()
    left = [crystal for crystal in crystals if _key(crystal) not in done]
    pieces = [left[i : i + _PIECE] for i in range(0, len(left), _PIECE)]
    logger.info("%d of %d crystals to relax", len(left), len(crystals))
    counts: Iterable[int]
    if workers > 1 and len(pieces) > 1:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            counts = pool.map(_relax_piece, pieces, [work] * len(pieces))
            _report(counts, len(left))
    else:
        _report((_relax_piece(piece, work) for piece in pieces), len(left))
    done = finished()
    return [done[_key(crystal)] for crystal in crystals]


def _report(counts: Iterable[int], total: int) -> None:
    done = 0
    for count in counts:
        done += count
        logger.info("relaxed %d of %d", done, total)


# --- from outcomes to rows ------------------------------------------------------------------------------


def _reduced(crystal: Crystal, *, primitive: bool) -> Crystal:
    """The Niggli cell (of the primitive cell if asked), coordinates on the grid, space group in ``extra``."""
    import moyopy
    from pymatgen.core import Structure

    def symmetry(cell: Structure) -> Any:
        arrays = (cell.lattice.matrix.tolist(), cell.frac_coords.tolist(), list(cell.atomic_numbers))
        return moyopy.MoyoDataset(moyopy.Cell(*arrays), symprec=SETTINGS["symprec"])

    structure = Structure(crystal.lattice, crystal.atomic_numbers, crystal.frac_coords)
    if primitive and len(symmetry(structure).prim_std_cell.numbers) < len(structure):
        structure = structure.get_primitive_structure(tolerance=0.1)
    try:
        structure = structure.get_reduced_structure("niggli")
    except ValueError:
        structure = structure.get_reduced_structure("LLL")
    scale = 2.0 ** SETTINGS["grid"]
    lattice = np.round(structure.lattice.matrix * scale) / scale
    frac = wrap(np.round(structure.frac_coords * scale) / scale)
    gridded = Structure(lattice, structure.species, frac)
    extra = crystal.extra | {"spacegroup": int(symmetry(gridded).number)}
    numbers = np.array(structure.atomic_numbers)
    return replace(crystal, atomic_numbers=numbers, frac_coords=frac, lattice=lattice, extra=extra)


def contact(crystal: Crystal) -> float:
    """Smallest interatomic distance as a fraction of the sum of the two covalent radii."""
    from pymatgen.core import Structure

    structure = Structure(crystal.lattice, crystal.atomic_numbers, crystal.frac_coords)
    i, j, _, distance = structure.get_neighbor_list(5.0)
    radii = np.array([COVALENT_RADIUS[z] for z in crystal.atomic_numbers])
    return float((distance / (radii[i] + radii[j])).min()) if len(distance) else 2.0


def _deduplicated(crystals: Iterable[Crystal], prefer: Sequence[str]) -> list[Crystal]:
    """One of each group of matching crystals: a target, or the lowest in energy.

    Where energies agree within 10 meV/atom, what convergence leaves, library crystals go before substitutions.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    groups: dict[str, list[Crystal]] = defaultdict(list)
    for crystal in crystals:
        groups[crystal.formula].append(crystal)
    matcher, kept = StructureMatcher(), []
    for group in groups.values():
        made = {c.id: c.source.endswith("substitution") for c in group}
        group.sort(key=lambda c: (c.id not in prefer, round(c.extra["formation_energy"], 2), made[c.id]))
        seen: list[Any] = []
        for crystal in group:
            structure = Structure(crystal.lattice, crystal.atomic_numbers, crystal.frac_coords)
            if not any(matcher.fit(structure, other) for other in seen):
                seen.append(structure)
                kept.append(crystal)
    return kept


def hull_energies(crystals: Sequence[Crystal]) -> dict[str, float]:
    """Energy of the convex hull at each formula, eV/atom, from the column ``formation_energy``."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    lowest: dict[str, float] = {}
    for crystal in crystals:
        energy = crystal.extra["formation_energy"]
        lowest[crystal.formula] = min(energy, lowest.get(crystal.formula, energy))
    compositions = {formula: Composition(formula) for formula in lowest}
    systems: dict[frozenset[str], list[str]] = defaultdict(list)
    for formula, composition in compositions.items():
        systems[frozenset(map(str, composition.elements))].append(formula)
    hull: dict[str, float] = {}
    for system, formulas in systems.items():
        inside = [f for other, several in systems.items() if other <= system for f in several]
        entries = [PDEntry(compositions[f], lowest[f] * compositions[f].num_atoms) for f in inside]
        diagram = PhaseDiagram(entries)
        for formula in formulas:
            hull[formula] = float(diagram.get_hull_energy_per_atom(compositions[formula]))
    return hull


def _candidates(targets: Sequence[str], limit: int | None) -> list[Crystal]:
    """Starting structures: targets, then elements, then all others in random order; ids are unique."""
    from dao_pipeline.sources import prototypes

    made = prototypes.substitutions(SETTINGS["fillings_per_type"], set(targets), SETTINGS["seed"])
    unique: dict[str, prototypes.Start] = {}
    for start in [*prototypes.aflow(), *prototypes.elemental(), *made]:
        unique.setdefault(start.id, start)
    first = [unique.pop(name) for name in targets]
    elements = [start for start in unique.values() if len(start.elements) == 1]
    others = [start for start in unique.values() if len(start.elements) > 1]
    random.Random(SETTINGS["seed"]).shuffle(others)
    if limit is not None:
        first, others = first[:limit], others[: max(0, limit - len(first))]
        needed = frozenset[str]().union(*(start.elements for start in first + others))
        elements = [start for start in elements if start.elements <= needed]
    return [start.make() for start in first + elements + others]


def _with(crystal: Crystal, record: dict[str, Any], **extra: Any) -> Crystal:
    """The crystal with the cell of an outcome; its total energy waits in the column of the formation energy."""
    return replace(
        crystal,
        frac_coords=np.array(record["frac"]),
        lattice=np.array(record["lattice"]),
        extra={"formation_energy": record["energy"], **extra},
    )


def _above(energy: float, hull: float) -> float:
    """Distance above the hull, eV/atom, without the rounding errors of crystals on it."""
    return max(0.0, round(energy - hull, 9))


def _referenced(crystal: Crystal, reference: dict[int, float], hull: float | None = None) -> Crystal:
    """The crystal with its total energy (eV/atom) turned into a formation energy and, with a hull, E_hull."""
    zero = float(np.mean([reference[int(z)] for z in crystal.atomic_numbers]))
    energy = crystal.extra["formation_energy"] - zero
    extra = {} if hull is None else {"e_above_hull": _above(energy, hull)}
    return replace(crystal, extra=crystal.extra | {"formation_energy": energy} | extra)


def _relaxed_rows(
    starts: Sequence[Crystal], outcomes: Sequence[dict[str, Any]], dropped: Counter[str], targets: Sequence[str]
) -> tuple[list[Crystal], dict[int, float], dict[str, float]]:
    """Relaxed rows with formation energies, elemental references (by number) and the hull (by formula)."""
    rows = []
    for start, record in zip(starts, outcomes, strict=True):
        if record["reason"]:
            dropped[f"relaxed: {record['reason']}"] += 1
            continue
        crystal = _reduced(_with(start, record["relaxed"]), primitive=True)
        if contact(crystal) < SETTINGS["contact_min"]:
            dropped["relaxed: atoms too close"] += 1
            continue
        rows.append(crystal)
    unique = _deduplicated(rows, targets)
    dropped["relaxed: duplicate"] += len(rows) - len(unique)
    reference: dict[int, float] = {}
    for crystal in unique:
        if len(set(crystal.atomic_numbers)) == 1:
            z, energy = int(crystal.atomic_numbers[0]), crystal.extra["formation_energy"]
            reference[z] = min(energy, reference.get(z, energy))
    rows = [_referenced(c, reference) for c in unique if set(c.atomic_numbers.tolist()) <= set(reference)]
    dropped["relaxed: no elemental reference"] += len(unique) - len(rows)
    return rows, reference, hull_energies(rows)


def _precursor_rows(
    kept: Iterable[tuple[Crystal, Crystal, dict[str, Any]]], reference: dict[int, float], hull: dict[str, float]
) -> Iterator[tuple[Crystal | None, str]]:
    """The unstable row of each (start, relaxed row, outcome), or None, with what kind it is or why not."""
    for start, relaxed, record in kept:
        precursor = record["precursor"]
        if not np.isfinite(precursor["energy"]):
            yield None, "unstable: an atom lost its neighbours"
            continue
        crystal = _with(start, precursor, precursor_of=start.id)
        crystal = _reduced(_referenced(crystal, reference, hull[crystal.formula]), primitive=False)
        if crystal.extra["formation_energy"] < relaxed.extra["formation_energy"]:
            yield None, "unstable: below its relaxed crystal"
        elif crystal.extra["e_above_hull"] > SETTINGS["hull_max"]:
            yield None, "unstable: too far above the hull"
        elif contact(crystal) < SETTINGS["contact_min"]:
            yield None, "unstable: atoms too close"
        else:
            yield replace(crystal, id=f"{start.id}#0"), precursor["kind"]


def build_table(out: Path, *, workers: int, work: Path, limit: int | None, targets: Sequence[str]) -> None:
    """Relax, label and write the embedded table; see ``embedded.build``."""
    warnings.filterwarnings("ignore", module="pymatgen")
    starts = _candidates(targets, limit)
    outcomes = _relax_all(starts, work, workers)
    dropped: Counter[str] = Counter()
    rows, reference, hull = _relaxed_rows(starts, outcomes, dropped, targets)
    by_id = {start.id: (start, record) for start, record in zip(starts, outcomes, strict=True)}
    rows = [
        replace(c, extra=c.extra | {"e_above_hull": _above(c.extra["formation_energy"], hull[c.formula])})
        for c in rows
    ]
    relaxed = [c for c in rows if c.extra["e_above_hull"] <= SETTINGS["hull_max"] or c.id in targets]
    dropped["relaxed: too far above the hull"] += len(rows) - len(relaxed)
    kept = ((by_id[c.id][0], c, by_id[c.id][1]) for c in relaxed)
    unstable, kinds = [], Counter[str]()
    for row, note in _precursor_rows(kept, reference, hull):
        (dropped if row is None else kinds)[note] += 1
        if row is not None:
            unstable.append(row)
    test = {c.formula for c in relaxed if c.id in targets}
    method = next(record["method"] for record in outcomes if not record["reason"])
    table = [
        replace(c, extra=c.extra | {"energy_method": method, "split": "test" if c.formula in test else None})
        for c in relaxed + unstable
    ]
    about = provenance(
        "build-embedded",
        settings=SETTINGS | {"limit": limit},
        energy_method=method,
        symprec=SETTINGS["symprec"],
        relaxed=len(relaxed),
        unstable=len(unstable),
        candidates=len(starts),
        by_source=dict(Counter(c.source for c in relaxed)),
        by_structure_type=dict(Counter(c.id.rsplit(":", 1)[0] for c in relaxed)),
        unstable_kinds=dict(kinds),
        dropped={reason: n for reason, n in sorted(dropped.items()) if n},
        elements=sorted({SYMBOLS[z] for c in relaxed for z in c.atomic_numbers}),
        elemental_energies={SYMBOLS[z]: round(e, 6) for z, e in sorted(reference.items())},
        targets=list(targets),
        licence=LICENCE,
    )
    write_table(to_table(table), out, about)
    logger.info("%d relaxed and %d unstable rows in %s", len(relaxed), len(unstable), out)
