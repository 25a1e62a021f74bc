"""Transcripts as JSON, CTM and SubRip subtitles."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from .recognise import Segment, Word

__all__ = ["Transcript", "ctm_lines", "file_record", "recording_names", "srt_text"]

Transcript = Sequence[Segment]

_MAX_CAPTION_CHARS = 74
_MAX_CAPTION_SECONDS = 6.0
_CAPTION_PAUSE = 0.8
"""Seconds: a longer pause begins a new caption."""
_CAPTION_HOLD = 0.4
"""Seconds that a caption stays after its last word, if the next one does not begin before: CTC peaks are short."""


def file_record(filename: str, duration: float, segments: Transcript) -> dict[str, Any]:
    """:return: for JSON; times in seconds, null where there is no alignment"""
    return {
        "file": filename,
        "duration": round(duration, 4),
        "text": " ".join(segment.text for segment in segments if segment.text),
        "segments": [
            {
                "begin": round(segment.begin, 4),
                "end": round(segment.end, 4),
                "text": segment.text,
                "score": segment.score,
                "words": [{"word": w.text, "begin": _rounded(w.begin), "end": _rounded(w.end)} for w in segment.words],
            }
            for segment in segments
        ],
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def timed_words(segments: Transcript) -> list[tuple[Word, float, float]]:
    """:return: all words with begin and end; words without alignment share the time of their segment evenly"""
    words = []
    for segment in segments:
        share = (segment.end - segment.begin) / max(len(segment.words), 1)
        for i, word in enumerate(segment.words):
            begin = segment.begin + i * share if word.begin is None else word.begin
            words.append((word, begin, begin + share if word.end is None else word.end))
    return words


def recording_names(filenames: Sequence[str]) -> list[str]:
    """
    :return: names for a CTM file, without folder and ending if that is unique. White space would separate fields there,
        and a line that begins with ; is a comment.
    """
    stems = [os.path.splitext(os.path.basename(name))[0] for name in filenames]
    names = [stem if stems.count(stem) == 1 else name for stem, name in zip(stems, filenames, strict=True)]
    return [re.sub(r"\s+|^;", "_", name) or "_" for name in names]


def ctm_lines(recording: str, segments: Transcript) -> list[str]:
    """:return: lines "recording channel begin duration word" (NIST), sorted by time"""
    return [
        f"{recording} 1 {begin:.2f} {max(end - begin, 0.01):.2f} {w.text}" for w, begin, end in timed_words(segments)
    ]


def srt_text(segments: Transcript) -> str:
    """:return: SubRip captions of at most two lines; they end with pauses, and with a segment"""
    captions: list[list[tuple[str, float, float]]] = []
    for segment in segments:
        new = True
        for word, begin, end in timed_words([segment]):
            if not new:
                last = captions[-1]
                length = sum(len(text) + 1 for text, _, _ in last) + len(word.text)
                too_long = length > _MAX_CAPTION_CHARS or end - last[0][1] > _MAX_CAPTION_SECONDS
                new = too_long or begin - last[-1][2] > _CAPTION_PAUSE
            if new:
                captions.append([])
            captions[-1].append((word.text, begin, end))
            new = False
    blocks = []
    for i, caption in enumerate(captions):
        following = captions[i + 1][0][1] if i + 1 < len(captions) else float("inf")
        begin, end = caption[0][1], max(caption[-1][2], min(caption[-1][2] + _CAPTION_HOLD, following))
        text = _in_two_lines([text.replace("-->", "→") for text, _, _ in caption])  # what separates times
        blocks.append(f"{i + 1}\n{_srt_time(begin)} --> {_srt_time(end)}\n{text}\n")
    return "\n".join(blocks)


def _in_two_lines(words: list[str]) -> str:
    """:return: one line if it is short, else two of similar length"""
    text = " ".join(words)
    if len(text) <= _MAX_CAPTION_CHARS // 2 or len(words) < 2:
        return text
    splits = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return "\n".join(min(splits, key=lambda pair: max(map(len, pair))))


def _srt_time(seconds: float) -> str:
    """:return: e.g. "00:01:02,345" """
    millis = round(seconds * 1000)
    return f"{millis // 3_600_000:02}:{millis // 60_000 % 60:02}:{millis // 1000 % 60:02},{millis % 1000:03}"
