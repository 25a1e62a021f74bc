"""
A recognition run in several processes, each with a share ("shard") of the utterances, and how their results become the
n-best file that one process would have written.

Each shard is a run with a folder of its own, ``<output>/shards/<i>-of-<N>``, so it can be killed and started again
without the others. Whoever finishes last merges; should it be killed before that, any shard that is started again does
(or ``tools/merge_nbest.py``). Several may merge at the same time: they write the same bytes, under names of their own,
and rename.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .json_file import read_json_object
from .nbest import NBestHeader, Utterance, read_nbest
from .results import write_results

__all__ = [
    "AllFailedError",
    "Shard",
    "ShardError",
    "differences",
    "merge_shards",
    "read_record",
    "shard_counts",
    "unfinished_shards",
]

SHARDS = "shards"
NBEST_FILE = "nbest.jsonl"
RECORD_FILE = "options.json"
FREE_TO_DIFFER = frozenset(("data_dir", "num_workers", "overwrite", "shard"))
"""Options that may differ between the shards of a run, since the results do not depend on them."""


class ShardError(ValueError):
    """The shards cannot be merged (yet). The message says why and what to do."""


class AllFailedError(ShardError):
    """The run has no result: all its utterances have failed."""


@dataclass(frozen=True)
class Shard:
    """Which share."""

    index: int
    """1 ... count"""
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """
        :param text: "i/N"
        :raises ValueError: it is not, or there is no such share
        """
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"shard = {text!r}: expected i/N with i of 1 ... N, for example 2/4")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def folder(self, output_dir: str) -> str:
        """:return: of the results of this shard"""
        return os.path.join(output_dir, SHARDS, f"{self.index}-of-{self.count}")

    def others(self) -> list[Shard]:
        """:return: the other shards of this run"""
        return [Shard(i, self.count) for i in range(1, self.count + 1) if i != self.index]


def shard_counts(output_dir: str) -> list[int]:
    """:return: numbers of shards N for which there are folders of shards"""
    folder = os.path.join(output_dir, SHARDS)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return sorted({int(found[1]) for name in names if (found := re.fullmatch(r"\d+-of-(\d+)", name))})


def unfinished_shards(output_dir: str, count: int) -> list[Shard]:
    """:return: shards that have no results yet"""
    shards = [Shard(i, count) for i in range(1, count + 1)]
    return [shard for shard in shards if not os.path.isfile(os.path.join(shard.folder(output_dir), NBEST_FILE))]


def read_record(folder: str) -> dict[str, Any]:
    """
    :param folder: of a shard
    :return: its options and input files
    :raises ShardError: there is none
    """
    filename = os.path.join(folder, RECORD_FILE)
    try:
        return read_json_object(filename)
    except (OSError, ValueError) as exc:
        raise ShardError(f"{filename}, the record of the shard's options, cannot be read ({exc})") from None


def differences(mine: dict[str, Any], its: dict[str, Any]) -> list[str]:
    """:return: what differs between the records of two shards and should not, for messages"""
    return [
        f"{key}: {mine.get(key)!r} and {its.get(key)!r}"
        for key in sorted({*mine, *its} - FREE_TO_DIFFER)
        if mine.get(key) != its.get(key)
    ]


def merge_shards(output_dir: str, count: int) -> str:
    """
    Writes ``nbest.jsonl``, ``wer.json``, ``wer.txt`` and ``options.json`` of the whole run (and search_out.py, if the
    run has that option); the n-best file comes last.

    :param output_dir: of the run
    :param count: number of shards
    :return: WER table
    :raises ShardError: shards are missing, or not of the same run
    """
    if missing := unfinished_shards(output_dir, count):
        raise ShardError(
            f"{output_dir}: {len(missing)} of {count} shards are not finished:"
            f" {', '.join(map(str, missing))}. Run them with ++shard i/{count}."
        )
    shards = [Shard(i, count) for i in range(1, count + 1)]
    records = [_checked_record(shard, output_dir) for shard in shards]
    utterances = _AllUtterances(shards, output_dir)
    found, expected = utterances.check(), records[0]["plan"]["num_utterances"]
    if found != expected:
        raise ShardError(
            f"{output_dir}: the shards have {found} utterances together, but the corpus had {expected} when they were"
            " started: repeat them with ++overwrite True"
        )
    record = {key: value for key, value in records[0].items() if key not in ("plan", "shard")}
    with tempfile.TemporaryDirectory(prefix=".merge-", dir=output_dir) as folder:
        summary = write_results(
            folder,
            header=utterances.header,
            utterances=utterances,
            seconds=_sum_of_times(shards, output_dir),
            returnn_search_output=bool(record.get("returnn_search_output")),
            name=os.path.basename(os.path.abspath(output_dir)),
        )
        with open(os.path.join(folder, RECORD_FILE), "w", encoding="utf8") as file:
            json.dump({**record, "shard": None}, file, indent=2, sort_keys=True)
            file.write("\n")
        for name in sorted(os.listdir(folder), key=lambda name: name == NBEST_FILE):
            os.replace(os.path.join(folder, name), os.path.join(output_dir, name))
    return summary


def _checked_record(shard: Shard, output_dir: str) -> dict[str, Any]:
    """
    :return: record of a shard
    :raises ShardError: it is not of this shard, or not of the same run as the first one
    """
    folder = shard.folder(output_dir)
    record, first = read_record(folder), read_record(Shard(1, shard.count).folder(output_dir))
    plan = record.get("plan")
    if record.get("shard") != str(shard) or not isinstance(plan, dict) or type(plan.get("num_utterances")) is not int:
        raise ShardError(f"{os.path.join(folder, RECORD_FILE)} is not the record of shard {shard}")
    if different := differences(first, record):
        raise ShardError(
            f"{output_dir}: the shards 1/{shard.count} and {shard} are of different runs ({'; '.join(different)}):"
            " repeat the wrong one with ++overwrite True"
        )
    return record


class _AllUtterances:
    """The utterances of all shards, sorted by sequence tag, as they are in each shard. Read as a stream, each time."""

    def __init__(self, shards: list[Shard], output_dir: str):
        """:raises ShardError: the headers differ, or cannot be read"""
        self.files = {shard: os.path.join(shard.folder(output_dir), NBEST_FILE) for shard in shards}
        headers = {shard: self._read(shard)[0] for shard in shards}
        first = shards[0]
        self.header = replace(headers[first], options={**headers[first].options, "shard": None})
        """Of the whole run"""
        for shard in shards:
            free = {name: value for name, value in self.header.options.items() if name in FREE_TO_DIFFER}
            if replace(headers[shard], options={**headers[shard].options, **free}) != self.header:
                raise ShardError(
                    f"{self.files[shard]} has another header than that of shard {first}: repeat one of them"
                )

    def _read(self, shard: Shard) -> tuple[NBestHeader, Iterator[Utterance]]:
        try:
            return read_nbest(self.files[shard])
        except (OSError, ValueError) as exc:
            raise self._unreadable(shard, exc) from None

    @staticmethod
    def _unreadable(shard: Shard, exc: Exception) -> ShardError:
        return ShardError(f"{exc}: repeat shard {shard} with ++overwrite True")

    def _with_shard(self, shard: Shard) -> Iterator[tuple[str, Shard, Utterance]]:
        before = ""
        try:
            for utt in self._read(shard)[1]:
                if utt.seq_tag < before:
                    raise ValueError(f"{self.files[shard]}: {utt.seq_tag!r} comes behind {before!r}, but should before")
                before = utt.seq_tag
                yield utt.seq_tag, shard, utt
        except (OSError, ValueError) as exc:
            raise self._unreadable(shard, exc) from None

    def _merged(self) -> Iterator[tuple[str, Shard, Utterance]]:
        return heapq.merge(*map(self._with_shard, self.files), key=lambda item: item[0])

    def check(self) -> int:
        """
        :return: number of utterances
        :raises ShardError: one is in two shards, a file is damaged; :class:`AllFailedError`: no utterance is right
        """
        number, num_failed, before = 0, 0, (None, None)
        for tag, shard, utt in self._merged():
            if tag == before[0]:
                raise ShardError(f"utterance {tag!r} is in the shards {before[1]} and {shard}")
            before = tag, shard
            number += 1
            num_failed += utt.error is not None
        if number and num_failed == number:
            raise AllFailedError(f"all {number} utterances failed, see the n-best files of the shards")
        return number

    def __iter__(self) -> Iterator[Utterance]:
        return (utt for _, _, utt in self._merged())


def _sum_of_times(shards: list[Shard], output_dir: str) -> dict[str, float]:
    """
    :return: seconds of audio and of computing time of all shards
    :raises ShardError: a shard's wer.json is not as it was written
    """
    total = dict.fromkeys(("audio", "encoder", "search"), 0.0)
    for shard in shards:
        filename = os.path.join(shard.folder(output_dir), "wer.json")
        try:
            times = read_json_object(filename)["time"]
            for name in total:
                total[name] += float(times[f"{name}_seconds"])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise ShardError(f"{filename} cannot be read ({exc!r}): repeat shard {shard}") from None
    return total
