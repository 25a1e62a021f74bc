"""
Progress with time left, for work that takes longer than some seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Progress", "format_seconds"]


def format_seconds(seconds: float) -> str:
    """:return: e.g. "0:04" or "1:02:03" """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Progress:
    """Prints a line every few seconds: what is done, how much, time left. Nothing if all is done before."""

    def __init__(
        self,
        what: str,
        *,
        interval: float = 5.0,
        stream: Callable[[], Any] = lambda: sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        :param what: beginning of each line
        :param interval: seconds between two lines
        :param stream: returns where to print to
        :param clock: seconds
        """
        self.what = what
        self.interval = interval
        self.stream = stream
        self.clock = clock
        self.start_time: float | None = None
        self.start_fraction = 0.0
        self.last_time = 0.0

    def update(self, fraction: float, detail: str = "") -> None:
        """
        :param fraction: done, 0 ... 1. The time left is estimated from the time since the first call.
        :param detail: printed behind it
        """
        now = self.clock()
        if self.start_time is None:
            self.start_time, self.start_fraction, self.last_time = now, fraction, now
            return
        if now - self.last_time < self.interval or fraction <= self.start_fraction:
            return
        self.last_time = now
        elapsed = now - self.start_time
        left = elapsed * (1.0 - fraction) / (fraction - self.start_fraction)
        detail = f", {detail}" if detail else ""
        print(
            f"{self.what}: {100 * fraction:.0f} %{detail}, {format_seconds(elapsed)} so far,"
            f" about {format_seconds(left)} left",
            file=self.stream(),
            flush=True,
        )
