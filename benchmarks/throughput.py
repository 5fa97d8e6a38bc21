"""The shipped throughput of all stages, which `dao-pipeline plan` uses where nothing has been measured yet.

Run campaigns alone on a quiet machine, then

python benchmarks/throughput.py results/NAME ... --hardware "two vCPUs with AVX-512"

writes src/dao_pipeline/forecast/data/throughput.json from their timings.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from dao_pipeline.config.read import load_campaign
from dao_pipeline.crystals.table import package_versions, write_text
from dao_pipeline.forecast import rates


def start_seconds(repeats: int = 3) -> float:
    """CPU seconds of a process that imports what sampling needs, and ends: the least of some."""
    took = []
    for _ in range(repeats):
        before = _children()
        subprocess.run([sys.executable, "-c", "import dao_pipeline.candidates.generate"], check=True)
        took.append(_children() - before)
    return min(took)


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders of campaigns that have run")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--out", type=Path, default=rates.SHIPPED)
    given = parser.parse_args()
    start = round(start_seconds(), 2)
    write_text(given.out, json.dumps({"hardware": given.hardware, "start_s": start, "rates": []}))
    rates.shipped.cache_clear()
    work: dict[rates.Key, float] = defaultdict(float)
    seconds: dict[rates.Key, float] = defaultdict(float)
    for folder in given.results:
        for key, done, took in rates.measured(load_campaign(folder / "config.yaml"), folder):
            work[key] += done
            seconds[key] += took
    rows = [
        {"stage": stage, "like": like, "device": device, "per_second": float(f"{work[key] / seconds[key]:.3g}")}
        for key in work
        for stage, like, device in [key]
    ]
    versions = {name: version for name, version in package_versions().items() if name in ("python", "torch")}
    content = {
        "about": "Work per second of one core or GPU after the start of a job; by benchmarks/throughput.py.",
        "hardware": given.hardware,
        "versions": versions,
        "campaigns": [folder.name for folder in given.results],
        "start_s": start,
        "rates": rows,
    }
    write_text(given.out, json.dumps(content, indent=1) + "\n")
    for row in rows:
        print(f"{row['stage']:28} {row['like']:16} {row['device']:4} {row['per_second']:.3g} per s")


if __name__ == "__main__":
    main()
