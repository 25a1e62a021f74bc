"""TED-LIUM 2 from SPHERE and STM files to a WER table, with the commands of the README, on a tiny corpus."""

from __future__ import annotations

import json
import time

import pytest
from corpora import make_tedlium2
from runs import SMALL_TRAINING, run_config, run_tool

from recog.nbest import audit, load_nbest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """:return: folder with a prepared corpus and a trained model"""
    folder = tmp_path_factory.mktemp("ted2")
    make_tedlium2(str(folder / "TEDLIUM_release2"), {"train": 12, "dev": 3, "test": 4}, segment_seconds=3.3)
    args = ("TEDLIUM_release2", "data/tedlium2", "--vocab", "spm_unigram_40", "--lm-text", "TEDLIUM_release2/LM")
    run_tool("prepare_tedlium2", *args, cwd=folder)
    run_config("ted2_train", folder, **SMALL_TRAINING, vocab="spm_unigram_40", ctc_with_eos=True)
    return folder


def test_chain(folder):
    options = {"vocab": "spm_unigram_40", "num_workers": 0}
    files = []
    for search in ("ctc", "labelsync", "timesync"):
        beam = {} if search == "ctc" else {"beam_size": 4}
        run_config(f"ted2_recog_{search}", folder, **options, **beam)
        files.append(f"output/ted2_recog_{search}/nbest.jsonl")
        header, utterances = load_nbest(str(folder / files[-1]))
        assert [utt.part for utt in utterances] == ["dev"] * 3 + ["test"] * 4
        assert all(utt.hyps and utt.ref is not None for utt in utterances)
        assert not audit(header, utterances)
    res = run_tool("score", *files, "--json", "wer.json", cwd=folder)
    assert "ted2_recog_timesync" in res.stdout
    for run in json.loads((folder / "wer.json").read_text())["runs"]:
        assert run["total"]["num_utts"] == 7 and run["total"]["num_ref_words"] > 20


def test_no_data(tmp_path):
    for name in ("ted2_train", "ted2_recog_timesync"):
        start = time.monotonic()
        res = run_config(name, tmp_path, ok=False)
        assert res.returncode != 0 and time.monotonic() - start < 60
        assert "tools/prepare_tedlium2.py" in res.stderr and "Traceback" not in res.stderr


def test_no_model(folder):
    res = run_config("ted2_recog_ctc", folder, vocab="spm_unigram_40", checkpoint="average", ok=False)
    assert res.returncode != 0 and "tools/average_checkpoints.py" in res.stderr
