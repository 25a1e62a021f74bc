"""
Sub-word vocabularies and LM texts of a prepared corpus. How they are read: :mod:`recog.vocab`.

Names say what they are: ``spm_unigram_10k``, ``spm_bpe_1k`` (SentencePiece, number of labels), ``bpe_10k``
(subword-nmt, number of merges). EOS (= BOS) is label 0 in all of them.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .package import CorpusError

__all__ = ["import_bpe", "make_vocab", "parse_vocab_name", "read_lines", "write_lm_text"]

EOS = "<s>"  # as in the vocabularies of old RETURNN setups, where <s> is the end and the beginning
UNKNOWN = "<unk>"


def parse_vocab_name(name: str) -> tuple[str, int]:
    """
    :param name: e.g. "spm_unigram_10k"
    :return: kind ("spm_unigram", "spm_bpe", "bpe"), number
    :raises CorpusError:
    """
    match = re.fullmatch(r"(spm_unigram|spm_bpe|bpe)_(\d+)(k?)", name)
    if not match:
        raise CorpusError(
            f"vocabulary {name!r}: expected spm_unigram_N, spm_bpe_N or bpe_N with N like 80, 1k, 5k or 10k"
        )
    return match[1], int(match[2]) * (1000 if match[3] else 1)


def make_vocab(folder: str, name: str, texts: Callable[[], Iterator[str]]) -> dict[str, Any]:
    """
    Trains a vocabulary on transcripts.

    :param folder: "vocab" of the prepared corpus
    :param name:
    :param texts: returns the training transcripts
    :return: its description, as written to ``<name>.json``
    """
    kind, number = parse_vocab_name(name)
    os.makedirs(folder, exist_ok=True)
    if kind == "bpe":
        return _train_bpe(folder, name, number, texts)
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts(),
            model_writer=model,
            model_type=kind.removeprefix("spm_"),
            vocab_size=number,
            character_coverage=1.0,
            eos_id=0,
            unk_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=EOS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as exc:
        raise CorpusError(f"SentencePiece cannot make {name} from these transcripts: {exc}") from None
    _write(os.path.join(folder, f"{name}.model"), model.getvalue())
    return _describe(folder, name, "sentencepiece", number, {"model": f"{name}.model"})


def _train_bpe(folder: str, name: str, num_merges: int, texts: Callable[[], Iterator[str]]) -> dict[str, Any]:
    """:return: description"""
    from subword_nmt.apply_bpe import BPE
    from subword_nmt.learn_bpe import learn_bpe

    codes = io.StringIO()
    learn_bpe(io.StringIO("\n".join(texts())), codes, num_merges, min_frequency=1)
    codes.seek(0)
    bpe = BPE(codes)
    counts: dict[str, int] = {}
    characters: set[str] = set()
    for text in texts():
        for piece in bpe.process_line(text).split():
            counts[piece] = counts.get(piece, 0) + 1
        characters.update(text)
    # Every word can be written: all characters are labels, at the end of a word and before it.
    for character in sorted(characters - {" "}):
        for piece in (character, character + "@@"):
            counts.setdefault(piece, 0)
    pieces = sorted(counts, key=lambda piece: (-counts[piece], piece))
    _write(os.path.join(folder, f"{name}.codes"), codes.getvalue().encode())
    _write(os.path.join(folder, f"{name}.vocab"), "\n".join([EOS, UNKNOWN, *pieces]).encode() + b"\n")
    files = {"codes": f"{name}.codes", "vocab": f"{name}.vocab"}
    return _describe(folder, name, "bpe", len(pieces) + 2, files)


def import_bpe(folder: str, name: str, codes_file: str, vocab_file: str) -> dict[str, Any]:
    """
    Takes over the subword-nmt vocabulary of an old setup.

    :param folder: "vocab" of the prepared corpus
    :param name: to be given to it
    :param codes_file: merges
    :param vocab_file: a Python dict {label: index} as RETURNN setups have it, or one label per line. It is parsed,
        never executed.
    :return: its description
    :raises CorpusError: not such files
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise CorpusError(f"vocabulary name {name!r}: expected letters, digits, _ and - only")
    with open(vocab_file, encoding="utf8") as file:
        content = file.read()
    if content.lstrip().startswith("{"):
        try:
            table = ast.literal_eval(content)
            # Old dicts have <s> and </s> with the same index: the last of them names the label.
            labels = [label for label, _ in sorted(table.items(), key=lambda item: item[1])]
            indices = sorted(set(table.values()))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as exc:
            raise CorpusError(f"{vocab_file}: not a Python dict of labels: {exc}") from None
        if not all(isinstance(label, str) for label in table) or indices != list(range(len(indices))):
            raise CorpusError(f"{vocab_file}: expected labels with the indices 0 ... V-1, each used")
        by_index: dict[int, str] = {}
        for label in labels:
            by_index.setdefault(table[label], label)
        labels = [by_index[i] for i in indices]
    else:
        labels = content.splitlines()
    if not labels or labels[0] not in (EOS, "</s>"):
        raise CorpusError(f"{vocab_file}: label 0 is {labels[:1]}, but must be {EOS} or </s> (end and beginning)")
    with open(codes_file, encoding="utf8") as file:
        codes = file.read()
    if not codes.startswith("#version"):
        raise CorpusError(f"{codes_file}: not a subword-nmt codes file (expected '#version' in the first line)")
    os.makedirs(folder, exist_ok=True)
    _write(os.path.join(folder, f"{name}.codes"), codes.encode())
    _write(os.path.join(folder, f"{name}.vocab"), "\n".join(labels).encode() + b"\n")
    files = {"codes": f"{name}.codes", "vocab": f"{name}.vocab"}
    return _describe(folder, name, "bpe", len(labels), files)


def _describe(folder: str, name: str, kind: str, num_labels: int, files: dict[str, str]) -> dict[str, Any]:
    """Writes ``<name>.json``. :return: its content"""
    checksums = {}
    for file in files.values():
        with open(os.path.join(folder, file), "rb") as stream:
            checksums[file] = hashlib.sha256(stream.read()).hexdigest()
    content = {"type": kind, "num_labels": num_labels, "eos_index": 0, "files": files, "sha256": checksums}
    _write(os.path.join(folder, f"{name}.json"), json.dumps(content, indent=2).encode() + b"\n")
    return content


def _write(filename: str, content: bytes) -> None:
    """Under a temporary name first."""
    with open(filename + ".tmp", "wb") as file:
        file.write(content)
    os.replace(filename + ".tmp", filename)


def read_lines(filename: str) -> Iterator[str]:
    """
    :param filename: UTF-8 text, compressed if it ends with .gz
    :return: lines that are not empty, white space normalised
    :raises CorpusError: wrong encoding, damaged
    """
    try:
        with (
            gzip.open(filename, "rt", encoding="utf8") if filename.endswith(".gz") else open(filename, encoding="utf8")
        ) as file:
            for line in file:
                line = " ".join(line.split())
                if line:
                    yield line
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as exc:
        raise CorpusError(f"{filename}: {exc}") from None


def write_lm_text(folder: str, name: str, files: Iterable[str], normalise: Callable[[str], str]) -> dict[str, Any]:
    """
    :param folder: "lm" of the prepared corpus
    :param name:
    :param files: texts, one sentence per line
    :param normalise: as the transcripts of the corpus
    :return: counts
    """
    os.makedirs(folder, exist_ok=True)
    filename = os.path.join(folder, f"{name}.txt.gz")
    num_sentences = num_words = 0
    with open(filename + ".tmp", "wb") as raw:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as out:
            for file in files:
                for line in read_lines(file):
                    line = normalise(line)
                    if line:
                        out.write(line.encode() + b"\n")
                        num_sentences += 1
                        num_words += len(line.split())
    if not num_sentences:
        os.remove(filename + ".tmp")
        raise CorpusError(f"LM text: no sentence in {', '.join(files)}")
    shutil.move(filename + ".tmp", filename)
    return {"file": f"lm/{name}.txt.gz", "num_sentences": num_sentences, "num_words": num_words}
