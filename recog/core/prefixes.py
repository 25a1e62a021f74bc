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
    [B, K] label sequences with a rolling 64-bit hash ``hash(g v) = hash(g) M + v + 1`` (modulo 2^64).

    A prefix that is made knows the slot of its parent. Only if a prefix comes back into the beam, extensions of it may
    be there: they are found by their hash, and labels are compared before two prefixes are taken for one.
    """

    compact: bool | None = None
    """Compare labels only where hashes are equal. Then the host must know at how many places: as is right for a CPU,
    which is what None means; other devices compare more, which costs them less than an answer to the host."""

    def __init__(self, batch_size: int, beam_size: int, *, device: torch.device | str):
        """The first slot of each utterance holds the empty prefix, the others nothing."""
        shape = (batch_size, beam_size)

        def new(value: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.int64, device=device)

        self.labels = torch.zeros((*shape, 16), dtype=torch.int64, device=device)  # zeros behind the end
        self.lengths, self.last, self.hash, self.parent_hash = new(0), new(-1), new(0), new(1)
        self.alive = torch.zeros(shape, dtype=torch.bool, device=device)
        self.alive[:, 0] = True
        self._parent_slot, self._has_parent = new(0), torch.zeros_like(self.alive)
        self._max_len = 0
        if self.compact is None:
            self.compact = self.labels.device.type == "cpu"

    def keep(self, kept: Tensor) -> None:
        """
        :param kept: [r, K] which slots of the first r utterances keep their prefix; the others hold nothing any more
        """
        r = kept.shape[0]
        self.alive[:r] = kept
        self._has_parent[:r].logical_and_(kept.gather(1, self._parent_slot[:r])).logical_and_(kept)

    def extend(self, utt: Tensor, parent: Tensor, label: Tensor, slot: Tensor) -> None:
        """
        Slot ``slot`` gets prefix ``parent`` plus ``label``, which is not in the beam.

        All arguments are [N] int64; pairs (utt, slot) differ and hold nothing. Parents are read before anything is
        written; they may be what :func:`keep` has just dropped.
        """
        beam_size = self.labels.shape[1]
        source, target = utt * beam_size + parent, utt * beam_size + slot
        lengths, hashes, has_parent = (
            x.view(-1).index_select(0, source) for x in (self.lengths, self.hash, self.alive)
        )
        # At most one more label per call, which needs no question to another device.
        self._max_len = int(lengths.max()) + 1 if self.compact else self._max_len + 1
        if self._max_len > self.labels.shape[2]:
            self.labels = torch.nn.functional.pad(self.labels, (0, self.labels.shape[2]))
        labels = self.labels.flatten(0, 1)
        labels.index_copy_(0, target, labels.index_select(0, source).scatter_(1, lengths[:, None], label[:, None]))
        new_hashes = hashes * _MULTIPLIER + label + 1
        for field, value in (
            (self.lengths, lengths + 1),
            (self.last, label),
            (self.parent_hash, hashes),
            (self.hash, new_hashes),
            (self.alive, torch.ones_like(has_parent)),
            (self._parent_slot, parent),
            (self._has_parent, has_parent),
        ):
            field.view(-1).index_copy_(0, target, value)
        self.adopt(utt, slot, new_hashes)

    def find_parents(self, num_utts: int) -> tuple[Tensor, Tensor]:
        """
        :param num_utts: only the first so many utterances
        :return: for each prefix the slot of the prefix that it extends by one label, [num_utts, K]; whether there is
            one
        """
        return self._parent_slot[:num_utts], self._has_parent[:num_utts]

    def adopt(self, utt: Tensor, slot: Tensor, hashes: Tensor) -> None:
        """
        Finds extensions of new prefixes among those of the beam without a parent. Part of :func:`extend`.

        :param utt: [N]
        :param slot: [N]
        :param hashes: [N] of the new prefixes
        """
        same_hash = self.parent_hash.index_select(0, utt) == hashes[:, None]  # [N, K]
        if self.compact:
            index, child = same_hash.nonzero(as_tuple=True)
            if not index.shape[0]:
                return
            utt, slot = utt[index], slot[index]
            child, found = (utt, child), torch.ones_like(index, dtype=torch.bool)
        else:
            # At most one new prefix has the hash: the sum is its slot + 1. (If not, the labels will differ.)
            places = torch.where(same_hash, slot[:, None] + 1, 0)
            places = torch.zeros_like(self.lengths).index_add_(0, utt, places)
            found, slot = places > 0, (places - 1).clamp(0, self.labels.shape[1] - 1)  # [B, K]
            utt = torch.arange(len(slot), device=slot.device)[:, None]
            child = (utt, torch.arange(slot.shape[1], device=slot.device))
        found &= self.alive[child] & ~self._has_parent[child]
        found &= self.lengths[child] == self.lengths[utt, slot] + 1
        position = torch.arange(self.labels.shape[2], device=utt.device)
        behind = position >= self.lengths[utt, slot][..., None]
        found &= ((self.labels[child] == self.labels[utt, slot]) | behind).all(dim=-1)
        self._parent_slot[child] = torch.where(found, slot, self._parent_slot[child])
        self._has_parent[child] = self._has_parent[child] | found
