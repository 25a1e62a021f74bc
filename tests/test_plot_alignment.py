"""Pictures of utterances: the numbers behind them, times, and the tool on a run."""

from __future__ import annotations

import itertools
import json
import os

import numpy as np
import pytest
import soundfile
import torch
from tiny_setup import TinySetup, make_tiny_setup
from tool_runs import call_tool, run_tool

from configs.base.run import BEHAVIOR_VERSION
from recog.analysis.alignment import label_segments, view_utterance
from recog.nbest import Hypothesis, NBestHeader, NBestWriter, Utterance
from recog.standalone import audio_batch, load_model


def test_segments():
    alignment = np.array([9, 3, 3, 9, 3, 5, 5, 9])
    segments = label_segments(alignment, blank=9, frame_seconds=0.06)
    assert [s.label for s in segments] == [3, 3, 5]
    times = [(round(s.begin, 9), round(s.end, 9)) for s in segments]
    assert times == [(0.06, 0.18), (0.24, 0.3), (0.3, 0.42)]
    assert label_segments(np.array([9, 9]), blank=9, frame_seconds=0.06) == []
    assert [s.label for s in label_segments(np.array([4]), blank=9, frame_seconds=1.0)] == [4]


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> TinySetup:
    return make_tiny_setup(str(tmp_path_factory.mktemp("plot")))


def test_view(setup):
    model = load_model(setup.checkpoints["aed"], behavior_version=BEHAVIOR_VERSION)
    waveform = np.random.default_rng(0).normal(size=9600).astype("float32") * 0.1
    labels = [5, 5, 7]
    view = view_utterance(model, waveform, labels)
    num_frames = view.ctc_probs.shape[0]
    assert view.duration == 0.6 and view.frame_seconds == pytest.approx(0.06)
    assert num_frames == 10 and view.log_mel.shape == (58, 80)
    np.testing.assert_allclose(view.ctc_probs.sum(axis=1), 1.0, rtol=1e-5)
    assert view.ctc_probs[:, setup.vocab.eos_index].max() == 0.0
    # The best path, by enumeration of what each boundary between runs can be.
    blank = setup.vocab.num_labels
    collapsed = [k for k, _ in itertools.groupby(view.alignment.tolist()) if k != blank]
    assert collapsed == labels and [s.label for s in view.segments] == labels
    with np.errstate(divide="ignore"):
        log_probs = np.log(view.ctc_probs)
    score = log_probs[np.arange(num_frames), view.alignment].sum()
    assert view.alignment_score == pytest.approx(score, abs=1e-4)
    for path in itertools.product([5, 7, blank], repeat=num_frames):
        if [k for k, _ in itertools.groupby(path) if k != blank] == labels:
            assert log_probs[np.arange(num_frames), path].sum() <= score + 1e-4
    # Attention: a distribution for each label and EOS, the same as in training's teacher forcing.
    assert view.attention.shape == (4, num_frames)
    np.testing.assert_allclose(view.attention.sum(axis=1), 1.0, rtol=1e-5)
    assert view_utterance(model, waveform).labels == greedy(model, waveform)
    too_long = view_utterance(model, waveform, [5] * 9)
    assert too_long.alignment is None and too_long.segments == [] and too_long.attention.shape[0] == 10


def greedy(model, waveform):
    with torch.no_grad():
        audio, time_dim = audio_batch([waveform])
        log_probs = model.ctc_log_probs(model.encode(audio, in_spatial_dim=time_dim)).raw_tensor[0]
    blank = log_probs.shape[1] - 1
    log_probs[:, blank] = torch.logaddexp(log_probs[:, blank], log_probs[:, model.eos_index])
    log_probs[:, model.eos_index] = -np.inf
    return [k for k, _ in itertools.groupby(log_probs.argmax(dim=1).tolist()) if k != blank]


def test_wrong_checkpoints(setup, tmp_path):
    with pytest.raises(ValueError, match="holds a model of the kind lstm_lm, expected aed_ctc"):
        load_model(setup.checkpoints["lstm_lm"], behavior_version=BEHAVIOR_VERSION)
    (tmp_path / "x.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a readable PyTorch checkpoint"):
        load_model(str(tmp_path / "x.pt"), behavior_version=BEHAVIOR_VERSION)


def write_nbest(setup, folder):
    vocab = setup.vocab
    os.makedirs(folder)
    header = NBestHeader("label_sync", {"ctc": 1.0}, options={"data_dir": setup.data_dir}, vocab=vocab.describe())
    with NBestWriter(os.path.join(folder, "nbest.jsonl"), header) as writer:
        hyps = [Hypothesis(ls, vocab.labels_to_text(ls), -i, {"ctc": -i}) for i, ls in enumerate([[5, 7], []])]
        writer.write(Utterance("dev/119-198-0000", 0.5, 9, "IT'S A QUESTION OF TIME", hyps))
        writer.write(Utterance("dev/119-198-9999", 0.5, 9, None, hyps))
    with open(os.path.join(folder, "options.json"), "w") as file:
        json.dump({"checkpoint": setup.checkpoints["aed"]}, file)


def test_tool(setup, tmp_path):
    write_nbest(setup, str(tmp_path / "run"))
    args = ["run/nbest.jsonl", "dev/119-198-0000"]
    result = run_tool("plot_alignment", *args, "--output", "a.png", "--json", "a.json", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    record = json.loads((tmp_path / "a.json").read_text())
    assert [item["label"] for item in record["labels"]] == [5, 7]
    assert record["labels"][0]["name"] == setup.vocab.label_name(5)
    assert 0 <= record["labels"][0]["begin"] < record["labels"][1]["begin"] < record["duration"]
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "a.png").stat().st_size > 20_000
    for hyp in ("2", "ref"):  # no label at all; perhaps more labels than frames
        result = call_tool("plot_alignment", *args, "--hyp", hyp, "--output", f"{hyp}.svg", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / f"{hyp}.svg").read_text().startswith("<?xml")
    for wrong, message in (
        (["run/nbest.jsonl", "dev/x"], "no utterance 'dev/x'; the first one is 'dev/119-198-0000'"),
        ([*args, "--hyp", "3"], "has 2 hypotheses, no number 3"),
        (["run/nbest.jsonl", "dev/119-198-9999", "--hyp", "ref"], "has no utterance 'dev/119-198-9999'"),
        ([*args, "--corpus", "nowhere"], "nowhere/vocab/spm_unigram_40.json"),
    ):
        result = call_tool("plot_alignment", *wrong, cwd=tmp_path)
        assert result.returncode == 1 and message in result.stderr, result.stderr


def test_tool_with_audio_file(setup, tmp_path):
    audio = np.random.default_rng(1).normal(size=(8000, 2)) * 0.1
    soundfile.write(tmp_path / "x.wav", audio, 8000)
    vocab = os.path.join(setup.data_dir, "vocab", "spm_unigram_40.json")
    args = ["--audio", "x.wav", "--checkpoint", setup.checkpoints["aed"], "--vocab", vocab]
    result = call_tool("plot_alignment", *args, "--text", "A B C", "--json", "x.json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["duration"] == 1.0 and record["text"] == "A B C" and (tmp_path / "alignment_x.wav.png").exists()
    assert call_tool("plot_alignment", "--audio", "x.wav", cwd=tmp_path).returncode == 2
