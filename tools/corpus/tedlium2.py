"""
TED-LIUM release 2: ``<part>/sph/<talk>.sph`` (NIST SPHERE) and ``<part>/stm/<talk>.stm`` (segments with times and
texts).

How the texts are written differs between setups, so here is what is done:

- Segments marked ``ignore_time_segment_in_scoring`` are left out, as everywhere.
- ``<unk>`` (a word that the transcriber could not write down) and other marks (``<sil>``, ``{NOISE}``, the number of a
  pronunciation as in ``a(2)``) are removed. A segment that has no word then is kept, with an empty text: it is one of
  the published number of segments.
- The release separates contractions ("it 's", "don 't"). Kaldi and ESPnet join them ("it's"), which is the default;
  the setups of RWTH, with the published vocabulary of 1057 labels, keep them apart: ``contractions="split"``.
- Two misspelled words are corrected, as in the setups of RWTH.
- Training segments are extended by up to 0.15 s at the beginning and 0.1 s at the end, into the silence around them but
  never into a neighbour, as in Kaldi and in the setups of RWTH: the times are cut close.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy

from recog.text import join_contractions

from .audio import AudioError, audio_problem, encode_audio, read_audio
from .package import CorpusError, Item

__all__ = [
    "EXPECTED_NUM_SEQS",
    "Segment",
    "Talk",
    "clean_text",
    "find_parts",
    "make_items",
    "parse_stm",
    "talks_of_part",
    "with_padding",
]

EXPECTED_NUM_SEQS = {"train": 92_973, "dev": 507, "test": 1_155}
"""Published numbers of segments."""

Contractions = Literal["joined", "split"]

_LABEL = re.compile(r"<(?:[^<>]*,[^<>]*|F\d_[MF]|NA)>", re.IGNORECASE)
_MARK = re.compile(r"<[^<>]*>|\{[^{}]*\}|\[[^\[\]]*\]")
_PRONUNCIATION = re.compile(r"\(\d\)")
_LAST_NAME = re.compile(r"\(\S*\)$")  # some files end their lines with the name of the utterance
_CORRECTIONS = {"imiss": "i miss", "uptheir": "up their"}


@dataclass(frozen=True)
class Segment:
    """A line of an STM file."""

    recording: str
    start: float
    """Seconds."""
    end: float
    """Seconds."""
    text: str
    """As it is in the file."""

    @property
    def name(self) -> str:
        """Utterance id: recording and times in hundredths of a second."""
        return f"{self.recording}-{round(self.start * 100):07}-{round(self.end * 100):07}"


@dataclass(frozen=True)
class Talk:
    """The two files of a talk, and what is to be done with them."""

    name: str
    stm: str | None
    sph: str | None
    contractions: Contractions = "joined"
    padding: tuple[float, float] = (0.0, 0.0)
    """Seconds by which segments are extended at the beginning and at the end."""


def find_parts(src: str) -> dict[str, str]:
    """
    :param src: TEDLIUM_release2, or the folder that holds it
    :return: part -> folder
    :raises CorpusError: there is none
    """
    parts: dict[str, str] = {}
    for folder in (os.path.join(src, "TEDLIUM_release2"), src):
        for part in EXPECTED_NUM_SEQS:
            if os.path.isdir(os.path.join(folder, part, "stm")):
                parts.setdefault(part, os.path.join(folder, part))
    if not parts:
        raise CorpusError(f"{src} holds no part of TED-LIUM 2: expected train, dev or test with folders sph and stm")
    return parts


def talks_of_part(
    folder: str, contractions: Contractions, padding: tuple[float, float]
) -> Iterator[tuple[float, Talk]]:
    """
    :param folder: of a part
    :param contractions: see :func:`clean_text`
    :param padding: see :func:`with_padding`
    :return: its talks in order, each with the fraction of the part that is done with it
    """
    files: dict[str, dict[str, str]] = {}
    for kind in ("stm", "sph"):
        place = os.path.join(folder, kind)
        for name in sorted(os.listdir(place)) if os.path.isdir(place) else []:
            stem, extension = os.path.splitext(name)
            if extension == f".{kind}" and not stem.startswith("."):
                files.setdefault(stem, {})[kind] = os.path.join(place, name)
    for number, (stem, of_talk) in enumerate(sorted(files.items())):
        talk = Talk(stem, of_talk.get("stm"), of_talk.get("sph"), contractions, padding)
        yield (number + 1) / len(files), talk


def parse_stm(content: str) -> list[Segment]:
    """
    :param content: of an STM file: lines of recording, channel, speaker, start, end, label (optional), text
    :return: segments that are to be used, in the order of time
    :raises ValueError: malformed; says in which line
    """
    segments = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith(";;") or "ignore_time_segment_in_scoring" in line:
            continue
        fields = line.split(maxsplit=5)
        try:
            recording, _channel, _speaker, start, end = fields[:5]
            segment = Segment(recording, float(start), float(end), fields[5].strip() if len(fields) > 5 else "")
        except ValueError:
            raise ValueError(
                f"line {number}: {line[:60]!r}: expected recording, channel, speaker, start, end, label, text"
            ) from None
        if not 0 <= segment.start < segment.end < float("inf"):
            raise ValueError(f"line {number}: the segment is from {start} to {end} seconds")
        if label := _LABEL.match(segment.text):
            segment = replace(segment, text=segment.text[label.end() :].strip())
        segments.append(segment)
    return sorted(segments, key=lambda segment: (segment.recording, segment.start, segment.end))


def clean_text(text: str, contractions: Contractions = "joined") -> str:
    """
    :param text: of a segment, or a line of LM text
    :param contractions: "joined": it's; "split": it 's
    :return: lower-case words, see the description of the module
    """
    text = _MARK.sub(" ", _LAST_NAME.sub("", _PRONUNCIATION.sub("", text.lower().strip())))
    text = " ".join(_CORRECTIONS.get(word, word) for word in text.split())
    if contractions == "joined":
        return join_contractions(text)
    return re.sub(r"(?<=\w)'(?=[a-z])", " '", text)


def with_padding(segments: list[Segment], padding: tuple[float, float]) -> list[tuple[Segment, float, float]]:
    """
    :param segments: of one recording, in the order of time
    :param padding: seconds at the beginning and at the end
    :return: segment, start, end; extended by at most the padding, and not beyond the end of the segment before and the
        extended start of the next one
    """
    before, behind = padding
    result = []
    previous_end = 0.0
    for i, segment in enumerate(segments):
        start = min(segment.start, max(segment.start - before, previous_end))
        limit = segments[i + 1].start - before if i + 1 < len(segments) else float("inf")
        end = max(segment.end, min(segment.end + behind, limit))
        result.append((segment, start, end))
        previous_end = max(previous_end, end)
    return result


def make_items(talk: Talk, audio_format: str = "flac") -> list[Item]:
    """
    :param talk:
    :param audio_format: of the items
    :return: its utterances in order, checked
    """
    if talk.stm is None:
        return [Item(talk.name, problem="an audio file (.sph), but no segments (.stm)")]
    try:
        with open(talk.stm, encoding="utf8") as file:
            segments = parse_stm(file.read())
    except UnicodeDecodeError as exc:
        return [Item(talk.name, problem=f"the .stm file is not UTF-8 (byte {exc.start}: {exc.reason})")]
    except (ValueError, OSError) as exc:
        return [Item(talk.name, problem=f"the .stm file cannot be read ({exc})")]
    if not segments:
        return []
    if others := {segment.recording for segment in segments} - {talk.name}:
        return [Item(talk.name, problem=f"the .stm file is about {', '.join(sorted(others))}")]
    if talk.sph is None:
        return [Item(talk.name, problem=f"no audio file (.sph) for its {len(segments)} segments")]
    try:
        audio, sample_rate = read_audio(talk.sph, "int16")
    except AudioError as exc:
        return [Item(talk.name, problem=f"the audio file of {len(segments)} segments cannot be read ({exc})")]
    if problem := audio_problem(audio, sample_rate):
        return [Item(talk.name, problem=f"the audio file of {len(segments)} segments has {problem}")]
    cut = functools.partial(_cut, audio, sample_rate, talk, audio_format)
    return [cut(*entry) for entry in with_padding(segments, talk.padding)]


def _cut(
    audio: numpy.ndarray, sample_rate: int, talk: Talk, audio_format: str, segment: Segment, start: float, end: float
) -> Item:
    """:return: the utterance of a segment. The end may be somewhat behind the end of the recording"""
    piece = audio[round(start * sample_rate) : round(end * sample_rate)]
    if segment.end > len(audio) / sample_rate + 1.0 or not len(piece):
        seconds = len(audio) / sample_rate
        return Item(segment.name, problem=f"the recording ends before, after {seconds:.2f} seconds")
    text = clean_text(segment.text, talk.contractions)
    return Item(segment.name, text, encode_audio(piece, audio_format), audio_format, len(piece) / sample_rate)
