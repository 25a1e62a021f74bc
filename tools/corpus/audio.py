"""Audio files of corpora: read, checked, written."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

import numpy
import soundfile

__all__ = ["AUDIO_FORMATS", "SAMPLE_RATE", "AudioError", "audio_problem", "encode_audio", "read_audio"]

SAMPLE_RATE = 16_000  # Hz
AUDIO_FORMATS: dict[str, dict[str, Any]] = {
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "ogg": {"format": "OGG", "subtype": "VORBIS"},
}
"""Name and extension -> options of libsndfile."""
_MAX_SAMPLES_PER_BYTE = 2000
"""Digital silence in FLAC: 300."""


class AudioError(Exception):
    """An audio file cannot be read; the message says why."""


def read_audio(source: str | bytes, dtype: str = "float32") -> tuple[numpy.ndarray, int]:
    """
    :param source: file name or content
    :param dtype: "float32" (-1 ... 1) or "int16"
    :return: [samples] or [samples, channels], sample rate in Hz
    :raises AudioError: missing, damaged, or not in a format that libsndfile knows
    """
    try:
        if isinstance(source, bytes):
            return _read(io.BytesIO(source), len(source), dtype)
        with open(source, "rb") as file:  # libsndfile's own message does not tell a missing file from a damaged one
            return _read(file, os.fstat(file.fileno()).st_size, dtype)
    except soundfile.LibsndfileError as exc:  # its message would show the Python object
        raise AudioError(exc.error_string.rstrip(".")) from None
    except (OSError, RuntimeError) as exc:
        raise AudioError(str(exc)) from None


def _read(file: BinaryIO, size: int, dtype: str) -> tuple[numpy.ndarray, int]:
    """
    :raises AudioError: the header promises more samples than can be in so many bytes. The memory for all of them would
        be allocated before the first is read.
    """
    with soundfile.SoundFile(file) as audio:
        if audio.frames * audio.channels > 2**20 + _MAX_SAMPLES_PER_BYTE * size:
            raise AudioError(f"its header promises {audio.frames} samples, but the file has {size} bytes")
        return audio.read(dtype=dtype), audio.samplerate


def audio_problem(audio: numpy.ndarray, sample_rate: int) -> str | None:
    """
    :param audio: [samples] or [samples, channels]
    :param sample_rate: Hz
    :return: what is wrong with it, None if nothing is
    """
    if sample_rate != SAMPLE_RATE:
        return f"sample rate {sample_rate} Hz instead of {SAMPLE_RATE} Hz"
    if audio.ndim != 1:
        return f"{audio.shape[1]} channels instead of one"
    if not len(audio):
        return "no samples"
    if not numpy.isfinite(audio).all():
        return "samples that are not finite"
    return None


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
