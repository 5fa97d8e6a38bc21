"""The development set: crystals to learn from, and held-out ones whose compositions are nowhere among them.

``python benchmarks/protocol.py --mp20 VAL --mpts52 VAL --more FILE ... --out FOLDER`` writes

- ``mp20_tune``, ``mp20_held`` (500 and 1,000 random crystals of MP-20's validation split), ``mpts52_tune``,
  ``mpts52_held`` (200 and 400 of MPTS-52's): choices are made on the first, figures are reported on the second;
- ``crysdb``: everything else, cleaned, without duplicates, without any composition of those four tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from dao_pipeline.config import Campaign
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.sources.files import read_crystals

SIZES = {"mp20": (500, 1000), "mpts52": (200, 400)}
"""Crystals to tune on, and to report on."""

MP = "PBE, MP"
METHODS = {
    "mpts52_val": MP,
    "wbm_random972_all": MP,
    "wbm_val10k_val": MP,
    "lemat_baseline_jarvis": "OptB88vdW, JARVIS",
    "lemat_baseline_oqmd": "PBE, OQMD",
    "lemat_baseline_alexandria": "PBE, Alexandria",
    "alexandria_binary_phonon_all": "PBE, Alexandria",
}


def main(
    mp20: Annotated[Path, typer.Option(help="MP-20's validation split")],
    mpts52: Annotated[Path, typer.Option(help="MPTS-52's validation split")],
    more: Annotated[list[Path], typer.Option(help="further crystals to learn from")],
    out: Annotated[Path, typer.Option()],
) -> None:
    tables = []
    excluded = []
    for name, path in {"mp20": mp20, "mpts52": mpts52}.items():
        table = read_crystals(path, energy_method=MP, processes=2).table
        tune, held = SIZES[name]
        order = np.random.default_rng(0).permutation(table.num_rows)
        for part, rows in {"tune": order[:tune], "held": order[tune : tune + held]}.items():
            excluded.append(out / f"{name}_{part}.parquet")
            write_table(table.take(np.sort(rows)), excluded[-1], {"stage": f"{name}, {part}"})
        tables.append(table)
    for path in more:
        names = set(read_table_names(path))
        method = {source: METHODS.get(source, MP) for source in names} if names else MP
        tables.append(read_crystals(path, energy_method=method, processes=2).table)
    write_table(pa.concat_tables(tables, promote_options="default"), out / "raw.parquet", {})
    campaign = Campaign.model_validate(
        {
            "name": "development",
            "crysdb": {
                "min_atoms": 1,
                "max_atoms": 60,
                "hull": "fill",
                "energy_methods": [MP, f"{MP}, hull of this set"],
                "require_label": False,
                "exclude": [str(path) for path in excluded],
                "val_fraction": 0.02,
                "test_fraction": 0.0,
            },
        }
    )
    build_crysdb(campaign, out / "raw.parquet", out / "crysdb")
    print({split: read_table(out / "crysdb" / f"{split}.parquet").num_rows for split in ("train", "val")})


def read_table_names(path: Path) -> list[str]:
    """Values of the column ``source``, if the file has one."""
    import pyarrow.parquet as pq

    if "source" not in pq.read_schema(path).names:
        return []
    return [str(name) for name in pq.read_table(path, columns=["source"])["source"].unique().to_pylist()]


if __name__ == "__main__":
    typer.run(main)
