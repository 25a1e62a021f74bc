"""Text for language models: one sentence per line, written like the transcripts."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from recog.progress import Progress

from .package import CorpusError

__all__ = ["text_files", "write_lm_text"]

_MAX_LINE = 10_000_000


def text_files(paths: list[str]) -> list[str]:
    """
    :param paths: files, or folders whose .gz and .txt files are meant
    :return: files
    :raises CorpusError: there is none
    """
    files: list[str] = []
    for path in paths:
        if os.path.isdir(path):
            inside = [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith((".gz", ".txt"))]
            if not inside:
                raise CorpusError(f"{path} holds no .gz or .txt file with text for a language model")
            files += inside
        elif os.path.isfile(path):
            files.append(path)
        else:
            raise CorpusError(f"{path} does not exist (text for a language model)")
    return files


def _read_lines(filename: str) -> Iterator[tuple[float, str]]:
    """:return: fraction of the file that has been read, line; of a UTF-8 text, compressed if it ends with .gz"""
    size = max(1, os.path.getsize(filename))
    try:
        with open(filename, "rb") as raw:
            binary = gzip.GzipFile(fileobj=raw) if filename.endswith(".gz") else raw
            text = io.TextIOWrapper(binary, encoding="utf8", newline="\n")
            while line := text.readline(_MAX_LINE):
                if len(line) == _MAX_LINE:
                    raise CorpusError(f"{filename}: a line of more than {_MAX_LINE:,} characters: expected sentences")
                yield raw.tell() / size, line
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise CorpusError(f"{filename} cannot be read ({exc}): expected UTF-8 text") from None


def write_lm_text(folder: str, name: str, files: list[str], normalise: Callable[[str], str]) -> dict[str, Any]:
    """
    Writes ``<name>.txt.gz``.

    :param folder: "lm" of the prepared corpus
    :param name:
    :param files: texts, one sentence per line, UTF-8, compressed if the name ends with .gz
    :param normalise: makes a line as the transcripts are; lines that become empty are left out
    :return: entry of the manifest
    :raises CorpusError: a file cannot be read
    """
    os.makedirs(folder, exist_ok=True)
    filename = os.path.join(folder, f"{name}.txt.gz")
    num_sentences = num_words = 0
    progress = Progress("LM text")
    progress.update(0.0)
    try:
        with open(filename + ".tmp", "wb") as raw:
            # without name and time in the file: the same text makes the same file
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as out:
                for number, file in enumerate(files):
                    for fraction, line in _read_lines(file):
                        line = normalise(line)
                        if line:
                            out.write(line.encode() + b"\n")
                            num_sentences += 1
                            num_words += line.count(" ") + 1
                        if num_sentences % 1000 == 0:
                            progress.update((number + fraction) / len(files), f"{num_sentences:,} sentences")
        if not num_sentences:
            raise CorpusError(f"no sentence for a language model in {', '.join(files)}")
        os.replace(filename + ".tmp", filename)
    finally:
        if os.path.exists(filename + ".tmp"):
            os.remove(filename + ".tmp")
    return {
        "file": f"lm/{name}.txt.gz",
        "num_sentences": num_sentences,
        "num_words": num_words,
        "sources": sources_of(files),
    }


def sources_of(files: list[str]) -> list[dict[str, Any]]:
    """:return: name and size of the files, by which a later run sees that it has nothing to do"""
    return [{"name": os.path.basename(file), "bytes": os.path.getsize(file)} for file in files]
