"""Progress for people and for log files: a bar on a terminal, one heartbeat line per minute elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

HEARTBEAT_SECONDS = 60.0

_log = logging.getLogger("dao_pipeline")


class Reporter:
    """Counts work done; use as a context manager. ``note`` is a short text such as the current loss.

    ``quiet``: count, but say nothing, as the second of several processes should.
    """

    def __init__(self, label: str, total: int, done: int = 0, *, quiet: bool = False) -> None:
        self.label, self.total, self.done = label, total, done
        self._first, self._started = done, time.monotonic()
        self._last_beat = self._started
        self._quiet = quiet
        self._bar: Progress | None = None
        if sys.stderr.isatty() and not quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._task = self._bar.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Reporter:
        if self._bar is not None:
            self._bar.start()
        elif not self._quiet:
            _log.info("%s: starts at %d of %d", self.label, self.done, self.total)
        return self

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count ``amount`` more units of work."""
        self.done += amount
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=note)
        elif not self._quiet and time.monotonic() - self._last_beat >= HEARTBEAT_SECONDS:
            self._last_beat = time.monotonic()
            rate = (self.done - self._first) / (self._last_beat - self._started)
            left = (self.total - self.done) / rate / 60 if rate > 0 else float("nan")
            _log.info(
                "%s: %d of %d, %.3g per second, about %.1f min left %s",
                self.label,
                self.done,
                self.total,
                rate,
                left,
                note,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        seconds = time.monotonic() - self._started
        state = "done" if kind is None else "stopped"
        if not self._quiet:
            _log.info("%s: %s at %d of %d after %.1f s", self.label, state, self.done, self.total, seconds)
