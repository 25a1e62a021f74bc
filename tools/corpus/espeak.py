"""
Synthetic speech by eSpeak NG through ctypes. The PyPI package espeakng-loader carries the library and its data.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass

import numpy

__all__ = ["Espeak", "SpeechError", "Voice"]

_RETRIEVAL_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: the callback gets the samples while espeak_Synth runs
_POS_CHARACTER = 1
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER


class SpeechError(RuntimeError):
    """The speech engine is missing or refuses something."""


@dataclass(frozen=True)
class Voice:
    """A pseudo-speaker."""

    accent: str
    """Language of eSpeak, e.g. "en-us"."""
    variant: str
    """Timbre, e.g. "m3"."""
    rate: int
    """Words per minute."""
    pitch: int
    """0 ... 100, 50 is the variant's own."""
    pitch_range: int
    """0 ... 100, 0 is monotone."""


class Espeak:
    """The engine keeps state from one sentence to the next: use a process for each speaker to get the same audio
    again."""

    def __init__(self):
        """:raises SpeechError: the package is missing, or its library does not start"""
        try:
            import espeakng_loader
        except ImportError:
            raise SpeechError(
                "the package espeakng-loader is missing: pip install -c constraints.txt espeakng-loader"
            ) from None
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._chunks: list[numpy.ndarray] = []
        self._data_path = espeakng_loader.get_data_path()
        self.sample_rate = self._library.espeak_Initialize(_RETRIEVAL_SYNCHRONOUS, 0, self._data_path.encode(), 0)
        if self.sample_rate <= 0:
            raise SpeechError(f"eSpeak NG does not start with the data in {self._data_path}")
        callback_type = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = callback_type(self._on_samples)  # must outlive the calls
        self._library.espeak_SetSynthCallback(self._callback)

    def _on_samples(self, samples, count: int, _events) -> int:
        if samples and count > 0:
            self._chunks.append(numpy.ctypeslib.as_array(samples, shape=(count,)).copy())
        return 0

    def speak(self, text: str, voice: Voice, *, seed: int) -> numpy.ndarray:
        """
        :param text:
        :param voice:
        :param seed: of the noise in breathy voices, which the engine would take from the clock
        :return: [samples] float32 in -1 ... 1, at ``self.sample_rate``
        :raises SpeechError: unknown voice, or no audio
        """
        name = f"{voice.accent}+{voice.variant}"
        # The engine itself takes an unknown variant for the accent alone, without a word.
        variant_file = os.path.join(self._data_path, "voices", "!v", voice.variant)
        if not os.path.isfile(variant_file) or self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise SpeechError(f"eSpeak NG has no voice {name!r}")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._chunks = []
        data = text.encode("utf8")
        result = self._library.espeak_Synth(
            ctypes.c_char_p(data), ctypes.c_size_t(len(data) + 1), 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if result != 0 or not self._chunks:
            raise SpeechError(f"eSpeak NG returned no audio for {text!r} (voice {name!r}, error {result})")
        return numpy.concatenate(self._chunks).astype("float32") / 32768.0
