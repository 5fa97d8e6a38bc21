"""What a look at a site finds: one line per thing looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Verdict:
    """One thing that was looked at."""

    level: Level
    """ok; warn: some campaigns will miss it; fail: nothing runs well before it is mended."""
    subject: str
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def ok(subject: str, found: str) -> Verdict:
    """All is well."""
    return Verdict("ok", subject, found)


def warn(subject: str, found: str, remedy: str) -> Verdict:
    """Some campaigns will miss it."""
    return Verdict("warn", subject, found, remedy)


def fail(subject: str, found: str, remedy: str) -> Verdict:
    """Nothing runs well before it is mended."""
    return Verdict("fail", subject, found, remedy)
