"""
Packing a part of a corpus into the zip file that RETURNN's OggZipDataset reads, and the manifest of a prepared corpus.

``<part>.zip`` holds ``<part>.txt``, a Python literal: list of dicts with text, duration (seconds), file and seq_name
(``<part>/<utterance id>``), and the audio files below ``<part>/``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from recog.prepared_corpus import ListedUtterance, PreparedCorpusError, format_listing, iter_listing, read_manifest
from recog.progress import Progress

from .parallel import parallel_map

__all__ = ["CorpusError", "Item", "Manifest", "PartInfo", "pack_part", "part_texts", "summary_table"]

_ZIP_TIME = (2000, 1, 1, 0, 0, 0)  # the same corpus makes the same zip


class CorpusError(Exception):
    """Something is wrong with the source or the target; the message says what, where and what to do."""


@dataclass
class Item:
    """An utterance, ready to be packed, or what is wrong with it."""

    name: str
    """Utterance id, or what else the problem is about."""
    text: str = ""
    audio: bytes = b""
    """Content of a file."""
    extension: str = "flac"
    duration: float = 0.0
    """Seconds."""
    problem: str | None = None


@dataclass
class PartInfo:
    """What the manifest says of a part."""

    file: str
    num_seqs: int
    num_words: int
    hours: float
    expected_num_seqs: int | None
    """The published number."""
    complete: bool
    """Nothing was left out, and the number of utterances is the published one, if there is one."""
    skipped: list[str] = field(default_factory=list)
    """Names and problems of what was left out with --skip-broken."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the part depends on."""


class Manifest:
    """``corpus.json`` of a prepared corpus, rewritten whenever something is finished."""

    def __init__(self, folder: str, corpus: str, *, created_by: str):
        """
        :param folder:
        :param corpus: "librispeech", "tedlium2" or "demo"
        :param created_by: tool and version, for the record
        :raises CorpusError: the folder holds another corpus
        """
        self.filename = os.path.join(folder, "corpus.json")
        self.folder = folder
        self.content: dict[str, Any] = {"format": 1, "corpus": corpus, "parts": {}, "vocabs": {}, "lm_texts": {}}
        if os.path.isfile(self.filename):
            try:
                before = read_manifest(self.filename)
            except PreparedCorpusError as exc:
                raise CorpusError(f"{exc}: it is damaged, remove it and start again") from None
            what = before["corpus"], before["format"]
            if what != (corpus, 1):
                raise CorpusError(
                    f"{folder} holds the corpus {what[0]!r} (format {what[1]}), not {corpus!r}: choose another folder"
                )
            self.content.update(before)
        self.content["created_by"] = created_by

    def part(self, part: str) -> PartInfo | None:
        """:return: a part that was made before, if its file is there"""
        entry = self.content["parts"].get(part)
        if entry is None or not os.path.isfile(os.path.join(self.folder, entry.get("file", ""))):
            return None
        if set(entry) != {f.name for f in fields(PartInfo)}:  # by another version
            return None
        return PartInfo(**entry)

    def set(self, kind: str, name: str, entry: dict[str, Any]) -> None:
        """
        Enters something and writes the file.

        :param kind: "parts", "vocabs" or "lm_texts"
        :param name:
        :param entry:
        """
        self.content[kind][name] = entry
        with open(self.filename + ".tmp", "w", encoding="utf8") as file:
            json.dump(self.content, file, indent=2, sort_keys=True)
            file.write("\n")
        os.replace(self.filename + ".tmp", self.filename)


class _PartZip:
    """The zip file of a part while it grows, under a temporary name."""

    def __init__(self, filename: str, part: str):
        self.part = part
        self.listing: list[ListedUtterance] = []
        self.names: set[str] = set()
        self.num_words, self.seconds = 0, 0.0
        self._archive = zipfile.ZipFile(filename, "w", zipfile.ZIP_STORED)

    def add(self, item: Item) -> str | None:
        """:return: the problem, if it was not added"""
        if item.problem is not None:
            return item.problem
        if item.name in self.names:
            return "there is another utterance of this name"
        if not re.fullmatch(r"[\w.+:-]+", item.name):
            return "a name with unusual characters"
        self.names.add(item.name)
        file = f"{item.name}.{item.extension}"
        self._write(f"{self.part}/{file}", item.audio)
        seq_name = f"{self.part}/{item.name}"
        self.listing.append(ListedUtterance(item.text, item.duration, file, seq_name))
        self.num_words += len(item.text.split())
        self.seconds += item.duration
        return None

    def finish(self) -> None:
        """Writes the listing."""
        self._write(f"{self.part}.txt", format_listing(self.listing))
        self._archive.close()

    def abandon(self) -> None:
        """Closes the file, which is then of no use."""
        with contextlib.suppress(OSError, ValueError):  # the disk may be full
            self._archive.close()

    def _write(self, name: str, content: bytes) -> None:
        info = zipfile.ZipInfo(name, _ZIP_TIME)
        info.create_system = 3  # Unix, also where it is made elsewhere
        info.external_attr = 0o644 << 16
        self._archive.writestr(info, content)


def pack_part(
    manifest: Manifest,
    part: str,
    jobs: Iterable[tuple[float, Any]],
    make_items: Callable[[Any], list[Item]],
    *,
    options: dict[str, Any],
    expected_num_seqs: int | None,
    skip_broken: bool,
    subset: int | None,
    workers: int,
) -> tuple[PartInfo | None, list[str]]:
    """
    Packs a part: items are made in parallel, the zip is written in order and gets its name when it is complete.

    :param manifest:
    :param part: name
    :param jobs: what make_items gets, one after the other (a chapter, a recording), each with the fraction of the part
        that is done with it
    :param make_items: run in other processes
    :param options: what the part depends on, for the record
    :param expected_num_seqs: published number of utterances
    :param skip_broken: leave out utterances with problems; otherwise a part with problems is not made
    :param subset: only the first so many utterances
    :param workers: processes
    :return: the part (None if there were problems), list of problems
    :raises CorpusError: no utterance at all
    """
    filename = os.path.join(manifest.folder, f"{part}.zip")
    problems: list[str] = []
    progress = Progress(part)
    progress.update(0.0)
    archive = _PartZip(filename + ".tmp", part)
    results = parallel_map(make_items, jobs, workers=workers)
    try:
        for fraction, items in results:
            for item in items:
                if subset is not None and len(archive.listing) >= subset:
                    break
                problem = archive.add(item)
                if problem is not None:
                    problems.append(f"{part}/{item.name}: {problem}")
            if subset is not None:
                if len(archive.listing) >= subset:
                    break
                fraction = max(fraction, len(archive.listing) / subset)
            progress.update(fraction, f"{len(archive.listing)} utterances, {len(problems)} with problems")
        archive.finish()
        if not archive.listing and not problems:
            raise CorpusError(f"{part}: there is no utterance in it")
        if not archive.listing or (problems and not skip_broken):
            return None, problems
        os.replace(filename + ".tmp", filename)
    finally:
        results.close()  # before the file is removed: ends the processes
        archive.abandon()
        if os.path.exists(filename + ".tmp"):
            os.remove(filename + ".tmp")
    num_seqs = len(archive.listing)
    info = PartInfo(
        file=os.path.basename(filename),
        num_seqs=num_seqs,
        num_words=archive.num_words,
        hours=archive.seconds / 3600,
        expected_num_seqs=expected_num_seqs,
        complete=subset is None and not problems and expected_num_seqs in (None, num_seqs),
        skipped=problems,
        options=options,
    )
    manifest.set("parts", part, asdict(info))
    return info, problems


def part_texts(zip_file: str) -> Iterator[str]:
    """
    :param zip_file: a packed part
    :return: the texts of all utterances
    :raises CorpusError: damaged
    """
    try:
        for utterance in iter_listing(zip_file):
            yield utterance.text
    except PreparedCorpusError as exc:
        raise CorpusError(f"{exc}: it is damaged, remove it and start again") from None


def summary_table(infos: dict[str, PartInfo]) -> str:
    """
    :param infos: part -> what is known of it
    :return: table of all parts; differences to the published numbers of utterances are marked
    """
    rows = [("part", "utterances", "published", "words", "hours", "left out", "")]
    for part, info in [*infos.items(), *_sum_of_train(infos)]:
        subset = info.options.get("subset")
        note = ""
        if info.expected_num_seqs not in (None, info.num_seqs):
            note = "subset" if subset else "DIFFERS from the published number"
        expected = "-" if info.expected_num_seqs is None else f"{info.expected_num_seqs:,}"
        counts = (f"{info.num_seqs:,}", expected, f"{info.num_words:,}", f"{info.hours:.2f}", str(len(info.skipped)))
        rows.append((part, *counts, note))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for name, *counts, note in rows:
        cells = [cell.rjust(width) for cell, width in zip(counts, widths[1:-1], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, note]).rstrip())
    return "\n".join(lines)


def _sum_of_train(infos: dict[str, PartInfo]) -> Iterator[tuple[str, PartInfo]]:
    """:return: a row for all train parts together, if there are several"""
    train = [info for part, info in infos.items() if part.startswith("train")]
    if len(train) < 2:
        return
    expected = [info.expected_num_seqs for info in train]
    yield (
        "all train",
        PartInfo(
            file="",
            num_seqs=sum(info.num_seqs for info in train),
            num_words=sum(info.num_words for info in train),
            hours=sum(info.hours for info in train),
            expected_num_seqs=None if None in expected else sum(n for n in expected if n),
            complete=all(info.complete for info in train),
            skipped=[problem for info in train for problem in info.skipped],
            options=train[0].options,
        ),
    )
