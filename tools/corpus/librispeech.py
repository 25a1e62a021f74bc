"""
LibriSpeech's layout: ``<part>/<speaker>/<chapter>/<speaker>-<chapter>-<number>.flac`` with a transcript file
``<speaker>-<chapter>.trans.txt`` per chapter, as folders or as one tar file per part.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from .audio import AudioError, audio_problem, encode_audio, read_audio
from .package import CorpusError, Item

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

_MAX_MEMBER_BYTES = 2**28
"""Of a file in a tar file, unpacked. The longest utterances have 1 MiB."""
_PART = r"(?:train|dev|test)[\w-]*"


@dataclass
class Chapter:
    """A chapter: its transcript files and its audio files."""

    place: str
    """Folder below the part."""
    transcripts: dict[str, bytes | str] = field(default_factory=dict)
    """Name -> content, or file name."""
    audio: dict[str, bytes | str] = field(default_factory=dict)
    """Utterance id -> content, or file name."""

    def add(self, name: str, source: bytes | str) -> None:
        """
        :param name: of the file, without folder. Neither transcripts nor FLAC: does not belong to the corpus
        :param source: content, or file name
        """
        if name.startswith("."):  # macOS' copies of attributes, with the same extension
            return
        if name.endswith(".trans.txt"):
            self.transcripts[name] = source
        elif name.endswith(".flac"):
            self.audio[name.removesuffix(".flac")] = source


def find_parts(src: str) -> dict[str, str]:
    """
    :param src: extracted tree, folder with tar files, or a tar file
    :return: part -> folder or tar file; training parts first
    :raises CorpusError: there is none
    """
    parts: dict[str, str] = {}
    if os.path.isfile(src):
        places = [(os.path.basename(src), src)]
    else:
        folders = [folder for folder in (src, os.path.join(src, "LibriSpeech")) if os.path.isdir(folder)]
        places = [(name, os.path.join(folder, name)) for folder in folders for name in sorted(os.listdir(folder))]
    for name, path in places:
        tar = re.fullmatch(rf"({_PART})\.(?:tar|tar\.gz|tgz)", name)
        if tar and os.path.isfile(path):
            parts.setdefault(tar[1], path)
        elif re.fullmatch(_PART, name) and os.path.isdir(path):
            parts[name] = path  # a folder is preferred to the tar file that it comes from
    if not parts:
        raise CorpusError(
            f"{src} holds no part of LibriSpeech: expected folders such as train-clean-100 or dev-other, or files such"
            " as train-clean-100.tar.gz"
        )
    return dict(sorted(parts.items(), key=lambda item: (not item[0].startswith("train"), item[0])))


def _number_aware(name: str) -> tuple[int, str]:
    """:return: sort key, 19 before 103"""
    return (int(name) if name.isdecimal() else 0, name)


def chapters_of_tree(folder: str) -> Iterator[tuple[float, Chapter]]:
    """
    :param folder: of a part
    :return: its chapters in order, each with the fraction of the part that is done with it
    """
    speakers = sorted((entry.name for entry in os.scandir(folder) if entry.is_dir()), key=_number_aware)
    for number, speaker in enumerate(speakers):
        for path, folders, files in os.walk(os.path.join(folder, speaker)):
            folders.sort(key=_number_aware)
            chapter = Chapter(os.path.relpath(path, folder))
            for name in sorted(files):
                chapter.add(name, os.path.join(path, name))
            if chapter.transcripts or chapter.audio:
                yield (number + 1) / len(speakers), chapter


def chapters_of_tar(filename: str, part: str) -> Iterator[tuple[float, Chapter]]:
    """
    Reads a tar file from beginning to end, without extracting anything to disk.

    :param filename:
    :param part: only members below ``.../<part>/`` count
    :return: its chapters, each when all its files have been read, with the fraction of the file that has been read
    :raises CorpusError: damaged, or a member that is no plain file at a plain place
    """
    chapters: dict[str, Chapter] = {}
    current = ""
    size = max(1, os.path.getsize(filename))
    try:
        with open(filename, "rb") as raw, tarfile.open(fileobj=raw, mode="r|*") as archive:
            for member in archive:
                pieces = member.name.split("/")
                if member.name.startswith("/") or ".." in pieces or not (member.isfile() or member.isdir()):
                    raise CorpusError(
                        f"{filename}: refused, because of its member {member.name!r}: expected only files and folders"
                        " below the folder where it is extracted. Download it again from openslr.org"
                    )
                if not member.isfile() or part not in pieces[:-1]:
                    continue
                if member.size > _MAX_MEMBER_BYTES:
                    raise CorpusError(f"{filename}: refused, since its member {member.name!r} has {member.size} bytes")
                place = "/".join(pieces[pieces.index(part) + 1 : -1])
                if place != current and current in chapters and _is_complete(chapters[current]):
                    yield raw.tell() / size, chapters.pop(current)
                current = place
                stream = archive.extractfile(member)
                if stream is not None and pieces[-1].endswith((".flac", ".trans.txt")):
                    chapters.setdefault(place, Chapter(place)).add(pieces[-1], stream.read())
    except (tarfile.TarError, EOFError, OSError, zlib.error) as exc:
        raise CorpusError(f"{filename} cannot be read ({exc}): download it again") from None
    for place in sorted(chapters, key=lambda place: [_number_aware(piece) for piece in place.split("/")]):
        yield 1.0, chapters[place]


def _is_complete(chapter: Chapter) -> bool:
    """:return: whether there is audio for all transcripts. What comes later is reported as audio without transcript"""
    lines = sum(content.strip().count(b"\n") + 1 for content in chapter.transcripts.values())  # type: ignore
    return bool(chapter.transcripts) and len(chapter.audio) >= lines


def make_items(chapter: Chapter, audio_format: str = "flac") -> list[Item]:
    """
    :param chapter:
    :param audio_format: of the items; FLAC is kept bit by bit
    :return: its utterances in order, checked
    """
    texts, items = _read_transcripts(chapter)
    no_texts = bool(items) and not texts  # said once
    for name in sorted({*texts, *chapter.audio}):
        text = texts.get(name)
        if name not in chapter.audio:
            items.append(Item(name, problem="a transcript, but no audio file"))
        elif text is None:
            if not no_texts:
                items.append(Item(name, problem="an audio file, but no transcript"))
        elif not text:
            items.append(Item(name, problem="the transcript is empty"))
        else:
            items.append(_make_item(name, text, chapter.audio[name], audio_format))
    return items


def _read_transcripts(chapter: Chapter) -> tuple[dict[str, str], list[Item]]:
    """:return: utterance id -> text, problems"""
    texts: dict[str, str] = {}
    problems: list[Item] = []
    if not chapter.transcripts:
        names = sorted(chapter.audio)
        problem = f"no transcript file (.trans.txt) for its {len(names)} audio files, {names[0]} ..."
        problems.append(Item(chapter.place, problem=problem))
    for filename, content in sorted(chapter.transcripts.items()):
        try:
            if isinstance(content, str):
                with open(content, "rb") as file:
                    content = file.read()
            lines = content.decode("utf8").split("\n")
        except UnicodeDecodeError as exc:
            problem = f"{filename} is not UTF-8 (byte {exc.start}: {exc.reason})"
            problems.append(Item(chapter.place, problem=problem))
            continue
        except OSError as exc:
            problems.append(Item(chapter.place, problem=f"{filename} cannot be read ({exc})"))
            continue
        for line in lines:
            name, _, text = line.strip().partition(" ")
            if name in texts:
                problems.append(Item(name, problem="two transcripts"))
            elif name:
                texts[name] = " ".join(text.split())
    return texts, problems


def _make_item(name: str, text: str, source: bytes | str, audio_format: str) -> Item:
    """:return: utterance, or its problem"""
    try:
        content = source
        if isinstance(content, str):
            with open(content, "rb") as file:
                content = file.read()
        audio, sample_rate = read_audio(content)
    except (AudioError, OSError) as exc:
        return Item(name, problem=f"the audio file cannot be read ({exc})")
    problem = audio_problem(audio, sample_rate)
    if problem:
        return Item(name, problem=problem)
    if audio_format != "flac":
        content = encode_audio(audio, audio_format)
    return Item(name, text, content, audio_format, len(audio) / sample_rate)
