"""Stage compare_dft: candidates against DFT, per candidate, per composition, and in summary.

candidates.parquet has one row per candidate and source of DFT results, compositions.parquet one per composition
and source, summary.parquet the figures that follow from them, each with an interval and what it is over. What is
not given says why (``refused``).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.comparison import summary
from dao_pipeline.comparison.computed import QUANTUM_ESPRESSO, Computed
from dao_pipeline.comparison.cost import measured
from dao_pipeline.comparison.energies import Phase, Value, formation_energy, hull_energies
from dao_pipeline.comparison.geometry import change
from dao_pipeline.comparison.given import assign, read_baseline
from dao_pipeline.comparison.order import order
from dao_pipeline.comparison.schema import CANDIDATES, COMPOSITIONS, SUMMARY
from dao_pipeline.comparison.validated import read_phases, read_validated
from dao_pipeline.config import Campaign, expand_path, stage_settings
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS
from dao_pipeline.crystals.matching import structure_matcher
from dao_pipeline.crystals.table import iter_tables, provenance, table_files, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.evaluation.matching import match
from dao_pipeline.seeds import stage_seed
from dao_pipeline.sources.files import read_crystals

log = logging.getLogger(__name__)

_CANDIDATE = ["id", "source", "formula", "num_atoms", "atomic_numbers", "frac_coords", "lattice"]
_OPTIONAL = ["composition", "target_id", "rank", "energy_pred", "energy_std_pred"]
LABELS = {"formation_energy": "formation", "e_above_hull": "above_hull"}
"""Labels that DAO-P may predict, and which DFT energy each is compared with."""


def compare_dft(
    campaign: Campaign,
    screened: Path,
    out: Path,
    *,
    validation: Path | None = None,
    references: Path | None = None,
    timings: Path | None = None,
    known: Path | None = None,
) -> None:
    """Write the three tables into ``out``.

    validation: folder of validate_qe. references: of reference_energies. timings: Snakemake's benchmark files.
    known: crystals that candidates aim at (the test split); those of ``compare_dft.known`` serve candidates
    without such a target. Each may be missing, and then what needs it.

    Raises UserError where there is nothing to compare with, and for tables of others that cannot be read.
    """
    settings = campaign.compare_dft
    results = [] if validation is None else read_validated(validation)
    tables = [(baseline, read_baseline(baseline)) for baseline in settings.baselines]
    formulas = {row.formula for _, table in tables for row in table.crystals}
    candidates = {c.id: c for c in ranked_candidates(screened, {r.id for r in results}, formulas)}
    notes: dict[str, Any] = {}
    for baseline, table in tables:
        given = assign(baseline, table, list(candidates.values()), settings.matcher)
        results += given.results
        notes[baseline.name] = {
            "matched": len(given.results),
            "rows_without_candidate": given.unmatched,
            "rows_rejected": given.rejected,
        }
        log.info("%s: %s", baseline.name, notes[baseline.name])
    results = [r for r in results if r.id in candidates]
    if not results:
        raise UserError(
            f"{screened}: no DFT result for any candidate. Enable qe (section qe), or name tables of DFT results "
            "that hold crystals of these compositions (compare_dft.baselines)."
        )
    phases, failed = ([], {}) if references is None else read_phases(references)
    aims = {str(c.extra["target_id"]) for c in candidates.values() if c.extra.get("target_id")}
    targets = {} if known is None else _crystals(known, aims)
    by_formula = {} if settings.known is None else lowest_by_formula(expand_path(settings.known))
    for candidate in candidates.values():
        if not candidate.extra.get("target_id") and candidate.formula in by_formula:
            targets[candidate.id] = by_formula[candidate.formula]
    rows = candidate_rows(campaign, candidates, results, phases, targets, failed)
    by_composition = composition_rows(rows, settings.tie)
    figures = summary_rows(campaign, rows, by_composition)
    figures += cost_rows(campaign, rows, screened, timings)
    inputs = {"screened": screened, "validation": validation, "references": references}
    about = provenance(
        "compare_dft",
        campaign=campaign.name,
        settings=stage_settings(campaign, "compare_dft"),
        inputs={name: path for name, path in inputs.items() if path is not None},
        baselines=notes,
        label=campaign.energy_model.label,
    )
    write_table(pa.Table.from_pylist(by_composition, schema=COMPOSITIONS), out / "compositions.parquet", about)
    write_table(pa.Table.from_pylist(figures, schema=SUMMARY), out / "summary.parquet", about)
    write_table(pa.Table.from_pylist(rows, schema=CANDIDATES), out / "candidates.parquet", about)


def ranked_candidates(screened: Path, ids: Collection[str], formulas: Collection[str]) -> Iterable[Crystal]:
    """Candidates with a rank that have one of these ids or reduced formulas, streamed."""
    wanted, named = pa.array(sorted(ids), pa.string()), pa.array(sorted(formulas), pa.string())
    names = pq.read_schema(table_files(screened)[0]).names
    for piece in iter_tables(screened, columns=[n for n in (*_CANDIDATE, *_OPTIONAL) if n in names]):
        of_interest = pc.or_(pc.is_in(piece["id"], value_set=wanted), pc.is_in(piece["formula"], value_set=named))
        yield from from_table(piece.filter(pc.and_(pc.is_valid(piece["rank"]), of_interest)))


def _crystals(path: Path, ids: set[str]) -> dict[str, Crystal]:
    wanted = pa.array(sorted(ids), pa.string())
    found = {}
    for piece in iter_tables(path, columns=_CANDIDATE):
        for crystal in from_table(piece.filter(pc.is_in(piece["id"], value_set=wanted))):
            found[crystal.id] = crystal
    return found


def lowest_by_formula(path: Path) -> dict[str, Crystal]:
    """The crystal of each composition of a file, the one of lowest energy where there are several."""

    def height(crystal: Crystal) -> tuple[float, float]:
        values = (crystal.extra.get(name) for name in ("e_above_hull", "formation_energy"))
        above, formation = (np.inf if value is None else float(value) for value in values)
        return above, formation

    found: dict[str, Crystal] = {}
    for crystal in from_table(read_crystals(path).table):
        if crystal.formula not in found or height(crystal) < height(found[crystal.formula]):
            found[crystal.formula] = crystal
    return found


def candidate_rows(
    campaign: Campaign,
    candidates: Mapping[str, Crystal],
    results: Sequence[Computed],
    references: Sequence[Phase],
    targets: Mapping[str, Crystal],
    failed: Mapping[str, str] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One row per result (columns: ``schema.CANDIDATES``)."""
    formations, hulls = _own_energies(candidates, results, references, failed)
    matcher = structure_matcher(campaign.compare_dft.matcher)
    quantity = LABELS.get(campaign.energy_model.label)
    rows = []
    for i, result in enumerate(results):
        candidate = candidates[result.id]
        about = candidate.extra
        formation = formations.get(i, Value(result.formation))
        hull = hulls.get(i, Value(result.above_hull))
        dft = {"formation": formation.energy, "above_hull": hull.energy}.get(quantity or "")
        predicted = about.get("energy_pred")
        row: dict[str, Any] = {
            "id": result.id,
            "source": result.source,
            "formula": candidate.formula,
            "num_atoms": candidate.num_atoms,
            **{name: about.get(name) for name in _OPTIONAL},
            "energy_total": result.total,
            "formation_energy": formation.energy,
            "formation_refused": formation.refused,
            "e_above_hull": hull.energy,
            "hull_refused": hull.refused,
            "energy_for_order": result.energy,
            "level": None if result.level is None else result.level.hash,
            "energy_error": None if dft is None or predicted is None else predicted - dft,
            "core_seconds": result.core_seconds,
            "steps": result.steps,
        }
        if result.crystal is not None and result.relaxed:
            row |= change(candidate, result.crystal, matcher)
        target = targets.get(about.get("target_id") or result.id)
        if target is not None:
            row["known_rmse_before"] = match(candidate, target, matcher).rmse
            if result.crystal is not None:
                row["known_rmse_after"] = match(result.crystal, target, matcher).rmse
        rows.append(row)
    return rows


def _own_energies(
    candidates: Mapping[str, Crystal],
    results: Sequence[Computed],
    references: Sequence[Phase],
    failed: Mapping[str, str],
) -> tuple[dict[int, Value], dict[int, Value]]:
    """Formation and hull energies of results that come with total energies and their level, by place."""
    own = {
        i: Phase(r.id, candidates[r.id].formula, r.total, r.level)
        for i, r in enumerate(results)
        if r.total is not None and r.level is not None
    }
    elements: dict[str, list[Phase]] = defaultdict(list)
    for phase in (*references, *own.values()):
        if phase.formula in ATOMIC_NUMBERS:
            elements[phase.formula].append(phase)
    formations = {i: formation_energy(phase, elements) for i, phase in own.items()}
    hulls = dict(zip(own, hull_energies(list(own.values()), references, elements, failed), strict=True))
    return formations, hulls


def composition_rows(rows: Sequence[Mapping[str, Any]], tie: float) -> list[dict[str, Any]]:
    """Order of the candidates of each composition, source and level that have both energies."""
    groups: dict[tuple[str, str, str | None], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["energy_for_order"] is not None and row["energy_pred"] is not None:
            groups[row["source"], row["formula"], row["level"]].append(row)
    found = []
    for (source, formula, level), members in groups.items():
        result = order([m["energy_pred"] for m in members], [m["energy_for_order"] for m in members], tie)
        if result is not None:
            found.append({"source": source, "formula": formula, "level": level, **result})
    return found


def summary_rows(
    campaign: Campaign, rows: Sequence[Mapping[str, Any]], compositions: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Figures of geometry, order and energies, by source."""
    resamples, seed = campaign.evaluate.bootstrap, stage_seed(campaign.seed, "compare_dft")
    found: list[dict[str, Any] | None] = []
    for source in dict.fromkeys(row["source"] for row in rows):
        own = [row for row in rows if row["source"] == source]
        ordered = [row for row in compositions if row["source"] == source]

        def add(metric: str, unit: str, values: Any, over: str, *statistic: Any) -> None:
            figure = summary.figure(source, metric, unit, values, resamples, seed, over, *statistic)  # noqa: B023
            found.append(None if figure is None else dict(figure))

        def column(name: str) -> list[float]:
            return [row[name] for row in own if row.get(name) is not None]  # noqa: B023

        add("same_crystal_after_relaxation", "", column("matched"), "candidates")
        add("rmse", "(V/n)^(1/3)", column("rmse"), "candidates that stay the same crystal")
        add("volume_change", "", column("volume_change"), "candidates")
        add("volume_change_size", "", np.abs(column("volume_change")), "candidates")
        add("displacement", "angstrom", column("displacement"), "candidates")
        aimed = [row for row in own if "known_rmse_before" in row]
        add(
            "known_before", "", [row["known_rmse_before"] is not None for row in aimed], "candidates with a target"
        )
        relaxed = [row for row in aimed if "known_rmse_after" in row]
        add("known_after", "", [row["known_rmse_after"] is not None for row in relaxed], "relaxed, with a target")
        add("top1_agreement", "", [row["top1"] for row in ordered], "compositions")
        add("regret", "eV/atom", [row["regret"] for row in ordered], "compositions")
        add("order_mae", "eV/atom", [row["mae"] for row in ordered], "compositions")
        add("kendall", "", [r["kendall"] for r in ordered if r["kendall"] is not None], "compositions")
        add("spearman", "", [r["spearman"] for r in ordered if r["spearman"] is not None], "compositions")
        pairs = [(row["pairs_right"], row["pairs"]) for row in ordered if row["pairs"]]
        add("pairs_right", "", pairs, "compositions", summary.ratio_of_sums)
        both = [
            (r["energy_pred"], r["energy_pred"] - r["energy_error"]) for r in own if r["energy_error"] is not None
        ]
        for name, statistic in (
            ("energy_mae", summary.mean_absolute_error),
            ("energy_mae_without_offset", summary.error_without_offset),
            ("energy_mae_of_the_mean", summary.error_of_the_mean),
        ):
            add(name, "eV/atom", both, "candidates", statistic)
    return [row for row in found if row is not None]


def cost_rows(
    campaign: Campaign, rows: Sequence[Mapping[str, Any]], screened: Path, timings: Path | None
) -> list[dict[str, Any]]:
    """Core seconds per structure, end to end and per step, of generation and of our own DFT."""
    resamples, seed = campaign.evaluate.bootstrap, stage_seed(campaign.seed, "compare_dft")
    own = [r for r in rows if r["source"] == QUANTUM_ESPRESSO and r["core_seconds"]]
    found = [
        summary.figure(QUANTUM_ESPRESSO, "core_seconds", "s", [r["core_seconds"] for r in own], resamples, seed,
                       "candidates computed"),
        summary.figure(QUANTUM_ESPRESSO, "core_seconds_per_step", "s",
                       [(r["core_seconds"], r["steps"]) for r in own if r["steps"]], resamples, seed,
                       "candidates computed", summary.ratio_of_sums),
    ]  # fmt: skip
    cost = None if timings is None else measured(timings)
    if cost is not None:
        candidates = sum(piece.num_rows for piece in iter_tables(screened, columns=["id"]))
        generated = measured(timings, ("generate_candidates",)) if timings else None
        steps = campaign.generate.sampling(campaign.process).network_calls
        per = {"core_seconds": cost.core_seconds / candidates}
        if generated is not None:
            per["core_seconds_per_step"] = generated.core_seconds / candidates / steps
        for name, value in per.items():
            found.append(summary.figure("generation", name, "s", [value], 0, seed, f"{candidates} candidates"))
        dft = {f["metric"]: f["value"] for f in found if f is not None and f["source"] == QUANTUM_ESPRESSO}
        for name, value in per.items():
            if dft.get(name) and value:
                found.append(
                    summary.figure("generation", f"times_faster_{name}", "", [dft[name] / value], 0, seed, "DFT")
                )
    return [dict(row) for row in found if row is not None]
