"""Print the fault table of the Materials Project download: ``python -m tests.sources.fault_table``."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path

from tests.sources.faults import COUNT, FAULTS, Outcome, run


def ending(outcome: Outcome) -> str:
    """How the commands ended, without messages."""
    return ", ".join(text.partition(":")[0] for text in outcome.runs)


def happened(outcome: Outcome) -> str:
    """What the first command said: its message, else its first warning."""
    message = outcome.runs[0].partition(": ")[2] or next(iter(outcome.log), "nothing")
    text = re.sub(r"127\.0\.0\.1(:\d+)?", "SERVER", " ".join(message.split())).replace("|", "/")
    return text if len(text) <= 90 else f"{text[:87]}..."


def table() -> str:
    """One row per fault, as Markdown."""
    lines = [
        f"{COUNT} crystals in chunks of 10, lists in pages of 20; the fault comes in the midst of it.",
        "",
        "| fault | what the download says | commands | requests | rows | rejected | rows lost | rows twice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            outcome = run(fault, Path(folder))
        rejected = ", ".join(f"{n} {reason}" for reason, n in outcome.rejected.items()) or "0"
        requests = " + ".join(map(str, outcome.requests))
        counts = (
            f"{outcome.rows} | {rejected} | {outcome.missing} | {outcome.twice}"
            if outcome.rows
            else "no table | | |"
        )
        lines.append(f"| {fault.name} | {happened(outcome)} | {ending(outcome)} | {requests} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.getLogger().addHandler(logging.NullHandler())
    print(table())
