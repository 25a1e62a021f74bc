"""
N-best file: the results of one recognition run with everything that later analysis needs, as JSON Lines in UTF-8.

The first line is the header (:class:`NBestHeader`), each other line an utterance (:class:`Utterance`)::

    {"nbest": 1, "search": "label_sync", "scales": {"att": 0.7, "ctc": 0.3}, "length_norm_exponent": 0.0, ...}
    {"seq_tag": "test/7-1", "duration": 2.5, "enc_len": 42, "ref": "...", "hyps": [{"labels": [5, 3], "text": "...",
     "score": -1.2, "scores": {"att": -0.9, "ctc": -1.9}}, ...], "error": null}

The scores of the components are those *before* scales, and the scales carry their sign, so for every hypothesis
(natural logarithms)::

    score = sum_c scales[c] * scores[c] / max(number of labels + length_norm_offset, 1) ** length_norm_exponent

:func:`audit` checks that. A file whose name ends with ``.gz`` is compressed. The JSON is strict: no NaN, no Infinity.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, TextIO

__all__ = [
    "Hypothesis",
    "NBestFormatError",
    "NBestHeader",
    "NBestWriter",
    "Utterance",
    "audit",
    "check_utterance",
    "load_nbest",
    "open_text_for_writing",
    "read_nbest",
    "total_score",
    "write_returnn_search_output",
]

FORMAT = 1
_MAX_LINE = 2**28
"""Characters of an utterance with all its hypotheses."""
_MAX_EXPONENT = 10.0
"""Of the length normalisation, absolute."""
NO_HYPOTHESIS = "the search found no hypothesis"


class NBestFormatError(ValueError):
    """An n-best file that is not as it should be. The message names file, line and what was expected."""


@dataclass(frozen=True)
class Hypothesis:
    """One label sequence that the search found."""

    labels: list[int]
    """Without EOS and blank."""
    text: str
    score: float
    """Total, natural log, finite."""
    scores: dict[str, float]
    """Name of the component -> score before its scale, finite."""


@dataclass(frozen=True)
class Utterance:
    """One utterance with its hypotheses, best first."""

    seq_tag: str
    """RETURNN's, ``<part>/<utterance id>``."""
    duration: float | None
    """Of the audio, in seconds."""
    enc_len: int | None
    """Number of encoder frames."""
    ref: str | None
    """Reference text. None: there is none (an empty reference is "")."""
    hyps: list[Hypothesis]
    """Empty only if there is an error."""
    error: str | None = None
    """Why there are no hypotheses or why they cannot be trusted."""

    @property
    def part(self) -> str:
        """:return: part of the corpus: what precedes the first "/" of the tag ("" without one)"""
        return self.seq_tag.partition("/")[0] if "/" in self.seq_tag else ""


@dataclass(frozen=True)
class NBestHeader:
    """What was searched, with which scales and options."""

    search: str
    """E.g. "ctc_greedy", "label_sync", "time_sync"."""
    scales: dict[str, float]
    """Component -> scale with its sign (the internal LM, which is subtracted, has a negative one)."""
    length_norm_exponent: float = 0.0
    length_norm_offset: int = 1
    """1: EOS counts as a label in the length normalisation. 0: it does not (the scoring of the published recipes)."""
    options: dict[str, Any] = field(default_factory=dict)
    """All options of the run, for the record."""
    vocab: dict[str, Any] = field(default_factory=dict)
    """See :meth:`recog.vocab.Vocab.describe`."""


def total_score(hyp: Hypothesis, header: NBestHeader) -> float:
    """
    :param hyp:
    :param header: scales and length normalisation, not necessarily those of the search
    :return: total score of the hypothesis from its components; NaN if they are beyond all numbers
    :raises ValueError: if a component with a scale other than 0 is missing
    """
    parts = []
    for name, scale in header.scales.items():
        if not scale:
            continue
        if name not in hyp.scores:
            raise ValueError(
                f"no score of component {name!r}, which has the scale {scale}; there is {sorted(hyp.scores)}"
            )
        parts.append(scale * hyp.scores[name])
    length = max(len(hyp.labels) + header.length_norm_offset, 1)
    try:
        return math.fsum(parts) / length**header.length_norm_exponent
    except (OverflowError, ValueError):  # parts beyond the range of floating-point numbers
        return math.nan


def audit(
    header: NBestHeader, utterances: Iterable[Utterance], *, rel_tolerance: float = 1e-4, abs_tolerance: float = 1e-3
) -> list[str]:
    """
    Checks that every total score is what the components make of it.

    :param header:
    :param utterances:
    :param rel_tolerance: of the sum of the absolute values of the parts, since large parts (float32) may cancel out
    :param abs_tolerance: in addition
    :return: one message per hypothesis for which that does not hold
    """
    problems = []
    for utt in utterances:
        for i, hyp in enumerate(utt.hyps):
            total = total_score(hyp, header)
            length = max(len(hyp.labels) + header.length_norm_offset, 1)
            size = sum(abs(header.scales.get(name, 0.0) * score) for name, score in hyp.scores.items())
            tolerance = (rel_tolerance * size + abs_tolerance) / length**header.length_norm_exponent
            if not abs(total - hyp.score) <= tolerance:
                problems.append(
                    f"{utt.seq_tag}, hypothesis {i + 1}: the score is {hyp.score}, but its components give {total}"
                )
    return problems


def check_utterance(utt: Utterance, header: NBestHeader) -> None:
    """
    :param utt:
    :param header:
    :raises ValueError: if it is not valid in a file with this header, e.g. has a NaN or is not sorted
    """
    _parse_utterance(asdict(utt), header)


# ---- writing


@contextmanager
def open_text_for_writing(filename: str) -> Iterator[TextIO]:
    """
    :param filename: compressed if it ends with .gz
    :return: UTF-8 text stream. The file gets its name when all was written; after an exception it is not there.
    """
    out = _AtomicTextFile(filename)
    try:
        yield out.text
    except BaseException:
        out.abort()
        raise
    out.close()


class _AtomicTextFile:
    """A UTF-8 text file that has a temporary name until it is complete."""

    def __init__(self, filename: str):
        self.filename = filename
        self.temp_filename = filename + ".tmp"
        self._raw: BinaryIO = open(self.temp_filename, "wb")
        self._gzip = None
        if filename.endswith(".gz"):
            # Neither name nor time in the gzip header: the same results make the same file.
            self._gzip = gzip.GzipFile(filename="", fileobj=self._raw, mode="wb", mtime=0)
        self.text: TextIO = io.TextIOWrapper(self._gzip or self._raw, encoding="utf8", newline="\n")

    def close(self) -> None:
        """Makes sure that all is on the disk, then gives the file its name. If that fails, removes it."""
        try:
            self.text.flush()
            self.text.detach()
            if self._gzip is not None:
                self._gzip.close()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            self._raw.close()
            os.replace(self.temp_filename, self.filename)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Removes the temporary file."""
        for stream in (self.text, self._gzip, self._raw):
            if stream is not None:
                with suppress(OSError, ValueError):  # e.g. no space left for what is still in a buffer, or closed
                    stream.close()
        with suppress(FileNotFoundError):
            os.remove(self.temp_filename)


class NBestWriter:
    """
    Writes an n-best file, utterance by utterance. It gets its name at :meth:`close`; until then, it is ``<file>.tmp``.

    Can be used in a ``with`` statement: an exception within aborts.
    """

    def __init__(self, filename: str, header: NBestHeader):
        """
        :param filename: compressed if it ends with .gz
        :param header:
        :raises ValueError: if the header is not valid
        """
        self.filename = filename
        self.header = header
        self.num_utts = 0
        self._seq_tags: set[str] = set()
        line = _dumps({"nbest": FORMAT, **asdict(header)}, "header")
        _parse_header(json.loads(line))
        self._out: _AtomicTextFile | None = _AtomicTextFile(filename)
        self._out.text.write(line)

    def write(self, utt: Utterance) -> Utterance:
        """
        :param utt: hypotheses with the score -inf (beam places that were never filled) are left out
        :return: utterance as written
        :raises ValueError: if it is not valid, e.g. has a NaN, is not sorted, or was there before
        """
        if self._out is None:
            raise ValueError(f"{self.filename} has been closed")
        hyps = [hyp for hyp in utt.hyps if hyp.score != -math.inf]
        error = utt.error or (None if hyps else NO_HYPOTHESIS)
        utt = Utterance(utt.seq_tag, utt.duration, utt.enc_len, utt.ref, hyps, error)
        try:
            check_utterance(utt, self.header)
            if utt.seq_tag in self._seq_tags:
                raise ValueError("an utterance of this name was written before")
            line = _dumps(asdict(utt), "utterance")
        except ValueError as exc:
            raise ValueError(f"{self.filename}: cannot write utterance {utt.seq_tag!r}: {exc}") from None
        self._out.text.write(line)
        self._seq_tags.add(utt.seq_tag)
        self.num_utts += 1
        return utt

    def close(self) -> None:
        """The file is complete: gives it its name."""
        if self._out is not None:
            out, self._out = self._out, None
            out.close()

    def abort(self) -> None:
        """Something went wrong: leaves nothing behind."""
        if self._out is not None:
            out, self._out = self._out, None
            out.abort()

    def __enter__(self) -> NBestWriter:
        return self

    def __exit__(self, exc_type: Any, exc: Any, tb: Any) -> None:
        if exc_type is None:
            self.close()
        else:
            self.abort()


def _dumps(record: dict[str, Any], what: str) -> str:
    """
    :return: a line of strict JSON
    :raises ValueError: NaN or infinity
    """
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        line.encode("utf8")  # lone surrogates
        return line
    except (TypeError, ValueError) as exc:
        raise ValueError(f"{what}: not possible in JSON: {exc}") from None


def write_returnn_search_output(filename: str, utterances: Iterable[Utterance]) -> None:
    """
    Writes RETURNN's usual search output, a Python literal ``{seq_tag: [(score, text), ...], ...}``.

    :param filename: compressed if it ends with .gz
    :param utterances: one without hypotheses gets an empty text with the score -1e999 (the literal of -inf), since
        readers of this format expect at least one entry
    """
    with open_text_for_writing(filename) as file:
        file.write("{\n")
        for utt in utterances:
            file.write(f"{utt.seq_tag!r}: [\n")
            for hyp in utt.hyps:
                file.write(f"({hyp.score!r}, {hyp.text!r}),\n")
            if not utt.hyps:
                file.write("(-1e999, ''),\n")
            file.write("],\n")
        file.write("}\n")


# ---- reading


def read_nbest(filename: str) -> tuple[NBestHeader, Iterator[Utterance]]:
    """
    Reads an n-best file as a stream: the header at once, the utterances when asked for.

    :param filename: compressed if it ends with .gz
    :return: header, iterator over the utterances
    :raises OSError: if the file cannot be read
    :raises NBestFormatError: if it is not valid; for the utterances, when the iterator gets there
    """
    with _open_for_reading(filename) as file:
        first = file.readline(_MAX_LINE)
    record = _loads(first, filename, 1)
    if not isinstance(record, dict) or "nbest" not in record:
        raise NBestFormatError(f'{filename}, line 1: not an n-best file (expected a header with "nbest": {FORMAT})')
    try:
        header = _parse_header(record)
    except ValueError as exc:
        raise NBestFormatError(f"{filename}, line 1: {exc}") from None
    return header, _iter_utterances(filename, header)


def load_nbest(filename: str) -> tuple[NBestHeader, list[Utterance]]:
    """As :func:`read_nbest`, but the whole file at once."""
    header, utterances = read_nbest(filename)
    return header, list(utterances)


def _iter_utterances(filename: str, header: NBestHeader) -> Iterator[Utterance]:
    lines: dict[str, int] = {}
    with _open_for_reading(filename) as file:
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), ""), 1):
            if number == 1:
                continue
            record = _loads(line, filename, number)
            try:
                utt = _parse_utterance(record, header)
                if utt.seq_tag in lines:
                    raise ValueError(f"was there before, in line {lines[utt.seq_tag]}")
            except ValueError as exc:
                tag = record.get("seq_tag") if isinstance(record, dict) else None
                where = f" (utterance {tag!r})" if tag else ""
                raise NBestFormatError(f"{filename}, line {number}{where}: {exc}") from None
            lines[utt.seq_tag] = number
            yield utt


@contextmanager
def _open_for_reading(filename: str) -> Iterator[TextIO]:
    """:raises NBestFormatError: not gzip, or cut off, or not UTF-8"""
    open_ = gzip.open if filename.endswith(".gz") else open
    try:
        with open_(filename, "rt", encoding="utf8", newline="\n") as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise NBestFormatError(f"{filename}: not a complete gzip file ({exc})") from None
    except UnicodeDecodeError as exc:
        raise NBestFormatError(f"{filename}: not UTF-8 ({exc})") from None


def _loads(line: str, filename: str, number: int) -> Any:
    """:raises NBestFormatError: not strict JSON, or the line is not complete"""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    if len(line) >= _MAX_LINE:
        raise NBestFormatError(f"{filename}, line {number}: longer than {_MAX_LINE} characters")
    if not line.endswith("\n"):
        what = "the file is cut off in the middle of a line" if line else "the file is empty"
        raise NBestFormatError(f"{filename}, line {number}: {what}")
    try:
        record = json.loads(line, parse_constant=refuse)
        if "\\u" in line:  # half surrogates, which can be written in ASCII only
            json.dumps(record, ensure_ascii=False).encode("utf8")
        return record
    except (ValueError, RecursionError) as exc:
        raise NBestFormatError(f"{filename}, line {number}: not JSON ({exc})") from None


def _parse_header(record: dict[str, Any]) -> NBestHeader:
    """:raises ValueError:"""
    if record.get("nbest") != FORMAT:
        raise ValueError(f'format "nbest": {record.get("nbest")!r} is not known, expected {FORMAT}')
    scales = _get(record, "scales", dict)
    offset = record.get("length_norm_offset", 1)
    if type(offset) is not int or offset not in (0, 1):
        raise ValueError(f'"length_norm_offset": {offset!r}: expected 0 or 1')
    vocab = _get(record, "vocab", dict, default={})
    if type(vocab.get("num_labels", 1)) is not int:
        raise ValueError(f'"num_labels" of "vocab": {vocab["num_labels"]!r}: expected a number of labels')
    exponent = _number(record.get("length_norm_exponent", 0.0), "length_norm_exponent")
    if abs(exponent) > _MAX_EXPONENT:
        raise ValueError(f'"length_norm_exponent": {exponent}: expected at most {_MAX_EXPONENT}')
    return NBestHeader(
        search=_get(record, "search", str),
        scales={name: _number(value, f'scale of "{name}"') for name, value in scales.items()},
        length_norm_exponent=exponent,
        length_norm_offset=offset,
        options=_get(record, "options", dict, default={}),
        vocab=vocab,
    )


def _parse_utterance(record: Any, header: NBestHeader) -> Utterance:
    """:raises ValueError:"""
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, found {type(record).__name__}")
    seq_tag = _get(record, "seq_tag", str)
    if not seq_tag:
        raise ValueError('"seq_tag" is empty')
    duration = record.get("duration")
    if duration is not None:
        duration = _number(duration, "duration")
        if duration < 0:
            raise ValueError(f'"duration": {duration}: expected seconds >= 0')
    enc_len = record.get("enc_len")
    if enc_len is not None and (type(enc_len) is not int or enc_len < 0):
        raise ValueError(f'"enc_len": {enc_len!r}: expected a number of frames')
    error = _get(record, "error", str, default=None)
    hyps = [_parse_hyp(hyp, i, header) for i, hyp in enumerate(_get(record, "hyps", list), 1)]
    for i in range(1, len(hyps)):
        if hyps[i].score > hyps[i - 1].score:
            raise ValueError(f"hypothesis {i + 1} has a better score than the one before: expected the best first")
    if not hyps and not error:
        raise ValueError("neither a hypothesis nor an error")
    return Utterance(seq_tag, duration, enc_len, _get(record, "ref", str, default=None), hyps, error)


def _parse_hyp(record: Any, index: int, header: NBestHeader) -> Hypothesis:
    """:raises ValueError:"""
    where = f"hypothesis {index}: "
    if not isinstance(record, dict):
        raise ValueError(f"{where}expected an object, found {type(record).__name__}")
    try:
        labels = _get(record, "labels", list)
        num_labels = header.vocab.get("num_labels")
        for label in labels:
            if type(label) is not int or label < 0 or (num_labels is not None and label >= num_labels):
                expected = ">= 0" if num_labels is None else f"0 ... {num_labels - 1}"
                raise ValueError(f'"labels": {label!r} is not a label ({expected})')
        scores = {name: _number(value, f'score "{name}"') for name, value in _get(record, "scores", dict).items()}
        for name in scores:
            if name not in header.scales:
                raise ValueError(f'score "{name}" has no scale in the header')
        for name, scale in header.scales.items():
            if scale and name not in scores:
                raise ValueError(f'no score "{name}", which has the scale {scale}')
        return Hypothesis(labels, _get(record, "text", str), _number(record.get("score"), "score"), scores)
    except ValueError as exc:
        raise ValueError(where + str(exc)) from None


_REQUIRED = object()


def _get(record: dict[str, Any], key: str, type_: type, *, default: Any = _REQUIRED) -> Any:
    """:raises ValueError: missing or of another type"""
    value = record.get(key, default)
    if value is _REQUIRED:
        raise ValueError(f'"{key}" is missing')
    if not isinstance(value, type_) and not (value is None and default is None):
        raise ValueError(f'"{key}": {value!r}: expected {type_.__name__}')
    return value


def _number(value: Any, what: str) -> float:
    """:raises ValueError: not a finite number"""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{what}: {value!r}: expected a number")
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{what}: {value!r}: expected a finite number")
    return value
