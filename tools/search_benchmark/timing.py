"""
CPU time of several methods that do the same, and memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from unittest import mock

__all__ = ["alternate", "cpu_seconds", "peak_memory", "timed_methods"]


def cpu_seconds(method: Callable[[], object], *, repeats: int = 1) -> float:
    """:return: CPU seconds of one call, of all threads of this process"""
    start = time.process_time()
    for _ in range(repeats):
        method()
    return (time.process_time() - start) / repeats


def alternate(
    methods: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    repeats: Mapping[str, int] | int = 1,
    warm_up: bool = True,
) -> dict[str, float]:
    """
    Runs the methods in turn, so that what else happens on the machine meets all of them alike.

    :param methods: by name
    :param rounds: how often each is measured
    :param repeats: calls per measurement, of all or by name, for methods that are too short for the clock
    :param warm_up: one call of each before the first round
    :return: median CPU seconds of one call, by name
    """
    if isinstance(repeats, int):
        repeats = dict.fromkeys(methods, repeats)
    if warm_up:
        for method in methods.values():
            method()
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    names = list(methods)
    for i in range(rounds):
        for name in names if i % 2 == 0 else reversed(names):
            seconds[name].append(cpu_seconds(methods[name], repeats=repeats[name]))
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextlib.contextmanager
def timed_methods(cls: type, names: Sequence[str]) -> Iterator[dict[str, float]]:
    """
    :param cls:
    :param names: of its methods
    :return: CPU seconds spent in each of them inside of the with block, by name
    """
    seconds = dict.fromkeys(names, 0.0)

    def timed(name: str) -> Callable[..., object]:
        method = getattr(cls, name)

        def call(*args: object, **kwargs: object) -> object:
            start = time.process_time()
            try:
                return method(*args, **kwargs)
            finally:
                seconds[name] += time.process_time() - start

        return call

    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(cls, name, timed(name)))
        yield seconds


def peak_memory(method: Callable[[], object]) -> int | None:
    """
    :return: bytes by which the resident memory of this process grew at most while the method ran; None where the system
        does not tell (it needs Linux)
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is needed now
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # resets the peak
        before = _status("VmRSS")
        method()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(key: str) -> int:
    """:return: bytes, from the system's description of this process"""
    with open("/proc/self/status") as file:
        match = re.search(rf"^{key}:\s*(\d+) kB", file.read(), re.MULTILINE)
    if not match:
        raise OSError(f"no {key}")
    return int(match[1]) * 1024
