"""What templates find: match rates of an index's proposals for held-out crystals.

``python benchmarks/templates.py index CRYSDB --out INDEX`` builds an index of the training crystals;
``... rates INDEX HELD.parquet --out FILE.json`` asks it for the compositions of held-out crystals and compares
what it proposes with them, once as it is and once for each part that is left out;
``... types CRYSDB`` compares structure types with pymatgen's matcher; ``... volume INDEX HELD.parquet`` and
``... speed INDEX HELD.parquet`` measure the error of volumes, and compositions per second against growing numbers
of templates.

Templates of a target's own composition are left out throughout. The matcher costs tens of milliseconds a pair: a
pair whose prints (``templates.prints``) differ by more than ``FAR`` is taken for a miss, and of several proposals
the likeliest is compared first. Both can only lower a match rate, or raise an RMSE.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import typer

from dao_pipeline.config import Matcher, Templates
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.flat import FlatCrystals, flatten
from dao_pipeline.crystals.geometry import volumes
from dao_pipeline.crystals.matching import structure_matcher
from dao_pipeline.crystals.niggli import niggli_reduce
from dao_pipeline.crystals.table import provenance, read_table, write_text
from dao_pipeline.crystals.volume import element_counts
from dao_pipeline.evaluation.matching import match
from dao_pipeline.templates.files import load, save
from dao_pipeline.templates.index import TemplateIndex
from dao_pipeline.templates.metric import fixed_metric
from dao_pipeline.templates.patterns import slots_of
from dao_pipeline.templates.prints import slot_prints
from dao_pipeline.templates.proposals import Proposals
from dao_pipeline.templates.types import find_types

app = typer.Typer(pretty_exceptions_enable=False)
KS = (1, 5, 20)
FAR = 0.3
"""Prints farther apart than this (root mean square) are not compared."""
ALIKE = 0.065
"""Prints nearer than this match in most cases: what the cheap rates count (best agreement with the matcher)."""


@app.command()
def index(
    crysdb: Path,
    out: Annotated[Path, typer.Option()],
    distance: str = "learned",
) -> None:
    """Build an index of CrysDB's training crystals."""
    start = time.process_time()
    settings = Templates.model_validate({"distance": distance, "exclude": "composition"})
    table = read_table(crysdb / "train.parquet")
    made = TemplateIndex.build(table, settings)
    save(
        made,
        out,
        provenance("templates", settings=settings.model_dump(), inputs={"train": crysdb / "train.parquet"}),
    )
    print(
        f"{table.num_rows} crystals, {made.label.max() + 1} types, {time.process_time() - start:.0f} s of one core"
    )


def variants(index: TemplateIndex) -> dict[str, TemplateIndex]:
    """The index as it is, and with parts left out."""
    near = {name: replace(fixed_metric(name), width=width) for name, width in WIDTHS.items()}  # type: ignore[arg-type]
    plain = {name: replace(index, metric=metric, instability=1e-3) for name, metric in near.items()}
    single = replace(index, metric=replace(near["mendeleev"], width=1e-3), instability=1.0, supercell=1e7)
    single = replace(single, recoloured=np.inf)
    own = replace(index, recoloured=np.inf)
    return {"as it is": index, "no recoloured structures": own, **plain, "mendeleev, nearest only": single}


WIDTHS = {"mendeleev": 0.8, "radii": 0.02, "substitution": 0.25}
"""Widths of votes that were best on the crystals for tuning."""


@app.command()
def rates(
    folder: Path,
    held: Path,
    out: Annotated[Path, typer.Option()],
    only: Annotated[str, typer.Option(help="variant to compare by the matcher; others by prints")] = "as it is",
    names: Annotated[str, typer.Option(help="variants to ask, separated by commas; empty: all")] = "",
    limit: Annotated[int, typer.Option(help="of the targets; 0: all")] = 0,
    bound: Annotated[bool, typer.Option(help="also ask for every type that there is")] = False,
    shares: Annotated[str, typer.Option(help="shares of the templates for the curve, e.g. 0.1,0.3")] = "",
) -> None:
    """Match rates with 1, 5 and 20 proposals, with 95 % bootstrap intervals."""
    base = load(folder)
    table = read_table(held)
    table = table.slice(0, limit) if limit else table
    flat, _ = niggli_reduce(flatten(table))
    cells = [flat.numbers[a:b] for a, b in pairwise(flat.ptr)]
    known, own = list(from_table(table)), prints_of(flat)
    write_text(out, "{}")
    report: dict[str, Any] = {"held": held.name, "targets": len(cells), "templates": base.table.num_rows}
    if bound:
        found = base.propose(cells, 10**6, "composition")
        report["any type of the index"] = cheap_rates(found, print_distances(found, own), len(cells), (10**6,))
    for name, variant in variants(base).items():
        if names and name not in names.split(","):
            continue
        found = variant.propose(cells, max(KS), "composition")
        distance = print_distances(found, own)
        report[f"{name}, by prints"] = cheap_rates(found, distance, len(cells))
        if name == only:
            report[name] = matched_rates(found, distance, known)
        write_text(out, json.dumps(report, indent=1) + "\n")
    random = np.random.default_rng(0).random(base.table.num_rows)
    for share in [float(word) for word in shares.split(",") if word]:
        found = base.propose(cells, max(KS), "composition", banned=random >= share)
        report[f"{share:g} of the templates, by prints"] = cheap_rates(
            found, print_distances(found, own), len(cells)
        )
    write_text(out, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def prints_of(flat: FlatCrystals) -> list[np.ndarray]:
    """Prints of each crystal, slots in the order of ``slots_of``."""
    result: list[np.ndarray] = [np.zeros(0)] * len(flat)
    slots = slots_of(flat)
    for pattern, rows in slots.groups().items():
        for row, one in zip(
            rows, slot_prints(flat, rows, slots.elements[rows][:, : len(pattern)], pattern), strict=True
        ):
            result[row] = one
    return result


def print_distances(found: Proposals, own: list[np.ndarray]) -> np.ndarray:
    """(p,) root mean square difference between the prints of proposals and of their targets."""
    made = prints_of(found.crystals)
    pairs = zip(found.composition, made, strict=True)
    return np.array([np.sqrt(((own[target] - one) ** 2).mean()) for target, one in pairs])


def interval(hit: np.ndarray) -> list[float]:
    """Mean in percent, and its 95 % bootstrap interval."""
    draws = np.random.default_rng(0).integers(0, len(hit), (2000, len(hit)))
    low, high = np.percentile(hit[draws].mean(1), [2.5, 97.5])
    return [round(100 * float(x), 1) for x in (hit.mean(), low, high)]


def cheap_rates(found: Proposals, distance: np.ndarray, count: int, ks: tuple[int, ...] = KS) -> dict[str, Any]:
    """Targets with a proposal whose prints are alike."""
    first = np.full(count, 10**9)
    alike = distance < ALIKE
    np.minimum.at(first, found.composition[alike], found.rank[alike])
    return {f"k={k}": interval(first < k) for k in ks}


def matched_rates(found: Proposals, distance: np.ndarray, known: list[Crystal]) -> dict[str, Any]:
    """Targets with a proposal that matches, and the mean RMSE of what was found to."""
    matcher = structure_matcher(Matcher())
    rmse = np.full((len(known), len(KS)), np.nan)
    nearest = np.full(len(known), np.inf)
    first = np.searchsorted(found.composition, np.arange(len(known) + 1))
    for target, (start, end) in enumerate(pairwise(first)):
        if start == end:
            continue
        nearest[target] = found.distance[start:end].min()
        for place, k in enumerate(KS):
            if place and np.isfinite(rmse[target, place - 1]):
                rmse[target, place] = rmse[target, place - 1]
                continue
            fresh = np.arange(start + (KS[place - 1] if place else 0), min(end, start + k))
            for i in fresh[np.argsort(distance[fresh])]:
                if distance[i] > FAR:
                    break
                outcome = match(found.crystal(int(i), "proposal"), known[target], matcher)
                if outcome.rmse is not None:
                    rmse[target, place] = outcome.rmse
                    break
    hit = np.isfinite(rmse)
    report: dict[str, Any] = {f"k={k}": interval(hit[:, i]) for i, k in enumerate(KS)}
    report["rmse"] = {f"k={k}": float(np.nanmean(rmse[:, i])) for i, k in enumerate(KS)}
    top = found.rank == 0
    share = np.full(len(known), np.nan)
    share[found.composition[top]] = found.probability[top]
    report["by probability of the first"] = by_bins(hit, share, (0.0, 0.3, 0.5, 0.7, 0.9, 1.01))
    edges = np.quantile(nearest[np.isfinite(nearest)], [0, 0.25, 0.5, 0.75, 1])
    report["by distance to the nearest template"] = by_bins(hit, nearest, (*edges[:-1], edges[-1] + 1e-9))
    report["without any template"] = int(np.isinf(nearest).sum())
    return report


def by_bins(hit: np.ndarray, value: np.ndarray, edges: tuple[float, ...]) -> list[dict[str, Any]]:
    """Match rates (percent) of the targets in each bin."""
    bins = []
    for low, high in pairwise(edges):
        inside = (value >= low) & (value < high)
        if inside.any():
            rates = {f"k={k}": round(100 * float(hit[inside, i].mean()), 1) for i, k in enumerate(KS)}
            mean = round(float(value[inside].mean()), 3)
            bins.append({"from": round(float(low), 3), "mean": mean, "targets": int(inside.sum()), **rates})
    return bins


@app.command()
def volume(folder: Path, held: Path) -> None:
    """Mean and median error (percent) of the volume per atom, for the first proposal and for the composition."""
    base = load(folder)
    flat = flatten(read_table(held))
    found = base.propose([flat.numbers[a:b] for a, b in pairwise(flat.ptr)], 1, "composition")
    asked, template = found.composition, base.flat
    known = volumes(flat.lattice)[asked]
    per_atom = (volumes(template.lattice) / template.counts)[found.template] * flat.counts[asked]

    def elements(crystals: FlatCrystals) -> np.ndarray:
        return (element_counts(crystals) @ base.volume.elements) / crystals.counts

    def radii(crystals: FlatCrystals) -> np.ndarray:
        from dao_pipeline.crystals.elements import COVALENT_RADIUS

        return (element_counts(crystals) @ np.asarray(COVALENT_RADIUS[:101]) ** 3) / crystals.counts

    estimates = {
        "nearest template, scaled by radii": per_atom * radii(flat)[asked] / radii(template)[found.template],
        "nearest template, scaled by element volumes": per_atom
        * elements(flat)[asked]
        / elements(template)[found.template],
        "composition alone, element volumes": (elements(flat) * flat.counts)[asked],
        "composition alone, with pairs": base.volume.expected(flat)[asked],
        "as proposed": volumes(found.crystals.lattice),
    }
    for name, estimate in estimates.items():
        error = 100 * np.abs(estimate / known - 1)
        print(f"{name}: mean {error.mean():.2f} %, median {np.median(error):.2f} %")


@app.command()
def types(crysdb: Path, pairs: int = 400) -> None:
    """How often pymatgen's matcher disagrees: members of a type with its leader, and leaders with each other."""
    flat = flatten(read_table(crysdb / "train.parquet"))
    slots, rng = slots_of(flat), np.random.default_rng(0)
    groups = [(p, r) for p, r in slots.groups().items() if len(r) > 20]
    sizes = np.array([len(rows) for _, rows in groups], dtype=float)
    chosen = rng.choice(len(groups), pairs // 4, p=sizes / sizes.sum())
    matcher = structure_matcher(Matcher())
    together: list[bool] = []
    apart: list[bool] = []
    for which, count in zip(*np.unique(chosen, return_counts=True), strict=True):
        pattern, rows = groups[which]
        elements = slots.elements[rows][:, : len(pattern)]
        found = find_types(slot_prints(flat, rows, elements, pattern), pattern, Templates().same_type)
        places = np.take_along_axis(elements, found.places, 1)
        for a, b, same in sampled_pairs(found.label, found.leaders, 2 * int(count), rng):
            first, second = (dressed(flat, int(rows[i]), places[i]) for i in (a, b))
            (together if same else apart).append(match(first, second, matcher).rmse is not None)
    print(f"same type: {np.mean(together):.3f} of {len(together)} match their leader")
    print(f"different types: {np.mean(apart):.3f} of {len(apart)} pairs of leaders match")


def sampled_pairs(
    label: np.ndarray, leaders: np.ndarray, count: int, rng: np.random.Generator
) -> Iterator[tuple[int, int, bool]]:
    """Members with their leader, and leaders of two types."""
    members = np.setdiff1d(np.arange(len(label)), leaders)
    for i in rng.permutation(members)[:count]:
        yield int(i), int(leaders[label[i]]), True
    for _ in range(count if len(leaders) > 1 else 0):
        a, b = rng.choice(leaders, 2, replace=False)
        yield int(a), int(b), False


def dressed(flat: FlatCrystals, row: int, places: np.ndarray) -> Crystal:
    """A crystal with hydrogen, helium, ... on the first, second, ... place of its type."""
    atoms = slice(int(flat.ptr[row]), int(flat.ptr[row + 1]))
    numbers = (flat.numbers[atoms, None] == places).argmax(1) + 1
    return Crystal(id=str(row), atomic_numbers=numbers, frac_coords=flat.frac[atoms], lattice=flat.lattice[row])


@app.command()
def speed(folder: Path, held: Path, copies: str = "1,3,10", share: float = 0.3) -> None:
    """Compositions per second of one core, 20 proposals each, without recoloured structures.

    First from an index of a share of the crystals, then of all, then of copies of them with other elements of like
    distance. Last, how long the first question takes with recoloured structures.
    """
    base = load(folder)
    flat = flatten(read_table(held))
    cells = [flat.numbers[a:b] for a, b in pairwise(flat.ptr)]
    rng = np.random.default_rng(0)
    like = np.argsort(base.metric.cost[:, 1:95], axis=1)[:, :8] + 1
    some = base.table.filter(pa.array(rng.random(base.table.num_rows) < share))
    fewer = TemplateIndex.build(some, base.settings.model_copy(update={"distance": "mendeleev"}))
    timed(replace(fewer, metric=base.metric, instability=base.instability), cells)
    for count in [int(word) for word in copies.split(",")]:
        places = [base.places]
        for _ in range(count - 1):
            other = like[base.places, rng.integers(0, 8, base.places.shape)]
            clash = np.array([len(set(row[row > 0])) for row in np.where(base.places > 0, other, 0)])
            other = np.where(base.places > 0, other, 0)
            other[clash < (base.places > 0).sum(1)] = base.places[clash < (base.places > 0).sum(1)]
            places.append(other)
        larger = replicated(base, np.concatenate(places), count) if count > 1 else base
        timed(larger, cells)
    start = time.process_time()
    replace(base).propose(cells, max(KS), "composition")
    patterns = len(slots_of(flat).groups())
    print(f"{time.process_time() - start:.1f} s the first time, with recoloured structures, {patterns} patterns")


def timed(index: TemplateIndex, cells: list[np.ndarray]) -> None:
    """Print compositions per second."""
    index = replace(index, recoloured=np.inf)
    for _ in range(2):  # the first call makes the buckets
        start = time.process_time()
        index.propose(cells, max(KS), "composition")
        taken = time.process_time() - start
    print(f"{index.table.num_rows} templates: {len(cells) / taken:.0f} compositions/s")


def replicated(base: TemplateIndex, places: np.ndarray, count: int) -> TemplateIndex:
    """``count`` times the templates, with the elements ``places`` on the places of their types."""
    flat = base.flat
    swap = np.zeros((len(places), 119), dtype=np.int64)
    rows = np.arange(len(places))
    swap[rows[:, None], np.tile(base.places, (count, 1))] = places
    numbers = swap[np.repeat(rows, np.tile(flat.counts, count)), np.tile(flat.numbers, count)]
    table = pa.concat_tables([base.table] * count).combine_chunks()
    atoms = pa.array(np.concatenate([[0], np.cumsum(np.tile(flat.counts, count))]), pa.int32())
    column = pa.ListArray.from_arrays(atoms, pa.array(numbers, pa.int16()))
    table = table.set_column(table.column_names.index("atomic_numbers"), "atomic_numbers", column)
    return replace(base, table=table, label=np.tile(base.label, count), places=places)


if __name__ == "__main__":
    app()
