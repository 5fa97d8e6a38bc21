"""The table of crystals that config/campaigns/ablation.yaml learns from and is measured on.

``python benchmarks/ablation.py --development FOLDER --out TABLE``: of the folder that ``protocol.py`` wrote, the
crystals of ``SOURCES`` up to 20 atoms train and validate, and ``mp20_held`` is the test split.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer

from dao_pipeline.crystals.schema import CRYSTAL
from dao_pipeline.crystals.table import read_table, write_table

SOURCES = ("val", "train_part", "wbm_val10k_val", "wbm_random972_all")
"""Of MP-20 and MPTS-52, and of WBM: with formation energy and distance above the hull at MP's level of theory."""

MAX_ATOMS = 20


def main(
    development: Annotated[Path, typer.Option(help="folder written by protocol.py")],
    out: Annotated[Path, typer.Option()],
    held: Annotated[str, typer.Option(help="held-out table in that folder")] = "mp20_held",
) -> None:
    tables = []
    for split, path in {"train": "crysdb/train", "val": "crysdb/val", "test": held}.items():
        table = read_table(development / f"{path}.parquet", list(CRYSTAL))
        if split != "test":
            known = pc.is_in(table["source"], value_set=pa.array(SOURCES))
            table = table.filter(pc.and_(known, pc.less_equal(table["num_atoms"], MAX_ATOMS)))
        sides = pa.array([split] * table.num_rows, pa.string())
        tables.append(table.set_column(table.schema.get_field_index("split"), "split", sides))
        unstable = pc.sum(pc.greater(table["e_above_hull"], 0.08)).as_py()
        print(f"{split}: {table.num_rows} crystals, {unstable} of them more than 0.08 eV/atom above the hull")
    write_table(pa.concat_tables(tables), out, {"stage": "crystals of the ablation"})


if __name__ == "__main__":
    typer.run(main)
