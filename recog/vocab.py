"""
Sub-word vocabularies: one small JSON file, written by the corpus preparation, describes a vocabulary of either kind.

``{"type": "sentencepiece", "num_labels": 1000, "eos_index": 0, "files": {"model": "spm_unigram_1k.model"}}`` or
``{"type": "bpe", "num_labels": 10025, "eos_index": 0, "files": {"codes": "bpe_10k.codes", "vocab": "bpe_10k.vocab"}}``;
file names are relative to the JSON file and stay in its folder.

A vocabulary may come from somebody else. RETURNN evaluates a file of labels that begins with "{", and unpickles one
whose name ends with ".pkl"; so these files are looked at here, before RETURNN gets them. (A SentencePiece model is read
by SentencePiece, which executes nothing.)
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .json_file import read_json_object
from .prepared_corpus import is_inside
from .text_file import read_text

__all__ = ["Vocab", "check_merges", "labels_of_dict", "load_vocab", "vocab_differences"]

_MAX_BYTES = 64 * 2**20
"""Of a file of labels or merges. Those of published models have 0.2 MiB."""


@dataclass
class Vocab:
    """Labels 0 ... num_labels-1, EOS (= BOS) among them, blank not."""

    name: str
    type: Literal["sentencepiece", "bpe"]
    num_labels: int
    eos_index: int
    files: dict[str, str]  # absolute
    _returnn_vocab: Any = field(default=None, repr=False)

    def returnn_opts(self) -> dict[str, Any]:
        """:return: options for RETURNN's ``Vocabulary.create_vocab``, for the targets of a dataset (without EOS)"""
        if self.type == "sentencepiece":
            return {"class": "SentencePieces", "model_file": self.files["model"]}
        return {
            "class": "BytePairEncoding",
            "bpe_file": self.files["codes"],
            "vocab_file": self.files["vocab"],
            "unknown_label": None,
            "bos_label": self.eos_index,
            "eos_label": self.eos_index,
        }

    def _load(self) -> Any:
        """:return: RETURNN's vocabulary object"""
        if self._returnn_vocab is None:
            from returnn.datasets.util.vocabulary import Vocabulary

            try:
                self._returnn_vocab = Vocabulary.create_vocab(**self.returnn_opts())
            except Exception as exc:  # of many kinds, for a damaged file
                files = ", ".join(self.files.values())
                raise ValueError(f"vocabulary {self.name}: {files} cannot be used: {exc}") from None
            if self._returnn_vocab.num_labels != self.num_labels:
                raise ValueError(
                    f"vocabulary {self.name}: {self.num_labels} labels in the description, but"
                    f" {self._returnn_vocab.num_labels} in {', '.join(self.files.values())}: make it again"
                )
        return self._returnn_vocab

    @property
    def unknown_index(self) -> int | None:
        """Label of characters that the vocabulary does not have; None: there is none"""
        return self._load().unknown_label_id

    def text_to_labels(self, text: str) -> list[int]:
        """:return: labels of the canonical segmentation, without EOS"""
        return [int(i) for i in self._load().get_seq(text)]

    def labels_to_text(self, labels: Sequence[int]) -> str:
        """
        :param labels: without EOS and blank
        :return: words separated by single spaces
        """
        vocab = self._load()
        labels = [int(label) for label in labels if int(label) != self.eos_index]
        if self.type == "sentencepiece":
            return " ".join(vocab.sp.decode(labels).split())
        text = " ".join(vocab.labels[label] for label in labels) + " "
        return " ".join(text.replace("@@ ", "").split())

    def label_name(self, label: int) -> str:
        """:return: the sub-word as the vocabulary writes it, e.g. "▁the" (SentencePiece) or "th@@" (BPE)"""
        vocab = self._load()
        return vocab.sp.id_to_piece(int(label)) if self.type == "sentencepiece" else vocab.labels[int(label)]

    def labels_hash(self) -> str:
        """:return: of all sub-words in their order: two vocabularies with the same have the same labels"""
        names = "\n".join(self.label_name(label) for label in range(self.num_labels))
        return hashlib.sha256(names.encode()).hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """:return: what the header of an n-best file says of the vocabulary"""
        return {
            "name": self.name,
            "type": self.type,
            "num_labels": self.num_labels,
            "eos_index": self.eos_index,
            "labels_hash": self.labels_hash(),
        }


def vocab_differences(mine: Mapping[str, Any], its: Mapping[str, Any]) -> list[str]:
    """
    :param mine: description of a vocabulary, see :meth:`Vocab.describe`
    :param its: another one, can be of an older version and say less
    :return: what differs, for messages
    """
    return [f"{key} {its[key]!r} instead of {mine[key]!r}" for key in mine if key in its and its[key] != mine[key]]


def load_vocab(filename: str) -> Vocab:
    """
    :param filename: JSON description
    :raises FileNotFoundError: it or one of the files that it names is missing
    :raises ValueError: malformed, or with something that RETURNN would execute
    """
    content = read_json_object(filename)
    wanted = {"sentencepiece": {"model"}, "bpe": {"codes", "vocab"}}
    kind = content.get("type")
    if not isinstance(kind, str) or kind not in wanted:
        raise ValueError(f"{filename}: type {kind!r}: expected sentencepiece or bpe")
    num_labels, eos_index = content.get("num_labels"), content.get("eos_index")
    if type(num_labels) is not int or type(eos_index) is not int or not 0 <= eos_index < num_labels:
        raise ValueError(f"{filename}: num_labels {num_labels!r}, eos_index {eos_index!r}: expected 0 <= eos_index < V")
    files = content.get("files")
    if not isinstance(files, dict) or not wanted[kind] <= set(files):
        raise ValueError(f"{filename}: files {files!r}: expected the keys {sorted(wanted[kind])}")
    for key in wanted[kind]:
        if not isinstance(files[key], str) or not is_inside(files[key]):
            raise ValueError(f"{filename}: {key} {files[key]!r}: expected the name of a file in the same folder")
    folder = os.path.dirname(os.path.abspath(filename))
    paths = {key: os.path.join(folder, files[key]) for key in wanted[kind]}
    for path in paths.values():
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{filename} names {path}, which does not exist")
    if kind == "bpe":
        _check_labels(paths["vocab"])
        check_merges(paths["codes"])
    name = os.path.splitext(os.path.basename(filename))[0]
    return Vocab(name=name, type=kind, num_labels=num_labels, eos_index=eos_index, files=paths)


def labels_of_dict(content: str) -> dict[str, int]:
    """
    :param content: of a file of labels, as a Python dict. It is parsed, never executed.
    :return: label -> index
    :raises ValueError: something else
    """
    try:
        table = ast.literal_eval(content)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as exc:
        raise ValueError(f"not a Python dict of labels ({exc})") from None
    if not isinstance(table, dict) or not all(isinstance(k, str) and type(v) is int for k, v in table.items()):
        raise ValueError("expected a Python dict of labels and their numbers")
    return table


def _check_labels(filename: str) -> None:
    """:raises ValueError: RETURNN would execute what is in this file, or not understand it"""
    if filename.endswith((".pkl", ".gz")):
        raise ValueError(f"{filename}: refused, because of its ending: expected a text file of labels")
    content = read_text(filename, max_bytes=_MAX_BYTES, what="vocabulary")
    if content.startswith("{"):
        try:
            labels_of_dict(content)
        except ValueError as exc:
            raise ValueError(f"{filename}: {exc}. It is not used: RETURNN would execute what is in it") from None


def check_merges(filename: str) -> None:
    """
    :param filename:
    :raises ValueError: not the merges of subword-nmt, as RETURNN reads them
    """
    for number, line in enumerate(read_text(filename, max_bytes=_MAX_BYTES, what="vocabulary").splitlines(), 1):
        if number == 1 and line.startswith("#version:"):
            if not re.fullmatch(r"#version: *0\.[12](\.0+)*\s*", line):
                raise ValueError(f"{filename}, line 1: {line[:50]!r}: expected '#version: 0.2'")
        elif len(line.split()) != 2:
            raise ValueError(f"{filename}, line {number}: {line[:50]!r}: expected the two parts of a merge")
