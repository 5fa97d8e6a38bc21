"""How fast crystals are compared, where the time goes, and whether the decisions are pymatgen's.

``pairs``: all pairs of candidates of one composition, as screening groups them: StructureMatcher.fit on each pair,
one after the other, against what this package does, step by step. ``targets``: each candidate against its known
crystal, as the match rate does (get_rms_dist). Both compare every decision and count the differences.

    python benchmarks/matching.py pairs --candidates FILE [--pairs 2000] [--move 0.1]
    python benchmarks/matching.py targets --candidates FILE --targets FILE [--pairs 1000]

Candidates: a crystal table with columns composition and, for ``targets``, target_id.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from dao_pipeline.config import Matcher
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.match_search import Reduced
from dao_pipeline.crystals.matching import Sameness, comparable, structure_matcher
from dao_pipeline.crystals.table import read_table, write_text
from dao_pipeline.evaluation.matching import match_target
from dao_pipeline.parallel import parallel_map
from dao_pipeline.ranking.pool import gathered

SCREENING = Matcher(ltol=0.2, stol=0.3, angle_tol=5.0)
RATES = Matcher()
_COLUMNS = ["id", "source", "formula", "atomic_numbers", "frac_coords", "lattice"]

Group = list[Crystal]


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, CPU seconds of this process, and seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def attempt(work: Callable[..., Any], *crystals: Any) -> Any:
    """None for what pymatgen cannot bear."""
    try:
        return work(*crystals)
    except Exception:  # whatever a degenerate cell provokes
        return None


def moved(crystal: Crystal, move: float, rng: np.random.Generator) -> Crystal:
    """Atoms displaced by ``move`` (V/n)^(1/3), each component."""
    length = move * (crystal.volume / crystal.num_atoms) ** (1 / 3)
    shift = length * rng.normal(size=(crystal.num_atoms, 3)) @ np.linalg.inv(crystal.lattice)
    return replace(crystal, frac_coords=crystal.frac_coords + shift)


def read_groups(path: Path, key: str, move: float, each: int) -> dict[str, Group]:
    """The first ``each`` candidates of each composition or target, in random order of these."""
    table = read_table(path)
    rng = np.random.default_rng(0)
    groups: dict[str, Group] = defaultdict(list)
    names = table[key].to_pylist()
    for name, crystal in zip(names, from_table(table.select(_COLUMNS)), strict=True):
        if len(groups[name]) < each:
            groups[name].append(moved(crystal, move, rng) if move else crystal)
    order = rng.permutation(len(groups))
    listed = list(groups.items())
    return dict(listed[i] for i in order)


def serial_fit(groups: Sequence[Group]) -> list[bool]:
    """pymatgen's decision on every pair of each group."""
    matcher = structure_matcher(SCREENING)
    structures = [[attempt(comparable, crystal) for crystal in group] for group in groups]
    return [bool(attempt(matcher.fit, a, b)) for group in structures for a, b in combinations(group, 2)]


def reduce_all(groups: Sequence[Group]) -> list[list[Reduced | None]]:
    """Each crystal in the cell that is compared."""
    same = Sameness(SCREENING)
    return [[same.reduce(crystal) for crystal in group] for group in groups]


def fit_reduced(groups: Sequence[Sequence[Reduced | None]], by_size: bool) -> list[bool]:
    """pymatgen's decisions on crystals that are reduced; ``by_size``: only where the atoms are the same."""
    matcher = structure_matcher(SCREENING)

    def fit(a: Reduced, b: Reduced) -> bool:
        return bool(matcher.fit(a.structure, b.structure, skip_structure_reduction=True))

    return [
        (not by_size or (a is not None and b is not None and a.kinds == b.kinds)) and bool(attempt(fit, a, b))
        for group in groups
        for a, b in combinations(group, 2)
    ]


def search(groups: Sequence[Sequence[Reduced | None]]) -> list[bool]:
    """Our decisions on crystals that are reduced already."""
    same = Sameness(SCREENING)
    return [same(a, b) for group in groups for a, b in combinations(group, 2)]


def whole_group(group: Group) -> list[bool]:
    """Reduction and all decisions of one composition: what a process is given."""
    return search(reduce_all([group]))


def greedy(groups: Sequence[Group]) -> int:
    """Groups as screening makes them, where each candidate is compared only until it is found a place."""
    same = Sameness(SCREENING)

    def number(group: Group) -> int:
        reduced = [same.reduce(crystal) for crystal in group]
        return len(gathered(range(len(group)), lambda i, j: same(reduced[i], reduced[j])))

    return sum(number(group) for group in groups)


def compare_pairs(args: argparse.Namespace) -> dict[str, Any]:
    """The table of ``pairs``."""
    groups: list[Group] = []
    count = 0
    for group in read_groups(args.candidates, "composition", args.move, args.each).values():
        if count >= args.pairs:
            break
        groups.append(group)
        count += len(group) * (len(group) - 1) // 2
    crystals = sum(map(len, groups))
    sizes = [crystal.num_atoms for group in groups for crystal in group]
    print(f"{count} pairs of {crystals} crystals of {len(groups)} compositions, {np.mean(sizes):.1f} atoms each")
    direct, base, _ = timed(lambda: serial_fit(groups))
    rows = [("StructureMatcher.fit on every pair", base, 0)]
    reduced, once, _ = timed(lambda: reduce_all(groups))
    steps: dict[str, Callable[[], list[bool]]] = {
        "each crystal reduced once": lambda: fit_reduced(reduced, by_size=False),
        "and only the same atoms compared": lambda: fit_reduced(reduced, by_size=True),
        "and placements rejected in arrays": lambda: search(reduced),
    }
    for name, work in steps.items():
        found, cpu, _ = timed(work)
        rows.append((name, once + cpu, sum(a != b for a, b in zip(found, direct, strict=True))))
    if args.workers > 1:
        parallel, _, wall = timed(lambda: parallel_map(whole_group, groups, args.workers))
        wrong = sum(a != b for a, b in zip((d for group in parallel for d in group), direct, strict=True))
        rows.append((f"and on {args.workers} processes (wall, their start included)", wall, wrong))
    number, cpu, _ = timed(lambda: greedy(groups))
    print(f"{sum(direct)} match; {once:.2f} s to reduce all; {number} groups")
    print("| what | s | pairs/s | times | other decisions |\n|---|---|---|---|---|")
    for name, seconds, wrong in rows:
        print(f"| {name} | {seconds:.2f} | {count / seconds:.0f} | {base / seconds:.1f} | {wrong} |")
    print(f"| greedy grouping, one process | {cpu:.2f} | | {base / cpu:.1f} | |")
    keys = ("what", "seconds", "other_decisions")
    return {"pairs": count, "matches": sum(direct), "rows": [dict(zip(keys, row, strict=True)) for row in rows]}


def compare_targets(args: argparse.Namespace) -> dict[str, Any]:
    """The table of ``targets``."""
    known = {crystal.id: crystal for crystal in from_table(read_table(args.targets).select(_COLUMNS))}
    chosen: list[tuple[Crystal, Group]] = []
    count = 0
    for name, group in read_groups(args.candidates, "target_id", args.move, args.each).items():
        if count < args.pairs and name in known:
            chosen.append((known[name], group))
            count += len(group)
    matcher = structure_matcher(RATES)

    def direct() -> list[float]:
        found = [
            attempt(matcher.get_rms_dist, attempt(comparable, crystal), attempt(comparable, target))
            for target, group in chosen
            for crystal in group
        ]
        return [float("nan") if one is None else float(one[0]) for one in found]

    def ours() -> list[float]:
        found = [one for target, group in chosen for one in match_target(target, group, RATES)]
        return [float("nan") if one.rmse is None else one.rmse for one in found]

    theirs, base, _ = timed(direct)
    mine, cpu, _ = timed(ours)
    decisions = int((np.isfinite(theirs) != np.isfinite(mine)).sum())
    values = int((~np.isclose(theirs, mine, rtol=0, atol=1e-12, equal_nan=True)).sum())
    print(f"{count} pairs of {len(chosen)} targets, {int(np.isfinite(theirs).sum())} match")
    print("| what | s | pairs/s | times | other decisions | other displacements |\n|---|---|---|---|---|---|")
    print(f"| get_rms_dist on every pair | {base:.2f} | {count / base:.0f} | 1.0 | 0 | 0 |")
    print(f"| match_target | {cpu:.2f} | {count / cpu:.0f} | {base / cpu:.1f} | {decisions} | {values} |")
    return {
        "pairs": count,
        "pymatgen_s": base,
        "ours_s": cpu,
        "other_decisions": decisions,
        "other_values": values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pairs", "targets"])
    parser.add_argument("--candidates", type=Path, required=True)
    parser.add_argument("--targets", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--move", type=float, default=0.0, help="(V/n)^(1/3); random displacement of candidates")
    parser.add_argument("--each", type=int, default=20, help="candidates per composition at most")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.what == "targets" and args.targets is None:
        parser.error("targets needs --targets")
    result = compare_pairs(args) if args.what == "pairs" else compare_targets(args)
    if args.out:
        write_text(args.out, json.dumps(vars(args) | result, default=str, indent=1))


if __name__ == "__main__":
    main()
