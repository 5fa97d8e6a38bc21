"""Print the fault table of the Materials Project download: ``python -m tests.sources.fault_table``."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from tests.sources.faults import COUNT, FAULTS, Outcome, run


def ending(outcome: Outcome) -> str:
    """How the commands ended, without messages."""
    return ", ".join(text.partition(":")[0] for text in outcome.runs)


def table() -> str:
    """One row per fault, as Markdown."""
    lines = [
        f"{COUNT} crystals in chunks of 10, lists in pages of 20; the fault comes in the midst of it.",
        "",
        "| fault | what happened | commands | requests | rows | rejected | rows lost | rows twice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(fault, Path(folder))
        rejected = ", ".join(f"{n} {reason}" for reason, n in outcome.rejected.items()) or "0"
        requests = " + ".join(map(str, outcome.requests))
        lines.append(
            f"| {fault.name} | {fault.said or 'nothing'} | {ending(outcome)} | {requests} | {outcome.rows} "
            f"| {rejected} | {outcome.missing} | {outcome.twice} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    logging.disable()
    print(table())
