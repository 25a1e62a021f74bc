"""LibriSpeech from the distributed files to a WER table, with the commands of the README, on a tiny corpus."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
from corpora import make_librispeech
from runs import REPO, SMALL_TRAINING, run_config, run_tool

from recog.nbest import audit, load_nbest

PARTS = {
    "train-clean-100": 6,
    "train-clean-360": 3,
    "train-other-500": 3,
    "dev-clean": 3,
    "dev-other": 2,
    "test-clean": 3,
    "test-other": 2,
}
TRAIN = {**SMALL_TRAINING, "vocab": "spm_unigram_40", "data_dir": "data"}
RECOG = {"vocab": "spm_unigram_40", "data_dir": "data", "num_workers": 0, "beam_size": 4}


def prepare(folder, vocab):
    args = ("LibriSpeech", "data/librispeech", "--vocab", vocab, "--subset", "6")
    run_tool("prepare_librispeech", *args, cwd=folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """:return: folder with a prepared corpus and a trained model"""
    folder = tmp_path_factory.mktemp("ls960")
    make_librispeech(str(folder / "LibriSpeech"), PARTS, seconds=3.3)
    run_tool(
        "prepare_librispeech",
        "LibriSpeech",
        "data/librispeech",
        "--vocab",
        "spm_unigram_40",
        "--subset",
        "6",
        cwd=folder,
    )
    run_config("ls960_train", folder, **TRAIN)
    return folder


def test_training(folder):
    models = folder / "output" / "ls960_train" / "models"
    assert (models / "epoch.001.pt").is_file()
    info = json.loads((models / "model_info.json").read_text())
    assert info["kind"] == "aed_ctc" and info["num_labels"] == 40 and info["options"]["enc_num_layers"] == 2
    rates = (folder / "output" / "ls960_train" / "learning_rates").read_text()
    assert "train_loss_ctc_1" in rates and "dev_loss_ce" in rates


def test_training_goes_on(folder):
    models = folder / "output" / "ls960_train" / "models"
    first = (models / "epoch.001.pt").read_bytes()
    res = run_config("ls960_train", folder, **{**TRAIN, "num_epochs": 2})
    assert "epoch 2" in (res.stdout + res.stderr)
    assert (models / "epoch.002.pt").is_file() and (models / "epoch.001.pt").read_bytes() == first
    res = run_config("ls960_train", folder, **{**TRAIN, "enc_num_layers": 3, "ctc_layers": "1,3"}, ok=False)
    assert res.returncode != 0 and "other options" in res.stderr and "enc_num_layers: 2 -> 3" in res.stderr


@pytest.mark.parametrize("search", ["ctc", "labelsync", "timesync"])
def test_recognition(folder, search):
    name = f"ls960_recog_{search}"
    options = {key: value for key, value in RECOG.items() if search != "ctc" or key != "beam_size"}
    res = run_config(name, folder, **options)
    output = folder / "output" / name
    header, utterances = load_nbest(str(output / "nbest.jsonl"))
    assert len(utterances) == 10 and {utt.part for utt in utterances} == {p for p in PARTS if "train" not in p}
    assert all(utt.hyps and utt.error is None for utt in utterances)
    assert not audit(header, utterances)
    table = (output / "wer.txt").read_text()
    assert "dev-other" in table and "Real time factor" in table and table.splitlines()[0] in res.stdout + res.stderr
    again = run_config(name, folder, **options)
    assert "has finished before" in again.stdout
    if search == "timesync":
        res = run_config(name, folder, **options, att_scale=0.5, ok=False)
        assert res.returncode != 0 and "att_scale: 0.8 -> 0.5" in res.stderr
    if search == "labelsync":  # the batch changes nothing
        before = {utt.seq_tag: utt for utt in utterances}
        run_config(name, folder, **options, max_seqs=1, output_dir="output/single")
        for utt in load_nbest(str(folder / "output" / "single" / "nbest.jsonl"))[1]:
            other = before[utt.seq_tag]
            assert [hyp.labels for hyp in utt.hyps] == [hyp.labels for hyp in other.hyps]
            assert [hyp.score for hyp in utt.hyps] == pytest.approx([hyp.score for hyp in other.hyps], abs=1e-3)


def test_scoring(folder):
    for search in ("ctc", "timesync"):
        nbest = folder / "output" / f"ls960_recog_{search}" / "nbest.jsonl"
        if not nbest.exists():
            run_config(f"ls960_recog_{search}", folder, vocab="spm_unigram_40", data_dir="data", num_workers=0)
    res = run_tool(
        "score",
        "output/ls960_recog_ctc/nbest.jsonl",
        "output/ls960_recog_timesync/nbest.jsonl",
        "--json",
        "wer.json",
        cwd=folder,
    )
    assert "ls960_recog_ctc" in res.stdout and "test-other" in res.stdout
    runs = json.loads((folder / "wer.json").read_text())["runs"]
    assert [run["search"] for run in runs] == ["ctc_greedy", "time_sync"]


@pytest.mark.parametrize(
    ("name", "options", "messages"),
    [
        ("ls960_recog_ctc", {"vocab": "spm_unigram_99"}, ["no vocabulary 'spm_unigram_99'", "spm_unigram_40"]),
        ("ls960_recog_labelsync", {"beam_sise": 8}, ["unknown option 'beam_sise'", "beam_size"]),
        ("ls960_recog_labelsync", {"beam_size": 0}, ["beam_size = 0", "at least 1"]),
        ("ls960_recog_timesync", {"att_scale": "nan"}, ["att_scale = nan", "finite"]),
        ("ls960_recog_ctc", {"ctc_layer": 9}, ["ctc_layer = 9", "(1, 2)"]),
        ("ls960_recog_ctc", {"enc_dim": 64}, ["enc_dim = 64", "has 32"]),
        ("ls960_recog_ctc", {"recog_parts": "dev-clean,dev-nosuch"}, ["no part 'dev-nosuch'", "dev-other"]),
        ("ls960_recog_ctc", {"load": "nosuch.pt"}, ["nosuch.pt", "does not exist"]),
    ],
)
def test_wrong_options(folder, name, options, messages):
    start = time.monotonic()
    res = run_config(
        name,
        folder,
        **{**RECOG, **options}
        if name != "ls960_recog_ctc"
        else {"vocab": "spm_unigram_40", "data_dir": "data", **options},
        output_dir="output/wrong",
        ok=False,
    )
    assert res.returncode != 0
    assert all(message in res.stderr for message in messages), res.stderr
    assert "Traceback" not in res.stderr
    assert not (folder / "output" / "wrong" / "nbest.jsonl").exists()
    assert time.monotonic() - start < 60


def test_other_vocabulary(folder):
    run_tool(
        "prepare_librispeech",
        "LibriSpeech",
        "data/librispeech",
        "--vocab",
        "spm_unigram_45",
        "--subset",
        "6",
        cwd=folder,
    )
    options = {"vocab": "spm_unigram_45", "data_dir": "data", "output_dir": "output/other"}
    res = run_config("ls960_recog_ctc", folder, **options, ok=False)
    assert res.returncode != 0 and "trained with another vocabulary" in res.stderr and "40 labels" in res.stderr


def test_no_data(tmp_path):
    for name in ("ls960_train", "ls960_recog_labelsync"):
        start = time.monotonic()
        res = run_config(name, tmp_path, ok=False)
        assert res.returncode != 0 and time.monotonic() - start < 60
        assert "tools/prepare_librispeech.py" in res.stderr and "Traceback" not in res.stderr
        assert res.stderr.count("error:") == 1


def test_plain_checkout(tmp_path):
    """Configs take models and searches from their own checkout, not from another one that is installed."""
    for name in ("configs", "rf_models", "recog"):
        shutil.copytree(os.path.join(REPO, name), tmp_path / "copy" / name)
    setup = tmp_path / "copy" / "configs" / "base" / "ls960.py"
    setup.write_text(setup.read_text().replace("tools/prepare_librispeech.py", "this is the copy"))
    res = run_config("ls960_train", tmp_path, repo=str(tmp_path / "copy"), ok=False)
    assert "this is the copy" in res.stderr


def test_average(folder):
    run_tool("average_checkpoints", "output/ls960_train/models", "--last", "1", cwd=folder)
    options = {"vocab": "spm_unigram_40", "data_dir": "data", "num_workers": 0, "recog_parts": "dev-clean"}
    run_config("ls960_recog_ctc", folder, **options, checkpoint="average", output_dir="output/average")
    assert len(load_nbest(str(folder / "output" / "average" / "nbest.jsonl"))[1]) == 3
