"""
Text: the prepared text for language models, transcripts, or any file, as RETURNN's LmDataset reads it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from recog.vocab import Vocab

from .corpus import Corpus, CorpusOptions, open_corpus
from .options import OptionError
from .run import make_output_dir
from .train_options import LmTrainOptions

__all__ = ["TRANSCRIPTS", "Text", "TextOptions", "TextSetup", "lm_extern_data", "open_texts", "text_dataset"]

TRANSCRIPTS = "transcripts"
"""Name of a text: the transcripts of the training parts."""


@dataclass(frozen=True)
class TextOptions:
    """Options of every run on text. A text is the name of a prepared text, of a part of the corpus (its transcripts),
    "transcripts" (of all training parts), or a file with a sentence per line (.txt or .gz), written like them."""

    data_dir: str = os.environ.get("DATA_DIR", "data")
    """Folder that holds the prepared corpora (one folder each), or the folder of the prepared corpus itself."""
    vocab: str = "spm_unigram_10k"
    """Name of a vocabulary below ``vocab/`` of the corpus. Must be that of the ASR model."""
    train_texts: tuple[str, ...] = ("lm",)
    dev_texts: tuple[str, ...] = ("dev",)
    train_parts: tuple[str, ...] = ("train",)
    """What "transcripts" means."""
    partition_epoch: int = 1
    """A sub-epoch ("epoch" in RETURNN) is 1 / partition_epoch of the training text."""
    train_seq_ordering: str = "laplace:.1000"
    """RETURNN's ordering of the training sentences: shuffled, then sorted by length within chunks."""
    num_workers: int = 1
    """Processes that load data. 0: in the main process."""

    def __post_init__(self):
        if self.partition_epoch < 1:
            raise ValueError(f"partition_epoch = {self.partition_epoch}: expected at least 1")
        if not self.train_texts or not self.dev_texts:
            raise ValueError("train_texts and dev_texts must not be empty")


@dataclass(frozen=True)
class TextSetup:
    """A corpus with the training recipe of a language model: what its configs start from."""

    corpus_name: str
    """Name of the folder of the prepared corpus, and what its manifest must say."""
    train_run: str
    """Name of the training config (without .config): others look for its checkpoints."""
    prepare_command: str
    """What a user types to prepare the data."""
    text: TextOptions
    training: LmTrainOptions


@dataclass(frozen=True)
class Text:
    """Text files."""

    name: str
    files: tuple[str, ...]
    """Sentences, one per line; .txt files end with a newline."""
    tags_file: str | None = None
    """Utterance ids, one per line; None: lines have no name."""


def open_texts(
    names: tuple[str, ...], setup: TextSetup, opts: TextOptions, *, output_dir: str
) -> tuple[list[Text], Vocab]:
    """
    :param names: see :class:`TextOptions`
    :param setup: which corpus
    :param opts: where it is, vocabulary
    :param output_dir: transcripts are written to the folder ``text`` in it
    :return: a text for each name, vocabulary
    :raises OptionError: data missing; says what to do
    """
    prepare_command = setup.prepare_command
    corpus_opts = CorpusOptions(data_dir=opts.data_dir, vocab=opts.vocab)
    corpus = open_corpus(setup.corpus_name, corpus_opts, parts=(), prepare_command=prepare_command)
    parts, lm_texts = corpus.manifest["parts"], corpus.manifest.get("lm_texts", {})
    texts = []
    for name in names:
        if name in lm_texts:
            filename = os.path.join(corpus.folder, lm_texts[name]["file"])
            if not os.path.isfile(filename):
                raise OptionError(f"{filename} is missing, though the corpus' manifest names it: {prepare_command}")
            texts.append(Text(name, (filename,)))
        elif name == TRANSCRIPTS or name in parts:
            which = opts.train_parts if name == TRANSCRIPTS else (name,)
            if missing := [part for part in which if part not in parts]:
                raise OptionError(f"{corpus.folder} has no part {missing[0]!r}, only {', '.join(sorted(parts))}")
            texts.append(_write_transcripts(corpus, name, which, os.path.join(output_dir, "text")))
        elif os.path.isfile(name):
            texts.append(Text(os.path.basename(name), (_checked_text_file(name),)))
        else:
            known = ", ".join([*sorted(lm_texts), TRANSCRIPTS, *sorted(parts)])
            raise OptionError(
                f"no text {name!r}: it is neither a file nor one of {known} in {corpus.folder}. Text for language"
                f" models comes with the option --lm-text of\n  {prepare_command}"
            )
    return texts, corpus.vocab


def _checked_text_file(filename: str) -> str:
    """:return: filename. RETURNN's LmDataset would not see a last line without an end."""
    if not filename.endswith(".gz"):
        with open(filename, "rb") as file:
            file.seek(0, os.SEEK_END)
            if file.tell() == 0:
                raise OptionError(f"{filename} is empty: expected a sentence per line")
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                raise OptionError(f"{filename}: the last line has no end: add a newline")
    return filename


def _write_transcripts(corpus: Corpus, name: str, parts: tuple[str, ...], folder: str) -> Text:
    """:return: the transcripts of these parts, written to folder; without empty ones"""
    make_output_dir(folder)
    text_file, tags_file = os.path.join(folder, f"{name}.txt"), os.path.join(folder, f"{name}.tags.txt")
    temporary = [f"{filename}.{os.getpid()}.tmp" for filename in (text_file, tags_file)]
    with open(temporary[0], "w", encoding="utf8") as texts, open(temporary[1], "w", encoding="utf8") as tags:
        for part in parts:
            for utterance in corpus.listing(part):
                if text := " ".join((utterance.text or "").split()):
                    texts.write(text + "\n")
                    tags.write(utterance.seq_name + "\n")
    for source, target in zip(temporary, (text_file, tags_file), strict=True):
        os.replace(source, target)
    return Text(name, (text_file,), tags_file)


def text_dataset(texts: list[Text], vocab: Vocab, **kwargs: Any) -> dict[str, Any]:
    """
    :param texts: one after the other
    :param vocab:
    :param kwargs: more options of the dataset
    :return: RETURNN dataset options; data key "data": labels without EOS
    """
    dataset = {
        "class": "LmDataset",
        "corpus_file": [filename for text in texts for filename in text.files],
        "orth_vocab": vocab.returnn_opts(),
        "dtype": "int32",
        **kwargs,
    }
    if len(texts) == 1 and texts[0].tags_file:
        dataset["seq_list_file"] = texts[0].tags_file
    return dataset


def lm_extern_data(vocab: Vocab) -> dict[str, Any]:
    """:return: RETURNN's ``extern_data``: labels {batch, labels} without EOS"""
    from returnn.tensor import Dim, batch_dim

    labels_dim = Dim(None, name="labels")
    return {
        "data": {
            "dims": [batch_dim, labels_dim],
            "sparse_dim": Dim(vocab.num_labels, name="vocab"),
            "dtype": "int32",
        }
    }
