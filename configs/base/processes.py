"""The processes of a run: one, or those that torchrun has started."""

from __future__ import annotations

import os

__all__ = ["num_processes", "rank"]


def rank() -> int:
    """:return: number of this process, from 0"""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """:return: how many torchrun has started, else 1"""
    return int(os.environ.get("WORLD_SIZE", "1"))
