"""The crystal table: every column that any stage writes, with type, unit and meaning.

One row is one crystal, in every stage. Columns are only ever added. The Arrow schemas, the table in the
docs and the labels of the report all come from here.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

SCHEMA_VERSION = 1
"""Version written into each file; a reader refuses a newer one."""


@dataclass(frozen=True)
class Column:
    """One column: Arrow type, unit ('' where dimensionless) and meaning."""

    type: pa.DataType
    unit: str
    meaning: str
    required: bool = False


_text, _flag, _float, _count = pa.string(), pa.bool_(), pa.float64(), pa.int32()

CRYSTAL: dict[str, Column] = {
    "id": Column(_text, "", "stable and unique inside a campaign: mp-149, row:17, cand:<composition>:<n>", True),
    "source": Column(_text, "", "where the crystal came from", True),
    "formula": Column(_text, "", "reduced formula", True),
    "num_atoms": Column(pa.int16(), "atoms", "atoms in the stored cell", True),
    "atomic_numbers": Column(pa.list_(pa.int16()), "", "atomic number of each atom", True),
    "frac_coords": Column(pa.list_(_float), "", "fractional coordinates in [0, 1), row-major, 3 n", True),
    "lattice": Column(pa.list_(_float, 9), "angstrom", "lattice vectors a, b, c as rows", True),
    "spacegroup": Column(pa.int16(), "", "space group number at the symprec of the metadata"),
    "formation_energy": Column(_float, "eV/atom", "formation energy"),
    "e_above_hull": Column(_float, "eV/atom", "energy above the convex hull"),
    "energy_method": Column(_text, "", "level of theory of the two energies above"),
    "split": Column(_text, "", "train, val or test"),
}
"""Columns of section 3 of the design: what a crystal is and what is known about it."""

STAGES: dict[str, Column] = {
    # sources
    "published": Column(_text, "", "year or date of first publication, e.g. 1998 or 1998-05-01"),
    # CrysDB
    "precursor_of": Column(_text, "", "id of the relaxed crystal that this unstable one relaxes to"),
    # crystals distorted on purpose
    "perturbed_by": Column(_float, "angstrom", "root mean square displacement of the atoms by perturbation"),
    "strained_by": Column(_float, "", "root mean square of the principal strains by perturbation"),
    # relaxation of the training set by DAO-P
    "energy_before": Column(_float, "eV/atom", "DAO-P energy before relaxation"),
    "energy_after": Column(_float, "eV/atom", "DAO-P energy after relaxation"),
    "relax_steps": Column(_count, "", "optimiser steps taken"),
    "displacement": Column(_float, "angstrom", "largest atomic displacement by relaxation"),
    "volume_change": Column(_float, "", "relative change of volume by relaxation"),
    "relax_converged": Column(_flag, "", "forces and stress by DAO-P are below their tolerances"),
    "relax_accepted": Column(_flag, "", "the relaxed crystal replaces the original"),
    "relax_status": Column(_text, "", "accepted, not_selected, or why the original was kept"),
    # templates
    "template_id": Column(_text, "", "known crystal whose structure was substituted"),
    "template_distance": Column(
        _float, "", "distance to the composition of that crystal, in units of what proposed it"
    ),
    "origin": Column(
        _text,
        "",
        "generated, template, template_refined or known (a known crystal of this composition); in plans: "
        "what is asked for first; null: there was no template, and nothing generates freely",
    ),
    "structure_type_known": Column(
        _flag, "", "made from a known structure, or like a candidate that was; null: no template was tried"
    ),
    "template_rmse": Column(_float, "(V/n)^(1/3)", "displacement between the atoms of a crystal and its template"),
    "template_strain": Column(_float, "", "root mean square strain between the cells of the two"),
    # generation
    "target_id": Column(_text, "", "id of the test crystal whose composition was asked for, if any"),
    "composition": Column(_text, "", "composition as asked for"),
    "asked_by": Column(_text, "", "what asked for it: an entry of the campaign, or a file and a row"),
    "shard": Column(_count, "", "shard of the candidate: a block of the campaign's compositions"),
    "round": Column(_count, "", "round of the candidate: a block of the samples of each composition"),
    "template_rank": Column(_count, "", "in plans: the template that is asked for, by its rank from 0"),
    "sample": Column(_count, "", "number of the candidate within its composition"),
    "status": Column(_text, "", "ok, or why there is no usable crystal, e.g. no_template"),
    "guidance_scale": Column(_float, "", "multiplier of DAO-P's energy gradient in sampling"),
    # screening
    "energy_pred": Column(
        _float, "eV/atom", "energy predicted by DAO-P, in the unit of its label; null: no crystal, or no DAO-P"
    ),
    "energy_std_pred": Column(_float, "eV/atom", "standard deviation of its error, where DAO-P has members"),
    "min_distance": Column(_float, "angstrom", "smallest interatomic distance, periodic images included"),
    "volume_per_atom": Column(_float, "angstrom^3", "cell volume per atom"),
    "charge_neutral": Column(
        _flag, "", "common oxidation states can add up to zero; null: an alloy, or no states are known"
    ),
    "valid": Column(_flag, "", "passes distance and volume checks, and that of charges if it is required"),
    "spacegroups": Column(
        pa.list_(pa.int16()), "", "space group numbers at the screen.symprecs of the metadata; null: none found"
    ),
    "refined_atomic_numbers": Column(
        pa.list_(pa.int16()), "", "of a unique candidate in the standard cell of its space group: atomic numbers"
    ),
    "refined_frac_coords": Column(pa.list_(_float), "", "fractional coordinates there, symmetric, row-major, 3 n"),
    "refined_lattice": Column(pa.list_(_float, 9), "angstrom", "lattice vectors of that cell as rows"),
    "unique": Column(
        _flag,
        "",
        "best member of its group of matching candidates, by probability or else by energy",
    ),
    "group": Column(_count, "", "group of matching candidates within the composition"),
    "group_size": Column(_count, "", "candidates in that group"),
    "novel": Column(_flag, "", "matches no crystal of the reference table"),
    "known_id": Column(_text, "", "the first crystal of the reference table that it matches"),
    "rank": Column(
        _count, "", "rank among the unique valid candidates of a composition, by probability or predicted energy"
    ),
    "system_rank": Column(
        _count,
        "",
        "rank among the best candidates of all formulas of a chemical system, by energy above the hull or else by "
        "predicted energy; of one formula in cells of several sizes only the best has one",
    ),
    "probability": Column(
        _float,
        "",
        "that this candidate, or one that matches it, is the ground state (docs/ranking.md)",
    ),
    "energy_second": Column(_float, "eV/atom", "energy by the second model, of the crystal as it is"),
    "energy_second_relaxed": Column(_float, "eV/atom", "energy by the second model, relaxed by it"),
    "energy_disagreement": Column(
        _float,
        "eV/atom",
        "energy_pred minus energy_second, less the mean of that over siblings that both judge (docs/ranking.md)",
    ),
    "second_status": Column(_text, "", "ok, not_converged, or why there is no energy by the second model"),
    "relaxed_frac_coords": Column(pa.list_(_float), "", "fractional coordinates after that relaxation"),
    "relaxed_lattice": Column(pa.list_(_float, 9), "angstrom", "lattice vectors after that relaxation as rows"),
    "relaxed_rmse": Column(
        _float, "(V/n)^(1/3)", "displacement of the atoms by that relaxation; null: no longer the same crystal"
    ),
    "e_above_hull_pred": Column(
        _float, "eV/atom", "above the hull of known phases, all by one model; negative: below it"
    ),
    "hull": Column(_text, "", "that hull: entries, model, hash; the metadata say more (hull)"),
    "hull_phases": Column(_count, "", "formulas of known phases in its chemical system and the subsystems of it"),
    "hull_status": Column(_text, "", "ok, or why there is no energy above the hull"),
}
"""Columns that stages add."""

EVALUATION: dict[str, Column] = {
    # samples.parquet: one row per candidate of each method
    "method": Column(_text, "", "dao, random or substitution", True),
    "order": Column(
        _count, "", "position in the method's own order, from 1; substitution: nearest template first"
    ),
    "place": Column(_count, "", "rank that counts for the method: see rank1_by; duplicates share their group's"),
    "guess": Column(
        _count,
        "",
        "place of a candidate that stands for itself or leads its group; null: like a better one, or no rank",
    ),
    "first": Column(_flag, "", "the one candidate that the method would name if only one were allowed: guess 1"),
    "matched": Column(_flag, "", "StructureMatcher finds it to be the known crystal", True),
    "rmse": Column(_float, "(V/n)^(1/3)", "displacement of the atoms of a match; of the best match of a target"),
    "reason": Column(_text, "", "why there is no match: no_match, the status, or the matcher's error"),
    # targets.parquet: one row per target and method
    "candidates": Column(_count, "", "candidates of the method, failed ones included"),
    "compared": Column(_count, "", "candidates that are crystals, and were compared with the known one"),
    "valid_candidates": Column(_count, "", "candidates that pass distance and volume checks"),
    "matches": Column(_count, "", "candidates that match; in the summary: targets found"),
    "found": Column(_flag, "", "any candidate matches", True),
    "rank1_by": Column(_text, "", "what the method orders by: probability, predicted_energy or nearest_template"),
    "rank1_found": Column(_flag, "", "the method's first candidate matches"),
    "rank1_rmse": Column(_float, "(V/n)^(1/3)", "displacement of that match"),
    "energy1_found": Column(_flag, "", "the candidate of lowest predicted energy matches"),
    "energy1_rmse": Column(_float, "(V/n)^(1/3)", "displacement of that match"),
    "first_match_rank": Column(_count, "", "smallest place among the candidates that match"),
    "guesses": Column(pa.list_(pa.int32()), "", "the guesses (column guess of the samples) that match"),
    "guess_rmse": Column(pa.list_(pa.float64()), "(V/n)^(1/3)", "displacement of each of them"),
    # summary.parquet: one row per method and number of candidates
    "k": Column(_count, "", "candidates that count: the method's first k guesses, or all; null: all"),
    "match_rate": Column(_float, "", "share of targets with a match among them", True),
    "low": Column(
        _float, "", "95 % bootstrap interval, lower end; targets of one reduced formula are resampled together"
    ),
    "high": Column(_float, "", "95 % bootstrap interval, upper end"),
    "n": Column(_count, "", "targets, those without candidates included"),
    # by_distance.parquet: one row per quarter of the targets and number of candidates
    "nearest": Column(_text, "", "quarter of the targets by the distance to the nearest template, or no template"),
    "nearest_from": Column(_float, "", "smallest such distance, in units of what proposed the template"),
    "nearest_to": Column(_float, "", "largest such distance"),
    "match_rate_by_energy": Column(_float, "", "k = 1: rate of the candidates of lowest predicted energy"),
    "match_rate_single": Column(
        _float, "", "k = 1: expected rate of one candidate drawn at random, a miss if none"
    ),
}
"""Further columns of the evaluation's three tables."""

_PAIRED = "minus that of the first variant, over the same targets"
ABLATION: dict[str, Column] = {
    "variant": Column(_text, "", "name of the variant", True),
    "training": Column(_text, "", "training stages of its generator with their steps and crystals"),
    "steps": Column(_count, "", "steps of all these trainings"),
    "n": Column(_count, "", "targets, those without candidates included", True),
    "k": Column(_count, "", "candidates per target", True),
    "match_rate": Column(_float, "", "expected share of targets found by one candidate, drawn at random", True),
    "match_rate_low": Column(_float, "", "95 % bootstrap interval over targets, lower end; so everywhere here"),
    "match_rate_high": Column(_float, "", "upper end"),
    "match_rate_change": Column(_float, "", f"match rate {_PAIRED}"),
    "match_rate_change_low": Column(_float, "", "lower end"),
    "match_rate_change_high": Column(_float, "", "upper end"),
    "found_rate": Column(_float, "", "share of targets found by any of the k candidates", True),
    "found_rate_low": Column(_float, "", "lower end"),
    "found_rate_high": Column(_float, "", "upper end"),
    "found_rate_change": Column(_float, "", f"that share {_PAIRED}"),
    "found_rate_change_low": Column(_float, "", "lower end"),
    "found_rate_change_high": Column(_float, "", "upper end"),
    "rmse": Column(_float, "(V/n)^(1/3)", "mean over the targets found, of the best match of each"),
    "rmse_low": Column(_float, "(V/n)^(1/3)", "lower end"),
    "rmse_high": Column(_float, "(V/n)^(1/3)", "upper end"),
    "both_found": Column(_count, "", "targets that this variant and the first one found"),
    "rmse_change": Column(_float, "(V/n)^(1/3)", "RMSE minus that of the first variant, over these targets"),
    "rmse_change_low": Column(_float, "(V/n)^(1/3)", "lower end"),
    "rmse_change_high": Column(_float, "(V/n)^(1/3)", "upper end"),
}
"""Columns of the ablation's summary: one row per variant."""

COLUMNS: dict[str, Column] = CRYSTAL | STAGES

CRYSTAL_SCHEMA = pa.schema([pa.field(name, column.type) for name, column in CRYSTAL.items()])
"""Arrow schema of a plain crystal table."""

REJECTED_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("id", "stage", "reason", "detail")])
"""Arrow schema of rejected.parquet: one row per crystal that a stage dropped."""


def markdown() -> str:
    """All columns as a Markdown table: the one in the data guide, which a test compares with this."""
    lines = ["| column | type | unit | meaning |", "|---|---|---|---|"]
    for name, column in COLUMNS.items():
        lines.append(f"| `{name}` | {column.type} | {column.unit} | {column.meaning} |")
    return "\n".join(lines)
