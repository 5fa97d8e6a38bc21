"""Stage screen_candidates: the screened shards put together, compared over chemical systems, the best exported.

The shards are read one after another, so memory does not grow with the number of candidates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.candidates.export import writing_top
from dao_pipeline.config import Campaign, stage_settings
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import iter_tables, provenance, read_about, read_table, table_files, writing
from dao_pipeline.errors import UserError

log = logging.getLogger(__name__)

SYSTEM_ORDER = ("e_above_hull_pred", "energy_pred")
"""Columns that compare candidates of several compositions: the first that there is. Both are eV/atom."""

_LEVELS = "levels_of_theory"

_COUNTED = ("valid", "unique", "novel")


def screen_candidates(campaign: Campaign, plan: Path, screened: Path, out: Path) -> None:
    """Write the whole screened table, and ``top.zip`` with CIF files beside it.

    plan: of the whole campaign. screened: folder of the shards by ``screen_shard``.

    Adds ``system_rank``: of the best candidates of all formulas of a chemical system, by ``SYSTEM_ORDER``; of one
    formula in cells of several sizes only the best takes part.
    The zip holds the candidates of each composition with a rank up to ``screen.top_k``, or as many of them as
    ``screen.top_files`` allows: lower ranks are left out first, then what is last in its chemical system.

    Raises UserError where the shards are not exactly the plan, each candidate once and in order, or were screened
    with different settings or models.
    """
    files = sorted(table_files(screened), key=_number)
    about = _common(files)
    top = _Top.of(files, campaign.screen.top_k)
    exported = top.first(campaign.screen.top_files)
    planned = _planned(plan)
    counts = dict.fromkeys(_COUNTED, 0)
    note = provenance(
        "screen_candidates",
        campaign=campaign.name,
        settings=stage_settings(campaign, "screen_candidates"),
        inputs={"plan": plan, "screened": screened},
        **about,
    )
    schema = _schema(files)
    done = 0
    with writing(out, schema, note) as file, writing_top(out.parent / "top.zip") as cifs:
        for path in files:
            table = read_table(path)
            if table.num_rows == 0:
                continue
            _require(next(planned, None), table["id"], path)
            mask = _within(table, campaign.screen.top_k)
            places = slice(done, done + int(mask.sum()))
            done = places.stop
            rank = np.full(table.num_rows, -1)
            rank[mask] = top.system_rank[places]
            rank = pa.array(rank, COLUMNS["system_rank"].type, mask=rank < 0)
            table = table.append_column("system_rank", rank).select(schema.names).cast(schema)
            file.write(table)
            cifs.write(table.filter(pa.array(mask)).filter(pa.array(exported[places])))
            for name in _COUNTED:
                counts[name] += pc.sum(table[name]).as_py() or 0
        if (left := next(planned, None)) is not None:
            raise _missing(left, screened)
    if cifs.files < done:
        log.warning("top.zip holds %d of %d candidates: screen.top_files", cifs.files, done)
    log.info("%d candidates: %s", file.rows, ", ".join(f"{n} {name}" for name, n in counts.items()))


_AGAIN = "Rerun screen_candidates, or screen_shard for this shard."


def _number(path: Path) -> int:
    """Of a shard, by its name."""
    try:
        return int(path.stem.removeprefix("shard-"))
    except ValueError:
        raise UserError(f"{path}: no screened shard has this name. Move the file elsewhere.") from None


def _common(files: Sequence[Path]) -> dict[str, Any]:
    """What all shards say about their screening, and the passport of the hull."""
    keys = ("symprec", "training", "references", "settings")
    first = read_about(files[0])
    hull = first.get("hull")
    for path in files[1:]:
        about = read_about(path)
        hull = _same_hull(hull, about.get("hull"), path)
        if differing := [key for key in keys if about.get(key) != first.get(key)]:
            raise UserError(
                f"{path}: was screened with other {', '.join(differing)} than {files[0].name}. Rerun screen_shard."
            )
    return {"hull": hull} | {"screening" if key == "settings" else key: first.get(key) for key in keys}


def _same_hull(one: dict[str, Any] | None, other: dict[str, Any] | None, path: Path) -> dict[str, Any] | None:
    """The passport of both: each shard names the levels of theory of the phases that it needed.

    Raises UserError where anything else differs: their distances to the hull are not of one hull.
    """
    if one is None or other is None:  # a shard without candidates has none
        return one or other
    if differing := [key for key in {**one, **other} if key != _LEVELS and one.get(key) != other.get(key)]:
        raise UserError(
            f"{path}: was screened with another hull ({', '.join(sorted(differing))}) than the shards before. "
            "Rerun screen_shard for all shards."
        )
    return {**one, _LEVELS: sorted({*one.get(_LEVELS, ()), *other.get(_LEVELS, ())})}


def _schema(files: Sequence[Path]) -> pa.Schema:
    """Of the whole table: that of the first shard with candidates, and the rank in the system beside the rank."""
    schemas = (pq.read_schema(path).remove_metadata() for path in files if pq.read_metadata(path).num_rows)
    schema = next(schemas, None)
    if schema is None:
        raise UserError(f"{files[0].parent}: no shard has any candidate. Rerun plan_candidates and what follows.")
    field = pa.field("system_rank", COLUMNS["system_rank"].type)
    return schema.insert(schema.get_field_index("rank") + 1, field)


class _Planned(NamedTuple):
    shard: int
    ids: pa.Array


def _planned(plan: Path) -> Iterator[_Planned]:
    """Ids of the planned candidates, shard by shard in the order of the plan."""
    shard = -1
    waiting: list[pa.Array] = []
    for piece in iter_tables(plan, rows=100_000, columns=["id", "shard"]):
        shards = piece["shard"].to_numpy()
        cuts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
        for start, stop in pairwise(cuts):
            if start == stop:
                continue
            if waiting and shards[start] != shard:
                yield _Planned(shard, pa.chunked_array(waiting).combine_chunks())
                waiting = []
            shard = int(shards[start])
            waiting += piece["id"].slice(start, stop - start).chunks
    if waiting:
        yield _Planned(shard, pa.chunked_array(waiting).combine_chunks())


def _require(planned: _Planned | None, found: pa.ChunkedArray, path: Path) -> None:
    """Raise UserError unless a shard's candidates are those planned next."""
    if planned is None or planned.shard > _number(path):
        raise UserError(f"{path}: this shard is not in the plan. Delete the file if an earlier plan left it.")
    if planned.shard < _number(path):
        raise _missing(planned, path.parent)
    if found.combine_chunks().equals(planned.ids):
        return
    for name, ids, others in (
        ("is not there", planned.ids, found.combine_chunks()),
        ("is not in the plan of this shard", found, planned.ids),
    ):
        absent = ids.filter(pc.invert(pc.is_in(ids, value_set=others)))
        if len(absent):
            raise UserError(f"{path}: {absent[0].as_py()} (of {len(absent)}) {name}. {_AGAIN}")
    raise UserError(f"{path}: candidates are repeated, or not in the order of the plan. {_AGAIN}")


def _missing(planned: _Planned, folder: Path) -> UserError:
    return UserError(
        f"{folder}: the {len(planned.ids)} candidates of shard {planned.shard} are not there. {_AGAIN}"
    )


def _within(table: pa.Table, top_k: int) -> np.ndarray:
    """(rows,) bool: ranked, and not below ``top_k``."""
    return np.asarray(pc.fill_null(pc.less_equal(table["rank"], top_k), False))


class _Top(NamedTuple):
    """The best candidates of every composition in the order of the shards: all that is held of all candidates.

    rank: (n,) int64 within the composition. system_rank: (n,) int64; -1: not the best of its formula, or there is
    nothing to compare by.
    """

    rank: np.ndarray
    system_rank: np.ndarray

    @classmethod
    def of(cls, files: Sequence[Path], top_k: int) -> _Top:
        """Read from screened shards."""
        codes: dict[str, int] = {}
        formulas: dict[str, int] = {}
        ranks, systems, compounds = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        values: dict[str, list[np.ndarray]] = {name: [np.zeros(0)] for name in SYSTEM_ORDER}
        for path in files:
            names = pq.read_schema(path).names
            if pq.read_metadata(path).num_rows == 0:
                continue
            table = read_table(path, ["formula", "rank", *(name for name in SYSTEM_ORDER if name in names)])
            table = table.filter(pa.array(_within(table, top_k)))
            ranks.append(table["rank"].to_numpy().astype(np.int64))
            names = table["formula"].to_pylist()
            compounds.append(np.array([formulas.setdefault(name, len(formulas)) for name in names], np.int64))
            texts = map(chemical_system, names)
            systems.append(np.array([codes.setdefault(text, len(codes)) for text in texts], dtype=np.int64))
            for name, parts in values.items():
                there = name in table.column_names
                parts.append(_floats(table[name]) if there else np.full(table.num_rows, np.nan))
        rank, system = np.concatenate(ranks), np.concatenate(systems)
        columns = (np.concatenate(parts) for parts in values.values())
        value = next((column for column in columns if np.isfinite(column).any()), np.full(len(rank), np.nan))
        compound = np.concatenate(compounds)
        best = np.flatnonzero((rank == 1) & np.isfinite(value))
        # cells of several sizes find the same crystal: of each formula the best counts
        best = best[np.lexsort((best, value[best], compound[best]))]
        best = best[np.r_[True, np.diff(compound[best]) != 0]] if len(best) else best
        order = best[np.lexsort((best, value[best], system[best]))]
        within = np.full(len(rank), -1)
        within[order] = 1 + np.arange(len(order)) - np.searchsorted(system[order], system[order])
        return cls(rank, within)

    def first(self, number: int) -> np.ndarray:
        """(n,) bool: the first ``number`` by rank, then by rank in the system, then in order."""
        last = np.where(self.system_rank < 0, np.iinfo(np.int64).max, self.system_rank)
        chosen = np.zeros(len(self.rank), dtype=bool)
        chosen[np.lexsort((last, self.rank))[:number]] = True
        return chosen


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.to_numpy(), dtype=np.float64)  # nulls become NaN


def chemical_system(formula: str) -> str:
    """Elements of a formula in alphabetical order, e.g. ``O-Sr-Ti``."""
    return "-".join(sorted(parse_formula(formula)))
