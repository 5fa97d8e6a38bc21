"""The shipped throughput of all stages, which `dao-pipeline plan` uses where nothing has been measured yet.

Run campaigns alone on a quiet machine, then

python benchmarks/throughput.py results/NAME ... --hardware "two vCPUs with AVX-512"

writes src/dao_pipeline/forecast/data/throughput.json from their timings.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from dao_pipeline.config.read import load_campaign
from dao_pipeline.crystals.table import package_versions, write_text
from dao_pipeline.forecast import rates


def main() -> None:
    """Read timings, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders of campaigns that have run")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--out", type=Path, default=rates.SHIPPED)
    given = parser.parse_args()
    found: dict[rates.Key, list[rates.Rate]] = defaultdict(list)
    for folder in given.results:
        for key, rate in rates.measured(load_campaign(folder / "config.yaml"), folder):
            found[key].append(rate)
    rows: list[dict[str, Any]] = []
    for (stage, like, device), measurements in found.items():
        work, seconds, jobs, _ = rates.together(measurements)
        rows.append(
            {
                "stage": stage,
                "like": like,
                "device": device,
                "work": round(work),
                "seconds": round(seconds, 1),
                "jobs": jobs,
            }
        )
    versions = {name: version for name, version in package_versions().items() if name in ("python", "torch")}
    content = {
        "about": "Work done in seconds of one core or GPU, jobs' starts included; by benchmarks/throughput.py.",
        "hardware": given.hardware,
        "versions": versions,
        "campaigns": [folder.name for folder in given.results],
        "rates": rows,
    }
    write_text(given.out, json.dumps(content, indent=1) + "\n")
    for row in rows:
        print(f"{row['stage']:28} {row['like']:16} {row['device']:4} {row['work'] / row['seconds']:.3g} per s")


if __name__ == "__main__":
    main()
