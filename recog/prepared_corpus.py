"""
What a prepared corpus says of itself: the manifest ``corpus.json``, and the listing of utterances in the zip file of
each part that RETURNN's OggZipDataset reads.

A prepared corpus may come from somebody else, so nothing in it is believed: names cannot lead out of its folder, sizes
are limited, listings are parsed but never evaluated. RETURNN parses a listing with a program of its own in C++, which
ends the process at what it does not expect; so a run checks all listings before RETURNN sees them.
"""

from __future__ import annotations

import ast
import io
import itertools
import lzma
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .json_file import JsonError, read_json_object

__all__ = [
    "ListedUtterance",
    "PreparedCorpusError",
    "check_listings",
    "format_listing",
    "is_inside",
    "iter_listing",
    "read_manifest",
]

_MAX_LISTING_BYTES = 2 * 2**30  # 281,241 utterances of LibriSpeech: 0.08 GiB
_MAX_WHOLE_BYTES = 16 * 2**20  # of a listing that does not have an utterance in a line
_MAX_LINE = 2**20  # characters
_MAX_AUDIO_BYTES = 2**30  # of one utterance, unpacked
_NAME = re.compile(r"[\w+-][\w.+-]*")
# What format_listing writes, if no character needs an escape: read without Python's parser.
_PLAIN_ENTRY = re.compile(
    r"\{'text': (?:'([^'\\\n]*)'|\"([^\"\\\n]*)\"), 'duration': (\d{1,9}\.\d{1,20}), 'file': '([^'\\\n]*)',"
    r" 'seq_name': '([^'\\\n]*)'\},?\n"
)
# What RETURNN's parser of listings knows of Python.
_KNOWN_LITERAL = re.compile(
    r"(?:'(?:[^'\\]|\\(?:[rtn\\\"']|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))*'(?=\s*(?:[\]},:]|$))"
    r"|\"(?:[^\"\\]|\\(?:[rtn\\\"']|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))*\"(?=\s*(?:[\]},:]|$))"
    r"|[+-]?\d{1,9}(?:\.\d{1,20})?(?![\w.])|None(?!\w)|[\[\]{},:\s])*"
)
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, KeyError, ValueError, OSError)


class PreparedCorpusError(ValueError):
    """A manifest or a listing that is not as it should be. The message names the file and what was expected."""


@dataclass(frozen=True)
class ListedUtterance:
    """One utterance of a listing."""

    text: str | None
    """Transcript; None: there is none."""
    duration: float
    """Seconds, >= 0."""
    file: str | None
    """Name of the audio below the folder of the part in the zip file; None: there is only text."""
    seq_name: str
    """RETURNN's sequence tag, ``<part>/<utterance id>``."""


def is_inside(path: str) -> bool:
    """
    :param path: that a file names, relative to a folder
    :return: whether it stays in that folder
    """
    pieces = path.replace("\\", "/").split("/")
    return bool(path) and not os.path.isabs(path) and "\0" not in path and not {"", ".", ".."} & set(pieces)


# ---- manifest


def read_manifest(filename: str) -> dict[str, Any]:
    """
    :param filename: ``corpus.json``
    :return: its content, with the keys corpus, format, parts, vocabs and lm_texts
    :raises PreparedCorpusError: not a manifest, or it names files outside of its folder
    :raises OSError: cannot be read
    """
    try:
        content = read_json_object(filename)
    except JsonError as exc:
        raise PreparedCorpusError(str(exc)) from None
    if not isinstance(content.get("corpus"), str) or "parts" not in content:
        raise PreparedCorpusError(f"{filename}: expected an object with corpus and parts")
    content = {"format": 1, "vocabs": {}, "lm_texts": {}, **content}
    if type(content["format"]) is not int:
        raise PreparedCorpusError(f"{filename}: format {content['format']!r}: expected a number")
    for kind in ("parts", "vocabs", "lm_texts"):
        entries = content[kind]
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise PreparedCorpusError(f"{filename}: {kind}: expected an object of objects")
        for name, entry in entries.items():
            if not _NAME.fullmatch(name):
                raise PreparedCorpusError(f"{filename}: {kind}: refused, because of the name {name!r}")
            if kind != "vocabs":
                _check_entry(f"{filename}: {kind}: {name}", entry, kind)
    return content


def _check_entry(where: str, entry: dict[str, Any], kind: str) -> None:
    """:raises PreparedCorpusError: files elsewhere, or no numbers"""
    path, ending = entry.get("file"), ".zip" if kind == "parts" else (".gz", ".txt")
    if not isinstance(path, str) or not is_inside(path) or not path.endswith(ending):
        raise PreparedCorpusError(f"{where}: refused, because of the file {path!r}: expected one in the same folder")
    number = entry.get("num_seqs", 0)
    if type(number) is not int or number < 0:
        raise PreparedCorpusError(f"{where}: num_seqs {number!r}: expected a number of utterances")


# ---- listings


def format_listing(entries: Iterable[ListedUtterance]) -> bytes:
    """
    :param entries: with audio
    :return: content of ``<part>.txt``, a Python literal with an utterance in each line
    :raises ValueError: something that a listing cannot hold
    """
    lines = ["[\n"]
    for entry in entries:
        _check_utterance(entry)
        if entry.text is None or entry.file is None:
            raise ValueError(f"{entry.seq_name!r} has no text or no file")
        duration = repr(float(entry.duration))
        if "e" in duration:  # 1 sample has 6.25e-05 s, which RETURNN's parser does not know as a number
            duration = f"{entry.duration:.12f}"
        lines.append(
            f"{{'text': {entry.text!r}, 'duration': {duration}, 'file': {entry.file!r},"
            f" 'seq_name': {entry.seq_name!r}}},\n"
        )
    return ("".join(lines) + "]\n").encode()


def check_listings(num_seqs: Mapping[str, int | None]) -> None:
    """
    :param num_seqs: zip file of a part -> number of its utterances by the manifest, if that says it
    :raises PreparedCorpusError: see :func:`iter_listing`; another number, no utterance, or two of the same name
    """
    names: set[str] = set()
    for zip_file, expected in num_seqs.items():
        number = 0
        for utterance in iter_listing(zip_file):
            number += 1
            if utterance.seq_name in names:
                raise PreparedCorpusError(
                    f"{zip_file}: there is another utterance of the name {utterance.seq_name!r}: results could not be"
                    " told apart. Give each a seq_name of its own"
                )
            names.add(utterance.seq_name)
        if not number:
            raise PreparedCorpusError(f"{zip_file} has no utterance")
        if expected is not None and number != expected:
            raise PreparedCorpusError(f"{zip_file} has {number} utterances, but corpus.json says {expected}")


def iter_listing(zip_file: str) -> Iterator[ListedUtterance]:
    """
    :param zip_file: of a part; the listing in it is ``<part>.txt``, the audio is below ``<part>/``
    :return: its utterances. Only the listing is read, no audio.
    :raises PreparedCorpusError: damaged, or with something that no corpus has: members whose size or place is not
        plausible, texts that are not UTF-8
    """
    part = os.path.splitext(os.path.basename(zip_file))[0]
    try:
        with zipfile.ZipFile(zip_file) as archive:
            _check_members(archive, f"{part}.txt")
            for where, entry in _entries(archive, f"{part}.txt"):
                yield _parse_entry(where, entry)
    except PreparedCorpusError as exc:
        raise PreparedCorpusError(f"{zip_file}: {exc}") from None
    except (*_ZIP_ERRORS, struct.error, OverflowError, RecursionError, MemoryError) as exc:
        detail = f"there is no {part}.txt in it" if isinstance(exc, KeyError) else str(exc) or type(exc).__name__
        raise PreparedCorpusError(f"{zip_file} has no readable list of utterances ({detail})") from None


def _check_members(archive: zipfile.ZipFile, listing: str) -> None:
    """:raises PreparedCorpusError: a member would fill the memory when it is read, or lie elsewhere if extracted"""
    for info in archive.infolist():
        limit = _MAX_LISTING_BYTES if info.filename == listing else _MAX_AUDIO_BYTES
        if info.file_size > limit:
            raise PreparedCorpusError(
                f"refused, because its member {info.filename!r} has {info.file_size} bytes (limit {limit})"
            )
        if not is_inside(info.filename.removesuffix("/")):
            raise PreparedCorpusError(f"refused, because of the place of its member {info.filename!r}")


def _entries(archive: zipfile.ZipFile, listing: str) -> Iterator[tuple[str, Any]]:
    """:return: where, entry; an entry in each line, or the whole as one literal"""
    with archive.open(listing) as raw:
        file = io.TextIOWrapper(raw, encoding="utf8", newline="\n")
        if file.readline(_MAX_LINE).strip() == "[":
            for number in itertools.count(2):
                where, line = f"{listing}, line {number}", file.readline(_MAX_LINE)
                if line.strip() == "]":
                    if file.read(1).strip():
                        raise PreparedCorpusError(f"{where}: something behind the end of the list")
                    return
                if not line.endswith("\n"):
                    raise PreparedCorpusError(f"{where}: it is cut off, or longer than {_MAX_LINE} characters")
                try:
                    entry = _literal(line)
                except (ValueError, SyntaxError, TypeError) as exc:
                    if number == 2:  # perhaps an entry has several lines
                        break
                    raise PreparedCorpusError(f"{where}: not a Python literal ({exc})") from None
                yield where, entry
    if archive.getinfo(listing).file_size > _MAX_WHOLE_BYTES:
        raise PreparedCorpusError(f"{listing} has no utterance in each line, and is too large for anything else")
    try:
        content = _known_literal(archive.read(listing).decode("utf8").strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as exc:
        raise PreparedCorpusError(f"{listing}: not a Python literal ({exc})") from None
    if not isinstance(content, list):
        raise PreparedCorpusError(f"{listing}: expected a list")
    for number, entry in enumerate(content, 1):
        yield f"{listing}, utterance {number}", entry


def _literal(line: str) -> Any:
    """:return: entry in a line"""
    if match := _PLAIN_ENTRY.fullmatch(line):
        text, text2, duration, file, seq_name = match.groups()
        return ListedUtterance(text2 if text is None else text, float(duration), file, seq_name)
    return _known_literal(line.strip().removesuffix(","))


def _known_literal(text: str) -> Any:
    """
    :return: value of a Python literal
    :raises ValueError: it is none, or written in a way that RETURNN does not know
    """
    value = ast.literal_eval(text)
    if not _KNOWN_LITERAL.fullmatch(text):
        raise ValueError("it has something that RETURNN cannot read, such as a number like 1e-05, True, or a tuple")
    return value


def _parse_entry(where: str, entry: Any) -> ListedUtterance:
    """:raises PreparedCorpusError:"""
    try:
        if not isinstance(entry, ListedUtterance):
            if not isinstance(entry, dict):
                raise ValueError(f"expected a dict, found {type(entry).__name__}")
            file, text, duration = entry.get("file"), entry.get("text"), entry.get("duration")
            entry = ListedUtterance(text, duration, file, entry.get("seq_name", file))
        _check_utterance(entry)
    except ValueError as exc:
        raise PreparedCorpusError(f"{where}: {exc}") from None
    return entry


def _check_utterance(entry: ListedUtterance) -> None:
    """:raises ValueError:"""
    for name in ("text", "seq_name", "file"):
        value = getattr(entry, name)
        if not isinstance(value, str) and not (name in ("file", "text") and value is None):
            raise ValueError(f"{name} {value!r}: expected a text")
        try:
            (value or "").encode("utf8")
        except UnicodeEncodeError as exc:
            raise ValueError(f"{name} is no valid text ({exc.reason})") from None
    if not isinstance(entry.duration, float) or not 0 <= entry.duration < 1e6:
        raise ValueError(f"duration {entry.duration!r} of {entry.seq_name!r}: expected seconds, as 1.5")
    if not entry.seq_name:
        raise ValueError("seq_name is empty")
    if entry.file is not None and not is_inside(entry.file):
        raise ValueError(f"refused, because of the file {entry.file!r}")
