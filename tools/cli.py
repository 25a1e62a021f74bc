"""
What the mains of all tools have in common: their help, how they end, JSON files, ``++`` options, texts on the terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from recog.analysis.runs import AnalysisError
from recog.nbest import open_text_for_writing

__all__ = [
    "make_parser",
    "one_line_error",
    "printable",
    "refuse_nbest_names",
    "run_main",
    "split_overrides",
    "write_json",
]

# Control characters but tab and line feed; characters that turn the direction of what follows; half surrogates.
_NOT_PRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """
    :param text: perhaps from a file of somebody else, such as a transcript or a sequence tag
    :return: with escapes (``\\x1b``) for what could control a terminal or hide what is written
    """
    return _NOT_PRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class _PrintableStream(io.TextIOBase):
    """A text stream that writes :func:`printable` to another one."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        shown = printable(text)
        try:
            self._stream.write(shown)
        except UnicodeEncodeError:  # e.g. LANG=C
            encoding = self._stream.encoding
            self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return self._stream.encoding


@contextlib.contextmanager
def _printable_output() -> Iterator[None]:
    """Within it, standard output and error are :func:`printable`."""
    out, err = _PrintableStream(sys.stdout), _PrintableStream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def one_line_error(exc: BaseException) -> str:
    """:return: "error: ...", for the user"""
    if isinstance(exc, OSError) and exc.strerror:
        return f"error: {exc.filename}: {exc.strerror}" if exc.filename else f"error: {exc.strerror}"
    text = str(exc)
    return text if text.startswith("error: ") else f"error: {text}"


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """
    :param doc: of the tool's module: a sentence, then what stands behind the options in the help, with an example
    """
    summary, _, epilog = (doc or "").strip().partition("\n\n")
    return argparse.ArgumentParser(
        description=summary, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run_main(work: Callable[[], int | None], *, errors: tuple[type[BaseException], ...]) -> int:
    """
    :param work: what the tool does; returns the exit code, or None for 0
    :param errors: that are for the user (besides OSError): their message is printed, not where they come from
    :return: exit code
    """
    with _printable_output():
        try:
            code = work()
            sys.stdout.flush()  # here, where a closed pipe is noticed
            return code or 0
        except BrokenPipeError:  # e.g. piped into head; what is still in the buffer must not complain at the exit
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
            return 0
        except (OSError, *errors) as exc:
            print(one_line_error(exc), file=sys.stderr)
            return 1


def split_overrides(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """
    :param argv: command line without the program; None: of this process
    :return: words of the tool; from the first ``++name`` on, what goes to rnn.py
    """
    words = list(sys.argv[1:] if argv is None else argv)
    first = next((i for i, word in enumerate(words) if word.startswith("++")), len(words))
    return words[:first], words[first:]


def refuse_nbest_names(outputs: dict[str, str | None]) -> None:
    """
    :param outputs: option -> file that is to be written
    :raises AnalysisError: it has the name of an n-best file, e.g. since a file was given behind the wrong option
    """
    for option, filename in outputs.items():
        if filename and filename.removesuffix(".gz").endswith(".jsonl"):
            raise AnalysisError(f"{option} {filename}: that is the name of an n-best file, and would be overwritten")


def write_json(filename: str, record: Any) -> None:
    """
    :param filename: compressed if it ends with .gz; written under a temporary name first
    :param record: no NaN and infinity in it
    """
    with open_text_for_writing(filename) as file:
        json.dump(record, file, indent=2, allow_nan=False, ensure_ascii=False)
        file.write("\n")
