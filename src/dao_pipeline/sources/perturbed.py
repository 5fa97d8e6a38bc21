"""Distorted crystals with energies: what a model learns from that the relaxed crystals of databases do not show.

A table of relaxed crystals says nothing about the energy between them: a model that has seen no other does not
know that moving atoms costs energy. Here crystals are strained and their atoms displaced at random, and the energy
that this costs is CHGNet's. The label is the crystal's own plus that difference: a difference of two energies by
one potential for the same atoms, so the level of theory of the crystal's own label does not matter much.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from dao_pipeline.crystals.crystal import Crystal, from_table, to_table, wrap
from dao_pipeline.crystals.flat import flatten
from dao_pipeline.crystals.geometry import shortest_distances
from dao_pipeline.crystals.table import provenance, read_table, replacing, require_crystals, write_table
from dao_pipeline.errors import UserError
from dao_pipeline.parallel import parallel_map

logger = logging.getLogger("dao_pipeline")

LABELS = ("formation_energy", "e_above_hull")
PIECE = 64
"""Crystals per file of the work directory: what an interruption loses at most, per process."""


class Potential(Protocol):
    """What labels are made of: ``sources.chgnet_labels.Labeller`` or a stand-in."""

    @property
    def method(self) -> str:
        """Name and version."""
        ...

    def energies(self, crystals: Sequence[Crystal]) -> list[float]:
        """eV/atom; NaN where there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """How crystals are distorted; each draws its own sizes, so that small and large ones are in the table.

    copies: of each crystal. displacement: smallest and largest root mean square displacement of the atoms,
    angstrom, drawn with even logarithms. strain: largest root mean square of the three principal strains.
    max_rise: eV/atom; copies that cost more are left out. max_atoms: larger cells are left out.
    limit: crystals at most, drawn at random; None: all.
    """

    copies: int = 2
    displacement: tuple[float, float] = (0.02, 0.3)
    strain: float = 0.06
    min_distance: float = 0.7
    max_rise: float = 1.0
    max_atoms: int = 12
    limit: int | None = None
    seed: int = 1


def perturbed(crystal: Crystal, displacement: float, strain: float, rng: np.random.Generator) -> Crystal:
    """A copy with a symmetric strain of root mean square ``strain``, displaced by ``displacement`` angstrom.

    The strain's entries are drawn so that no direction is preferred; atoms do not move as a whole. Both sizes are
    met exactly, except that one atom cannot be displaced; they stand in ``extra``.
    """
    matrix = rng.normal(size=(3, 3))
    matrix = 0.5 * (matrix + matrix.T)
    matrix *= strain * 3**0.5 / np.linalg.norm(matrix)
    moves = rng.normal(size=(crystal.num_atoms, 3))
    moves -= moves.mean(0)
    size = float(np.sqrt((moves**2).sum(1).mean()))
    if size > 0:
        moves *= displacement / size
    lattice = crystal.lattice @ (np.eye(3) + matrix)
    return replace(
        crystal,
        lattice=lattice,
        frac_coords=wrap(crystal.frac_coords + moves @ np.linalg.inv(lattice)),
        extra=crystal.extra | {"perturbed_by": displacement if size > 0 else 0.0, "strained_by": strain},
    )


def copies_of(crystal: Crystal, settings: Perturbation) -> Iterator[Crystal]:
    """Distorted copies, ids ``ID#1``, ``ID#2``, ...; what they are follows from the id and the settings alone."""
    digest = hashlib.sha256(crystal.id.encode()).digest()
    rng = np.random.default_rng([settings.seed, int.from_bytes(digest[:8], "little")])
    low, high = np.log(settings.displacement)
    for number in range(1, settings.copies + 1):
        displacement, strain = float(np.exp(rng.uniform(low, high))), float(rng.uniform(0, settings.strain))
        copy = perturbed(crystal, displacement, strain, rng)
        yield replace(copy, id=f"{crystal.id}#{number}", extra=copy.extra | {"precursor_of": crystal.id})


def labelled_copies(crystals: Sequence[Crystal], settings: Perturbation, potential: Potential) -> list[Crystal]:
    """Distorted copies with the labels of their crystal plus what the distortion costs; unsound ones left out."""
    copies = [copy for crystal in crystals for copy in copies_of(crystal, settings)]
    if not copies:
        return []
    distances = shortest_distances(flatten(to_table(copies)))
    copies = [copy for copy, distance in zip(copies, distances, strict=True) if distance >= settings.min_distance]
    before = dict(zip((c.id for c in crystals), potential.energies(crystals), strict=True))
    found = []
    for copy, energy in zip(copies, potential.energies(copies), strict=True):
        rise = energy - before[copy.extra["precursor_of"]]
        if not np.isfinite(rise) or rise > settings.max_rise:
            continue
        labels = {name: copy.extra[name] + rise for name in LABELS if copy.extra.get(name) is not None}
        method = f"{copy.extra.get('energy_method') or 'unknown'}; difference: {potential.method}"
        found.append(replace(copy, extra=copy.extra | labels | {"energy_method": method, "spacegroup": None}))
    return found


def perturb_crystals(
    source: Path,
    out: Path,
    work: Path,
    settings: Perturbation,
    workers: int = 1,
    potential: Potential | None = None,
) -> None:
    """Write a crystal table of distorted copies of the labelled, relaxed crystals in ``source``.

    Each row names its crystal in ``precursor_of``, so that CrysDB puts both on the same side of a split. Finished
    pieces in ``work`` are reused. Raises UserError if no crystal of the table has a label and is small enough.
    """
    require_crystals(source)
    crystals = list(from_table(_chosen(read_table(source), source, settings)))
    pieces = [crystals[i : i + PIECE] for i in range(0, len(crystals), PIECE)]
    work.mkdir(parents=True, exist_ok=True)
    files = [work / f"{_key(piece, settings)}.parquet" for piece in pieces]
    todo = [(p, settings, file) for p, file in zip(pieces, files, strict=True) if not file.exists()]
    logger.info(
        "%d crystals to distort, in %d pieces, %d of them done", len(crystals), len(files), len(files) - len(todo)
    )
    if potential is None:
        parallel_map(_label_piece, todo, workers)
    else:
        for piece, chosen, file in todo:
            _write_piece(labelled_copies(piece, chosen, potential), file)
    table = pa.concat_tables([pq.read_table(file) for file in files])
    about = provenance(
        "perturb-crystals", settings=asdict(settings), inputs={"crystals": source}, crystals=len(crystals)
    )
    write_table(table, out, about)
    logger.info("%d distorted crystals in %s", table.num_rows, out)


def _chosen(table: pa.Table, source: Path, settings: Perturbation) -> pa.Table:
    """Labelled, relaxed, small crystals of a table: ``limit`` of them at random, always the same."""
    keep = pc.less_equal(table["num_atoms"], settings.max_atoms)
    keep = pc.and_(keep, pc.or_(*(pc.is_valid(table[name]) for name in LABELS)))
    if "precursor_of" in table.column_names:
        keep = pc.and_(keep, pc.is_null(table["precursor_of"]))
    table = table.filter(keep)
    if table.num_rows == 0:
        raise UserError(
            f"{source}: no relaxed crystal with a label has at most {settings.max_atoms} atoms; raise --max-atoms,"
            f" or name a table with {' or '.join(LABELS)}."
        )
    order = np.random.default_rng(settings.seed).permutation(table.num_rows)[: settings.limit]
    return table.take(np.sort(order))


def _key(piece: Sequence[Crystal], settings: Perturbation) -> str:
    """Hash of what a finished piece depends on."""
    digest = hashlib.sha256(json.dumps(asdict(replace(settings, limit=None))).encode())
    for crystal in piece:
        digest.update(json.dumps([crystal.id, *(crystal.extra.get(name) for name in LABELS)]).encode())
        digest.update(crystal.frac_coords.tobytes() + crystal.lattice.tobytes())
    return digest.hexdigest()[:20]


_potential: Potential | None = None


def _label_piece(task: tuple[Sequence[Crystal], Perturbation, Path]) -> None:
    global _potential
    piece, settings, file = task
    if _potential is None:
        from dao_pipeline.sources.chgnet_labels import Labeller

        warnings.filterwarnings("ignore")
        torch.set_num_threads(1)
        _potential = Labeller()
    _write_piece(labelled_copies(piece, settings, _potential), file)


def _write_piece(rows: Sequence[Crystal], file: Path) -> None:
    columns = {"precursor_of": None, "perturbed_by": None, "strained_by": None}
    # a first row that has them all gives every piece the same columns, even if it has no crystals
    full = Crystal(
        id="", atomic_numbers=np.ones(1), frac_coords=np.zeros((1, 3)), lattice=np.eye(3), extra=columns
    )
    table = to_table([full, *rows]).slice(1)
    with replacing(file) as temporary:
        pq.write_table(table, temporary)
