"""SIGTERM and SIGUSR1 as a request to save and leave, rather than a sudden end."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What a scheduler sends before its time limit, and what ``kill`` sends."""


class Interruptible:
    """Context in which ``requested`` turns true when one of ``SIGNALS`` arrives; old handlers come back after."""

    def __init__(self) -> None:
        self.requested = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True

    def __enter__(self) -> Interruptible:
        self._old = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
