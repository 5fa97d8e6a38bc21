"""Speed and memory of reading crystals from files: ``python benchmarks/sources.py FILE.parquet``.

Writes copies of the file's crystals in several formats and sizes into a temporary folder, imports each in a
process of its own, and prints a Markdown table.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dao_pipeline.config import Campaign, Compute, Data, Resources
from dao_pipeline.crystals.cif import cif_text
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.sources.download import download
from dao_pipeline.sources.files import read_crystals


def write_parquet(table: pa.Table, count: int, path: Path) -> None:
    """``count`` crystals, those of ``table`` over and over, under ids of their own."""
    with pq.ParquetWriter(path, table.schema) as writer:
        for start in range(0, count, table.num_rows):
            piece = table.slice(0, min(table.num_rows, count - start))
            ids = pa.array([f"c{start + i}" for i in range(piece.num_rows)])
            writer.write_table(piece.set_column(piece.column_names.index("id"), "id", ids), row_group_size=10_000)


def write_csv(crystals: Iterator[Crystal], path: Path) -> None:
    """A CSV with a ``cif`` column."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["material_id", "cif"])
        writer.writerows([crystal.id, cif_text(crystal)] for crystal in crystals)


def write_json(crystals: Iterator[Crystal], path: Path) -> None:
    """A list of pymatgen structures."""
    from dao_pipeline.crystals.convert import to_structure

    with path.open("w") as stream:
        for i, crystal in enumerate(crystals):
            stream.write(("[" if i == 0 else ",\n") + json.dumps(to_structure(crystal).as_dict()))
        stream.write("]")


def measure(path: Path, threads: int) -> dict[str, float]:
    """Import in this process: seconds, CPU seconds, rows, and peak memory in MB of it and of its largest child."""
    data = Data(source="file", path=str(path))
    campaign = Campaign(name="b", data=data, compute=Compute(cpu=Resources(threads=threads)))
    start = time.perf_counter()
    download(campaign, path.with_suffix(".out") / "crystals.parquet")
    seconds = time.perf_counter() - start
    rows = pq.read_metadata(path.with_suffix(".out") / "crystals.parquet").num_rows
    own, child = (
        resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(one.ru_utime + one.ru_stime for one in used)
    return {"seconds": seconds, "cpu": cpu, "rows": rows, "memory": own, "child": child}


def run(path: Path, threads: int) -> dict[str, float]:
    """``measure`` in a fresh process."""
    command = [sys.executable, __file__, "--measure", str(path), "--threads", str(threads)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result: dict[str, float] = json.loads(shown)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="table of crystals")
    parser.add_argument("--parquet", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--text", type=int, nargs="+", default=[2_000, 8_000])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.threads)))
        return
    table = read_crystals(options.file).table
    print("| format | crystals | processes | wall s | CPU s | crystals per CPU s | peak MB | largest worker MB |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sets = [("Parquet", n, 1) for n in options.parquet]
        sets += [("CSV with CIF", n, t) for n in options.text for t in (1, options.threads)]
        sets += [("JSON", n, 1) for n in options.text]
        for kind, count, threads in sets:
            path = (
                Path(folder)
                / f"{kind.split()[0]}-{count}.{ {'Parquet': 'parquet', 'JSON': 'json'}.get(kind, 'csv') }"
            )
            if not path.exists():
                if kind == "Parquet":
                    write_parquet(table, count, path)
                else:
                    write = write_json if kind == "JSON" else write_csv
                    write(from_table(table.slice(0, count)), path)
            found = run(path, threads)
            rate, wall = found["rows"] / found["cpu"], found["seconds"]
            print(
                f"| {kind} | {found['rows']:,} | {threads} | {wall:.1f} | {found['cpu']:.1f} | {rate:,.0f} "
                f"| {found['memory']:.0f} | {found['child']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
