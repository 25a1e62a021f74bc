"""
Operations that would make the host wait for a GPU, counted while a method runs on the CPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recog.core.ctc_prefix import CtcPrefixScorer
from recog.core.prefixes import Prefixes
from recog.scorers.attention import AttentionScorer

__all__ = ["count_syncs"]

_SYNCS = {
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.masked_select.default: "masked_select",
    torch.ops.aten.equal.default: "equal",
    torch.ops.aten.repeat_interleave.Tensor: "repeat_interleave",
}
_INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default}


class _Counter(TorchDispatchMode):
    """Tensors with which an index is a mask count as nonzero: that is what indexing does first."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SYNCS:
            self.counts[_SYNCS[func]] += 1
        elif func in _INDEXING:
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            self.counts["index by mask"] += len(masks)
        return func(*args, **(kwargs or {}))


def count_syncs(method: Callable[[], object]) -> dict[str, int]:
    """
    :param method: uses torch. ``Tensor.tolist`` is counted, too. Where our code takes another way on a CPU, because
        numbers are on the host anyway, it takes that of other devices.
    :return: number of calls by kind, those that occur
    """
    original = torch.Tensor.tolist
    counter = _Counter()

    def tolist(self: torch.Tensor) -> Any:
        counter.counts["tolist"] += 1
        return original(self)

    with (
        mock.patch.object(torch.Tensor, "tolist", tolist),
        mock.patch.object(AttentionScorer, "on_cpu", False),
        mock.patch.object(Prefixes, "compact", False),
        mock.patch.object(CtcPrefixScorer, "cut_frames", False),
        counter,
    ):
        method()
    return {key: value for key, value in counter.counts.items() if value}
