"""A tiny prepared corpus with random models, on which the configs can be run as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace

from corpora import make_librispeech
from runs import REPO as ROOT
from runs import run_command
from tiny_models import AED, LSTM_LM, MINI_ILM, TRANSFORMER_LM, save_model

from recog.vocab import Vocab, load_vocab
from tools.prepare_librispeech import main as prepare_librispeech

VOCAB = "spm_unigram_40"
# Another encoder: 4 instead of 6 frames of 10 ms in one.
SECOND_AED = replace(AED, enc_frontend_time_strides=(1, 2, 2))


@dataclass
class TinySetup:
    """Files below one folder."""

    folder: str
    data_dir: str
    vocab: Vocab
    checkpoints: dict[str, str]

    def command(self, config: str, *args: str) -> list[str]:
        """:return: as typed by a user; numbers and names in args as texts"""
        return [
            sys.executable,
            os.path.join(os.path.dirname(sys.executable), "rnn.py"),
            os.path.join(ROOT, "configs", config),
            *("++data_dir", self.data_dir, "++vocab", VOCAB, "++recog_parts", "dev", "++device", "cpu"),
            *("++load", self.checkpoints["aed"], *map(str, args)),
        ]

    def run(self, config: str, *args: str) -> subprocess.CompletedProcess:
        """Runs it in the folder."""
        return run_command(self.command(config, *args), self.folder, ok=False)


def make_tiny_setup(folder: str) -> TinySetup:
    """:return: corpus with the parts train and dev, random models"""
    source, data_dir = os.path.join(folder, "source"), os.path.join(folder, "data")
    make_librispeech(source, {"train": 7, "dev": 5}, seconds=2.0)
    arguments = [source, data_dir, "--workers", "1", "--corpus", "demo", "--vocab", VOCAB]
    assert prepare_librispeech(arguments) == 0
    vocab = load_vocab(os.path.join(data_dir, "vocab", VOCAB + ".json"))
    checkpoints = {}
    for name, opts in {
        "aed": AED,
        "second_aed": SECOND_AED,
        "lstm_lm": LSTM_LM,
        "transformer_lm": TRANSFORMER_LM,
        "mini_ilm": MINI_ILM,
    }.items():
        filename = os.path.join(folder, "models", name + ".pt")
        checkpoints[name] = save_model(
            filename, opts, num_labels=vocab.num_labels, eos_index=vocab.eos_index, seed=len(checkpoints)
        )
    return TinySetup(folder=folder, data_dir=data_dir, vocab=vocab, checkpoints=checkpoints)
