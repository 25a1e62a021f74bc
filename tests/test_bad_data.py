"""Corpora with broken utterances: training leaves them out and says so, recognition has an entry for each."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from bad_corpus import add_to_part, bad_utterances, write_part
from corpora import make_librispeech
from fork_server import fork_config
from returnn.datasets.basic import init_dataset
from runs import SMALL_MODEL
from tool_runs import call_tool

from configs.base.corpus import CorpusOptions, open_corpus
from configs.base.options import OptionError
from configs.base.utterances import NoUtteranceError
from recog.nbest import load_nbest
from recog.utterance_info import INFO_KEY
from rf_models.options import AedCtcOptions
from tools.prepare_librispeech import main as prepare_librispeech

VOCAB = "spm_unigram_40"
BAD = bad_utterances()
GOOD = 6
TRAINED_ON = sum(not utt.left_out for utt in BAD.values()) + GOOD


def make_corpus(folder) -> str:
    """:return: prepared corpus with parts train and dev"""
    source, data = str(folder / "source"), str(folder / "data")
    make_librispeech(source, {"train": GOOD, "dev": GOOD}, seconds=3.0)
    assert prepare_librispeech([source, data, "--workers", "1", "--corpus", "demo", "--vocab", VOCAB]) == 0
    return data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    data = make_corpus(tmp_path_factory.mktemp("bad"))
    for part in ("train", "dev"):
        add_to_part(data, part, BAD)
    return data


def opened(data, **opts):
    return open_corpus(
        "demo", CorpusOptions(data_dir=data, vocab=VOCAB, **opts), parts=("train", "dev"), prepare_command=""
    )


def load_all(options, *, epoch=1):
    """:return: tag -> sequence, as RETURNN's engine reads them"""
    dataset = init_dataset(options)
    dataset.init_seq_order(epoch=epoch)
    seqs, i, last = {}, 0, 0.0
    while dataset.is_less_than_num_seqs(i):
        dataset.load_seqs(i, i + 1)
        frac = dataset.get_complete_frac(i, allow_only_lr_suitable=True)
        assert last < frac <= 1.0
        last = frac
        seqs[dataset.get_tag(i)] = {key: dataset.get_data(i, key) for key in dataset.get_data_keys()}
        i += 1
    assert i == len(seqs)
    return seqs


def summary(part, epoch):
    """:return: how the log counts what was left out"""
    num = len(BAD) + GOOD
    return f"{part}, sub-epoch {epoch}: left out {num - TRAINED_ON} of {num} utterances: audio cannot be read (5), "


def test_dataset_for_training(data, capfd):
    checks = {"num_frames": AedCtcOptions().num_encoder_frames, "ctc": True, "max_seconds": 10.0, "max_labels": 50}
    dataset = opened(data, train_seq_ordering="random", speed_perturbation=(1.0,)).train_dataset(**checks)
    seqs = load_all(dataset)
    expected = {f"train/{name}" for name, utt in BAD.items() if not utt.left_out}
    assert len(seqs) == TRAINED_ON and expected <= set(seqs)
    assert all(len(seq["data"]) and len(seq["classes"]) and INFO_KEY not in seq for seq in seqs.values())
    out = capfd.readouterr().out
    for name, utt in BAD.items():
        assert not utt.left_out or f"utterance train/{name} is left out: {utt.left_out}" in out, name
    assert summary("train", 1) in out


def test_dataset_for_recognition(data):
    seqs = load_all(opened(data).forward_dataset(("dev",)))
    assert len(seqs) == GOOD + len(BAD)
    for name, utt in BAD.items():
        content = bytes(seqs[f"dev/{name}"][INFO_KEY].tolist())
        info = json.loads(content) if content else {"error": None, "no_transcript": False}
        assert info["no_transcript"] == (not utt.has_ref)
        assert (info["error"] or "").startswith(utt.error) and bool(info["error"]) == bool(utt.error), name
    assert len(seqs["dev/one_sample"]["data"]) == 1 and len(seqs["dev/nan"]["data"]) == 400
    forced = load_all(opened(data).forward_dataset(("dev",), needs_labels=True))
    assert b"no transcript" in bytes(forced["dev/no_text"][INFO_KEY].tolist())


def test_number_of_frames():
    """What the check computes is what the encoder gives."""
    import numpy as np
    from tiny_models import AED, make_model

    from recog.standalone import audio_batch

    model = make_model(AED, num_labels=9)
    for num_samples in (400, 559, 1359, 1360, 2319, 2320, 16_000, 16_159, 16_160):
        audio, time_dim = audio_batch([np.zeros(num_samples)])
        encoded = model.encode(audio, in_spatial_dim=time_dim)
        (frames,) = encoded.enc_spatial_dim.get_size_tensor().raw_tensor.tolist()
        assert frames == AED.num_encoder_frames(num_samples), num_samples
    assert AED.num_encoder_frames(399) == AED.num_encoder_frames(0) == 0


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A training and a recognition by rnn.py, both with a process that loads data."""
    folder = tmp_path_factory.mktemp("bad_runs")
    options = {"data_dir": data, "vocab": VOCAB, "num_workers": 1}
    training = {**SMALL_MODEL, "num_epochs": 2, "partition_epoch": 1, "batch_size": 400_000, "speed_perturbation": 1.0}
    train = fork_config("demo_train", folder, **options, **training, max_audio_seconds=10, max_label_len=50)
    recog = fork_config("demo_recog_labelsync", folder, **options, recog_parts="dev", beam_size=4, max_len_ratio=0.5)
    return folder, train, recog


def test_training(runs):
    folder, train, _ = runs
    with open(folder / "output" / "demo_train" / "returnn.log", encoding="utf8") as file:
        log = file.read()
    for part in ("train", "dev"):
        for name, utt in BAD.items():
            message = f"utterance {part}/{name} is left out: {utt.left_out}"
            assert (log.count(message) == 1 and message in train.stdout) if utt.left_out else message not in log, name
        assert summary(part, 1) in log and summary(part, 2) in log
    assert "inf" not in re.findall(r"dev: ctc_\S+ (\S+)", log)


def test_recognition(runs):
    folder, _, recog = runs
    filename = str(folder / "output" / "demo_recog_labelsync" / "nbest.jsonl")
    utts = {utt.seq_tag: utt for utt in load_nbest(filename)[1]}
    assert len(utts) == len(BAD) + GOOD
    for name, expected in BAD.items():
        utt = utts[f"dev/{name}"]
        assert bool(utt.hyps) == (not expected.error) and (utt.ref is not None) == expected.has_ref, name
        assert (utt.error or "").startswith(expected.error) and bool(utt.error) == bool(expected.error), name
    assert utts["dev/empty_text"].ref == "" and utts["dev/other_script"].ref == "A B ΓΔ"
    num_failed = sum(bool(utt.error) for utt in BAD.values())
    assert f"{num_failed} of {len(utts)} utterances failed: dev/cut_flac: audio cannot be read" in recog.stdout
    total = json.loads((folder / "output" / "demo_recog_labelsync" / "wer.json").read_text())["total"]
    assert (total["num_failed"], total["num_no_ref"]) == (num_failed, 1)
    assert total["num_del"] >= 3 * num_failed and f"in {num_failed} utterance(s) the search failed" in recog.stdout


def test_tools_accept_failed_utterances(runs, data, tmp_path):
    """All that reads n-best files."""
    folder = runs[0]
    nbest = folder / "output" / "demo_recog_labelsync" / "nbest.jsonl"
    other = shutil.copytree(folder / "output" / "demo_recog_labelsync", tmp_path / "other") / "nbest.jsonl"
    vocab = os.path.join(data, "vocab", f"{VOCAB}.json")
    for name, *args in (
        ("score", nbest, "--json", "score.json", "--alignments", "a.txt", "--stm", "r.stm", "--ctm", "h.ctm"),
        ("rescore", nbest, "--scales", "att=0.6,ctc=0.4", "--out", "new.jsonl"),
        ("tune_scales", nbest),
        ("compare_runs", nbest, other),
        ("search_errors", nbest, nbest, "--vocab", vocab),
        ("report", nbest.parent, "--output", "report.html"),
    ):
        res = call_tool(name, *args, cwd=tmp_path)
        assert res.returncode == 0, (name, res.stdout, res.stderr)
    failed = {tag for tag, utt in ((f"dev/{name}", utt) for name, utt in BAD.items()) if utt.error}
    rescored = load_nbest(str(tmp_path / "new.jsonl"))[1]
    assert {utt.seq_tag for utt in rescored if utt.error} == failed
    page = (tmp_path / "report.html").read_text()
    assert "the search failed" in page or f"{len(failed)} utterances failed" in page, len(page)


BROKEN_ZIPS = {
    "half": "has no readable list of utterances",
    "empty": "has no readable list of utterances",
    "renamed": "there is no train.txt in it",
    "no utterance": "has no utterance",
    "latin1": "has no readable list of utterances .*utf-8",
    "not text": "train.txt, utterance 1: text is no valid text",
    "no duration": "train.txt, utterance 1: duration None of 'train/a'",
    "no name": "train.txt, utterance 1: seq_name None",
    "twice": "there is another utterance of the name 'train/a'",
    "other number": "has 1 utterances, but corpus.json says 6",
}


@pytest.mark.parametrize("kind", BROKEN_ZIPS)
def test_broken_zip_is_refused_before_the_run(data, tmp_path, kind):
    folder = str(shutil.copytree(data, tmp_path / "data"))
    zip_file = os.path.join(folder, "train.zip")
    good = {"text": "A", "duration": 1.0, "file": "a", "seq_name": "train/a"}
    if kind in ("half", "empty"):
        with open(zip_file, "rb") as file:
            content = file.read()
        with open(zip_file, "wb") as file:
            file.write(content[: len(content) // 2] if kind == "half" else b"")
    elif kind == "renamed":
        shutil.copy(os.path.join(folder, "dev.zip"), zip_file)
    else:
        listings = {
            "no utterance": b"[]\n",
            "latin1": "[\n{'text': 'caf\xe9', 'duration': 1.0, 'file': 'a', 'seq_name': 'train/a'},\n]\n".encode(
                "latin1"
            ),
            "not text": [{**good, "text": "\udce9t\udce9"}],
            "no duration": [{**good, "duration": None}],
            "no name": [{"text": "A", "duration": 1.0}],
            "twice": [good, good],
            "other number": ascii([good]).encode(),
        }
        write_part(folder, "train", listings[kind], {})
        if kind == "other number":
            manifest = os.path.join(folder, "corpus.json")
            with open(manifest, encoding="utf8") as file:
                content = json.load(file)
            content["parts"]["train"]["num_seqs"] = 6
            with open(manifest, "w", encoding="utf8") as file:
                json.dump(content, file)
    with pytest.raises(OptionError, match=BROKEN_ZIPS[kind]) as info:
        opened(folder)
    assert "train.zip" in str(info.value)


def test_no_usable_utterance(data, tmp_path, capfd):
    """As of a corpus with another sample rate: not an epoch without data, but the end."""
    folder = str(shutil.copytree(data, tmp_path / "data"))
    write_part(
        folder, "train", [{"duration": 1.0, "file": f"{i}.flac", "seq_name": f"train/{i}"} for i in range(3)], {}
    )
    with pytest.raises(NoUtteranceError, match=r"each of the first 3 utterances has a problem, e\.g\. train/"):
        load_all(opened(folder).train_dataset())
    assert capfd.readouterr().out.count("is left out: no audio: ") == 3
