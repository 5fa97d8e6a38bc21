"""The same function on many independent items, on several processes, with results in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cpus() -> int:
    """CPU cores that this process may use: under Slurm the cores of the job, not of the node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_stream(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Generator[Result]:
    """``map(function, items)`` on up to ``workers`` processes, which start once; results come in order, early.

    ``function`` must be importable by name. Processes are spawned, not forked: torch's threads do not survive
    a fork. One worker, or one item, needs no process at all. Whoever leaves early waits for nothing.
    """
    workers = min(workers, available_cpus(), len(items))
    if workers <= 1:
        yield from map(function, items)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(function, items, chunksize=max(1, min(16, len(items) // (16 * workers))))
    finally:
        pool.shutdown(cancel_futures=True)


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """``[function(item) for item in items]`` on up to ``workers`` processes; the result is the same.

    ``function`` must be importable by name. Processes are spawned, not forked: torch's threads do not survive
    a fork. One worker, or one item, needs no process at all.
    """
    workers = min(workers, available_cpus(), len(items))
    if workers <= 1:
        return [function(item) for item in items]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, items, chunksize=max(1, len(items) // (16 * workers))))
