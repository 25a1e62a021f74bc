"""
Sub-word vocabularies: one small JSON file, written by the corpus preparation, describes a vocabulary of either kind.

``{"type": "sentencepiece", "num_labels": 1000, "eos_index": 0, "files": {"model": "spm_unigram_1k.model"}}`` or
``{"type": "bpe", "num_labels": 10025, "eos_index": 0, "files": {"codes": "bpe_10k.codes", "vocab": "bpe_10k.vocab"}}``;
file names are relative to the JSON file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Vocab", "load_vocab"]


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

            self._returnn_vocab = Vocabulary.create_vocab(**self.returnn_opts())
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

    def describe(self) -> dict[str, Any]:
        """:return: what the header of an n-best file says of the vocabulary"""
        return {"name": self.name, "type": self.type, "num_labels": self.num_labels, "eos_index": self.eos_index}


def load_vocab(filename: str) -> Vocab:
    """
    :param filename: JSON description
    :raises FileNotFoundError: it or one of the files that it names is missing
    :raises ValueError: malformed
    """
    with open(filename, encoding="utf8") as file:
        try:
            content = json.load(file)
        except json.JSONDecodeError as exc:
            raise ValueError(f"{filename}: not JSON: {exc}") from None
    wanted = {"sentencepiece": {"model"}, "bpe": {"codes", "vocab"}}
    kind = content.get("type") if isinstance(content, dict) else None
    if kind not in wanted:
        raise ValueError(f"{filename}: type {kind!r}: expected sentencepiece or bpe")
    num_labels, eos_index = content.get("num_labels"), content.get("eos_index")
    if not isinstance(num_labels, int) or not isinstance(eos_index, int) or not 0 <= eos_index < num_labels:
        raise ValueError(f"{filename}: num_labels {num_labels!r}, eos_index {eos_index!r}: expected 0 <= eos_index < V")
    files = content.get("files")
    if not isinstance(files, dict) or not wanted[kind] <= set(files):
        raise ValueError(f"{filename}: files {files!r}: expected the keys {sorted(wanted[kind])}")
    folder = os.path.dirname(os.path.abspath(filename))
    paths = {key: os.path.join(folder, files[key]) for key in wanted[kind]}
    for path in paths.values():
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{filename} names {path}, which does not exist")
    name = os.path.splitext(os.path.basename(filename))[0]
    return Vocab(name=name, type=kind, num_labels=num_labels, eos_index=eos_index, files=paths)
