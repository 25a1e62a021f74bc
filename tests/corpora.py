"""Tiny corpora in the layouts of the real ones. The audio is noise: these are for programs, not for training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy
import soundfile

SAMPLE_RATE = 16_000

SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "it's a question of time",
    "we don't know what she said about the weather",
    "pack my box with five dozen jugs of wine",
    "how vexingly quick daft zebras jump",
    "the workers' party said no",
    "a b c",
)


def noise(seconds: float, seed: int) -> numpy.ndarray:
    """:return: [samples] int16"""
    rng = numpy.random.default_rng(seed)
    return (3000 * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype("int16")


def write_file(filename: str, content: str | bytes) -> None:
    os.makedirs(os.path.dirname(filename), exist_ok=True)
    with open(filename, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def make_librispeech(
    folder: str,
    parts: Mapping[str, int] | Sequence[str] = ("train-clean-100", "dev-clean"),
    *,
    seqs_per_chapter: int = 3,
    seconds: float = 0.3,
    longer: float = 0.01,
) -> dict[str, str]:
    """
    :param folder: gets the parts, in LibriSpeech's layout
    :param parts: names, or names and numbers of utterances
    :param seqs_per_chapter: each chapter has a speaker of its own
    :param seconds: of the first utterance
    :param longer: seconds that an utterance is longer than the one before
    :return: "<part>/<utterance id>" -> transcript
    """
    if not isinstance(parts, Mapping):
        parts = dict.fromkeys(parts, 6)
    texts = {}
    for part_number, (part, num_seqs) in enumerate(parts.items()):
        for number in range(num_seqs):
            speaker, chapter = 19 + 100 * part_number + number // seqs_per_chapter, 198
            name = f"{speaker}-{chapter}-{number % seqs_per_chapter:04}"
            place = os.path.join(folder, part, str(speaker), str(chapter))
            os.makedirs(place, exist_ok=True)
            audio = noise(seconds + longer * number, seed=1000 * part_number + number)
            soundfile.write(os.path.join(place, f"{name}.flac"), audio, SAMPLE_RATE, subtype="PCM_16")
            text = SENTENCES[(part_number + number) % len(SENTENCES)].upper()
            texts[f"{part}/{name}"] = text
            with open(os.path.join(place, f"{speaker}-{chapter}.trans.txt"), "a", encoding="utf8") as file:
                file.write(f"{name} {text}\n")
    return texts


def write_sphere(filename: str, audio: numpy.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """
    NIST SPHERE, 16 bit, little endian, not compressed.

    :param filename:
    :param audio: [samples] int16
    :param sample_rate: Hz
    """
    fields = {
        "channel_count": 1,
        "sample_count": len(audio),
        "sample_rate": sample_rate,
        "sample_n_bytes": 2,
        "sample_byte_format": "01",
        "sample_sig_bits": 16,
        "sample_coding": "pcm",
    }
    lines = ["NIST_1A", "   1024"]
    for key, value in fields.items():
        kind = "i" if isinstance(value, int) else f"s{len(value)}"
        lines.append(f"{key} -{kind} {value}")
    header = "\n".join([*lines, "end_head", ""]).encode()
    write_file(filename, header.ljust(1024) + audio.astype("<i2").tobytes())


def make_tedlium2(
    folder: str, parts: Mapping[str, int] | Sequence[str] = ("train", "dev", "test"), *, segment_seconds: float = 0.5
) -> dict[str, str]:
    """
    :param folder: gets the parts and LM, in the layout of TEDLIUM_release2
    :param parts: names, or names and numbers of segments; three segments make a talk
    :param segment_seconds: duration of a segment
    :return: "<part>/<talk>-<start>-<end>" -> text as in the STM file, without the segments to be ignored
    """
    if not isinstance(parts, Mapping):
        parts = dict.fromkeys(parts, 6)
    texts: dict[str, str] = {}
    for part_number, (part, num_seqs) in enumerate(parts.items()):
        for first in range(0, num_seqs, 3):
            talk = f"Speaker{part_number}{first}_2010"
            lines = [";; a comment", f"{talk} 1 {talk} 0.00 0.50 <o,,unknown> ignore_time_segment_in_scoring"]
            for number in range(first, min(first + 3, num_seqs)):
                start = 0.5 + (number - first) * (segment_seconds + 0.3)
                end = start + segment_seconds
                text = SENTENCES[(part_number + number) % len(SENTENCES)].replace("'", " '")
                if number % 3 == 1:
                    text = f"<unk> {text}"
                label = "<F0_M>" if part == "dev" else "<o,f0,male>"
                lines.append(f"{talk} 1 {talk} {start:.2f} {end:.2f} {label} {text}")
                texts[f"{part}/{talk}-{round(start * 100):07}-{round(end * 100):07}"] = text
            write_file(os.path.join(folder, part, "stm", f"{talk}.stm"), "\n".join(lines) + "\n")
            audio = noise(0.5 + 3 * (segment_seconds + 0.3), seed=1000 * part_number + first)
            write_sphere(os.path.join(folder, part, "sph", f"{talk}.sph"), audio)
    write_file(os.path.join(folder, "LM", "ted.txt"), "it 's a text <unk>\nfor the language model\n\n")
    return texts
