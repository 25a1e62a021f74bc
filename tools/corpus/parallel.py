"""Work in several processes, the results in order, with bounded memory."""

from __future__ import annotations

import collections
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

__all__ = ["fresh_process_context", "parallel_map"]

Key, Job, Result = TypeVar("Key"), TypeVar("Job"), TypeVar("Result")


def fresh_process_context(preload: list[str]) -> multiprocessing.context.BaseContext:
    """
    :param preload: modules that all processes need
    :return: starts processes that have none of our threads and loaded libraries
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *preload])
    return context


def _ignore_interrupts() -> None:
    """Ctrl-C goes to all processes; only the first one shall say something."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def parallel_map(
    func: Callable[[Job], Result], jobs: Iterable[tuple[Key, Job]], *, workers: int
) -> Iterator[tuple[Key, Result]]:
    """
    :param func: of a module, so that other processes find it
    :param jobs: read as they are needed; key is anything
    :param workers: processes; 1: everything is done in this process
    :return: key and result, in order. At most two jobs per process are under way.
    :raises RuntimeError: a process died
    """
    if workers <= 1:
        for key, job in jobs:
            yield key, func(job)
        return
    context = fresh_process_context(["numpy", "soundfile"])
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_ignore_interrupts)
    under_way: collections.deque[tuple[Key, Future[Result]]] = collections.deque()
    try:
        for key, job in jobs:
            under_way.append((key, executor.submit(func, job)))
            if len(under_way) >= 2 * workers:
                key, future = under_way.popleft()
                yield key, future.result()
        while under_way:
            key, future = under_way.popleft()
            yield key, future.result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process died, perhaps for lack of memory: start again with fewer processes (--workers)"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
