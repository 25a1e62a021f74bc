"""Transcription of audio files: audio, cuts at silence, formats, and the same results as a recognition run."""

from __future__ import annotations

import glob
import itertools
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from bad_corpus import bad_utterances
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import AED, save_model
from tiny_setup import VOCAB, make_tiny_setup
from tool_runs import call_tool, run_tool

from recog.nbest import load_nbest
from tools.corpus.audio import AudioError
from tools.transcription.audio import cut_at_silence, is_silent, read_mono, to_mono_16khz
from tools.transcription.formats import ctm_lines, file_record, recording_names, srt_text
from tools.transcription.recognise import Segment, Word, group_words

RATE = 16_000
BAD = bad_utterances()


# ---- audio


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (11_025, 2), (44_100, 2), (48_000, 3), (16_000, 2)])
def test_any_rate_and_channels(tmp_path, rate, channels):
    time = np.arange(rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    audio = np.stack([tone * (2.0 if c == 0 else 0.5) / (0.5 * channels + 1.5) * channels for c in range(channels)], 1)
    file = str(tmp_path / "x.wav")
    soundfile.write(file, audio * 0.5, rate, subtype="FLOAT")
    samples = read_mono(file)
    assert samples.dtype == np.float32 and samples.ndim == 1 and abs(len(samples) - RATE) <= 1
    expected = audio.mean(axis=1).max() * 0.5 * np.sin(2 * np.pi * 440 * np.arange(len(samples)) / RATE)
    middle = slice(RATE // 10, -RATE // 10)
    np.testing.assert_allclose(samples[middle], expected[middle], atol=0.01)


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "mp3"])
def test_formats(tmp_path, extension):
    file = str(tmp_path / f"x.{extension}")
    soundfile.write(file, 0.1 * np.random.default_rng(1).standard_normal(RATE), RATE)
    assert 0.95 < len(read_mono(file)) / RATE < 1.15


def test_what_is_no_audio(tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), RATE)
    soundfile.write(tmp_path / "nan.wav", np.full(9, np.nan), RATE, subtype="FLOAT")
    for name, message in {
        "text.wav": ":",
        "empty.wav": "no sound",
        "nan.wav": "not finite",
        "none.wav": "No such",
    }.items():
        with pytest.raises(AudioError, match=message) as info:
            read_mono(str(tmp_path / name))
        assert name in str(info.value)


def bursts(*pairs, seed=1):
    """:return: noise and silence by turns, (seconds of noise, seconds of silence) each"""
    rng = np.random.default_rng(seed)
    parts = [
        x for noise, pause in pairs for x in (rng.standard_normal(round(noise * RATE)), np.zeros(round(pause * RATE)))
    ]
    return np.concatenate(parts).astype(np.float32)


def test_cuts_are_in_the_longest_pause():
    samples = bursts((3.0, 0.4), (1.5, 0.8), (1.5, 0.4), (5.0, 0.5), (2.0, 0.0))
    cuts = [end / RATE for _, end in cut_at_silence(samples, max_seconds=8.0)[:-1]]
    # Between 4 and 8 s the pause of 0.8 s, not that of 0.4 s; then the only one in reach.
    assert cuts == pytest.approx([5.3, 12.85], abs=0.1)
    assert cut_at_silence(samples, max_seconds=20.0) == [(0, len(samples))]
    # Noise below speech is silence, too.
    noisy = samples + 0.01 * np.random.default_rng(2).standard_normal(len(samples)).astype(np.float32)
    assert 4.8 < cut_at_silence(noisy, max_seconds=8.0)[0][1] / RATE < 5.8


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40_000), st.sampled_from([1.0, 1.3, 2.0]), st.integers(0, 5), st.sampled_from([0, 1, 1000]))
def test_segments_are_the_whole_and_not_too_long(num, max_seconds, seed, amplitude):
    num = num * 4
    samples = amplitude * np.random.default_rng(seed).standard_normal(num).astype(np.float32)
    segments = cut_at_silence(samples, max_seconds=max_seconds)
    assert segments[0][0] == 0 and segments[-1][1] == num
    assert all(a[1] == b[0] for a, b in itertools.pairwise(segments))
    lengths = [end - begin for begin, end in segments]
    assert max(lengths) <= max_seconds * RATE
    if len(segments) > 1:
        assert min(lengths) >= 0.2 * max_seconds * RATE  # nothing tiny


def test_silence_is_relative_to_the_file():
    samples = bursts((0.1, 0.0))
    peak = float(np.abs(samples).max())
    assert not is_silent(samples, peak=peak) and is_silent(0.005 * samples, peak=peak)
    assert is_silent(np.zeros(5), peak=0.0) and is_silent(np.zeros(0), peak=1.0)


def test_mean_of_channels_does_not_keep_the_integer_type():
    assert to_mono_16khz(np.ones((4, 2), dtype=np.float32), RATE).tolist() == [1.0] * 4


# ---- formats

WORDS = [Word("hello", 0.5, 0.9), Word("world", 1.0, 1.3), Word("again", 3.0, 3.25)]
SEGMENTS = [
    Segment(0.0, 4.0, "hello world again", -1.5, WORDS),
    Segment(4.0, 6.0, "", None, []),
    Segment(3600.0, 3604.0, "no times", -2.0, [Word("no", None, None), Word("times", None, None)]),
]


def test_ctm():
    assert ctm_lines("x", SEGMENTS) == [
        "x 1 0.50 0.40 hello",
        "x 1 1.00 0.30 world",
        "x 1 3.00 0.25 again",
        "x 1 3600.00 2.00 no",
        "x 1 3602.00 2.00 times",
    ]
    assert recording_names(["a/b c.wav", "d/e.wav", "f/e.flac"]) == ["b_c", "d/e.wav", "f/e.flac"]


def test_srt():
    assert srt_text(SEGMENTS) == (
        "1\n00:00:00,500 --> 00:00:01,700\nhello world\n\n"
        "2\n00:00:03,000 --> 00:00:03,650\nagain\n\n"
        "3\n01:00:00,000 --> 01:00:04,400\nno times\n"
    )
    words = [Word(f"word{i:02}", 0.3 * i, 0.3 * i + 0.2) for i in range(60)]
    blocks = srt_text([Segment(0.0, 18.0, "", 0.0, words)]).split("\n\n")
    assert " ".join(" ".join(block.splitlines()[2:]) for block in blocks).split() == [word.text for word in words]
    for block in blocks:
        lines = block.splitlines()[2:]
        assert 1 <= len(lines) <= 2 and max(map(len, lines)) <= 42
    times = [line for block in blocks for line in block.splitlines()[1].split(" --> ")]
    assert times == sorted(times)  # captions do not overlap
    assert srt_text([]) == ""


def test_json_record():
    record = file_record("f.wav", 3604.0, SEGMENTS)
    assert record["text"] == "hello world again no times"
    assert record["segments"][2]["words"][0] == {"word": "no", "begin": None, "end": None}
    json.dumps(record, allow_nan=False)


# ---- recognition


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return make_tiny_setup(str(tmp_path_factory.mktemp("transcribe")))


@pytest.fixture(scope="module")
def vocab_file(setup):
    return os.path.join(glob.glob(os.path.join(setup.data_dir, "vocab"))[0], f"{VOCAB}.json")


def audio_files(setup):
    files = glob.glob(os.path.join(setup.folder, "source", "dev", "**", "*.flac"), recursive=True)
    assert len(files) == 5
    return sorted(files)


def test_labels_of_words_have_the_text_of_the_whole(setup):
    vocab = setup.vocab
    rng = np.random.default_rng(1)
    for length in [0, 1, 2, 5, 20] * 4:
        labels = [int(x) for x in rng.integers(1, vocab.num_labels, size=length)]
        groups = group_words(labels, vocab)
        assert [i for first, last in groups for i in range(first, last)] == list(range(length))
        assert (
            " ".join(vocab.labels_to_text(labels[a:b]) for a, b in groups).split()
            == vocab.labels_to_text(labels).split()
        )


def test_same_texts_as_a_recognition_run(setup, vocab_file, tmp_path):
    res = setup.run("demo_recog_labelsync.config")
    assert res.returncode == 0, res.stderr[-3000:]
    _, utts = load_nbest(os.path.join(setup.folder, "output", "demo_recog_labelsync", "nbest.jsonl"))
    expected = {utt.seq_tag.rsplit("/", 1)[1]: utt.hyps[0] for utt in utts}
    assert any(hyp.text for hyp in expected.values())
    files = audio_files(setup)
    model = ("--checkpoint", setup.checkpoints["aed"], "--vocab", vocab_file)
    result = run_tool("transcribe", *files, *model, "--json", "t.json", "--ctm", "t.ctm", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    names = [os.path.splitext(os.path.basename(file))[0] for file in files]
    assert result.stdout.splitlines() == [f"{f}\t{expected[n].text}" for f, n in zip(files, names, strict=True)]
    record = json.loads((tmp_path / "t.json").read_text())
    assert record["search"] == "LabelSync" and record["options"]["beam_size"] == 12
    for name, file in zip(names, record["files"], strict=True):
        (segment,) = file["segments"]
        assert segment["score"] == pytest.approx(expected[name].score, abs=1e-3)
        assert [word["word"] for word in segment["words"]] == expected[name].text.split()
        times = [t for word in segment["words"] for t in (word["begin"], word["end"])]
        assert times == sorted(times) and all(0 <= t <= file["duration"] for t in times)
    words = [line.split()[4] for line in (tmp_path / "t.ctm").read_text().splitlines()]
    assert words == [word for name in names for word in expected[name].text.split()]


def test_cut_file_is_its_segments(setup, vocab_file, tmp_path):
    samples = bursts((1.5, 0.5), (1.5, 2.5), (1.4, 0.4), (0.5, 0.0))
    soundfile.write(tmp_path / "long.wav", np.stack([samples, samples], 1) * 0.1, RATE, subtype="FLOAT")
    model = ("--checkpoint", setup.checkpoints["aed"], "--vocab", vocab_file)
    more = ("--max-seconds", 2.2, "--json", "l.json", "--srt", "l.srt")
    result = call_tool("transcribe", "long.wav", *model, *more, "++beam_size", 4, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "l.json").read_text())
    segments = record["files"][0]["segments"]
    assert len(segments) >= 4 and any(segment["score"] is None and not segment["text"] for segment in segments)
    assert record["options"]["beam_size"] == 4
    assert result.stdout.split() == " ".join(segment["text"] for segment in segments).split()
    for i, segment in enumerate(segments):
        part = samples[round(segment["begin"] * RATE) : round(segment["end"] * RATE)]
        if segment["score"] is None:
            continue
        soundfile.write(tmp_path / f"{i}.wav", part * 0.3, RATE, subtype="FLOAT")  # loudness does not matter
        alone = call_tool("transcribe", f"{i}.wav", *model, "++beam_size", 4, cwd=tmp_path)
        assert alone.stdout.split() == segment["text"].split()
        assert all(segment["begin"] <= word["begin"] <= word["end"] <= segment["end"] for word in segment["words"])


def test_searches_and_models(setup, vocab_file, tmp_path):
    file = audio_files(setup)[0]
    model = ("--checkpoint", setup.checkpoints["aed"], "--vocab", vocab_file)
    texts = {}
    for name, args in {
        "greedy": ("--search", "ctc"),
        "timesync": ("--search", "timesync"),
        "timesync ctc": ("--search", "timesync", "++att_scale", 0, "++ctc_scale", 1, "++recombination", "max"),
        "lm": ("++lm_checkpoint", setup.checkpoints["lstm_lm"], "++lm_scale", 2.0),
        "ilm": ("++ilm_type", "zero", "++ilm_scale", 0.9),
        "plain": (),
    }.items():
        result = call_tool("transcribe", file, *model, *args, cwd=tmp_path)
        assert result.returncode == 0, (name, result.stderr)
        texts[name] = result.stdout
    assert len({texts["plain"], texts["lm"], texts["ilm"]}) == 3


def test_errors(setup, vocab_file, tmp_path):
    file = audio_files(setup)[0]
    opts = dict(num_labels=setup.vocab.num_labels, eos_index=setup.vocab.eos_index)
    no_ctc = save_model(str(tmp_path / "no_ctc.pt"), replace(AED, ctc_layers=()), **opts)
    aed, vocab = ("--checkpoint", setup.checkpoints["aed"]), ("--vocab", vocab_file)
    (tmp_path / "text.wav").write_text("no audio")
    for words, code, message in (
        (("none.wav", "text.wav", *aed, *vocab), 1, "none.wav: "),
        (("text.wav", *aed, *vocab), 1, "text.wav: "),
        ((file, *aed), 1, "Give it with --vocab"),
        ((file, *aed, "--vocab", "none.json"), 1, "none.json"),
        ((file, "--checkpoint", "none.pt", *vocab), 1, "none.pt"),
        ((file, "--checkpoint", setup.checkpoints["lstm_lm"], *vocab), 1, "kind lstm_lm"),
        ((file, *aed, *vocab, "++beam_sise", 3), 1, "beam_size"),
        ((file, *aed, *vocab, "++lm_scale", 0.3), 1, "lm_checkpoint"),
        ((file, *aed, *vocab, "++ctc_checkpoint", setup.checkpoints["second_aed"]), 1, "recognition config"),
        ((file, *aed, *vocab, "++beam_size"), 2, "pairs"),
        ((file, file + "x", *aed, "--srt", "x.srt"), 2, "one file"),
        ((file, "--checkpoint", no_ctc, *vocab, "--ctm", "x.ctm"), 1, "no CTC head"),
    ):
        result = call_tool("transcribe", *words, cwd=tmp_path)
        assert result.returncode == code and message in result.stderr, (words, result)
        assert not result.stdout
    assert not (tmp_path / "x.ctm").exists()
    result = call_tool("transcribe", file, "--checkpoint", no_ctc, *vocab, "--json", "n.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    words = json.loads((tmp_path / "n.json").read_text())["files"][0]["segments"][0]["words"]
    assert all(word["begin"] is None for word in words)


def test_bad_files_among_good_ones(setup, vocab_file, tmp_path):
    """An error for each; the others are transcribed, and the exit code tells."""
    good = audio_files(setup)[0]
    for name, utt in BAD.items():
        if utt.audio is not None:
            (tmp_path / f"{name}.{utt.extension}").write_bytes(utt.audio)
    expected = {f"{name}.{utt.extension}": utt.error for name, utt in BAD.items() if utt.error}
    # Any rate and channels can be transcribed, and without a list nobody knows the length of an Ogg file.
    fine = ["rate.flac", "stereo.flac", "cut_ogg.ogg", "one_sample.flac", "silence.flac", good]
    files = [*fine, *sorted(set(expected) - set(fine)), "nowhere.wav"]
    model = ("--checkpoint", setup.checkpoints["aed"], "--vocab", vocab_file)
    result = call_tool("transcribe", *files, *model, "--json", "t.json", "--ctm", "t.ctm", cwd=tmp_path)
    assert result.returncode == 1
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == fine
    record = {entry["file"]: entry for entry in json.loads((tmp_path / "t.json").read_text())["files"]}
    assert list(record) == files
    for file in files[len(fine) :]:
        assert f"error: {file}: " in result.stderr and record[file]["error"].startswith(f"{file}: ")
    assert "cut_sph.sph: cut off: 7744 samples of 16000" in result.stderr
    assert record["silence.flac"]["text"] == "" and record[good]["text"]


def test_vocabulary_of_the_training(setup, tmp_path):
    models = tmp_path / "run" / "models"
    models.mkdir(parents=True)
    os.symlink(setup.checkpoints["aed"], models / "epoch.001.pt")
    options = {"vocab": VOCAB, "data_dir": setup.data_dir, "peak_normalization": True}
    (tmp_path / "run" / "options.json").write_text(json.dumps(options))
    file = audio_files(setup)[1]
    result = call_tool("transcribe", file, "--checkpoint", models / "epoch.001.pt", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
