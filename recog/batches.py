"""
Which utterances are searched together: planned before the run, so that every process of a run in several processes has
the same batches as one process would have. Float32 results depend on the batch in their last digits; whole batches as
the unit of sharing make the results of shards those of one process to the last bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Batch", "Utt", "fingerprint", "plan_batches", "share_out"]


@dataclass(frozen=True)
class Utt:
    """An utterance of the listing of a corpus."""

    seq_tag: str
    num_samples: int


@dataclass(frozen=True)
class Batch:
    """Utterances that are searched together."""

    utts: tuple[Utt, ...]

    @property
    def num_samples(self) -> int:
        """:return: of audio, without padding"""
        return sum(utt.num_samples for utt in self.utts)


def plan_batches(utts: Sequence[Utt], *, batch_size: int, max_seqs: int) -> list[Batch]:
    """
    :param utts: in the order of the dataset
    :param batch_size: samples in a batch, padding included; an utterance that is longer makes a batch of its own
    :param max_seqs: utterances in a batch
    :return: batches in this order, each as large as it can be (as RETURNN makes them)
    """
    batches: list[Batch] = []
    current: list[Utt] = []
    longest = 0
    for utt in utts:
        longest = max(longest, utt.num_samples)
        if current and (len(current) >= max_seqs or longest * (len(current) + 1) > batch_size):
            batches.append(Batch(tuple(current)))
            current, longest = [], utt.num_samples
        current.append(utt)
    if current:
        batches.append(Batch(tuple(current)))
    return batches


def share_out(batches: Sequence[Batch], num_shards: int) -> list[list[Batch]]:
    """
    :param batches:
    :param num_shards: at most as many as batches
    :return: batches of each shard, in their order. The shards have about the same amount of audio: the largest batch
        left goes to the shard that has least (Graham 1969: at most 4/3 of the best possible maximum).
    """
    shares: list[list[int]] = [[] for _ in range(num_shards)]
    loads = [0] * num_shards
    for index in sorted(range(len(batches)), key=lambda i: (-batches[i].num_samples, i)):
        shard = min(range(num_shards), key=lambda i: (loads[i], i))
        shares[shard].append(index)
        loads[shard] += max(batches[index].num_samples, 1)
    return [[batches[i] for i in sorted(share)] for share in shares]


def fingerprint(batches: Sequence[Batch]) -> str:
    """:return: hash of the utterances, their lengths and the batches: the same plan of the same data has the same"""
    digest = hashlib.sha256()
    for batch in batches:
        for utt in batch.utts:
            digest.update(f"{utt.seq_tag}\t{utt.num_samples}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()
