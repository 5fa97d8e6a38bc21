"""One raw table from files of several databases, for config/campaigns/all_sources.yaml.

python benchmarks/all_sources.py FOLDER --out all_sources.parquet

FOLDER holds mp20/, mpts52/, perov5/, carbon24/, jarvis_supercon3d/ and corpus/ in the public Parquet layout
(docs/data.md). Each gets its level of theory; ids that are mere numbers get their database's name in front.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.crystals.table import file_hash, writing
from dao_pipeline.errors import UserError
from dao_pipeline.sources.files import read_crystals

MP, ALEXANDRIA, OQMD, JARVIS = "PBE, MP", "PBE, Alexandria", "PBE, OQMD", "OptB88vdW, JARVIS"

FILES: tuple[tuple[str, str, str | None], ...] = (
    ("mp20/train_part.parquet", "mp20", MP),
    ("mp20/val.parquet", "mp20", MP),
    ("mpts52/val.parquet", "mpts52", MP),
    ("perov5/train_part.parquet", "perov5", None),
    ("perov5/val.parquet", "perov5", None),
    ("carbon24/val.parquet", "carbon24", None),
    ("jarvis_supercon3d/train.parquet", "jarvis_supercon3d", None),
    ("jarvis_supercon3d/val.parquet", "jarvis_supercon3d", None),
    ("corpus/structures.parquet", "", MP),
)
"""File, source (empty: as the file says), and level of theory of its energies."""

CORPUS_METHODS = {"alexandria": ALEXANDRIA, "oqmd": OQMD, "jarvis": JARVIS}
"""Level of theory of those sources of the corpus whose name contains this."""


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("all_sources.parquet"))
    options = parser.parse_args()
    tables, inputs = [], {}
    for name, source, method in FILES:
        path = options.folder / name
        if not path.exists():
            raise UserError(f"{path}: no such file. Name the folder that holds it.")
        tables.append(labelled(path, source, method))
        inputs[name] = {"path": str(path), "hash": file_hash(path)}
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    with writing(options.out, table.schema, {"stage": "download", "inputs": inputs}, table.num_rows) as write:
        write(table)
    print(f"{options.out}: {table.num_rows} crystals")
    for row in pc.value_counts(table["source"]).to_pylist():
        print(f"  {row['values']}: {row['counts']}")


def labelled(path: Path, source: str, method: str | None) -> pa.Table:
    """The crystals of a file, with source and level of theory set and ids that are unique among databases."""
    table = read_crystals(path, energy_method=method).table
    if "year" in pq.read_schema(path).names and "published" not in table.column_names:
        years = pa.chunked_array(pq.read_table(path, columns=["year"])["year"].chunks).cast(pa.string())
        if len(years) == table.num_rows:
            table = table.append_column("published", years)
    names = table["source"].to_pylist()
    if source:
        names = [source] * table.num_rows
        table = table.set_column(table.column_names.index("source"), "source", pa.array(names))
    else:
        known = [
            next((m for part, m in CORPUS_METHODS.items() if part in name), given)
            for name, given in zip(names, table["energy_method"].to_pylist(), strict=True)
        ]
        has = table["energy_method"].is_valid()
        methods = pc.if_else(has, pa.chunked_array([pa.array(known, pa.string())]), pa.scalar(None, pa.string()))
        table = table.set_column(table.column_names.index("energy_method"), "energy_method", methods)
    ids = table["id"].to_pylist()
    unique = [f"{name}:{i}" if i.isdigit() else i for name, i in zip(names, ids, strict=True)]
    return table.set_column(table.column_names.index("id"), "id", pa.array(unique))


if __name__ == "__main__":
    main()
