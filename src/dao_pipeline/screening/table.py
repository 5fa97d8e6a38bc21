"""All of screening for the candidates of whole compositions: a pure function from table to table.

One row per planned candidate, whatever happened to it; ``status`` is ok exactly for the valid ones. Candidates are
ranked by predicted energy or, if the campaign has a ranker, by the probability of being the ground state.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from dao_pipeline.config import Campaign
from dao_pipeline.crystals.crystal import Crystal
from dao_pipeline.screening.charge import add_charge
from dao_pipeline.screening.columns import set_column
from dao_pipeline.screening.compare import compare
from dao_pipeline.screening.energy import add_energies, predict_probabilities
from dao_pipeline.screening.geometry import check_geometry
from dao_pipeline.screening.hull import add_hull
from dao_pipeline.screening.origin import known_types
from dao_pipeline.screening.second_model import add_second_model


def screen_table(
    table: pa.Table,
    references: dict[str, list[Crystal]],
    campaign: Campaign,
    energy_model: Path | None,
    ranker: Path | None = None,
    crysdb: Path | None = None,
    work: Path | None = None,
) -> pa.Table:
    """The candidates of whole compositions, as ``gather`` gives them, with all columns of screening.

    references: known crystals by reduced formula. energy_model: DAO-P; None: ``energy_pred`` is null. ranker: what
    ``train_ranker`` wrote; None: candidates are ranked by predicted energy. crysdb: the campaign's CrysDB, or a
    table of its crystals, for ``screen.hull.entries: crysdb``. work: folder for finished pieces of long work.
    """
    settings, threads = campaign.screen, campaign.compute.cpu.threads
    table = check_geometry(table, settings)
    table = add_charge(table, settings.require_charge_neutral)
    if energy_model is None:
        table = set_column(table, "energy_pred", [None] * table.num_rows)
    else:
        table = add_energies(table, energy_model, campaign.generate.batch_atoms)
    probabilities = None if ranker is None else predict_probabilities(ranker, table, threads)
    table = compare(table, references, settings, threads, probabilities, campaign.ranking.matcher)
    table = set_column(table, "structure_type_known", known_types(table))
    if settings.second_model.model != "none":
        table = add_second_model(table, settings, threads, work)
    return add_hull(table, settings, energy_model, crysdb, campaign.generate.batch_atoms, threads, work)
