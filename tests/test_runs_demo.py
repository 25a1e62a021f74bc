"""The demo's commands (those of README and Makefile) on a small demo corpus."""

from __future__ import annotations

import os
import re

import pytest
from runs import REPO, SMALL_TRAINING, run_config, run_tool

from recog.nbest import load_nbest

TRAIN = {**SMALL_TRAINING, "num_epochs": 2, "batch_size": 1_000_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """:return: folder with the corpus"""
    folder = tmp_path_factory.mktemp("demo")
    sizes = ("--num-train", "120", "--num-eval", "8", "--num-lm", "100")
    run_tool("make_demo_corpus", "data/demo/source", *sizes, cwd=folder)
    args = ("--corpus", "demo", "--vocab", "spm_unigram_80", "--lm-text", "data/demo/source/lm.txt")
    run_tool("prepare_librispeech", "data/demo/source", "data/demo", *args, cwd=folder)
    return folder


def test_chain(folder):
    run_config("demo_train", folder, **TRAIN)
    for search in ("ctc", "labelsync", "timesync"):
        run_config(f"demo_recog_{search}", folder, num_workers=0)
        _, utterances = load_nbest(str(folder / "output" / f"demo_recog_{search}" / "nbest.jsonl"))
        assert len(utterances) == 16
    run_config("demo_ilm_context", folder, num_workers=0)
    average = folder / "output" / "demo_ilm_context" / "average.pt"
    time = average.stat().st_mtime
    res = run_config("demo_ilm_context", folder, num_workers=0)
    assert "has finished before" in res.stdout and average.stat().st_mtime == time
    res = run_config("demo_ilm_context", folder, num_workers=0, num_utterances=5, ok=False)
    assert res.returncode != 0 and "other num_utterances" in res.stderr


def test_makefile_is_these_commands():
    """What ``make demo`` runs is what the README tells a user to type."""
    with open(os.path.join(REPO, "Makefile"), encoding="utf8") as file:
        makefile = file.read()
    with open(os.path.join(REPO, "README.md"), encoding="utf8") as file:
        readme = file.read()
    commands = re.findall(r"^\t\$\(BIN\)/(?:python )?((?:rnn\.py configs/demo|tools/).*)$", makefile, re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        command = command.replace("$(DEMO_DATA)", "data/demo")
        assert command in readme, f"README.md does not explain: {command}"
