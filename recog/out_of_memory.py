"""
Batches that do not fit into the memory.

RETURNN halves a batch and tries again (``forward_auto_split_batch_on_oom``) when torch reports that the memory of a GPU
is full. Forward steps with :func:`splits_when_out_of_memory` get the same on a CPU, as far as the operating system
reports at all that there is no memory left (with a limit such as ``ulimit -v``; without one, Linux rather kills).
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["first_line", "is_out_of_memory", "splits_when_out_of_memory"]

# What torch says if the memory of a CPU, or a library for GPUs, has no memory left; it is a plain RuntimeError.
_MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "Cannot allocate memory",
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN
)


def is_out_of_memory(exc: BaseException) -> bool:
    """:return: whether a smaller batch would help"""
    if isinstance(exc, (MemoryError, torch.OutOfMemoryError)):  # NumPy has a subclass of MemoryError
        return True
    return isinstance(exc, RuntimeError) and any(message in str(exc) for message in _MESSAGES)


def splits_when_out_of_memory(forward_step: Callable[..., None]) -> Callable[..., None]:
    """
    :param forward_step: RETURNN's
    :return: the same, which raises torch's OutOfMemoryError on any device, so that RETURNN splits the batch
    """

    @functools.wraps(forward_step)
    def step(**kwargs: Any) -> None:
        try:
            forward_step(**kwargs)
            return
        except (RuntimeError, MemoryError) as exc:
            if isinstance(exc, torch.OutOfMemoryError) or not is_out_of_memory(exc):
                raise
            message = first_line(exc)
            traceback.clear_frames(exc.__traceback__)  # their tensors
        raise torch.OutOfMemoryError(message)

    return step


def first_line(exc: BaseException) -> str:
    """:return: of the message"""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
