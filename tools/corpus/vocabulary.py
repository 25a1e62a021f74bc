"""
Sub-word vocabularies of a prepared corpus. How they are read: :mod:`recog.vocab`.

Names say what they are: ``spm_unigram_10k``, ``spm_bpe_1k`` (SentencePiece, number of labels), ``bpe_10k``
(subword-nmt, number of merges). EOS (= BOS) is label 0 in all of them.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from recog.vocab import check_merges, labels_of_dict

from .package import CorpusError

__all__ = ["import_bpe", "make_vocab", "parse_vocab_name"]

EOS = "<s>"  # as in the vocabularies of older RETURNN setups, where <s> is the end and the beginning
UNKNOWN = "<unk>"


def parse_vocab_name(name: str) -> tuple[str, int]:
    """
    :param name: e.g. "spm_unigram_10k"
    :return: kind ("spm_unigram", "spm_bpe", "bpe"), number
    :raises CorpusError: not such a name
    """
    match = re.fullmatch(r"(spm_unigram|spm_bpe|bpe)_([1-9]\d*)(k?)", name)
    if not match:
        raise CorpusError(
            f"vocabulary {name!r}: expected spm_unigram_N, spm_bpe_N or bpe_N with N like 80, 1k, 5k or 10k"
        )
    return match[1], int(match[2]) * (1000 if match[3] else 1)


def make_vocab(folder: str, name: str, texts: Callable[[], Iterator[str]]) -> dict[str, Any]:
    """
    Trains a vocabulary on transcripts.

    :param folder: "vocab" of the prepared corpus
    :param name: see :func:`parse_vocab_name`
    :param texts: returns the training transcripts
    :return: its description, as written to ``<name>.json``
    :raises CorpusError: not possible with these transcripts
    """
    kind, number = parse_vocab_name(name)
    os.makedirs(folder, exist_ok=True)
    if kind == "bpe":
        return _train_bpe(folder, name, number, texts)
    return _train_sentencepiece(folder, name, kind.removeprefix("spm_"), number, texts)


def _train_sentencepiece(
    folder: str, name: str, model_type: str, num_labels: int, texts: Callable[[], Iterator[str]]
) -> dict[str, Any]:
    """:return: description"""
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=texts(),
            model_writer=model,
            model_type=model_type,
            vocab_size=num_labels,
            character_coverage=1.0,
            normalization_rule_name="identity",  # the transcripts are normalised, and shall come back as they are
            eos_id=0,
            unk_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=EOS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as exc:
        reason = str(exc).strip().splitlines()[-1]
        raise CorpusError(f"SentencePiece cannot make {name} from these transcripts: {reason}") from None
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    listing = (f"{processor.id_to_piece(i)}\t{processor.get_score(i):g}\n" for i in range(processor.vocab_size()))
    contents = {"model": (f"{name}.model", model.getvalue()), "listing": (f"{name}.vocab", "".join(listing).encode())}
    return _store(folder, name, "sentencepiece", processor.vocab_size(), contents)


def _train_bpe(folder: str, name: str, num_merges: int, texts: Callable[[], Iterator[str]]) -> dict[str, Any]:
    """:return: description"""
    from subword_nmt.apply_bpe import BPE
    from subword_nmt.learn_bpe import learn_bpe

    words: collections.Counter[str] = collections.Counter()
    for text in texts():
        words.update(text.split())
    if not words:
        raise CorpusError(f"vocabulary {name}: the transcripts are empty")
    codes = io.StringIO()
    learn_bpe([f"{word} {count}" for word, count in sorted(words.items())], codes, num_merges, is_dict=True)
    codes.seek(0)
    bpe = BPE(codes)
    pieces: collections.Counter[str] = collections.Counter()
    for word, count in words.items():
        for piece in bpe.process_line(word).split():
            pieces[piece] += count
    # Every word must be writable, also in other parts: all characters are labels, at the end of a word and before it.
    for character in {character for word in words for character in word}:
        for piece in (character, character + "@@"):
            pieces.setdefault(piece, 0)
    labels = [EOS, UNKNOWN, *sorted(pieces, key=lambda piece: (-pieces[piece], piece))]
    return _store_bpe(folder, name, codes.getvalue(), labels)


def import_bpe(folder: str, name: str, codes_file: str, vocab_file: str) -> dict[str, Any]:
    """
    Takes over the subword-nmt vocabulary of an old setup.

    :param folder: "vocab" of the prepared corpus
    :param name: to be given to it
    :param codes_file: merges
    :param vocab_file: a Python dict {label: index} as older RETURNN setups have it, or one label per line. It is
        parsed, never executed.
    :return: its description, as written to ``<name>.json``
    :raises CorpusError: not such files
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise CorpusError(f"vocabulary name {name!r}: expected only letters, digits, _ and -")
    content = _read_text(vocab_file)
    labels = _labels_of_dict(vocab_file, content) if content.lstrip().startswith("{") else content.splitlines()
    if len(set(labels)) != len(labels) or not all(labels):
        raise CorpusError(f"{vocab_file}: some label is empty or there twice: expected one label per line, or a dict")
    if not labels or labels[0] not in (EOS, "</s>"):
        raise CorpusError(f"{vocab_file}: label 0 is {labels[:1]}, but must be {EOS} or </s> (end and beginning)")
    codes = _read_text(codes_file)
    try:
        check_merges(codes_file)
    except ValueError as exc:
        raise CorpusError(str(exc)) from None
    os.makedirs(folder, exist_ok=True)
    return _store_bpe(folder, name, codes, labels)


def _labels_of_dict(filename: str, content: str) -> list[str]:
    """:return: labels by index"""
    try:
        table = labels_of_dict(content)
    except ValueError as exc:
        raise CorpusError(f"{filename}: {exc}") from None
    labels: dict[int, str] = {}
    for label, index in table.items():
        labels.setdefault(index, label)  # of <s> and </s>, which often are the same label, the first
    if sorted(labels) != list(range(len(labels))):
        raise CorpusError(f"{filename}: expected labels with the numbers 0 ... V-1, each of them used")
    return [labels[index] for index in range(len(labels))]


def _read_text(filename: str) -> str:
    """:return: content of a UTF-8 file"""
    try:
        with open(filename, encoding="utf8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise CorpusError(f"{filename} cannot be read: {exc}") from None


def _store_bpe(folder: str, name: str, codes: str, labels: Iterable[str]) -> dict[str, Any]:
    """:return: description"""
    labels = list(labels)
    listing = "".join(f"{label}\n" for label in labels)
    contents = {"codes": (f"{name}.codes", codes.encode()), "vocab": (f"{name}.vocab", listing.encode())}
    return _store(folder, name, "bpe", len(labels), contents)


def _store(folder: str, name: str, kind: str, num_labels: int, contents: dict[str, tuple[str, bytes]]) -> dict:
    """Writes the files and ``<name>.json``. :return: its content"""
    description = {
        "type": kind,
        "num_labels": num_labels,
        "eos_index": 0,
        "files": {key: filename for key, (filename, _) in contents.items()},
        "sha256": {filename: hashlib.sha256(content).hexdigest() for filename, content in contents.values()},
    }
    final = (f"{name}.json", json.dumps(description, indent=2).encode() + b"\n")  # the last: then all of it is there
    for filename, content in [*contents.values(), final]:
        path = os.path.join(folder, filename)
        with open(path + ".tmp", "wb") as file:
            file.write(content)
        os.replace(path + ".tmp", path)
    return description
