"""A prepared corpus with utterances of all kinds of problems, as zips of an old setup may have them."""

from __future__ import annotations

import ast
import io
import json
import os
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

RATE = 16_000


@dataclass(frozen=True)
class BadUtterance:
    """An utterance, and what is expected."""

    audio: bytes | None
    """Content of the file; None: it is not in the zip."""
    extension: str = "flac"
    text: Any = "A B C"
    """None: no transcript."""
    duration: float = 1.0
    """As listed."""
    left_out: str = ""
    """What the log of a training says; empty: it is used."""
    error: str = ""
    """Error of its n-best entry; empty: it is recognised."""
    has_ref: bool = True


def speech(seconds: float, seed: int = 1) -> np.ndarray:
    """:return: [samples] float, noise of changing loudness"""
    rng = np.random.default_rng(seed)
    num = round(seconds * RATE)
    return 0.1 * rng.standard_normal(num) * (1.1 + np.sin(np.arange(num) / 2000))


def file(audio: np.ndarray, kind: str = "flac", rate: int = RATE) -> bytes:
    """
    :param audio: [samples] or [samples, channels]
    :param kind: "flac", "ogg", "wav", "sph" or "float" (WAV with float samples)
    :param rate: Hz
    :return: content
    """
    format_, subtype = {
        "flac": ("FLAC", "PCM_16"),
        "ogg": ("OGG", "VORBIS"),
        "wav": ("WAV", "PCM_16"),
        "sph": ("NIST", "PCM_16"),
        "float": ("WAV", "FLOAT"),
    }[kind]
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, rate, format=format_, subtype=subtype)
    return buffer.getvalue()


def half(content: bytes) -> bytes:
    """:return: the first half"""
    return content[: len(content) // 2]


def bad_utterances() -> dict[str, BadUtterance]:
    """:return: name -> utterance"""
    good = speech(1.0)
    with_nan, with_inf = good.copy(), good.copy()
    with_nan[500], with_inf[700] = np.nan, np.inf

    def both(audio: bytes | None, problem: str, **kwargs: Any) -> BadUtterance:
        return BadUtterance(audio, left_out=problem, error=problem, **kwargs)

    return {
        "cut_flac": both(half(file(good)), "audio cannot be read: "),
        "cut_ogg": both(half(file(speech(5.0), "ogg")), "truncated: ", extension="ogg", duration=5.0),
        "cut_short_ogg": both(half(file(good, "ogg")), "no samples", extension="ogg"),
        "cut_wav": both(half(file(good, "wav")), "audio cannot be read: cut off: ", extension="wav"),
        "cut_sph": both(half(file(good, "sph")), "audio cannot be read: cut off: ", extension="sph"),
        "empty_file": both(b"", "audio cannot be read: "),
        "text_as_audio": both(b"no audio at all", "audio cannot be read: "),
        "no_file": both(None, "no audio: "),
        "no_samples": both(file(good[:0], "wav"), "no samples", extension="wav", duration=0.0),
        "one_sample": BadUtterance(
            file(good[:1]), duration=0.0001, left_out="too short for its transcript: 0 encoder frames"
        ),
        "silence": BadUtterance(file(0 * good), left_out="silence: all samples are 0"),
        "nan": both(file(with_nan, "float"), "samples that are not finite", extension="wav"),
        "inf": both(file(with_inf, "float"), "samples that are not finite", extension="wav"),
        "rate": both(file(good[:8000], rate=8000), "sample rate 8000 Hz instead of 16000 Hz"),
        "stereo": both(file(np.stack([good, good], 1)), "2 channels instead of one"),
        "empty_text": BadUtterance(file(good), text="", left_out="empty transcript"),
        "no_text": BadUtterance(file(good), text=None, left_out="no transcript", has_ref=False),
        "other_script": BadUtterance(
            file(good), text="A B \u0393\u0394", left_out="characters that the vocabulary does not have: in 'ΓΔ'"
        ),
        "more_labels_than_frames": BadUtterance(
            file(speech(0.3)), text="A A A A A A A A", duration=0.3, left_out="too short for its transcript: 5 encoder"
        ),
        "long": BadUtterance(file(speech(12.0)), duration=12.0, left_out="longer than max_audio_seconds = 10: 12.00 s"),
        "many_labels": BadUtterance(
            file(speech(9.0)),
            text=" ".join("ABCDEFGHIJ" * 6),
            duration=9.0,
            left_out="more labels than max_label_len = 50",
        ),
    }


def add_to_part(folder: str, part: str, utterances: dict[str, BadUtterance]) -> None:
    """
    :param folder: of a prepared corpus
    :param part: gets more utterances, and corpus.json their number
    :param utterances:
    """
    filename = os.path.join(folder, f"{part}.zip")
    with zipfile.ZipFile(filename) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    listing = ast.literal_eval(contents[f"{part}.txt"].decode())
    for name, utt in utterances.items():
        audio_file = f"{name}.{utt.extension}"
        listing.append({"duration": utt.duration, "file": audio_file, "seq_name": f"{part}/{name}"})
        if utt.text is not None:
            listing[-1]["text"] = utt.text
        if utt.audio is not None:
            contents[f"{part}/{audio_file}"] = utt.audio
    write_part(folder, part, listing, contents)


def write_part(folder: str, part: str, listing: Any, contents: dict[str, bytes]) -> None:
    """
    :param folder: of a prepared corpus
    :param part:
    :param listing: utterances; or bytes, as they are
    :param contents: other files of the zip
    """
    encoded = listing if isinstance(listing, bytes) else ascii(listing).encode()
    with zipfile.ZipFile(os.path.join(folder, f"{part}.zip"), "w") as archive:
        for name, content in {**contents, f"{part}.txt": encoded}.items():
            archive.writestr(name, content)
    if isinstance(listing, list):
        manifest_file = os.path.join(folder, "corpus.json")
        with open(manifest_file, encoding="utf8") as stream:
            manifest = json.load(stream)
        manifest["parts"][part]["num_seqs"] = len(listing)
        with open(manifest_file, "w", encoding="utf8") as stream:
            json.dump(manifest, stream)
