"""Columns of the comparison's three tables."""

from __future__ import annotations

import pyarrow as pa

from dao_pipeline.crystals.schema import COLUMNS, Column

_text, _flag, _float, _count = pa.string(), pa.bool_(), pa.float64(), pa.int32()

COMPARISON: dict[str, Column] = {
    # candidates.parquet: one row per candidate and source
    "source": Column(_text, "", "who computed: quantum_espresso, or a baseline's name", True),
    "energy_total": Column(_float, "eV/atom", "total energy by DFT"),
    "formation_energy": Column(_float, "eV/atom", "formation energy by DFT"),
    "formation_refused": Column(_text, "", "why there is none"),
    "e_above_hull": Column(_float, "eV/atom", "energy above the hull of reference phases of the same level"),
    "hull_refused": Column(_text, "", "why there is none"),
    "energy_for_order": Column(_float, "eV/atom", "the DFT energy that orders candidates of one composition"),
    "level": Column(_text, "", "hash of all that decides that energy; null: not known"),
    "energy_error": Column(_float, "eV/atom", "DAO-P's energy less DFT's, of what DAO-P's label means"),
    "matched": Column(_flag, "", "StructureMatcher finds candidate and relaxed crystal to be the same"),
    "rmse": Column(_float, "(V/n)^(1/3)", "displacement of the atoms between the two"),
    "volume_change": Column(_float, "", "relative change of the volume per atom"),
    "strain": Column(_float, "", "principal strain of largest size, with its sign"),
    "displacement": Column(_float, "angstrom", "largest displacement of an atom, rigid shift taken out"),
    "known_rmse_before": Column(
        _float, "(V/n)^(1/3)", "distance of the candidate to the known crystal; null: no match"
    ),
    "known_rmse_after": Column(_float, "(V/n)^(1/3)", "the same after DFT"),
    "core_seconds": Column(_float, "s", "wall time times cores"),
    "steps": Column(_count, "", "geometries computed"),
    # compositions.parquet: one row per composition and source
    "candidates": Column(_count, "", "with an energy by DAO-P and by DFT"),
    "spearman": Column(_float, "", "rank correlation of the two energies"),
    "kendall": Column(_float, "", "rank correlation of the two energies"),
    "pairs": Column(_count, "", "pairs of candidates that DFT tells apart"),
    "pairs_right": Column(_float, "", "those that DAO-P puts in the same order; ties count half"),
    "top1": Column(_flag, "", "DAO-P's lowest is DFT's lowest"),
    "regret": Column(_float, "eV/atom", "DFT energy of DAO-P's lowest above DFT's lowest"),
    "mae": Column(_float, "eV/atom", "mean absolute error of energies relative to their mean"),
    # summary.parquet: one row per figure
    "metric": Column(_text, "", "what it is", True),
    "unit": Column(_text, "", "its unit"),
    "value": Column(_float, "", "the figure", True),
    "low": Column(_float, "", "95 % bootstrap interval, lower end"),
    "high": Column(_float, "", "95 % bootstrap interval, upper end"),
    "n": Column(_count, "", "how many things it is over"),
    "over": Column(_text, "", "what these things are"),
}


def _schema(*names: str) -> pa.Schema:
    return pa.schema([(name, (COMPARISON.get(name) or COLUMNS[name]).type) for name in names])


CANDIDATES = _schema(
    *(
        "id",
        "source",
        "composition",
        "formula",
        "num_atoms",
        "target_id",
        "rank",
        "energy_pred",
        "energy_std_pred",
    ),
    *(
        "energy_total",
        "formation_energy",
        "formation_refused",
        "e_above_hull",
        "hull_refused",
        "energy_for_order",
        "level",
    ),
    *("energy_error", "matched", "rmse", "volume_change", "strain", "displacement"),
    *("known_rmse_before", "known_rmse_after", "core_seconds", "steps"),
)
COMPOSITIONS = _schema(
    *(
        "source",
        "formula",
        "level",
        "candidates",
        "spearman",
        "kendall",
        "pairs",
        "pairs_right",
        "top1",
        "regret",
        "mae",
    ),
)
SUMMARY = _schema("source", "metric", "unit", "value", "low", "high", "n", "over")
