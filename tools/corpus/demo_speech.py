"""
The demo corpus: who says what, the recordings, and the folder in LibriSpeech's layout.

Each speaker is spoken by a process of its own, because eSpeak NG carries state from one sentence to the next. So the
audio depends neither on the number of processes nor on where an interrupted run went on.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy
import soundfile
from scipy.signal import lfilter, resample_poly

from .audio import SAMPLE_RATE
from .demo_text import command_sentences, distinct, training_sentences
from .espeak import Espeak, SpeechError, Voice
from .parallel import fresh_process_context

__all__ = ["PARTS", "Recorded", "Speaker", "make_speakers", "plan"]

PARTS = ("train", "dev", "test")

# Each timbre is one speaker. The robots and whisperers among eSpeak's variants are left out.
_VARIANTS = (
    "m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 adam Alex Alicia Andrea Andy Annie Denis Gene Hugo Jacky Lee Marco Mario"
    " Michael Mike Reed anika aunty belinda benjamin boris caleb david ed edward grandma gustave ian iven john linda"
    " max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby steph travis victor zac"
).split()
_HELD_OUT = {"dev": "m2 f3 Andy benjamin linda robert".split(), "test": "m5 f1 Mike belinda paul steph".split()}
_ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-x-gbclan", "en-us-nyc", "en-029")
_RATE = (150, 200)  # words per minute
_PITCH = (35, 65)
_PITCH_RANGE = (30, 70)
_SILENCE = (0.05, 0.25)  # seconds before and behind the sentence
_SNR = (15.0, 30.0)  # dB
_PEAK = (-20.0, -1.0)  # dB of full scale


@dataclass(frozen=True)
class Speaker:
    """A speaker and what is to be said."""

    part: str
    number: int
    voice: Voice
    sentences: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Below the folder of the corpus. Each speaker reads one chapter."""
        return f"{self.part}/{self.number}/1"


@dataclass(frozen=True)
class Recorded:
    """What has been written for a speaker."""

    folder: str
    num_seqs: int
    seconds: float
    sha256: str
    """Over names and contents of all files of the folder, sorted by name."""


def plan(*, num_train: int, num_eval: int, num_lm: int, seed: int) -> tuple[list[Speaker], list[str]]:
    """
    :param num_train: utterances of train
    :param num_eval: utterances of dev, and of test
    :param num_lm: sentences of the LM text
    :param seed:
    :return: speakers with their sentences, LM text. No sentence of dev and test is in the LM text or in train.
    """
    rng = numpy.random.default_rng([seed, 0])
    sentences: dict[str, list[str]] = {}
    taken: set[str] = set()
    for part in ("test", "dev"):
        sentences[part] = distinct(command_sentences(rng, seed=seed), num_eval, exclude=taken)
        taken |= set(sentences[part])
    sentences["train"] = distinct(training_sentences(rng), num_train, exclude=taken)
    lm_text: list[str] = []
    for sentence in command_sentences(rng, seed=seed):
        if len(lm_text) == num_lm:
            break
        if sentence not in taken:
            lm_text.append(sentence)

    held_out = {variant: part for part, variants in _HELD_OUT.items() for variant in variants}
    variants: dict[str, list[str]] = {part: [] for part in PARTS}
    for variant in _VARIANTS:
        variants[held_out.get(variant, "train")].append(variant)
    speakers = []
    for part_number, part in enumerate(PARTS):
        for i, variant in enumerate(variants[part]):
            number = 100 * (part_number + 1) + i
            rng = numpy.random.default_rng([seed, 1, number])
            voice = Voice(
                accent=_ACCENTS[int(rng.integers(len(_ACCENTS)))],
                variant=variant,
                rate=int(rng.integers(*_RATE, endpoint=True)),
                pitch=int(rng.integers(*_PITCH, endpoint=True)),
                pitch_range=int(rng.integers(*_PITCH_RANGE, endpoint=True)),
            )
            mine = tuple(sentences[part][i :: len(variants[part])])
            if mine:
                speakers.append(Speaker(part, number, voice, mine))
    return speakers, lm_text


def record(engine: Espeak, text: str, voice: Voice, rng: numpy.random.Generator) -> numpy.ndarray:
    """
    :param engine:
    :param text:
    :param voice:
    :param rng: draws level and noise
    :return: [samples] float64 in -1 ... 1 at 16 kHz. Computed in float64, so that the order of a processor's summation
        does not show in 16 bits.
    """
    audio = engine.speak(text, voice, seed=int(rng.integers(1 << 31))).astype("float64")
    audio = resample_poly(audio, SAMPLE_RATE, engine.sample_rate)
    before, behind = rng.uniform(*_SILENCE, size=2) * SAMPLE_RATE
    audio = numpy.pad(audio, (int(before), int(behind)))
    noise = rng.normal(size=len(audio))
    if rng.random() < 0.5:  # the noise of rooms and engines has more low frequencies
        noise = lfilter([1.0], [1.0, -0.95], noise)
    gain = numpy.sqrt(numpy.mean(audio**2) / numpy.mean(noise**2)) * 10.0 ** (-rng.uniform(*_SNR) / 20.0)
    audio = audio + gain * noise
    return audio * (10.0 ** (rng.uniform(*_PEAK) / 20.0) / numpy.abs(audio).max())


def _make_speaker(job: tuple[Speaker, str, int]) -> Recorded:
    """
    Writes all utterances of a speaker. The folder gets its name when it is complete, and is then kept.

    :param job: speaker, folder of the corpus, seed
    :raises SpeechError: the engine fails
    """
    speaker, corpus, seed = job
    folder = os.path.join(corpus, *speaker.folder.split("/"))
    if not os.path.isdir(folder):
        temporary = folder + ".tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        engine = Espeak()
        chapter = f"{speaker.number}-1"
        lines = []
        for i, sentence in enumerate(speaker.sentences):
            audio = record(engine, sentence, speaker.voice, numpy.random.default_rng([seed, 2, speaker.number, i]))
            name = f"{chapter}-{i:04}"
            soundfile.write(os.path.join(temporary, f"{name}.flac"), audio, SAMPLE_RATE, subtype="PCM_16")
            lines.append(f"{name} {sentence.upper()}\n")
        with open(os.path.join(temporary, f"{chapter}.trans.txt"), "w", encoding="utf8") as file:
            file.writelines(lines)
        os.rename(temporary, folder)
    checksum, seconds = hashlib.sha256(), 0.0
    for name in sorted(os.listdir(folder)):
        filename = os.path.join(folder, name)
        if name.endswith(".flac"):
            seconds += soundfile.info(filename).duration
        with open(filename, "rb") as file:
            checksum.update(f"{name} {hashlib.sha256(file.read()).hexdigest()}\n".encode())
    return Recorded(speaker.folder, len(speaker.sentences), seconds, checksum.hexdigest())


def _child(connection: Any, job: tuple[Speaker, str, int]) -> None:
    """What the process of a speaker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; only the first shall say something
    try:
        connection.send(_make_speaker(job))
    except (SpeechError, OSError) as exc:
        connection.send(SpeechError(str(exc)))
    except soundfile.LibsndfileError as exc:
        connection.send(SpeechError(f"an audio file cannot be written ({exc} Is there no space left?)"))


def _in_new_process(context: Any, job: tuple[Speaker, str, int]) -> Recorded:
    """:return: what has been written for a speaker"""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, job), daemon=True)
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        raise SpeechError(f"the process of speaker {job[0].number} ended with exit code {process.exitcode}") from None
    process.join()
    if isinstance(result, Exception):
        raise result
    return result


def make_speakers(speakers: list[Speaker], corpus: str, *, seed: int, workers: int) -> Iterator[Recorded]:
    """
    :param speakers:
    :param corpus: folder
    :param seed: of noise and levels
    :param workers: processes at a time
    :return: what has been written, in the order of the speakers
    :raises SpeechError: the engine is missing or fails, or a file cannot be written
    """
    context = fresh_process_context([__name__])  # has the imports done, which take longer than the speech of a speaker
    jobs = [(speaker, corpus, seed) for speaker in speakers]
    executor = ThreadPoolExecutor(workers)
    try:
        yield from executor.map(functools.partial(_in_new_process, context), jobs)
    finally:
        executor.shutdown(cancel_futures=True)
