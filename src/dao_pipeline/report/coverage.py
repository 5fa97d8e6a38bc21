"""Where every crystal and every candidate went: counts that add up, with reasons for each loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dao_pipeline.report.results import Results
from dao_pipeline.report.text import reason

Reasons = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Step:
    """One bar of a funnel: what is left, and what was lost on the way from the step before, by reason."""

    name: str
    meaning: str
    count: int
    dropped: Reasons = ()


@dataclass(frozen=True)
class Funnel:
    """Steps of decreasing count; ``adds_up`` checks count + dropped = count of the step before."""

    steps: tuple[Step, ...]

    @property
    def adds_up(self) -> bool:
        """Whether every loss is accounted for."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return all(a.count == b.count + sum(n for _, n in b.dropped) for a, b in pairs)


def tally(reasons: Sequence[object]) -> Reasons:
    """Reasons with their counts, most frequent first."""
    counts = pd.Series([reason(text) for text in reasons], dtype=object).value_counts()
    return tuple(sorted(((str(k), int(n)) for k, n in counts.items()), key=lambda pair: (-pair[1], pair[0])))


def is_true(column: pd.Series) -> pd.Series:
    """A nullable flag as a mask: null counts as false."""
    return column.map(lambda value: value is True or value == 1).astype(bool)


KNOWN_TYPE = "known type"
"""What is said of a crystal that is new in its composition, but whose structure is that of a known one."""


def novelty(row: Mapping[Any, Any]) -> str:
    """yes, no or ``KNOWN_TYPE`` for a row of the screened table; empty where it was not compared.

    A substitution into a known structure is never called novel, nor is what matches one.
    """
    novel = row.get("novel")
    if novel is None or novel != novel:
        return ""
    if not novel:
        return "no"
    return KNOWN_TYPE if row.get("structure_type_known") is True else "yes"


def candidates_funnel(planned: int | None, screened: pd.DataFrame) -> Funnel:
    """Requested, generated, valid, unique, novel.

    A candidate without a lattice was not generated (its status says why); one that is not valid failed a check.
    """
    exists = screened["lattice"].map(lambda lattice: lattice is not None and bool(np.isfinite(lattice).all()))
    exists = exists.astype(bool)
    valid = exists & is_true(screened["valid"])
    unique = valid & is_true(screened["unique"])
    new = unique & is_true(screened["novel"])
    substituted = new & is_true(screened["structure_type_known"])
    novel = new & ~substituted
    requested = max(len(screened), planned or 0)
    absent = (("without a row in the screened table", requested - len(screened)),)
    known = [
        "matches a known crystal" if value is not None and value == value else "not compared with known crystals"
        for value in screened["novel"][unique & ~new]
    ]
    failed = [text if text != "ok" else "failed a check" for text in screened["status"][exists & ~valid]]
    return Funnel(
        (
            Step("Requested", "candidates planned", requested),
            Step(
                "Generated",
                "the sampler returned a crystal",
                int(exists.sum()),
                tally(screened["status"][~exists].tolist()) + (absent if absent[0][1] else ()),
            ),
            Step("Valid", "no atoms too close, sensible volume", int(valid.sum()), tally(failed)),
            Step(
                "Unique",
                "lowest-energy member of each group of matching candidates",
                int(unique.sum()),
                _one("matches a candidate of lower energy", int((valid & ~unique).sum())),
            ),
            Step(
                "Novel",
                "matches no crystal that the models learned from, and no known structure type that was tried",
                int(novel.sum()),
                tally(known) + _one("known structure type with other elements", int(substituted.sum())),
            ),
        )
    )


def _one(name: str, n: int) -> Reasons:
    return ((name, n),) if n else ()


def crystals_funnel(results: Results) -> Funnel | None:
    """From what the source offered to the crystals in CrysDB; None if neither stage has run."""
    if results.raw_rows is None and not results.crysdb_rows:
        return None
    steps = []
    raw, unread = results.raw_rows, results.raw_rejected
    if raw is not None:
        offered = raw + (0 if unread is None else len(unread))
        steps.append(Step("Offered", "crystals in the source", offered))
        steps.append(
            Step("Read", "usable crystals", raw, () if unread is None else tally(unread["reason"].tolist()))
        )
    if results.crysdb_rows:
        kept, rejected = sum(results.crysdb_rows.values()), results.crysdb_rejected
        lost = () if rejected is None else tally(rejected["reason"].tolist())
        if raw is not None and (rest := raw - kept - sum(n for _, n in lost)) > 0:
            lost += (("not accounted for", rest),)
        steps.append(Step("CrysDB", "clean, labelled crystals", kept, lost if raw is not None else ()))
    return Funnel(tuple(steps))
