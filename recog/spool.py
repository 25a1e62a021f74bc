"""
Utterances on disk instead of in memory, while a run collects them: the n-best lists of a large corpus need gigabytes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from typing import BinaryIO

from .nbest import Hypothesis, Utterance

__all__ = ["UtteranceSpool"]


class UtteranceSpool:
    """
    Takes utterances in any order and gives them, as often as wanted, sorted by sequence tag. The file has no name: it
    is gone when the process is, however that ends.
    """

    def __init__(self, folder: str):
        """
        :param folder: for the file
        """
        self._folder = folder
        self._file: BinaryIO | None = None
        self._places: dict[str, int] = {}
        self._end = 0

    def add(self, utt: Utterance) -> None:
        """:param utt: of a new name"""
        assert utt.seq_tag not in self._places
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)
        line = json.dumps(asdict(utt)).encode() + b"\n"
        self._file.seek(self._end)
        self._file.write(line)
        self._places[utt.seq_tag] = self._end
        self._end += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, seq_tag: str) -> bool:
        return seq_tag in self._places

    def __iter__(self) -> Iterator[Utterance]:
        for tag in sorted(self._places):
            self._file.seek(self._places[tag])
            record = json.loads(self._file.readline())
            record["hyps"] = [Hypothesis(**hyp) for hyp in record["hyps"]]
            yield Utterance(**record)

    def close(self) -> None:
        """Forgets all."""
        if self._file is not None:
            self._file.close()
        self._file, self._places, self._end = None, {}, 0
