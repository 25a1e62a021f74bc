"""tools/make_demo_corpus.py: what the corpus promises, and that it can be made again."""

from __future__ import annotations

import collections
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy
import pytest
import soundfile

from tools.corpus.demo_text import CLASSES, VOCABULARY, command_sentences, distinct, training_sentences

pytest.importorskip("espeakng_loader", reason="needs the demo packages: pip install -e '.[demo]'")

from tools.corpus.demo_speech import plan, record
from tools.corpus.espeak import Espeak, SpeechError, Voice

TOOL = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools", "make_demo_corpus.py")
SMALL = ("--num-train", "60", "--num-eval", "8", "--num-lm", "100")  # at least one utterance of each speaker


def make(folder, *args) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOL, str(folder), *args], capture_output=True, text=True, cwd="/")


def contents(folder):
    res = {}
    for path, _, names in os.walk(folder):
        for name in names:
            filename = os.path.join(path, name)
            with open(filename, "rb") as file:
                res[os.path.relpath(filename, folder)] = file.read()
    return res


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "source"
    res = make(folder, *SMALL, "--workers", "2")
    assert res.returncode == 0, res.stderr
    return folder


def transcripts(folder, part):
    """:return: utterance id -> text"""
    res = {}
    for path, _, names in os.walk(os.path.join(folder, part)):
        for name in names:
            if name.endswith(".trans.txt"):
                with open(os.path.join(path, name), encoding="utf8") as file:
                    res.update(line.rstrip("\n").split(" ", 1) for line in file)
    return res


def test_layout_and_audio(corpus):
    for part, number in (("train", 60), ("dev", 8), ("test", 8)):
        texts = transcripts(corpus, part)
        assert len(texts) == number
        for name, text in texts.items():
            speaker, chapter, _ = name.split("-")
            audio, sample_rate = soundfile.read(os.path.join(corpus, part, speaker, chapter, f"{name}.flac"))
            assert sample_rate == 16_000 and audio.ndim == 1
            assert set(text.lower().split()) <= set(VOCABULARY)
            assert 0.15 < len(audio) / sample_rate / len(text.split()) < 1.2  # seconds per word
            assert 0.08 < numpy.abs(audio).max() < 0.9
            # speech is louder than the silence before it, in spite of the noise
            loudness = numpy.sqrt((audio[: len(audio) // 100 * 100].reshape(100, -1) ** 2).mean(axis=1))
            assert numpy.percentile(loudness, 90) > 3 * loudness[0]
    with open(os.path.join(corpus, "lm.txt"), encoding="utf8") as file:
        assert len(file.read().splitlines()) == 100


def test_same_again_with_another_number_of_processes(corpus, tmp_path):
    res = make(tmp_path / "again", *SMALL, "--workers", "1")
    assert res.returncode == 0, res.stderr
    assert contents(tmp_path / "again") == contents(corpus)


def test_continues_after_a_kill_with_the_same_result(corpus, tmp_path):
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, TOOL, str(folder), *SMALL, "--workers", "1"], stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not os.path.isdir(folder / "train" / "105" / "1") and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finished = folder / "train" / "100" / "1" / "100-1-0000.flac"
    before = os.stat(finished).st_mtime_ns
    assert "sha256" not in json.loads((folder / "demo_corpus.json").read_text())
    assert make(folder, *SMALL).returncode == 0
    assert os.stat(finished).st_mtime_ns == before
    assert {k: v for k, v in contents(folder).items() if ".tmp" not in k} == contents(corpus)


def test_second_call_does_nothing(corpus):
    before = contents(corpus)
    start = time.monotonic()
    res = make(corpus, *SMALL)
    assert time.monotonic() - start < 2.0
    assert res.returncode == 0 and "is complete" in res.stdout
    assert contents(corpus) == before


def test_what_was_removed_is_made_again(corpus, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(corpus, folder)
    shutil.rmtree(folder / "train" / "103")
    os.remove(folder / "lm.txt")
    assert make(folder, *SMALL).returncode == 0
    assert contents(folder) == contents(corpus)


def test_refuses_another_folder_and_other_options(corpus, tmp_path):
    res = make(corpus, "--num-train", "61", "--num-eval", "8", "--num-lm", "100")
    assert res.returncode == 1 and "another way" in res.stderr and "'num_train': 60" in res.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    res = make(tmp_path / "mine")
    assert res.returncode == 1 and "not empty" in res.stderr
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_plan_of_the_full_corpus():
    """Speakers and sentences of dev and test are not in train; the LM text has none of dev and test."""
    speakers, lm_text = plan(num_train=3000, num_eval=180, num_lm=20_000, seed=1)
    sentences = {
        part: [s for x in speakers if x.part == part for s in x.sentences] for part in ("train", "dev", "test")
    }
    assert {part: len(s) for part, s in sentences.items()} == {"train": 3000, "dev": 180, "test": 180}
    every = [s for part in sentences.values() for s in part]
    assert len(set(every)) == len(every)
    assert not set(lm_text) & {*sentences["dev"], *sentences["test"]}
    assert len(lm_text) == 20_000
    voices = {part: {x.voice.variant for x in speakers if x.part == part} for part in sentences}
    assert not voices["train"] & (voices["dev"] | voices["test"]) and not voices["dev"] & voices["test"]
    assert [len(voices[part]) for part in ("dev", "test")] == [6, 6] and len(voices["train"]) >= 36
    assert len({x.number for x in speakers}) == len(speakers)
    counts = collections.Counter(word for s in sentences["train"] for word in s.split())
    assert set(counts) == set(VOCABULARY) and min(counts.values()) > 200
    assert all(5 <= len(s.split()) <= 10 for s in every)


def bigram_perplexity(text, sentences):
    pairs, words = collections.Counter(), collections.Counter()
    for sentence in text:
        padded = ["<s>", *sentence.split(), "</s>"]
        pairs.update(itertools.pairwise(padded))
        words.update(padded[:-1])
    total, number = 0.0, 0
    for sentence in sentences:
        padded = ["<s>", *sentence.split(), "</s>"]
        for pair in itertools.pairwise(padded):
            total -= math.log((pairs[pair] + 0.1) / (words[pair[0]] + 0.1 * (len(VOCABULARY) + 1)))
            number += 1
    return math.exp(total / number)


def test_commands_are_predictable_and_training_is_not():
    """The LM text says a lot about dev and test, and the training sentences say little about each other."""
    rng = numpy.random.default_rng(3)
    test = distinct(command_sentences(rng, seed=1), 200, exclude=set())
    lm_text = distinct(command_sentences(rng, seed=1), 5000, exclude=set(test))
    train = distinct(training_sentences(rng), 4000, exclude=set())
    assert bigram_perplexity(lm_text, test) < 8
    assert bigram_perplexity(train[:3000], train[3000:]) > 20
    assert bigram_perplexity(train[:3000], test) > 15  # so the LM text adds something


def test_vocabulary():
    assert 40 <= len(VOCABULARY) == len(set(VOCABULARY)) <= 60
    assert all(len(words) > 1 for words in CLASSES.values())


def test_engine():
    engine = Espeak()
    for accent, variant in (("en-us", "nosuch"), ("xx-nosuch", "f2")):
        with pytest.raises(SpeechError, match="no voice"):
            engine.speak("one", Voice(accent, variant, 170, 50, 50), seed=1)
    voice = Voice("en-us", "f2", 170, 50, 50)  # a breathy voice, which has noise in it
    audio = engine.speak("bin red at b now", voice, seed=1)
    assert audio.dtype == numpy.float32 and 0.5 < len(audio) / engine.sample_rate < 5
    slow = engine.speak("bin red at b now", Voice("en-us", "f2", 120, 50, 50), seed=1)
    assert len(slow) > 1.2 * len(audio)
    recording = record(engine, "bin red at b now", voice, numpy.random.default_rng(1))
    assert 0.05 < numpy.abs(recording).max() <= 10 ** (-1 / 20)
