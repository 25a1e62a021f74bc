"""
Audio that is too long for the memory: an error of its utterance, not the end of the run.

Self-attention needs memory for each pair of encoder frames. A GPU reports that there is none left; on a CPU, the
operating system would end the process. So there, the need is estimated before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch

from rf_models.options import SAMPLE_RATE, AedCtcOptions

__all__ = ["attention_bytes", "available_bytes", "memory_problem"]

_TENSORS = 8
"""Tensors of [heads, frames, frames] float32 that exist at the same time in self-attention with relative positions, at
most. Measured with tests/long_utterance.py (10,009 frames, 4 heads, CPU): 7.2."""
_CGROUPS = "/sys/fs/cgroup"
_ALWAYS_ENOUGH = 1 << 30
"""Less is not looked at."""


def attention_bytes(opts: AedCtcOptions, num_samples: int) -> int:
    """
    :param opts: of the model
    :param num_samples: of one utterance
    :return: estimate of what a layer of self-attention needs at most
    """
    return 4 * _TENSORS * opts.enc_num_heads * opts.num_encoder_frames(num_samples) ** 2


def available_bytes() -> int | None:
    """:return: memory that this process can still get without swapping; None: not known (not Linux)"""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return min([available, *_cgroup_bytes()])


def _cgroup_bytes() -> Iterator[int]:
    """:return: what limits of a container or a job leave (cgroup v2), the page cache that can be dropped included"""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            (own,) = [line.split(":", 2)[2].strip() for line in file if line.startswith("0::")]
    except (OSError, ValueError):
        return
    folder = os.path.join(_CGROUPS, own.lstrip("/"))
    while folder.startswith(_CGROUPS):
        try:
            with open(os.path.join(folder, "memory.max"), encoding="ascii") as file:
                limit = int(file.read())
            with open(os.path.join(folder, "memory.current"), encoding="ascii") as file:
                used = int(file.read())
            with open(os.path.join(folder, "memory.stat"), encoding="ascii") as file:
                cache = dict(line.split() for line in file).get("inactive_file", 0)
            yield limit - used + int(cache)
        except (OSError, ValueError):  # not there, or "max"
            pass
        folder = os.path.dirname(folder)


def memory_problem(opts: AedCtcOptions, num_samples: int, device: torch.device) -> str | None:
    """
    :param opts: of the model
    :param num_samples: of one utterance
    :param device: where it will be encoded
    :return: why that cannot work. None: it can, as far as is known
    """
    needed = attention_bytes(opts, num_samples)
    if device.type != "cpu" or needed < _ALWAYS_ENOUGH:
        return None
    available = available_bytes()
    if available is None or needed < available:
        return None
    return (
        f"not enough memory for {num_samples / SAMPLE_RATE:.0f} s of audio: the encoder needs about"
        f" {needed / 2**30:.1f} GiB, {max(available, 0) / 2**30:.1f} GiB are left. Cut it at silence"
    )
