"""Audio of any kind as one channel at 16 kHz, and where to cut what is too long for one utterance."""

from __future__ import annotations

import math

import numpy as np
from scipy.signal import resample_poly

from tools.corpus.audio import SAMPLE_RATE, AudioError, read_audio

__all__ = ["cut_at_silence", "is_silent", "read_mono", "to_mono_16khz"]

_STEP = SAMPLE_RATE // 100
"""Samples in a frame whose energy is looked at: 10 ms."""
_PAUSE_FRAMES = 30
"""The quietest stretch of this length, 300 ms, is the place for a cut."""
_SILENCE = 0.01
"""A segment whose peak is below this fraction of that of the file (-40 dB) has no speech."""


def read_mono(filename: str) -> np.ndarray:
    """
    :param filename: in any format that libsndfile reads (WAV, FLAC, Ogg, MP3, SPHERE, ...), any rate and channels
    :return: [samples] float32 at 16 kHz, the mean of the channels
    :raises AudioError: no such file, not readable, empty, samples that are no numbers
    """
    try:
        samples, rate = read_audio(filename)
        return to_mono_16khz(samples, rate)
    except AudioError as exc:
        raise AudioError(f"{filename}: {exc}") from None


def to_mono_16khz(samples: np.ndarray, rate: int) -> np.ndarray:
    """
    :param samples: [samples] or [samples, channels]
    :param rate: Hz
    :return: [samples] float32 at 16 kHz
    :raises AudioError: empty, or samples that are no numbers
    """
    if not len(samples):
        raise AudioError("there is no sound in it")
    if not np.isfinite(samples).all():
        raise AudioError("samples that are not finite")
    if samples.ndim > 1:
        samples = samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        divisor = math.gcd(rate, SAMPLE_RATE)
        samples = resample_poly(samples, SAMPLE_RATE // divisor, rate // divisor)
    return samples.astype(np.float32)


def is_silent(segment: np.ndarray, *, peak: float) -> bool:
    """
    :param segment: [samples]
    :param peak: largest absolute sample of the whole file
    :return: whether there is nothing to recognise in it
    """
    return not np.abs(segment).max(initial=0.0) > _SILENCE * peak


def cut_at_silence(samples: np.ndarray, *, max_seconds: float) -> list[tuple[int, int]]:
    """
    :param samples: [samples] at 16 kHz
    :param max_seconds: no segment is longer
    :return: begin and end of each segment, which together are the whole. A cut is in the quietest 300 ms between half
        of the maximum length and all of it; if there are several, in the middle of the longest.
    """
    limit = int(max_seconds * SAMPLE_RATE)
    if len(samples) <= limit:
        return [(0, len(samples))]
    num_frames = len(samples) // _STEP
    energy = (samples[: num_frames * _STEP].astype(np.float64) ** 2).reshape(num_frames, _STEP).mean(axis=1)
    # Mean over the pause around each frame. Sums of equal numbers must be equal, so no running sum here.
    padded = np.pad(energy, (_PAUSE_FRAMES // 2, _PAUSE_FRAMES - 1 - _PAUSE_FRAMES // 2), mode="edge")
    smooth = np.lib.stride_tricks.sliding_window_view(padded, _PAUSE_FRAMES).mean(axis=1)
    segments, start = [], 0
    while len(samples) - start > limit:
        low = start + limit // 2
        high = min(start + limit, len(samples) - limit // 4)  # what is left over must not be tiny
        first, last = -(-low // _STEP), max(high // _STEP, -(-low // _STEP) + 1)
        cut = min((first + _quietest(smooth[first:last])) * _STEP, start + limit)
        segments.append((start, cut))
        start = cut
    return [*segments, (start, len(samples))]


def _quietest(energy: np.ndarray) -> int:
    """:return: middle of the longest run of frames that are as quiet as the quietest one (up to 10 %)"""
    quiet = energy <= 1.1 * energy.min() + 1e-12
    edges = np.flatnonzero(np.diff(quiet.astype(np.int8), prepend=0, append=0))
    begins, ends = edges[::2], edges[1::2]
    longest = int((ends - begins).argmax())
    return int(begins[longest] + ends[longest]) // 2
