"""
Label prefixes of a beam, and which of them is an extension of which.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Prefixes"]

# Any odd multiplier with bits all over the word makes a good polynomial hash modulo 2^64.
_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
_NOBODY = 0x1B873593CC9E2D51  # hash of slots without a prefix


class Prefixes:
    """
    [B, K] label sequences with a rolling 64-bit hash ``hash(g v) = hash(g) M + v + 1`` (modulo 2^64). Equal hashes only
    select candidates: labels are compared before two prefixes are taken for one. That is needed only where a parent has
    come back into the beam: who was made from a prefix that is still there knows it.
    """

    compact: bool | None = None
    """Compare labels only where needed. Then the host must know at how many places: as is right for a CPU, which is
    what None means; other devices compare all, which costs them less than an answer to the host."""

    def __init__(self, batch_size: int, beam_size: int, *, device: torch.device | str):
        """The first slot of each utterance holds the empty prefix, the others nothing."""
        shape = (batch_size, beam_size)

        def new(value: int) -> Tensor:
            return torch.full(shape, value, dtype=torch.int64, device=device)

        self.labels = torch.zeros((*shape, 16), dtype=torch.int64, device=device)  # zeros behind the end
        self.lengths, self.last, self.hash, self.parent_hash = new(0), new(-1), new(0), new(1)
        self._nobody = new(_NOBODY)
        self.alive = torch.zeros(shape, dtype=torch.bool, device=device)
        self.alive[:, 0] = True
        # What find_parents returns; updated when prefixes go or come.
        self._parent_slot, self._has_parent = new(0), torch.zeros_like(self.alive)
        # Each prefix that comes gets a new number, also one that was there before; the parent's, as far as known.
        self._number, self._parent_number = new(-1), new(-2)
        self._num_numbers = self._max_len = 0
        if self.compact is None:
            self.compact = self.labels.device.type == "cpu"

    def keep(self, kept: Tensor) -> None:
        """
        :param kept: [r, K] which slots of the first r utterances keep their prefix; the others hold nothing any more
        """
        r = kept.shape[0]
        self.alive[:r] = kept
        self._has_parent[:r] &= kept & kept.gather(1, self._parent_slot[:r])

    def extend(self, utt: Tensor, parent: Tensor, label: Tensor, slot: Tensor) -> None:
        """
        Slot ``slot`` gets prefix ``parent`` plus ``label``; all arguments [N] int64, pairs (utt, slot) differ. Parents
        are read before anything is written; they may be what :func:`keep` has just dropped.
        """
        beam_size = self.labels.shape[1]
        source, target = utt * beam_size + parent, utt * beam_size + slot
        lengths, hashes, numbers = (x.view(-1).index_select(0, source) for x in (self.lengths, self.hash, self._number))
        # At most one more label per call, which needs no question to another device.
        self._max_len = int(lengths.max()) + 1 if self.compact else self._max_len + 1
        if self._max_len > self.labels.shape[2]:
            self.labels = torch.nn.functional.pad(self.labels, (0, self.labels.shape[2]))
        labels = self.labels.flatten(0, 1)
        labels.index_copy_(0, target, labels.index_select(0, source).scatter_(1, lengths[:, None], label[:, None]))
        first, self._num_numbers = self._num_numbers, self._num_numbers + utt.shape[0]
        for field, value in (
            (self.lengths, lengths + 1),
            (self.last, label),
            (self.parent_hash, hashes),
            (self.hash, hashes * _MULTIPLIER + label + 1),
            (self._parent_number, numbers),
            (self._number, torch.arange(first, self._num_numbers, device=utt.device)),
            (self.alive, torch.ones_like(utt, dtype=torch.bool)),
        ):
            field.view(-1).index_copy_(0, target, value)
        self.match()

    def find_parents(self, num_utts: int) -> tuple[Tensor, Tensor]:
        """
        :param num_utts: only the first so many utterances
        :return: for each prefix the slot of the prefix that it extends by one label, [num_utts, K]; whether there is
            one
        """
        return self._parent_slot[:num_utts], self._has_parent[:num_utts]

    def match(self) -> None:
        """Finds the parents of all prefixes, for :func:`find_parents`. Done by :func:`extend`."""
        # Binary search in the sorted hashes: less than comparing all with all.
        hashes, order = self.hash.where(self.alive, self._nobody).sort(dim=1)
        place = torch.searchsorted(hashes, self.parent_hash).clamp_(max=hashes.shape[1] - 1)
        slot = order.gather(1, place)
        found = hashes.gather(1, place).eq(self.parent_hash).logical_and_(self.alive)
        number = self._number.gather(1, slot)
        unknown = number.ne(self._parent_number).logical_and_(found)
        if self.compact:
            utt, child = unknown.nonzero(as_tuple=True)
            if utt.numel():
                same = self._extends(
                    self.labels[utt, child],
                    self.lengths[utt, child],
                    self.labels[utt, slot[utt, child]],
                    self.lengths[utt, slot[utt, child]],
                )
                found[utt, child] = same
                self._parent_number[utt, child] = torch.where(same, number[utt, child], -2)
        else:
            parents = self.labels.gather(1, slot[:, :, None].expand_as(self.labels))
            same = self._extends(self.labels, self.lengths, parents, self.lengths.gather(1, slot))
            found &= same | ~unknown
        self._parent_slot, self._has_parent = slot, found

    @staticmethod
    def _extends(labels: Tensor, lengths: Tensor, parents: Tensor, parent_lengths: Tensor) -> Tensor:
        """:return: [...] whether labels [..., L] are the parents [..., L] and one label more"""
        position = torch.arange(labels.shape[-1], device=labels.device)
        same = (labels == parents) | (position >= parent_lengths[..., None])
        return same.all(dim=-1) & (parent_lengths + 1 == lengths)
