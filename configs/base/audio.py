"""
Audio files: read, and checked for what a model can use. Preparation tools and training have the same rules.
"""

from __future__ import annotations

import io
import os
import re
from typing import BinaryIO

import numpy
import soundfile

from rf_models.options import SAMPLE_RATE

__all__ = ["SAMPLE_RATE", "AudioError", "audio_problem", "read_audio"]

_MAX_SAMPLES_PER_BYTE = 2000
"""Digital silence in FLAC: 300."""


class AudioError(Exception):
    """An audio file cannot be read; the message says why."""


def read_audio(source: str | bytes, dtype: str = "float32") -> tuple[numpy.ndarray, int]:
    """
    :param source: file name or content
    :param dtype: "float32", "float64" (-1 ... 1) or "int16"
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
        samples = audio.read(dtype=dtype)
        promised = _promised_frames(file, audio)
        if promised is not None and len(samples) < promised:
            raise AudioError(f"cut off: {len(samples)} samples of {promised} that its header promises")
        return samples, audio.samplerate


def _promised_frames(file: BinaryIO, audio: soundfile.SoundFile) -> int | None:
    """:return: number of samples by the header, for formats whose end nobody misses; None: it does not say"""
    file.seek(0)
    if audio.format == "NIST":
        match = re.search(rb"\nsample_count -i (\d{1,12})\s", file.read(1024))
        return int(match[1]) if match else None
    if audio.format in ("WAV", "WAVEX"):
        match = re.search(r"^data : (\d+) \(should be \d+\)", audio.extra_info, re.MULTILINE)
        width = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}.get(audio.subtype)
        if match and width and int(match[1]) < 2**32 - 2**16:  # about 2^32: written to a pipe, the length was not known
            return int(match[1]) // (width * audio.channels)
    return None


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
