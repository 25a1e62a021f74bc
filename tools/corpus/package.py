"""
Packing a part of a corpus into the zip file that RETURNN's OggZipDataset reads, and the manifest of a prepared corpus.

``<part>.zip`` holds ``<part>.txt``, a Python literal: list of dicts with text, duration (seconds), file and seq_name
(``<part>/<utterance id>``), and the audio files below ``<part>/``.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy
import soundfile

from recog.progress import Progress

__all__ = ["CorpusError", "Item", "Manifest", "PartInfo", "audio_problem", "encode_audio", "pack_part", "summary_table"]

SAMPLE_RATE = 16_000
_ZIP_TIME = (2000, 1, 1, 0, 0, 0)  # the same corpus makes the same zip
_AUDIO_FORMATS = {"flac": dict(format="FLAC", subtype="PCM_16"), "ogg": dict(format="OGG", subtype="VORBIS")}


class CorpusError(Exception):
    """Something is wrong with the source or the target; the message says what, where and what to do."""


@dataclass
class Item:
    """An utterance, ready to be packed, or what is wrong with it."""

    name: str
    text: str = ""
    audio: bytes = b""
    extension: str = "flac"
    duration: float = 0.0
    problem: str | None = None


@dataclass
class PartInfo:
    """What the manifest says of a part."""

    file: str
    num_seqs: int
    num_words: int
    hours: float
    expected_num_seqs: int | None
    skipped: list[str] = field(default_factory=list)
    """Names and problems of what was left out with --skip-broken."""
    options: dict[str, Any] = field(default_factory=dict)


class Manifest:
    """``corpus.json`` of a prepared corpus, rewritten after each finished part."""

    def __init__(self, folder: str, corpus: str):
        """
        :param folder:
        :param corpus: "librispeech", "tedlium2" or "demo"
        :raises CorpusError: the folder holds another corpus
        """
        self.filename = os.path.join(folder, "corpus.json")
        self.folder = folder
        self.content: dict[str, Any] = {"format": 1, "corpus": corpus, "parts": {}, "vocabs": {}, "lm_texts": {}}
        if os.path.isfile(self.filename):
            with open(self.filename, encoding="utf8") as file:
                try:
                    before = json.load(file)
                except ValueError:
                    raise CorpusError(f"{self.filename} is damaged: remove it and start again") from None
            if before.get("corpus") != corpus or before.get("format") != 1:
                raise CorpusError(
                    f"{folder} holds the corpus {before.get('corpus')!r} (format {before.get('format')}), not"
                    f" {corpus!r}: choose another target folder"
                )
            self.content.update(before)

    def finished_part(self, part: str, options: dict[str, Any]) -> PartInfo | None:
        """:return: a part that was made before with the same options, if its file is there"""
        entry = self.content["parts"].get(part)
        if entry is None or entry["options"] != json.loads(json.dumps(options)):
            return None
        if not os.path.isfile(os.path.join(self.folder, entry["file"])):
            return None
        return PartInfo(**entry)

    def set(self, kind: str, name: str, entry: dict[str, Any]) -> None:
        """Enters a part, vocabulary or LM text, and writes the file."""
        self.content[kind][name] = entry
        with open(self.filename + ".tmp", "w", encoding="utf8") as file:
            json.dump(self.content, file, indent=2, sort_keys=True)
            file.write("\n")
        os.replace(self.filename + ".tmp", self.filename)


def audio_problem(audio: numpy.ndarray, sample_rate: int) -> str | None:
    """
    :param audio: [samples] or [samples, channels]
    :param sample_rate: Hz
    :return: what is wrong with it
    """
    if sample_rate != SAMPLE_RATE:
        return f"sample rate {sample_rate} Hz instead of {SAMPLE_RATE} Hz"
    if audio.ndim != 1:
        return f"{audio.shape[1]} channels instead of one"
    if not len(audio):
        return "no samples"
    if not numpy.isfinite(audio).all():
        return "samples that are not finite"
    if not audio.any():
        return "all samples are zero"
    return None


def read_audio(source: str | bytes) -> tuple[numpy.ndarray, int]:
    """
    :param source: file name or content
    :return: [samples(, channels)] float32, sample rate
    :raises soundfile.SoundFileError: damaged
    """
    return soundfile.read(source if isinstance(source, str) else io.BytesIO(source), dtype="float32")


def encode_audio(audio: numpy.ndarray, audio_format: str) -> bytes:
    """:return: content of a "flac" or "ogg" file"""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, SAMPLE_RATE, **_AUDIO_FORMATS[audio_format])
    return buffer.getvalue()


def pack_part(
    manifest: Manifest,
    part: str,
    jobs: Iterable[Any],
    make_items: Callable[[Any], list[Item]],
    *,
    options: dict[str, Any],
    expected_num_seqs: int | None,
    skip_broken: bool,
    subset: int | None,
    workers: int,
    num_jobs: int | None = None,
) -> tuple[PartInfo | None, list[str]]:
    """
    Packs a part: items are made in parallel, the zip is written in order and gets its name when it is complete.

    :param manifest:
    :param part: name
    :param jobs: what make_items gets, one after the other; each is a chapter or a recording
    :param make_items: a function of a module, run in other processes
    :param options: what the part depends on, for the record
    :param expected_num_seqs: published number of utterances
    :param skip_broken: leave out utterances with problems; otherwise a part with problems is not made
    :param subset: only the first so many utterances
    :param workers: processes
    :param num_jobs: for the progress
    :return: the part (None if there were problems), list of problems
    """
    filename = os.path.join(manifest.folder, f"{part}.zip")
    problems: list[str] = []
    listing: list[dict[str, Any]] = []
    names: set[str] = set()
    num_words, seconds = 0, 0.0
    progress = Progress(part)
    progress.update(0.0)
    with _Pool(workers) as pool, zipfile.ZipFile(filename + ".tmp", "w", zipfile.ZIP_STORED) as archive:
        for number, items in enumerate(pool.imap(make_items, jobs)):
            if subset is not None and len(listing) >= subset:
                break
            for item in items:
                if subset is not None and len(listing) >= subset:
                    break
                problem = item.problem
                if problem is None and item.name in names:
                    problem = "there is another utterance of this name"
                if problem is None and not re.fullmatch(r"[\w.+:-]+", item.name):
                    problem = "a name with unusual characters"
                if problem is not None:
                    problems.append(f"{part}/{item.name}: {problem}")
                    continue
                names.add(item.name)
                file = f"{item.name}.{item.extension}"
                archive.writestr(zipfile.ZipInfo(f"{part}/{file}", _ZIP_TIME), item.audio)
                listing.append(
                    {
                        "text": item.text,
                        "duration": item.duration,
                        "file": file,
                        "seq_name": f"{part}/{item.name}",
                    }
                )
                num_words += len(item.text.split())
                seconds += item.duration
            done = min(1.0, len(listing) / subset) if subset else (number + 1) / num_jobs if num_jobs else 0.0
            progress.update(done, f"{len(listing)} utterances, {len(problems)} with problems")
        lines = "".join(f"{entry!r},\n" for entry in listing)
        archive.writestr(zipfile.ZipInfo(f"{part}.txt", _ZIP_TIME), f"[\n{lines}]\n")
    if not listing:
        problems.append(f"{part}: no utterance")
    if problems and (not skip_broken or not listing):
        os.remove(filename + ".tmp")
        return None, problems
    os.replace(filename + ".tmp", filename)
    info = PartInfo(
        file=os.path.basename(filename),
        num_seqs=len(listing),
        num_words=num_words,
        hours=seconds / 3600,
        expected_num_seqs=expected_num_seqs,
        skipped=problems,
        options=options,
    )
    manifest.set("parts", part, asdict(info))
    return info, problems


class _Pool:
    """Some processes, or none; not more jobs in the air than needed, so that memory stays bounded."""

    def __init__(self, workers: int):
        self.workers = workers
        self._pool: Any = None

    def __enter__(self) -> _Pool:
        if self.workers > 1:
            self._pool = multiprocessing.get_context("fork" if os.name == "posix" else "spawn").Pool(self.workers)
        return self

    def __exit__(self, *_exc: Any) -> None:
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()

    def imap(self, func: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterable[Any]:
        """As map, in order, with at most four jobs per process under way."""
        if self._pool is None:
            yield from map(func, jobs)
            return
        pending = []
        for job in jobs:
            pending.append(self._pool.apply_async(func, (job,)))
            if len(pending) >= 4 * self.workers:
                yield pending.pop(0).get()
        while pending:
            yield pending.pop(0).get()


def summary_table(infos: dict[str, PartInfo]) -> str:
    """:return: table of all parts; differences to the published numbers of utterances are marked"""
    rows = [("part", "utterances", "published", "words", "hours", "left out", "")]
    for part, info in infos.items():
        subset = info.options.get("subset")
        note = ""
        if info.expected_num_seqs is not None and info.num_seqs != info.expected_num_seqs:
            note = f"subset of {subset}" if subset else "DIFFERS from the published number"
        expected = "-" if info.expected_num_seqs is None else f"{info.expected_num_seqs:,}"
        counts = (f"{info.num_seqs:,}", expected, f"{info.num_words:,}", f"{info.hours:.2f}", str(len(info.skipped)))
        rows.append((part, *counts, note))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)
        ]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)
