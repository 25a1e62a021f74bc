"""Audio files of corpora: read, checked, written."""

from __future__ import annotations

import io
from typing import Any

import numpy
import soundfile

from configs.base.audio import SAMPLE_RATE, AudioError, audio_problem, read_audio

__all__ = ["AUDIO_FORMATS", "SAMPLE_RATE", "AudioError", "audio_problem", "encode_audio", "read_audio"]

AUDIO_FORMATS: dict[str, dict[str, Any]] = {
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
}
"""Name and extension -> options of libsndfile."""


def encode_audio(audio: numpy.ndarray, audio_format: str) -> bytes:
    """
    :param audio: [samples] int16 or float32, at :data:`SAMPLE_RATE`
    :param audio_format: one of :data:`AUDIO_FORMATS`
    :return: content of a file
    """
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", SAMPLE_RATE, 1, **AUDIO_FORMATS[audio_format]) as file:
        for start in range(0, len(audio), SAMPLE_RATE):  # in one piece, the Vorbis encoder needs a lot of stack
            file.write(audio[start : start + SAMPLE_RATE])
    return buffer.getvalue()
