"""
Corpora: where the prepared data is, which parts and which vocabulary a run uses, and RETURNN's datasets for them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from recog.batches import Utt
from recog.prepared_corpus import ListedUtterance, PreparedCorpusError, check_listings, iter_listing, read_manifest
from recog.subword_sampling import SubwordSampling, sampling_vocabulary
from recog.vocab import Vocab, load_vocab
from rf_models.encoder import SAMPLE_RATE
from rf_models.options import AedCtcOptions

from .options import OptionError

__all__ = ["Corpus", "CorpusOptions", "open_corpus"]


@dataclass(frozen=True)
class CorpusOptions:
    """Options of every run on audio."""

    data_dir: str = os.environ.get("DATA_DIR", "data")
    """Folder that holds the prepared corpora (one folder each), or the folder of the prepared corpus itself."""
    vocab: str = "spm_unigram_10k"
    """Name of a vocabulary below ``vocab/`` of the corpus."""
    train_parts: tuple[str, ...] = ("train",)
    dev_parts: tuple[str, ...] = ("dev",)
    recog_parts: tuple[str, ...] = ("dev", "test")
    """Parts to recognise."""
    peak_normalization: bool = True
    """Scale each utterance to a maximum amplitude of 1, as the published models expect."""
    partition_epoch: int = 1
    """A sub-epoch ("epoch" in RETURNN) is 1 / partition_epoch of the training data."""
    train_seq_ordering: str = "laplace:.1000"
    """RETURNN's ordering of the training utterances: shuffled, then sorted by length within chunks."""
    speed_perturbation: tuple[float, ...] = (0.9, 1.0, 1.1)
    """Speed factors to draw from in training; a single 1.0 switches it off."""
    audio_padding: int = 0
    """In training, silence of 0 to so many samples (drawn) before and behind the audio."""
    subword_sampling_alpha: float | None = None
    """In training, draw the sub-words of a text with a probability proportional to P^alpha (P of the unigram model).
    None, and none of the next options: the best ones. See :class:`recog.subword_sampling.SubwordSampling`."""
    subword_sampling_nbest: int | None = None
    """Draw from so many best segmentations. None: from all."""
    subword_dropout: float = 0.0
    """In training, BPE-dropout with this probability; for BPE vocabularies."""
    subword_breadth_prob: float = 0.0
    """In training, end a sub-word with this probability where it could go on; for vocabularies of all kinds."""
    curriculum_epochs: int = 0
    """In so many first sub-epochs, only utterances up to a mean length of curriculum_max_mean_len."""
    curriculum_max_mean_len: int = 1000
    """In frames of 10 ms."""
    dev_max_seqs: int = 3000
    """At most so many utterances of the dev parts are used to measure the dev losses."""
    num_workers: int = 1
    """Processes that load data. 0: in the main process."""

    def __post_init__(self):
        if self.partition_epoch < 1:
            raise ValueError(f"partition_epoch = {self.partition_epoch}: expected at least 1")
        if not self.speed_perturbation or any(not 0.5 <= f <= 2.0 for f in self.speed_perturbation):
            raise ValueError(f"speed_perturbation = {self.speed_perturbation}: expected factors of 0.5 ... 2.0")
        if self.audio_padding < 0:
            raise ValueError(f"audio_padding = {self.audio_padding}: expected a number of samples")
        _ = self.subword_sampling

    @property
    def subword_sampling(self) -> SubwordSampling:
        """Of the training targets"""
        return SubwordSampling(
            alpha=self.subword_sampling_alpha,
            nbest=self.subword_sampling_nbest,
            dropout=self.subword_dropout,
            breadth_prob=self.subword_breadth_prob,
        )


@dataclass
class Corpus:
    """A prepared corpus on disk."""

    name: str
    folder: str
    manifest: dict[str, Any]
    vocab: Vocab
    opts: CorpusOptions

    def num_seqs(self, parts: tuple[str, ...]) -> int:
        """:return: number of utterances of these parts"""
        return sum(self.manifest["parts"][part]["num_seqs"] for part in parts)

    def listing(self, part: str) -> list[ListedUtterance]:
        """
        :return: all utterances of a packed part. No audio is read.
        :raises OptionError: the packed part is damaged
        """
        try:
            return list(iter_listing(os.path.join(self.folder, self.manifest["parts"][part]["file"])))
        except PreparedCorpusError as exc:
            raise OptionError(f"{exc}: prepare the corpus again") from None

    def _utterances(self, parts: tuple[str, ...], checks: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """:return: RETURNN dataset options"""
        from .utterances import UtteranceChecks, UtteranceDataset

        return {
            "class": UtteranceDataset,
            "checks": UtteranceChecks(**checks),
            "path": [os.path.join(self.folder, self.manifest["parts"][part]["file"]) for part in parts],
            "audio": {
                "features": "raw",
                "sample_rate": SAMPLE_RATE,
                "peak_normalization": self.opts.peak_normalization,
                "preemphasis": None,
            },
            "targets": self.vocab.returnn_opts(),
            **kwargs,
        }

    def train_dataset(self, **checks: Any) -> dict[str, Any]:
        """
        :param checks: what utterances must fulfil, see :class:`configs.base.utterances.UtteranceChecks`
        :return: RETURNN dataset options of the training data, with augmentation
        :raises OptionError: sub-words are to be drawn in a way that is not that of the vocabulary
        """
        dataset = self._utterances(
            self.opts.train_parts,
            {"data": "train", "leave_out": True, **checks},
            partition_epoch=self.opts.partition_epoch,
            seq_ordering=self.opts.train_seq_ordering,
        )
        if self.opts.curriculum_epochs:
            dataset["epoch_wise_filter"] = {
                (1, self.opts.curriculum_epochs): {"max_mean_len": self.opts.curriculum_max_mean_len}
            }
        from .augmentation import AudioPadding, Augmentations, SpeedPerturbation

        if self.opts.subword_sampling:
            try:
                dataset["targets"] = sampling_vocabulary(self.vocab, self.opts.subword_sampling)
            except ValueError as exc:
                raise OptionError(str(exc)) from None
        steps: list[Any] = []
        if set(self.opts.speed_perturbation) != {1.0}:
            steps.append(SpeedPerturbation(self.opts.speed_perturbation))
        if self.opts.audio_padding:
            steps.append(AudioPadding(self.opts.audio_padding))
        if steps:
            dataset["audio"]["pre_process"] = Augmentations(tuple(steps))
        return dataset

    def statistics_dataset(self, num_seqs: int) -> dict[str, Any]:
        """:return: RETURNN dataset options of at most so many utterances of the training data, without augmentation"""
        checks = {"data": "statistics", "leave_out": True, "num_frames": AedCtcOptions().num_encoder_frames}
        subset = {"fixed_random_subset": num_seqs} if self.num_seqs(self.opts.train_parts) > num_seqs else {}
        return self._utterances(self.opts.train_parts, checks, seq_ordering="default", **subset)

    def dev_dataset(self, **checks: Any) -> dict[str, Any]:
        """
        :param checks: as for :meth:`train_dataset`
        :return: RETURNN dataset options of the data that the dev losses are measured on
        """
        subset = {}
        if self.num_seqs(self.opts.dev_parts) > self.opts.dev_max_seqs:
            subset["fixed_random_subset"] = self.opts.dev_max_seqs
        checks = {"data": "dev", "leave_out": True, **checks}
        return self._utterances(self.opts.dev_parts, checks, seq_ordering="sorted_reverse", **subset)

    def forward_dataset(self, parts: tuple[str, ...], *, needs_labels: bool = False) -> dict[str, Any]:
        """
        :param parts:
        :param needs_labels: whether an utterance is of no use without the labels of its transcript
        :return: RETURNN dataset options of data to recognise, the longest utterances first; all of them, those with
            problems too
        """
        checks = {"data": "+".join(parts), "leave_out": False, "needs_labels": needs_labels}
        return self._utterances(parts, checks, seq_ordering="sorted_reverse")

    def forward_order(self, parts: tuple[str, ...]) -> list[Utt]:
        """:return: the utterances of these parts in the order of :meth:`forward_dataset`"""
        utts = [(entry.duration, entry.seq_name) for part in parts for entry in self.listing(part)]
        utts.sort(key=lambda item: -int(item[0] * 100))  # as RETURNN does: stable, in steps of 10 ms
        return [Utt(tag, round(duration * SAMPLE_RATE)) for duration, tag in utts]

    def extern_data(self, *, forward: bool) -> dict[str, Any]:
        """
        :param forward: with what only :meth:`forward_dataset` has
        :return: RETURNN's ``extern_data``: audio {batch, time, 1}, labels {batch, labels}; if forward, text as UTF-8
            bytes, and what is special about the utterance
        """
        from returnn.tensor import Dim, batch_dim

        from recog.utterance_info import INFO_KEY

        time_dim, labels_dim = Dim(None, name="time"), Dim(None, name="labels")
        texts = {}
        for key in ("orth", INFO_KEY) if forward else ():
            dims = [batch_dim, Dim(None, name=key)]
            texts[key] = {"dims": dims, "sparse_dim": Dim(256, name="bytes"), "dtype": "uint8"}
        return {
            "data": {"dims": [batch_dim, time_dim, Dim(1, name="mono")], "dtype": "float32"},
            "classes": {
                "dims": [batch_dim, labels_dim],
                "sparse_dim": Dim(self.vocab.num_labels, name="vocab"),
                "dtype": "int32",
            },
            **texts,
        }


def open_corpus(name: str, opts: CorpusOptions, *, parts: tuple[str, ...], prepare_command: str) -> Corpus:
    """
    :param name: "librispeech", "tedlium2" or "demo"
    :param opts:
    :param parts: that this run needs
    :param prepare_command: what a user types to make the data
    :raises OptionError: data missing; says what to do
    """
    hint = f"Prepare it with\n  {prepare_command}\nor say where it is with ++data_dir FOLDER (or DATA_DIR)."
    candidates = [os.path.join(opts.data_dir, name), opts.data_dir]
    for folder in candidates:
        manifest_file = os.path.join(folder, "corpus.json")
        if os.path.isfile(manifest_file):
            break
    else:
        raise OptionError(
            f"no prepared corpus {name!r}: no corpus.json in {' or '.join(map(os.path.abspath, candidates))}. {hint}"
        )
    try:
        manifest = read_manifest(manifest_file)
    except PreparedCorpusError as exc:
        raise OptionError(f"{manifest_file} is not a manifest of a prepared corpus. {exc}. {hint}") from None
    found, known_parts = manifest["corpus"], manifest["parts"]
    if found != name:
        raise OptionError(f"{manifest_file} is of the corpus {found!r}, but this run needs {name!r}. {hint}")
    for part in parts:
        if part not in known_parts:
            raise OptionError(f"{folder} has no part {part!r}, only {', '.join(sorted(known_parts))}. {hint}")
        zip_file = os.path.join(folder, known_parts[part]["file"])
        if not os.path.isfile(zip_file):
            raise OptionError(f"{zip_file} is missing, though {manifest_file} names it. {hint}")
    try:
        # RETURNN's own parser would end the process at the first surprise.
        check_listings(
            {os.path.join(folder, known_parts[part]["file"]): known_parts[part].get("num_seqs") for part in parts}
        )
    except PreparedCorpusError as exc:
        raise OptionError(f"{exc}. {hint}") from None
    vocab_dir = os.path.join(folder, "vocab")
    try:
        vocab = load_vocab(os.path.join(vocab_dir, opts.vocab + ".json"))
    except FileNotFoundError as exc:
        names = os.listdir(vocab_dir) if os.path.isdir(vocab_dir) else []
        there = ", ".join(sorted(n[: -len(".json")] for n in names if n.endswith(".json"))) or "none"
        raise OptionError(f"no vocabulary {opts.vocab!r} ({exc}); there are: {there}. {hint}") from None
    except ValueError as exc:
        raise OptionError(str(exc)) from None
    return Corpus(name=name, folder=folder, manifest=manifest, vocab=vocab, opts=opts)
