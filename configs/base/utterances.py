"""
RETURNN's OggZipDataset with checks of each utterance: what a model cannot be trained on is left out and named in the
log; what cannot be recognised comes with the reason, so that the n-best file has an entry for it.
"""

from __future__ import annotations

import collections
import hashlib
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
from returnn.datasets.audio import OggZipDataset
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.util.strings import str_to_numpy_array
from returnn.log import log

from recog.prepared_corpus import iter_listing
from recog.utterance_info import INFO_KEY, UtteranceInfo

from .audio import SAMPLE_RATE, AudioError, audio_problem, read_audio

__all__ = ["NoUtteranceError", "UtteranceChecks", "UtteranceDataset", "sequence_seed"]

_SUBSTITUTE_SAMPLES = 400
"""Silence in the place of audio that cannot be used, so that there is something to compute: one window of features."""
_GIVE_UP = 100
"""If so many first utterances all have problems, the corpus has one."""


class NoUtteranceError(RuntimeError):
    """There is no utterance that can be used, or not this one. The message says why."""


@dataclass(frozen=True)
class UtteranceChecks:
    """What is done with the utterances of a dataset."""

    data: str
    """What the log calls these data, e.g. "train"."""
    leave_out: bool
    """True: for training. Utterances with problems, or that a model cannot learn from, are left out. False: all come,
    with what is wrong with them."""
    needs_labels: bool = False
    """Not for training: a transcript without labels is a problem."""
    num_frames: Callable[[int], int] | None = None
    """In training: number of samples -> number of encoder frames. There must be one, and, with ctc, so many as CTC
    needs for the transcript."""
    ctc: bool = False
    ctc_with_eos: bool = False
    max_seconds: float | None = None
    """In training: longer ones are left out."""
    max_labels: int | None = None
    """In training: those with more labels (without EOS) are left out."""


def sequence_seed(epoch_seed: int, seq_tag: str) -> int:
    """
    :param epoch_seed: of the data of this epoch
    :param seq_tag:
    :return: seed of 32 bits for all that is drawn for this sequence in this epoch
    """
    return int.from_bytes(hashlib.sha256(f"{epoch_seed}|{seq_tag}".encode()).digest()[:4], "little")


class UtteranceDataset(OggZipDataset):
    """
    OggZipDataset, with checks. Further, the random numbers for the augmentation of an utterance (audio, and sub-words
    that are drawn) depend on seed, epoch and sequence tag only: not on the number of processes that load data, nor on
    the order of the utterances.

    If all utterances come (``leave_out=False``), there is one more data key, see :mod:`recog.utterance_info`. Audio
    that cannot be used is replaced by a piece of silence.
    """

    def __init__(self, path: str | list[str], *, checks: UtteranceChecks, **kwargs: Any):
        """
        :param path: zip files
        :param checks:
        :param kwargs: of OggZipDataset
        """
        super().__init__(path, **kwargs)
        self._checks = checks
        self._reported: set[str] = set()
        self._begin()
        if not checks.leave_out:
            self.num_outputs[INFO_KEY] = [256, 1]
            self.labels[INFO_KEY] = self.labels["orth"]

    def _begin(self) -> None:
        """A sub-epoch begins."""
        self._next_position = 0  # in the order of the sub-epoch
        self._positions: list[int] = []  # of the utterances that came
        self._left_out: collections.Counter[str] = collections.Counter()

    # ---- the list of utterances

    def _collect_data_part(self, zip_index: int) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """
        :return: utterances of a zip file, an example
        :raises PreparedCorpusError:
        """
        data = [{**vars(utt), "_zip_file_index": zip_index} for utt in iter_listing(self.paths[zip_index])]
        return data, data[0] if data else None

    # ---- a sub-epoch

    def init_seq_order(self, epoch: int | None = None, seq_list: Any = None, seq_order: Any = None) -> bool:
        """As in OggZipDataset."""
        self._begin()
        return super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)

    def is_less_than_num_seqs(self, n: int) -> bool:
        """
        :param n: number of an utterance, of those that are not left out
        :return: whether there is one
        """
        if n < self.expected_load_seq_start:
            return True
        if self.epoch is None:
            return False
        if not self._checks.leave_out:
            return n < self.num_seqs
        self._load_seqs(n, n + 1)
        return self._get_seq(n) is not None

    def get_tag(self, seq_idx: int) -> str:
        """:return: sequence tag of an utterance that is loaded"""
        self.load_seqs(seq_idx, seq_idx + 1)
        return self._get_seq(seq_idx).seq_tag

    def get_corpus_seq_idx(self, seq_idx: int) -> int:
        """:return: index in the corpus of an utterance that has been loaded"""
        return self._seq_order[self._positions[seq_idx]]

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        """:return: the next utterance that is not left out; None: there is none"""
        while self._next_position < len(self._seq_order):
            position = self._next_position
            self._next_position += 1
            seq, problem = self._load(self._seq_order[position])
            if seq is not None:
                seq.seq_idx = seq_idx
                seq.complete_frac = (position + 1) / len(self._seq_order)
                self._positions.append(position)
                return seq
            self._left_out[re.split(r"[:(]", problem)[0].strip()] += 1
            if position + 1 == min(_GIVE_UP, len(self._seq_order)) and not self._positions:
                tag = self._data[self._seq_order[position]]["seq_name"]
                raise NoUtteranceError(
                    f"{self._checks.data}: each of the first {position + 1} utterances has a problem, e.g. {tag}:"
                    f" {problem}. Was the corpus prepared for other models? See the log for the others"
                )
        if self._left_out and not self.reached_final_seq:
            counts = sorted(self._left_out.items(), key=lambda item: (-item[1], item[0]))
            reasons = ", ".join(f"{reason} ({count})" for reason, count in counts)
            print(
                f"{self._checks.data}, sub-epoch {self.epoch}: left out {sum(self._left_out.values())} of"
                f" {len(self._seq_order)} utterances: {reasons}",
                file=log.v2,
            )
        self.reached_final_seq = True
        return None

    # ---- an utterance

    def get_data_keys(self) -> list[str]:
        """:return: available data keys"""
        return super().get_data_keys() + ([] if self._checks.leave_out else [INFO_KEY])

    def get_data_dim(self, key: str) -> int:
        """:return: dim of data entry with `key`"""
        return 256 if key == INFO_KEY else super().get_data_dim(key)

    def get_data_dtype(self, key: str) -> str:
        """:return: dtype of data entry with `key`"""
        return "uint8" if key == INFO_KEY else super().get_data_dtype(key)

    def get_data_shape(self, key: str) -> list[int]:
        """:return: shape of data entry with `key`, without time"""
        return [] if key == INFO_KEY else super().get_data_shape(key)

    def is_data_sparse(self, key: str) -> bool:
        """:return: whether data entry with `key` is sparse"""
        return key == INFO_KEY or super().is_data_sparse(key)

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """
        :param corpus_seq_idx:
        :return: the utterance
        :raises NoUtteranceError: it is to be left out
        """
        self._lazy_init()
        seq, problem = self._load(corpus_seq_idx)
        if seq is None:
            tag = self._data[corpus_seq_idx]["seq_name"]
            raise NoUtteranceError(f"utterance {tag}: {problem}")
        return seq

    def _load(self, corpus_seq_idx: int) -> tuple[DatasetSeq | None, str | None]:
        """:return: utterance, and what is wrong with it; None for an utterance to be left out"""
        entry = self._data[corpus_seq_idx]
        tag = entry["seq_name"]
        self.targets.set_random_seed(self._seed(f"labels of {tag}"))  # sub-words can be drawn
        text, labels, text_problem = self._transcript(entry)
        audio, problem = self._usable_audio(entry, tag)
        info = UtteranceInfo()
        if self._checks.leave_out:
            problem = problem or text_problem or self._not_for_training(audio, labels)
            if problem:
                self._report(tag, f"is left out: {problem}")
                return None, problem
        else:
            if text is None:
                self._report(tag, f"has no reference: {text_problem}")
            if problem is None and labels is None and self._checks.needs_labels:
                problem = text_problem
            if problem:
                self._report(tag, f"cannot be used: {problem}")
                audio = numpy.zeros((_SUBSTITUTE_SAMPLES, 1), dtype="float32")
            duration = float(entry["duration"]) if problem else None
            info = UtteranceInfo(error=problem, no_transcript=text is None, duration=duration)
        features = {
            "data": audio,
            "classes": numpy.array([] if labels is None else labels, dtype="int32"),
            "orth": numpy.array(list((text or "").encode("utf8")), dtype="uint8"),
            "raw": str_to_numpy_array(text or ""),
            INFO_KEY: numpy.array(list(info.as_bytes()), dtype="uint8"),
        }
        features = {key: features[key] for key in self.get_data_keys()}
        return DatasetSeq(features=features, seq_idx=corpus_seq_idx, seq_tag=tag), problem

    def _seed(self, what: str) -> int:
        return sequence_seed(self._get_random_seed_for_epoch(self.epoch), what)

    def _report(self, tag: str, message: str) -> None:
        """Once, not in each sub-epoch."""
        if tag not in self._reported:
            self._reported.add(tag)
            print(f"{self._checks.data}: utterance {tag} {message}", file=log.v2)

    def _transcript(self, entry: dict[str, Any]) -> tuple[str | None, list[int] | None, str | None]:
        """:return: text, labels (None: not available), what is wrong with them"""
        text = entry["text"]
        if text is None:
            return None, None, "no transcript"
        labels = self._to_labels(text)
        if not self._is_known(labels):
            words = [repr(word) for word in text.split() if not self._is_known(self._to_labels(word))]
            return text, labels, f"characters that the vocabulary does not have: in {' '.join(words[:3])}"
        return text, labels, None if labels else "empty transcript"

    def _to_labels(self, text: str) -> list[int] | None:
        """:return: None: not possible with a vocabulary that has no label for all others"""
        try:
            return [int(label) for label in self.targets.get_seq(text)]
        except KeyError:
            return None

    def _is_known(self, labels: list[int] | None) -> bool:
        return labels is not None and self.targets.unknown_label_id not in labels

    def _usable_audio(self, entry: dict[str, Any], tag: str) -> tuple[numpy.ndarray | None, str | None]:
        """:return: [samples, 1] as the model gets it, or what is wrong"""
        zip_index = entry["_zip_file_index"]
        if entry["file"] is None:
            return None, "no audio: the list of utterances names no file"
        name = f"{self._names[zip_index]}/{entry['file']}"
        try:
            content = self._read(name, zip_index)
            audio, sample_rate = read_audio(content, "float64")
        except KeyError:
            return None, f"no audio: {name} is not in the zip file"
        except (AudioError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as exc:
            return None, f"audio cannot be read: {exc}"
        if problem := audio_problem(audio, sample_rate):
            return None, problem
        seconds, listed = len(audio) / sample_rate, entry["duration"]
        if seconds < 0.95 * listed - 0.05:
            return None, f"truncated: {seconds:.2f} s of audio, but {listed:.2f} s in the list of utterances"
        if self._checks.leave_out and not audio.any():
            return None, "silence: all samples are 0"
        self._audio_random.seed(self._seed(tag))
        return self.feature_extractor.get_audio_features(audio=audio, sample_rate=sample_rate, seq_name=tag), None

    def _not_for_training(self, audio: numpy.ndarray, labels: list[int]) -> str | None:
        """:return: why a model cannot learn from this utterance"""
        checks = self._checks
        if checks.max_seconds is not None and len(audio) > checks.max_seconds * SAMPLE_RATE:
            return f"longer than max_audio_seconds = {checks.max_seconds:g}: {len(audio) / SAMPLE_RATE:.2f} s"
        if checks.max_labels is not None and len(labels) > checks.max_labels:
            return f"more labels than max_label_len = {checks.max_labels}: {len(labels)}"
        if checks.num_frames is not None:
            frames = checks.num_frames(len(audio))
            needed = 1
            if checks.ctc:
                labels = numpy.asarray(labels)
                needed = len(labels) + int((labels[1:] == labels[:-1]).sum()) + checks.ctc_with_eos
            if frames < needed:
                return f"too short for its transcript: {frames} encoder frames, CTC needs {needed}"
        return None
