"""
Augmentation of audio before RETURNN extracts features. Callables that RETURNN's datasets can send to worker processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy

__all__ = ["AudioPadding", "Augmentations", "SpeedPerturbation"]


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
