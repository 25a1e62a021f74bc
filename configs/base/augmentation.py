"""
Augmentation of audio before RETURNN extracts features (callables that RETURNN's datasets can send to worker processes),
and a dataset whose augmentation is the same in any process.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy
from returnn.datasets.audio import OggZipDataset

__all__ = ["AudioPadding", "Augmentations", "AugmentedOggZipDataset", "SpeedPerturbation", "sequence_seed"]


def sequence_seed(epoch_seed: int, seq_tag: str) -> int:
    """
    :param epoch_seed: of the data of this epoch
    :param seq_tag:
    :return: seed of 32 bits for all that is drawn for this sequence in this epoch
    """
    return int.from_bytes(hashlib.sha256(f"{epoch_seed}|{seq_tag}".encode()).digest()[:4], "little")


class AugmentedOggZipDataset(OggZipDataset):
    """
    RETURNN's OggZipDataset, where the random numbers for the augmentation of an utterance (audio, and sub-words that
    are drawn) depend on seed, epoch and sequence tag only: not on the number of processes that load data, nor on the
    order of the utterances.
    """

    def get_corpus_seq(self, corpus_seq_idx: int) -> Any:
        """
        :param corpus_seq_idx:
        :return: the utterance
        """
        self._lazy_init()
        tag = self._get_tag_from_info_dict(self._data[corpus_seq_idx])
        epoch_seed = self._get_random_seed_for_epoch(self.epoch)
        self._audio_random.seed(sequence_seed(epoch_seed, tag))
        if self.targets is not None:
            self.targets.set_random_seed(sequence_seed(epoch_seed, f"labels of {tag}"))
        return super().get_corpus_seq(corpus_seq_idx)


@dataclass(frozen=True)
class Augmentations:
    """Several augmentations, one after the other."""

    steps: tuple[Any, ...]

    def __call__(self, audio: numpy.ndarray, sample_rate: int, random_state: numpy.random.RandomState) -> numpy.ndarray:
        """See the steps."""
        for step in self.steps:
            audio = step(audio, sample_rate, random_state)
        return audio


@dataclass(frozen=True)
class AudioPadding:
    """Silence of random length before and behind the audio: the frames fall on other samples each time."""

    max_samples: int
    """At most so many on each side."""

    def __call__(self, audio: numpy.ndarray, sample_rate: int, random_state: numpy.random.RandomState) -> numpy.ndarray:
        """
        :param audio: [time] float32
        :param sample_rate: not used
        :param random_state:
        :return: [time + 0 ... 2 max_samples] float32
        """
        return numpy.pad(audio, tuple(random_state.randint(self.max_samples + 1, size=2)))


@dataclass(frozen=True)
class SpeedPerturbation:
    """
    Speed perturbation (Ko et al. 2015): the audio is resampled, so that tempo and pitch change by one of the factors.
    """

    factors: tuple[float, ...]

    def __call__(self, audio: numpy.ndarray, sample_rate: int, random_state: numpy.random.RandomState) -> numpy.ndarray:
        """
        :param audio: [time] float32
        :param sample_rate: of audio and of the result
        :param random_state:
        :return: [time / factor] float32
        """
        from scipy.signal import resample_poly

        factor = self.factors[random_state.randint(len(self.factors))]
        if factor == 1.0 or not len(audio):
            return audio
        ratio = Fraction(factor).limit_denominator(100)
        return resample_poly(audio, ratio.denominator, ratio.numerator).astype("float32")
