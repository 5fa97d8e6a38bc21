"""The best candidates of each composition as CIF files in one zip."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from dao_pipeline.crystals.cif import cif_text
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.table import replacing

_LONG_AGO = (1980, 1, 1, 0, 0, 0)
"""Time of every file in a zip: the same candidates give the same bytes."""

_COLUMNS = [
    "id",
    "source",
    "formula",
    "atomic_numbers",
    "frac_coords",
    "lattice",
    "composition",
    "rank",
    "spacegroup",
    "energy_pred",
    "origin",
    "template_id",
]


def cif_name(crystal: Crystal) -> str:
    """A file name that is safe everywhere: ``SrTiO3_001_cand-0-3.cif`` (composition, rank, id)."""
    composition, rank = crystal.extra["composition"], crystal.extra["rank"]
    return f"{composition}_{rank:03d}_{re.sub(r'[^A-Za-z0-9]+', '-', crystal.id)}.cif"


def cif_comment(crystal: Crystal) -> str:
    """What a CIF says about its candidate: id, composition, rank, predicted energy, space group."""
    of = crystal.extra
    made = "" if of.get("template_id") is None else f"; {of['origin'].replace('_', ', ')}: {of['template_id']}"
    energy = f"{of['energy_pred']:.6f} eV/atom" if of["energy_pred"] is not None else "unknown"
    chance = of.get("probability")
    probability = "" if chance is None else f"probability of being the ground state {chance:.3f}; "
    return (
        f"id {crystal.id}; composition {of['composition']}; formula {crystal.formula}; rank {of['rank']}; "
        f"energy predicted by DAO-P {energy}; {probability}space group {of['spacegroup'] or 'unknown'}{made}"
    )


class TopWriter:
    """A zip of CIF files that is filled shard by shard; ``files`` are in it so far."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.files = 0
        self._archive = archive

    def write(self, table: pa.Table) -> None:
        """Add all candidates of a screened table, in order of the compositions, then rank."""
        columns = [name for name in (*_COLUMNS, "probability") if name in table.column_names]
        crystals = list(from_table(table.select(columns)))
        first = {name: i for i, name in reversed(list(enumerate(table["composition"].to_pylist())))}
        crystals.sort(key=lambda c: (first[c.extra["composition"]], c.extra["rank"]))
        for crystal in crystals:
            entry = zipfile.ZipInfo(cif_name(crystal), date_time=_LONG_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            self._archive.writestr(entry, cif_text(crystal, cif_comment(crystal)))
        self.files += len(crystals)


@contextmanager
def writing_top(path: Path) -> Iterator[TopWriter]:
    """Write a zip of CIF files; it appears when the block has succeeded, and is empty if nothing was written."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        yield TopWriter(archive)
