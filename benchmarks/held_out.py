"""Real crystals for controlled runs, and how well models do on those that they never saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from dao_pipeline.candidates.compositions import Requested
from dao_pipeline.candidates.generate import generate_rows
from dao_pipeline.candidates.made import set_columns
from dao_pipeline.candidates.plan import plan_table
from dao_pipeline.config import Campaign, Generate, Matcher
from dao_pipeline.crysdb.build import build_crysdb
from dao_pipeline.crystals.crystal import Crystal, from_table
from dao_pipeline.crystals.dataset import size_batches
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.evaluation.matching import match_target
from dao_pipeline.model.dao import DaoModel
from dao_pipeline.parallel import parallel_map
from dao_pipeline.sources.files import read_crystals

STOL = 0.5
"""What a miss costs in cRMSE, in units of (V/n)^(1/3): the matcher's site tolerance."""


def prepare_crysdb(files: Sequence[Path], out: Path, campaign: Campaign) -> Path:
    """CrysDB of all crystals in ``files`` (formats of data.source: file), split by composition."""
    if not (out / "test.parquet").exists():
        method = campaign.data.energy_method
        tables = [read_crystals(path, energy_method=method, processes=2).table for path in files]
        write_table(pa.concat_tables(tables, promote_options="default"), out / "raw.parquet", {})
        build_crysdb(campaign, out / "raw.parquet", out)
    return out


def held_out(crysdb: Path, count: int, seed: int = 0) -> pa.Table:
    """``count`` random crystals of the test split, always the same ones."""
    table = read_table(crysdb / "test.parquet")
    chosen = np.random.default_rng(seed).permutation(table.num_rows)[:count]
    return table.take(np.sort(chosen))


@dataclass(frozen=True)
class Matches:
    """Outcome of one sample per row: rmse (m,) in units of (V/n)^(1/3), NaN where nothing matched."""

    rmse: np.ndarray

    def summary(self, seed: int = 0) -> dict[str, float]:
        """Match rate in %, mean RMSE of matches, cRMSE (a miss costs STOL), with 95 % bootstrap intervals."""
        hit = np.isfinite(self.rmse)
        cost = np.where(hit, self.rmse, STOL)
        draws = np.random.default_rng(seed).integers(0, len(hit), (2000, len(hit)))
        low, high = np.percentile(hit[draws].mean(1), [2.5, 97.5])
        best, worst = np.percentile(cost[draws].mean(1), [2.5, 97.5])
        return {
            "match_rate": 100 * float(hit.mean()),
            "low": 100 * float(low),
            "high": 100 * float(high),
            "rmse": float(self.rmse[hit].mean()) if hit.any() else float("nan"),
            "crmse": float(cost.mean()),
            "crmse_low": float(best),
            "crmse_high": float(worst),
        }


def generate_for(
    model: DaoModel, known: pa.Table, settings: Generate, seed: int, energy_model: DaoModel | None = None
) -> pa.Table:
    """One crystal per row of ``known``, from its composition alone; rows in the same order."""
    asked = [
        Requested(
            composition=c.formula, formula=c.formula, atomic_numbers=tuple(sorted(c.atomic_numbers.tolist()))
        )
        for c in from_table(known)
    ]
    rows = plan_table(asked, 1, 10**9)
    met: Counter[str] = Counter()  # polymorphs are candidates of one composition
    samples = []
    for composition in rows["composition"].to_pylist():
        samples.append(met[composition])
        met[composition] += 1
    rows = set_columns(rows, {"sample": samples})
    sizes = rows["num_atoms"].to_numpy().astype(np.int64)
    batches = size_batches(sizes, settings.batch_atoms)
    parts = [generate_rows(rows.take(indices), model, energy_model, settings, seed) for indices in batches]
    return pa.concat_tables(parts).take(np.argsort(np.concatenate(batches)))


def compare(generated: pa.Table, known: pa.Table, workers: int) -> Matches:
    """Each generated crystal against the known one of its row, with the field's tolerances."""
    pairs: list[tuple[Crystal | None, Crystal]] = [
        (made if row["status"] == "ok" else None, true)
        for row, made, true in zip(
            generated.select(["status"]).to_pylist(), crystals_or_none(generated), from_table(known), strict=True
        )
    ]
    return Matches(rmse_of_pairs(pairs, workers))


def rmse_of_pairs(pairs: Sequence[tuple[Crystal | None, Crystal]], workers: int) -> np.ndarray:
    """RMSE of each crystal against a known one, with the field's tolerances; NaN where they do not match."""
    return np.array(parallel_map(_rmse, pairs, workers), dtype=np.float64)


def crystals_or_none(table: pa.Table) -> list[Crystal | None]:
    """The generated crystals, in order of the rows; None where there is no usable one."""
    sound = np.array([status == "ok" for status in table["status"].to_pylist()])
    found = iter(from_table(table.filter(pa.array(sound))))
    return [next(found) if ok else None for ok in sound]


def _rmse(pair: tuple[Crystal | None, Crystal]) -> float:
    torch.set_num_threads(1)
    made, true = pair
    if made is None:
        return float("nan")
    found = match_target(true, [made], Matcher())[0].rmse
    return float("nan") if found is None else found
