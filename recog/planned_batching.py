"""
RETURNN's batching by a plan, see :mod:`recog.batches`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import IterDataPipe

from .batches import Batch

__all__ = ["PlannedBatching"]


class PlannedBatching:
    """RETURNN's ``torch_batching``: puts the utterances of the dataset, in its order, into the planned batches."""

    def __init__(self, batches: Sequence[Batch]):
        """
        :param batches: of this process
        """
        self.batch_of = {utt.seq_tag: number for number, batch in enumerate(batches) for utt in batch.utts}

    def __call__(self, dataset: Any, **_kwargs: Any) -> IterDataPipe:
        """
        :param dataset: yields utterances
        :return: yields batches, lists of utterances
        """
        return _BatchesOf(dataset, self.batch_of)


class _BatchesOf(IterDataPipe):
    """See :class:`PlannedBatching`."""

    def __init__(self, dataset: Any, batch_of: dict[str, int]):
        super().__init__()
        self._dataset = dataset
        self._batch_of = batch_of

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        current: list[dict[str, Any]] = []
        number = None
        for utterance in self._dataset:
            its = self._batch_of[str(utterance["seq_tag"])]
            if current and its != number:
                yield current
                current = []
            number = its
            current.append(utterance)
        if current:
            yield current
