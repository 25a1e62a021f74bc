"""
Label prefixes of a beam, and which of them is an extension of which.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Prefixes"]

# Any odd multiplier with bits all over the word makes a good polynomial hash modulo 2^64.
_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)


class Prefixes:
    """
    [B, K] label sequences with a rolling 64-bit hash ``hash(g v) = hash(g) M + v + 1`` (modulo 2^64). Equal hashes only
    select candidates: labels are compared before two prefixes are taken for one.
    """

    def __init__(self, batch_size: int, beam_size: int, *, device: torch.device | str):
        """All prefixes are empty."""
        shape = (batch_size, beam_size)
        self.labels = torch.zeros((*shape, 16), dtype=torch.int64, device=device)  # zeros behind the end
        self.lengths = torch.zeros(shape, dtype=torch.int64, device=device)
        self.last = torch.full(shape, -1, dtype=torch.int64, device=device)
        self.hash = torch.zeros(shape, dtype=torch.int64, device=device)
        self.parent_hash = torch.ones(shape, dtype=torch.int64, device=device)
        self._num_extensions = 0

    def extend(self, utt: Tensor, parent: Tensor, label: Tensor, slot: Tensor) -> None:
        """
        Slot ``slot`` gets prefix ``parent`` plus ``label``; all arguments [N] int64, pairs (utt, slot) differ. Parents
        are read before anything is written.
        """
        self._num_extensions += 1  # at most one more label per call: no need to ask the device for the longest
        if self._num_extensions > self.labels.shape[2]:
            self.labels = torch.nn.functional.pad(self.labels, (0, self.labels.shape[2]))
        lengths = self.lengths[utt, parent]
        labels = self.labels[utt, parent].scatter(1, lengths[:, None], label[:, None])
        hashes = self.hash[utt, parent]
        self.labels[utt, slot] = labels
        self.lengths[utt, slot] = lengths + 1
        self.last[utt, slot] = label
        self.parent_hash[utt, slot] = hashes
        self.hash[utt, slot] = hashes * _MULTIPLIER + label + 1

    def find_parents(self, num_utts: int, *, alive: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param num_utts: only the first so many utterances
        :param alive: [num_utts, K] which slots hold a prefix
        :return: for each prefix the slot of the prefix that it extends by one label, [num_utts, K]; whether there is
            one
        """
        r = num_utts
        hashes, parents, lengths = self.hash[:r], self.parent_hash[:r], self.lengths[:r]
        match = hashes[:, None, :] == parents[:, :, None]  # [r, K child, K parent]
        match &= lengths[:, None, :] + 1 == lengths[:, :, None]
        match &= alive[:, None, :] & alive[:, :, None]
        found, slot = match.to(torch.uint8).max(dim=2)
        max_len = min(self._num_extensions, self.labels.shape[2])
        labels = self.labels[:r, :, :max_len]
        parent_labels = labels.gather(1, slot[:, :, None].expand_as(labels))
        position = torch.arange(max_len, device=labels.device)
        same = (parent_labels == labels) | (position >= lengths[:, :, None] - 1)
        return slot, found.bool() & same.all(dim=2)
