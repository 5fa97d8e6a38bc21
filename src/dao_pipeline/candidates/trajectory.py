"""How chosen candidates came about: they are drawn again, alone, and every step is written as extended XYZ.

Noise belongs to a candidate, so no shard has to be repeated, and nothing has to be kept in case somebody asks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from dao_pipeline.candidates.generate import load_models, sample_rows
from dao_pipeline.candidates.plan import PLAN_COLUMNS, shard_file
from dao_pipeline.config import Campaign
from dao_pipeline.crystals.elements import SYMBOLS
from dao_pipeline.crystals.geometry import cell_parameters, lattices_from_parameters
from dao_pipeline.crystals.table import read_about, read_table, table_files, write_text
from dao_pipeline.device import pick_device
from dao_pipeline.errors import UserError


@dataclass
class Frames:
    """What the sampler showed, by draw: noise level, fractional coordinates, lattices (B, 3, 3) in angstrom."""

    seen: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = field(default_factory=dict)

    def watch(self, draw: int, level: int, coords: Tensor, lattice: Tensor) -> None:
        """Keep a frame."""
        where, cells = (values.double().cpu().numpy() for values in (coords % 1.0, lattice))
        self.seen.setdefault(draw, []).append((level, where, cells))


def write_trajectories(
    campaign: Campaign,
    plan: Path,
    generator: Path,
    energy_model: Path,
    ids: Sequence[str],
    out: Path,
    templates: Path | None = None,
) -> list[Path]:
    """One file per candidate in the folder ``out``; the last frame is the candidate, cells are oriented as there.

    Where several draws were made, the one that was kept is written. Raises UserError for ids that are not in the
    plan, and for candidates that are made from templates: those with a row in ``templates``, or without that table
    all that the plan wants to be. ``templates`` (a table, or a folder of them) must be of the shards and rounds of
    those; it raises UserError where it is not.
    """
    table = read_table(plan, list(PLAN_COLUMNS))
    rows = table.filter(pc.is_in(table["id"], value_set=pa.array(ids, pa.string()))).combine_chunks()
    if unknown := sorted(set(ids) - set(rows["id"].to_pylist())):
        raise UserError(f"{plan}: no candidate {', '.join(unknown)}. Name ids of the plan, e.g. {table['id'][0]}.")
    wanted = rows.filter(pc.equal(rows["origin"], "template"))
    if templates is None:
        other = wanted["id"].to_pylist()
    else:
        _require_covered(wanted, templates)
        other = sorted(set(ids) & set(read_table(templates, ["id"])["id"].to_pylist()))
    if other:
        raise UserError(
            f"{plan}: {', '.join(other)} are made from templates, so they have no trajectory. Name others; for "
            "candidates that found no template, name the table of templates too (--templates)."
        )
    dao_g, dao_p = load_models(campaign, generator, energy_model, pick_device())
    assert dao_g is not None
    frames = Frames()
    _, _, kept = sample_rows(rows, dao_g, dao_p, campaign.generate, campaign.seed, frames.watch)
    ptr = np.concatenate([[0], np.cumsum(rows["num_atoms"].to_numpy())])
    files = []
    for i, row in enumerate(rows.select(["id", "composition", "atomic_numbers"]).to_pylist()):
        texts = [
            _frame(f"{row['id']}", row["atomic_numbers"], coords[ptr[i] : ptr[i + 1]], lattice[i : i + 1], level)
            for level, coords, lattice in frames.seen[int(kept[i])]
        ]
        files.append(out / f"{row['composition']}_{re.sub(r'[^A-Za-z0-9]+', '-', row['id'])}.xyz")
        write_text(files[-1], "".join(texts))
    return files


def _require_covered(rows: pa.Table, templates: Path) -> None:
    """Raise UserError unless ``templates`` were looked for on behalf of these rows of a plan.

    A row that the table lacks has found no template only if it was asked about.
    """
    covered = {tuple(block) for file in table_files(templates) for block in read_about(file).get("covers", [])}
    blocks = zip(*(rows[name].to_pylist() for name in ("id", "shard", "round")), strict=True)
    missing = {name: block for name, *block in blocks if tuple(block) not in covered}
    if missing:
        name, (shard, round_number) = next(iter(missing.items()))
        raise UserError(
            f"{templates}: does not cover {', '.join(missing)}, so it cannot tell whether they are made from "
            f"templates. Name the table of their shard and round ({shard_file(shard, round_number)} for {name}), "
            "or the folder of all; one of an earlier version is made anew by propose-templates."
        )


def _frame(name: str, numbers: Sequence[int], coords: np.ndarray, lattice: np.ndarray, level: int) -> str:
    """One frame of extended XYZ; lattice (1, 3, 3)."""
    cell = lattices_from_parameters(cell_parameters(lattice))[0]
    vectors = " ".join(f"{value:.8f}" for value in cell.ravel())
    head = f'Lattice="{vectors}" Properties=species:S:1:pos:R:3 pbc="T T T" id={name} noise_level={level}'
    atoms = [f"{SYMBOLS[z]} {x:.8f} {y:.8f} {w:.8f}" for z, (x, y, w) in zip(numbers, coords @ cell, strict=True)]
    return "\n".join([str(len(atoms)), head, *atoms]) + "\n"
