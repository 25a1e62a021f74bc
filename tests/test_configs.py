"""Every training config runs one short training on a tiny corpus; a new one is tested by being there."""

from __future__ import annotations

import glob
import os

import pytest
from corpora import make_librispeech, make_tedlium2
from runs import REPO, SMALL_TRAINING, run_config, run_tool

NAMES = sorted(
    os.path.basename(file).removesuffix(".config")
    for file in glob.glob(os.path.join(REPO, "configs", "*_train*.config"))
    if not os.path.basename(file).startswith("demo")  # of the demo: test_runs_demo.py
)
LM_MODELS = {
    "lstm": {"num_layers": 1, "embed_dim": 8, "lstm_dim": 8},
    "transcripts": {"num_layers": 1, "embed_dim": 8, "lstm_dim": 8},
    "transformer": {"num_layers": 1, "embed_dim": 8, "model_dim": 16, "ff_dim": 16, "num_heads": 2, "att_dim": 16},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """:return: folder with both corpora, and a model of each for what starts from one"""
    folder = tmp_path_factory.mktemp("configs")
    parts = {"train-clean-100": 6, "train-clean-360": 3, "train-other-500": 3, "dev-clean": 2, "dev-other": 2}
    make_librispeech(str(folder / "LibriSpeech"), parts, seconds=1.2)
    text = ("--vocab", "spm_unigram_40", "--lm-text")
    (folder / "text.txt").write_text("THE QUICK BROWN FOX\nA QUESTION OF TIME\n" * 20)
    args = ("LibriSpeech", "data/librispeech", *text, "text.txt", "--subset", "6")
    run_tool("prepare_librispeech", *args, cwd=folder)
    make_tedlium2(str(folder / "TEDLIUM_release2"), {"train": 12, "dev": 3}, segment_seconds=1.2)
    run_tool("prepare_tedlium2", "TEDLIUM_release2", "data/tedlium2", *text, "TEDLIUM_release2/LM", cwd=folder)
    for name in ("ls960_train", "ted2_train"):
        run_config(name, folder, **SMALL_TRAINING, vocab="spm_unigram_40")
    return folder


def small_options(name: str) -> dict:
    """:return: options that make a run of this config tiny"""
    if "_ilm_" in name:
        return {"num_epochs": 1, "mini_lstm_dim": 4}
    for kind, model in LM_MODELS.items():
        if f"_lm_{kind}" in name:
            return {"num_epochs": 1, "partition_epoch": 1, **model}
    options = {**SMALL_TRAINING}
    if "attention" in name:
        del options["ctc_layers"]
    if "_ctc" in name or "large" in name or "modern" in name:
        options["ctc_layers"] = "2"
    return options


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("ls960_train", "ted2_train")])
def test_training(folder, name):
    run_config(name, folder, **small_options(name), vocab="spm_unigram_40")
    assert (folder / "output" / name / "models" / "epoch.001.pt").is_file()


def test_these_are_all():
    assert len(NAMES) >= 20


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_share_the_data(folder, num_workers):
    """RETURNN's default below behaviour version 37 is that each process loads everything."""
    options = {**SMALL_TRAINING, "num_workers": num_workers, "max_seqs": 1, "output_dir": f"output/w{num_workers}"}
    res = run_config("ted2_train", folder, **options, vocab="spm_unigram_40")
    assert "Trained 12 steps" in res.stdout + res.stderr
