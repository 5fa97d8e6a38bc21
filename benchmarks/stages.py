"""Time and memory of each stage of a campaign, from Snakemake's own benchmark files, as a Markdown table.

python benchmarks/stages.py results/demo
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path


def stage_rows(results: Path) -> list[tuple[str, int, float, float, float]]:
    """Stage, jobs, wall seconds (sum over jobs), CPU seconds (sum) and peak memory of a job in MB."""
    jobs: dict[str, list[dict[str, str]]] = defaultdict(list)
    for path in sorted((results / "timings").rglob("*.tsv"), key=lambda p: p.stat().st_mtime):
        stage = path.relative_to(results / "timings").parts[0].removesuffix(".tsv").split("-")[0]
        with path.open() as stream:
            jobs[stage].extend(csv.DictReader(stream, delimiter="\t"))
    return [
        (
            stage,
            len(rows),
            sum(_number(row["s"]) for row in rows),
            sum(_number(row.get("cpu_time", "0")) for row in rows),
            max(_number(row["max_rss"]) for row in rows),
        )
        for stage, rows in jobs.items()
    ]


def _number(text: str) -> float:
    """Snakemake writes '-' for jobs too short to be measured."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def main() -> None:
    """Print the table."""
    rows = stage_rows(Path(sys.argv[1]))
    print("| stage | jobs | wall s | CPU s | peak memory MB |\n|---|---|---|---|---|")
    for stage, jobs, wall, cpu, memory in rows:
        print(f"| `{stage}` | {jobs} | {wall:.0f} | {cpu:.0f} | {memory:.0f} |")
    print(f"| all | {sum(r[1] for r in rows)} | {sum(r[2] for r in rows):.0f} | {sum(r[3] for r in rows):.0f} | |")


if __name__ == "__main__":
    main()
