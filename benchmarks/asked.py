"""Time to plan a campaign of millions by enumeration, and to tell the story of one candidate among as many.

python benchmarks/asked.py --candidates 10000000
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import writing
from dao_pipeline.forecast.forecast import forecast
from dao_pipeline.story.story import story

_AT_ONCE = 5_000
_TEXTS = ("id", "composition", "formula", "status", "origin")
_NUMBERS = ("sample", "shard", "rank", "group", "energy_pred")


def plan(candidates: int, samples: int = 20) -> None:
    """Time the forecast of a campaign of at least so many candidates: ternary chalcogenides by enumeration."""
    systems = {"of": [["metals", "metals", ["S", "Se", "Te"]]], "oxidation_states": "low"}
    for atoms in range(10, 60, 2):
        generate = {"systems": systems, "unit_atoms": atoms, "samples": samples, "shard_compositions": 500}
        wall, cpu = time.perf_counter(), time.process_time()
        campaign = parse_campaign({"name": "asked", "generate": generate}, "asked")
        found = forecast(campaign, "asked", Path("results"))
        if found.candidates >= candidates:
            took = f"{time.process_time() - cpu:.2f} CPU s, {time.perf_counter() - wall:.2f} s"
            print(f"plan: {found.candidates:,} candidates in {found.jobs:,} jobs: {took}")
            return
    raise SystemExit("there are not so many; ask for fewer")


def explain(candidates: int, samples: int = 20) -> None:
    """Time a story in a made-up screened table of so many rows."""
    schema = pa.schema([(name, COLUMNS[name].type) for name in (*_TEXTS, *_NUMBERS)])
    compositions = candidates // samples
    with TemporaryDirectory() as place:
        folder = Path(place)
        with writing(folder / "candidates" / "screened.parquet", schema, {"stage": "made up"}) as out:
            for start in range(0, compositions, _AT_ONCE):
                out.write(_rows(np.arange(start, min(start + _AT_ONCE, compositions)), samples, schema))
        for number in (3, compositions // 2, compositions - 1):
            wall, cpu = time.perf_counter(), time.process_time()
            story(folder, f"cand:{number}:7")
            took = f"{time.process_time() - cpu:.2f} CPU s, {time.perf_counter() - wall:.2f} s"
            print(f"explain cand:{number}:7 of {compositions * samples:,} rows: {took}")


def _rows(numbers: np.ndarray, samples: int, schema: pa.Schema) -> pa.Table:
    which, sample = np.repeat(numbers, samples), np.tile(np.arange(samples), len(numbers))
    number, drawn = (pa.array(values).cast(pa.string()) for values in (which, sample))
    name = pc.binary_join_element_wise("Mg", number, "O", "")
    columns = {
        "id": pc.binary_join_element_wise("cand", number, drawn, ":"),
        "composition": name,
        "formula": name,
        "status": ["ok"] * len(which),
        "origin": ["generated"] * len(which),
        "sample": sample,
        "shard": which // 500,
        "rank": sample + 1,
        "group": sample,
        "energy_pred": np.random.default_rng(0).random(len(which)),
    }
    return pa.table({field.name: pa.array(columns[field.name]).cast(field.type) for field in schema}, schema)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=10_000_000)
    given = parser.parse_args()
    plan(given.candidates)
    explain(given.candidates)


if __name__ == "__main__":
    main()
