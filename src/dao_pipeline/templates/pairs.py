"""Stage pair_templates: each training crystal with the template that the index would propose for it.

The table teaches a generator how templates err (``process.flow``); its statistics are the size of those errors.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crystals.flat import FlatCrystals, structure_columns
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import provenance, write_table
from dao_pipeline.progress import Reporter
from dao_pipeline.templates.align import align
from dao_pipeline.templates.files import load
from dao_pipeline.templates.index import TemplateIndex

log = logging.getLogger(__name__)

AT_ONCE = 2_000
"""Crystals whose proposals are in memory at the same time."""


def pair_templates(campaign: Campaign, index: Path, out: Path) -> None:
    """Write one row per crystal of an index that a template of another composition resembles."""
    templates = load(index)
    pairs = pair_table(templates, campaign.templates.max_pair_rmse)
    about = provenance(
        "pair_templates",
        campaign=campaign.name,
        settings=stage_settings(campaign, "pair_templates"),
        inputs={"index": index},
        crystals=templates.table.num_rows,
    )
    write_table(pairs, out, about)
    rmse, strain = (pairs[name].to_numpy() for name in ("template_rmse", "template_strain"))
    log.info(
        "%d of %d crystals resemble their template: median displacement %.4f (V/n)^(1/3), median strain %.4f",
        len(rmse),
        templates.table.num_rows,
        np.median(rmse) if len(rmse) else np.nan,
        np.median(strain) if len(strain) else np.nan,
    )


def pair_table(index: TemplateIndex, max_rmse: float) -> pa.Table:
    """The first proposal for each crystal of ``index``, from other compositions, laid over the crystal.

    Rows: id (of the crystal), source, the template's structure in the crystal's cell and order of atoms,
    template_id, template_distance, template_rmse (up to ``max_rmse``) and template_strain (``align``).
    """
    index = replace(index, recoloured=np.inf)  # for the one crystal in a hundred without any other template
    crystals, ids = index.flat, index.table["id"].to_pylist()
    formula = index.table["formula"].to_pylist()
    rows: list[int] = []
    frac, lattice, rmse, strain, template, distance = [], [], [], [], [], []
    with Reporter("pair_templates", len(crystals)) as progress:
        for start in range(0, len(crystals), AT_ONCE):
            chosen = range(start, min(start + AT_ONCE, len(crystals)))
            cells = [crystals.numbers[crystals.ptr[i] : crystals.ptr[i + 1]] for i in chosen]
            proposed = index.propose(cells, 1, exclude="composition")
            made = proposed.crystals
            for i, composition in enumerate(proposed.composition.tolist()):
                row = start + composition
                own = slice(int(crystals.ptr[row]), int(crystals.ptr[row + 1]))
                other = slice(int(made.ptr[i]), int(made.ptr[i + 1]))
                found = align(
                    crystals.numbers[own],
                    crystals.frac[own],
                    crystals.lattice[row],
                    made.numbers[other],
                    made.frac[other],
                    made.lattice[i],
                )
                if found is not None and found.rmse <= max_rmse:
                    rows.append(row)
                    frac.append(found.frac)
                    lattice.append(found.lattice)
                    rmse.append(found.rmse)
                    strain.append(found.strain)
                    template.append(proposed.template_id[i])
                    distance.append(proposed.distance[i])
            progress.advance(len(chosen))
    keep = np.zeros(len(crystals), dtype=bool)
    keep[rows] = True
    structures = FlatCrystals(
        numbers=crystals.select(keep).numbers,
        frac=np.concatenate([np.zeros((0, 3)), *frac]),
        lattice=np.array(lattice).reshape(-1, 3, 3),
        counts=crystals.counts[keep],
    )
    columns: dict[str, pa.Array] = {
        "id": pa.array([ids[row] for row in rows], pa.string()),
        "source": pa.array(["template"] * len(rows), pa.string()),
        **structure_columns(structures, [formula[row] for row in rows]),
        "template_id": pa.array(template, pa.string()),
    }
    for name, values in (("template_distance", distance), ("template_rmse", rmse), ("template_strain", strain)):
        columns[name] = pa.array(values, COLUMNS[name].type)
    return pa.table(columns)
