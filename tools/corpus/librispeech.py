"""
LibriSpeech's layout: ``<part>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac`` with a transcript file
``<speaker>-<chapter>.trans.txt`` per chapter, as folders or as one tar file per part.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import soundfile

from .package import CorpusError, Item, audio_problem, encode_audio, read_audio

__all__ = ["EXPECTED_NUM_SEQS", "Chapter", "chapters_of_tar", "chapters_of_tree", "find_parts", "make_items"]

EXPECTED_NUM_SEQS = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}
"""Published numbers of utterances (train: 281,241 in total), https://www.openslr.org/12."""


@dataclass
class Chapter:
    """A chapter: its transcript file and its audio files."""

    name: str
    transcript: bytes | str | None
    """Content, or file name."""
    audio: dict[str, bytes | str] = field(default_factory=dict)
    """Utterance id -> content, or file name."""
    audio_format: str = "flac"


def find_parts(src: str) -> dict[str, str]:
    """
    :param src: extracted tree, or folder with tar files
    :return: part -> folder or tar file; training parts first
    :raises CorpusError: there is none
    """
    if not os.path.isdir(src):
        raise CorpusError(f"{src} is no folder: expected an extracted LibriSpeech, or a folder with its tar.gz files")
    parts: dict[str, str] = {}
    for folder in (src, os.path.join(src, "LibriSpeech")):
        if not os.path.isdir(folder):
            continue
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            tar = re.fullmatch(r"((?:train|dev|test)[\w-]*)\.tar(?:\.gz)?", name)
            if tar and os.path.isfile(path):
                parts.setdefault(tar[1], path)
            elif re.fullmatch(r"(?:train|dev|test)[\w-]*", name) and os.path.isdir(path):
                parts[name] = path  # a folder is preferred to the tar file that it comes from
    if not parts:
        raise CorpusError(
            f"{src} holds no part of LibriSpeech: expected folders such as train-clean-100 or dev-other, or files such"
            " as train-clean-100.tar.gz"
        )
    return dict(sorted(parts.items(), key=lambda item: (not item[0].startswith("train"), item[0])))


def chapters_of_tree(folder: str) -> list[Chapter]:
    """
    :param folder: of a part
    :return: its chapters, sorted
    """
    chapters = []
    for path, folders, files in os.walk(folder):
        folders.sort(key=_number_aware)
        transcripts = sorted(name for name in files if name.endswith(".trans.txt"))
        audio = {os.path.splitext(n)[0]: os.path.join(path, n) for n in sorted(files) if n.endswith(".flac")}
        if not transcripts and not audio:
            continue
        transcript = os.path.join(path, transcripts[0]) if transcripts else None
        chapters.append(Chapter(os.path.relpath(path, folder), transcript, audio))
    return chapters


def _number_aware(name: str) -> tuple[int, str]:
    """:return: sort key, 19 before 103"""
    return (int(name) if name.isdigit() else 0, name)


def chapters_of_tar(filename: str, part: str) -> Iterator[Chapter]:
    """
    Reads a tar file from beginning to end, without extracting anything.

    :param filename:
    :param part: only members below ``.../<part>/`` count
    :return: its chapters, each when it is complete
    :raises CorpusError: damaged, or a member that is no plain file at a plain place
    """
    open_chapters: dict[str, Chapter] = {}
    try:
        with tarfile.open(filename) as archive:
            for member in archive:
                pieces = member.name.split("/")
                if member.name.startswith("/") or ".." in pieces or not (member.isfile() or member.isdir()):
                    raise CorpusError(
                        f"{filename}: refused, it has the member {member.name!r}, which could leave the folder"
                    )
                if not member.isfile() or part not in pieces[:-1] or not pieces[-1].endswith((".flac", ".trans.txt")):
                    continue
                place = "/".join(pieces[pieces.index(part) + 1 : -1])
                stream = archive.extractfile(member)
                content = stream.read() if stream else b""
                chapter = open_chapters.setdefault(place, Chapter(place, None))
                if pieces[-1].endswith(".trans.txt"):
                    chapter.transcript = content
                else:
                    chapter.audio[pieces[-1].removesuffix(".flac")] = content
                if isinstance(chapter.transcript, bytes) and len(chapter.audio) >= chapter.transcript.count(b"\n") > 0:
                    yield open_chapters.pop(place)
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise CorpusError(f"{filename} cannot be read ({exc}): download it again") from None
    for place in sorted(open_chapters):
        yield open_chapters[place]


def make_items(chapter: Chapter) -> list[Item]:
    """
    :param chapter:
    :return: its utterances in order, checked
    """
    transcripts: dict[str, str] = {}
    items: list[Item] = []
    if chapter.transcript is None:
        items.append(Item(chapter.name.replace("/", "-"), problem="no transcript file (.trans.txt)"))
    else:
        content = chapter.transcript
        if isinstance(content, str):
            with open(content, "rb") as file:
                content = file.read()
        try:
            lines = content.decode("utf8").splitlines()
        except UnicodeDecodeError as exc:
            lines = []
            items.append(
                Item(chapter.name.replace("/", "-"), problem=f"the transcript file is not UTF-8 ({exc.reason})")
            )
        for line in lines:
            if not line.strip():
                continue
            name, _, text = line.strip().partition(" ")
            if name in transcripts:
                items.append(Item(name, problem="two transcripts"))
            transcripts[name] = " ".join(text.split())
    for name in sorted({*transcripts, *chapter.audio}):
        text = transcripts.get(name)
        if name not in chapter.audio:
            items.append(Item(name, problem="a transcript, but no audio file"))
        elif text is None:
            if not any(item.problem for item in items[:1]):
                items.append(Item(name, problem="an audio file, but no transcript"))
        elif not text:
            items.append(Item(name, problem="the transcript is empty"))
        else:
            items.append(_make_item(name, text, chapter.audio[name], chapter.audio_format))
    return items


def _make_item(name: str, text: str, source: bytes | str, audio_format: str) -> Item:
    """:return: checked utterance; FLAC is kept bit by bit"""
    try:
        content = source
        if isinstance(content, str):
            with open(content, "rb") as file:
                content = file.read()
        audio, sample_rate = read_audio(content)
    except (soundfile.SoundFileError, OSError) as exc:
        return Item(name, problem=f"the audio file cannot be read ({exc})")
    problem = audio_problem(audio, sample_rate)
    if problem:
        return Item(name, problem=problem)
    if audio_format != "flac":
        content = encode_audio(audio, audio_format)
    return Item(name, text, content, audio_format, len(audio) / sample_rate)
