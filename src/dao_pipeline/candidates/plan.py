"""Stage plan_candidates: one row per candidate to make, and the shard and round that make it.

A shard is a block of consecutive compositions, a round a block of consecutive samples of each of them. Both have a
fixed size and are counted from the start of the campaign: when it grows, what is full stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.candidates.compositions import (
    Requested,
    campaign_compositions,
    count_compositions,
    infeasible,
    known_elements,
)
from dao_pipeline.config import Campaign, Generate, stage_settings
from dao_pipeline.crystals.schema import COLUMNS
from dao_pipeline.crystals.table import provenance, writing
from dao_pipeline.errors import UserError

log = logging.getLogger(__name__)

PLAN_COLUMNS = (
    "id",
    "composition",
    "formula",
    "num_atoms",
    "atomic_numbers",
    "target_id",
    "sample",
    "shard",
    "round",
    "origin",
    "template_rank",
)
"""Columns of the plan; generated shards carry them on, ``origin`` as it came out."""

PLAN_SCHEMA = pa.schema([(name, COLUMNS[name].type) for name in PLAN_COLUMNS])

AT_ONCE = 100_000
"""Candidates whose rows are in memory at the same time, unless one composition has more."""

_NAMED = 20
"""Refused compositions that a message names at most."""


def planned_shards(campaign: Campaign) -> int:
    """Number of shards, from the configuration alone (Snakemake needs it before the test split exists).

    The plan may need fewer, when the test split is small: the last shards are then empty.
    """
    return max(1, ceil(count_compositions(campaign) / campaign.generate.shard_compositions))


def shard_file(shard: int, round_number: int) -> str:
    """Name of a round of a shard, the same in every stage's folder."""
    return f"shard-{shard:05d}-{round_number:03d}.parquet"


def shard_files(folder: Path, shard: int) -> list[Path]:
    """Files of all rounds of a shard in a stage's folder, in their order.

    Raises UserError where there are none.
    """
    files = sorted(folder.glob(f"shard-{shard:05d}-*.parquet"))
    if not files:
        raise UserError(
            f"{folder}: no files of shard {shard}. Run the stage that writes them, or correct the path."
        )
    return files


def template_ranks(samples: np.ndarray, share: float) -> np.ndarray:
    """Rank of the template, (n,) int64 from 0, that each of ``samples`` (n,) is to be made from; -1: from none.

    Sample s is a template's where floor((s + 1) share) is more than floor(s share). So among the first m samples
    floor(m share) are, and which they are does not depend on how many there will be.
    """
    before, after = (np.floor(np.round(s * share, 9)) for s in (samples, samples + 1))
    return np.where(after > before, before, -1).astype(np.int64)


def plan_table(
    compositions: Sequence[Requested],
    samples: int | range,
    shard_compositions: int = 50,
    round_samples: int = 20,
    template_share: float = 0.0,
    numbers: Sequence[int] | None = None,
) -> pa.Table:
    """Candidates to make: one row per composition and sample, in that order.

    numbers: the compositions' numbers in the campaign, from 0 in order if not given. Row ``cand:<c>:<s>`` is
    sample s of composition c; it is in shard ``c // shard_compositions`` and round ``s // round_samples``. Its
    origin is ``template`` where it is to be made from the template of rank ``template_rank``, if there is one.
    """
    drawn = np.arange(samples) if isinstance(samples, int) else np.asarray(samples, dtype=np.int64)
    number = np.arange(len(compositions)) if numbers is None else np.asarray(numbers, dtype=np.int64)
    which = np.repeat(np.arange(len(compositions)), len(drawn))
    sample = np.tile(drawn, len(compositions))
    of_composition = {
        "composition": [c.composition for c in compositions],
        "formula": [c.formula for c in compositions],
        "num_atoms": [c.num_atoms for c in compositions],
        "atomic_numbers": [c.atomic_numbers for c in compositions],
        "target_id": [c.target_id for c in compositions],
    }
    columns = {
        name: pa.array(values, COLUMNS[name].type).take(pa.array(which)) for name, values in of_composition.items()
    }
    number_text, sample_text = (pa.array(values).cast(pa.string()) for values in (number[which], sample))
    columns["id"] = pc.binary_join_element_wise("cand", number_text, sample_text, ":")
    rank = template_ranks(sample, template_share)
    columns["origin"] = pc.if_else(pa.array(rank >= 0), "template", "generated")
    columns["template_rank"] = pa.array(rank, COLUMNS["template_rank"].type, mask=rank < 0)
    blocks = {"sample": sample, "shard": number[which] // shard_compositions, "round": sample // round_samples}
    columns |= {name: pa.array(values, COLUMNS[name].type) for name, values in blocks.items()}
    return pa.table({name: columns[name] for name in PLAN_COLUMNS}, schema=PLAN_SCHEMA)


def plan_candidates(
    campaign: Campaign, crysdb: Path, out: Path, *, shard: int | None = None, round_number: int | None = None
) -> None:
    """Write one row per candidate to make; with ``shard`` and ``round_number``, the rows of these only.

    Written in pieces: memory does not grow with the campaign. Compositions of the test split that cannot be
    generated are left out, named in the log and in the file's metadata, and counted as misses by the evaluation.
    Raises UserError for compositions of the campaign that cannot be generated, naming the first of them.
    """
    generate = campaign.generate
    explicit = generate.compositions is not None
    size = generate.shard_compositions
    start, stop = (0, count_compositions(campaign)) if shard is None else (shard * size, (shard + 1) * size)
    first = 0 if round_number is None else round_number * generate.round_samples
    last = generate.samples if round_number is None else min(first + generate.round_samples, generate.samples)
    refused: list[_Refused] = []
    planned = 0
    with writing(out, PLAN_SCHEMA) as file:
        for numbers, compositions in _feasible(campaign, crysdb, start, stop, refused):
            file.write(_rows(generate, range(first, last), compositions, numbers))
            planned += len(compositions)
        if refused and explicit:
            raise UserError(_refusal(refused))
        if not planned and shard is None:
            raise UserError(
                f"{crysdb / 'test.parquet'}: no composition of the test split can be generated, e.g. "
                f"{refused[0].asked.composition}: {refused[0].reason}. Give generate.compositions."
            )
        for asked, reason in refused:
            log.warning("test crystal %s (%s) not planned: %s", asked.target_id, asked.composition, reason)
        settings: dict[str, Any] = {"shard": shard, "round": round_number}
        read: tuple[str, ...] = ()  # a round's plan takes no time, and these files may be large
        if shard is None:
            settings, read = (
                stage_settings(campaign, "plan_candidates"),
                ("train",) if explicit else ("train", "test"),
            )
        file.about |= provenance(
            "plan_candidates",
            campaign=campaign.name,
            settings=settings,
            inputs={name: crysdb / f"{name}.parquet" for name in read},
            not_planned={asked.target_id: reason for asked, reason in refused},
        )
        log.info("%d candidates of %d compositions planned", file.rows, planned)


class _Refused(NamedTuple):
    asked: Requested
    reason: str


def _feasible(
    campaign: Campaign, crysdb: Path, start: int, stop: int, refused: list[_Refused]
) -> Iterator[tuple[list[int], list[Requested]]]:
    """Numbers and compositions that can be generated, some at a time; the others are added to ``refused``."""
    known: Collection[int] = known_elements(crysdb / "train.parquet")
    step = max(1, AT_ONCE // campaign.generate.samples)
    for begin in range(start, stop, step):
        end = min(begin + step, stop)
        compositions = campaign_compositions(campaign, crysdb, begin, end)
        numbers, kept = [], []
        for number, asked in enumerate(compositions, begin):
            reason = infeasible(asked, known, campaign.generate.max_atoms)
            if reason is not None:
                refused.append(_Refused(asked, reason))
            else:
                numbers.append(number)
                kept.append(asked)
        yield numbers, kept
        if len(compositions) < end - begin:  # of a small test split
            return


def _rows(generate: Generate, samples: range, compositions: list[Requested], numbers: list[int]) -> pa.Table:
    return plan_table(
        compositions,
        samples,
        generate.shard_compositions,
        generate.round_samples,
        generate.template_share,
        numbers,
    )


def _refusal(refused: Sequence[_Refused]) -> str:
    lines = [f"generate.compositions: {asked.composition}: {reason}." for asked, reason in refused[:_NAMED]]
    if len(refused) > _NAMED:
        lines.append(f"... and {len(refused) - _NAMED} more.")
    return "\n".join(lines) + (
        "\nRemove these compositions, or add crystals with the elements to train.parquet (section data)."
    )
