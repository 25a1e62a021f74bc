"""
Every config of configs/ runs once on a tiny corpus, in the order of what it needs; a new one is tested by being there.

What a config needs and gives is read from its description, so that is tested, too. The options of a config decide how
it is made tiny.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import os
import re
import zipfile
from dataclasses import fields

import pytest
import soundfile
import torch
from corpora import make_librispeech, make_tedlium2
from fork_server import fork_config
from runs import REPO, SMALL_MODEL, SMALL_TRANSFORMER_DECODER, config_file, run_config

from configs.base.run import BEHAVIOR_VERSION
from recog.nbest import audit, load_nbest
from recog.standalone import audio_batch, load_model
from rf_models.checkpoint import load_state_dict
from rf_models.options import DECODER_OPTIONS
from tools.config_table import description
from tools.prepare_librispeech import main as prepare_librispeech
from tools.prepare_tedlium2 import main as prepare_tedlium2
from tools.show_config import read_options

VOCAB = "spm_unigram_40"
SECONDS = 4.0
"""Of an utterance: with 60 ms per frame, enough for a CTC path of each transcript."""
NAMES = sorted(
    os.path.basename(file).removesuffix(".config") for file in glob.glob(os.path.join(REPO, "configs", "*.config"))
)
SMALL = {
    "num_epochs": 1,
    "partition_epoch": 1,
    "batch_size": 200_000,
    "num_workers": 0,
    "vocab": VOCAB,
    "beam_size": 4,
    "mini_lstm_dim": 4,
    # language models
    "num_layers": 1,
    "embed_dim": 8,
    "lstm_dim": 8,
    "model_dim": 16,
    "ff_dim": 16,
    "num_heads": 2,
    "att_dim": 16,
}
"""Values of options that are given to each config that has them."""


def options_of(name: str) -> dict:
    """:return: all options of a config by name"""
    groups, _ = read_options(config_file(name), [])
    return {option.name: getattr(group, option.name) for group in groups.values() for option in fields(group)}


def small_options(name: str) -> dict:
    """:return: options that make a run of this config tiny"""
    values = options_of(name)
    small = {key: value for key, value in SMALL.items() if key in values}
    if "num_epochs" in values and "enc_num_layers" in values:
        small |= SMALL_MODEL
        if values["dec_kind"] == "transformer":
            small = {key: value for key, value in small.items() if key not in DECODER_OPTIONS["lstm"]}
            small |= SMALL_TRANSFORMER_DECODER
        # As many CTC heads as there are, on the top layer only if the config has one there.
        heads = len(values["ctc_layers"])
        has_top = values["enc_num_layers"] in values["ctc_layers"]
        small["enc_num_layers"] = max(2, heads + (not has_top))
        small["ctc_layers"] = ",".join(str(small["enc_num_layers"] - heads + has_top + i) for i in range(heads))
    return small


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """:return: folder with all corpora"""
    folder = tmp_path_factory.mktemp("configs")
    data = folder / "data"
    lm_text = ["--workers", "1", "--vocab", VOCAB, "--lm-text"]
    (folder / "text.txt").write_text("THE QUICK BROWN FOX\nA QUESTION OF TIME\n" * 20)
    make_librispeech(str(folder / "demo"), {"train": 12, "dev": 3, "test": 3}, seconds=SECONDS)
    parts = {"train-clean-100": 6, "train-clean-360": 3, "train-other-500": 3}
    parts |= dict.fromkeys(("dev-clean", "dev-other", "test-clean", "test-other"), 2)
    make_librispeech(str(folder / "LibriSpeech"), parts, seconds=SECONDS)
    for source, name, *more in (("demo", "demo", "--corpus", "demo"), ("LibriSpeech", "librispeech", "--subset", "6")):
        args = [str(folder / source), str(data / name), *lm_text, str(folder / "text.txt"), *more]
        assert prepare_librispeech(args) == 0
    make_tedlium2(str(folder / "TEDLIUM_release2"), {"train": 12, "dev": 3, "test": 3}, segment_seconds=SECONDS)
    args = [str(folder / "TEDLIUM_release2"), str(data / "tedlium2"), *lm_text]
    assert prepare_tedlium2([*args, str(folder / "TEDLIUM_release2" / "LM")]) == 0
    return folder


_done: dict[tuple[str, str], Exception | None] = {}


def run(name: str, folder) -> None:
    """Runs a config once, and before it those whose output it needs."""
    key = (str(folder), name)
    if key not in _done:
        _done[key] = AssertionError(f"{name} needs itself")
        try:
            for other in re.findall(r"configs/(\w+)\.config", description(config_file(name)).needs):
                run(other, folder)
            fork_config(name, folder, **small_options(name))
            _done[key] = None
        except Exception as exc:
            _done[key] = exc
    if _done[key] is not None:
        raise _done[key]


@pytest.mark.parametrize("name", NAMES)
def test_config(folder, name):
    run(name, folder)
    output = folder / "output" / name
    options = json.loads((output / "options.json").read_text())
    assert {key for key in SMALL if key in options_of(name)} <= set(options)
    given = re.findall(r"[\w./*]+\.(?:pt|txt|jsonl|json)\b", description(config_file(name)).gives)
    assert given and given[0].startswith(f"output/{name}/")
    for file in given:
        pattern = str(folder / file) if "/" in file else str(output / file)
        assert glob.glob(pattern), f"{name} does not give {file}"
    if (output / "nbest.jsonl").is_file():
        header, utterances = load_nbest(str(output / "nbest.jsonl"))
        assert utterances and all(utt.hyps and utt.error is None for utt in utterances)
        assert not audit(header, utterances)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_share_the_data(folder, num_workers):
    """RETURNN's default below behaviour version 37 is that each process loads everything."""
    options = {**small_options("ted2_train"), "num_workers": num_workers, "max_seqs": 1}
    res = run_config("ted2_train", folder, **options, output_dir=f"output/w{num_workers}")
    assert "Trained 12 steps" in res.stdout + res.stderr


def test_growing_encoder(folder):
    """Options that are off by default, an interruption between the stages of pretraining, and recognition."""
    options = {
        **small_options("ted2_train"),
        "enc_num_layers": 3,
        "ctc_layers": "1,3",
        "pretrain_layers": "1,2",
        "pretrain_epochs": 1,
        "enc_att_weight_dropout": 0.1,
        "enc_ff_weight_dropout": 0.1,
        "enc_conv_weight_dropout": 0.1,
        "param_init": "tensorflow",
        "ctc_window_size": 4,
        "use_mixup": True,
        "lr_per_sub_epoch": True,
        "optimizer_type": "adam",
        "keep_best_n": 3,
        "output_dir": "output/grow",
    }
    for num_epochs in (1, 3):
        fork_config("ted2_train", folder, **{**options, "num_epochs": num_epochs})
    models = folder / "output" / "grow" / "models"
    states = [load_state_dict(str(models / f"epoch.{i:03d}.pt"))[0] for i in (1, 2, 3)]
    for i, (before, after) in enumerate(itertools.pairwise(states)):
        for layer in range(3):
            names = [name for name in before if name.startswith(f"encoder.layers.{layer}.")]
            changed = [name for name in names if not before[name].equal(after[name])]
            assert bool(changed) == (layer <= i + 1), (i, layer)
    recog = {key: value for key, value in SMALL.items() if key in ("vocab", "num_workers")}
    for epoch in (2, 3):
        output_dir = f"output/grow_recog{epoch}"
        load = {"load": models / f"epoch.{epoch:03d}.pt", "output_dir": output_dir, "recog_parts": "dev"}
        res = fork_config("ted2_recog_ctc", folder, **recog, **load)
        assert ("is of the layer-wise pretraining" in res.stdout) == (epoch == 2)
        assert len(load_nbest(str(folder / output_dir / "nbest.jsonl"))[1]) == 3


def test_mel_statistics(folder):
    """On the training data, features normalised with what a training has measured have mean 0 and variance 1."""
    run("ted2_train", folder)
    output = folder / "output" / "ted2_train"
    measured = json.loads((output / "mel_statistics.json").read_text())
    assert measured["utterances"] == 12
    checkpoint = str(output / "models" / "epoch.001.pt")
    state, _ = load_state_dict(checkpoint)
    assert state["features.mean"].tolist() == pytest.approx(measured["mean"], rel=1e-5)
    assert state["features.stddev"].tolist() == pytest.approx(measured["stddev"], rel=1e-5)
    model = load_model(checkpoint, behavior_version=BEHAVIOR_VERSION)
    frames = []
    with zipfile.ZipFile(folder / "data" / "tedlium2" / "train.zip") as archive:
        for name in archive.namelist():
            if name.endswith((".ogg", ".flac", ".wav")):
                samples, _ = soundfile.read(io.BytesIO(archive.read(name)), dtype="float32")
                audio, time_dim = audio_batch([samples / abs(samples).max()])
                frames.append(model.features(audio, in_spatial_dim=time_dim)[0].raw_tensor.flatten(0, 1))
    features = torch.cat(frames)
    assert len(frames) == 12 and features.shape == (measured["frames"], 20)
    assert features.mean(dim=0).abs().max() < 1e-3
    assert (features.std(dim=0) - 1).abs().max() < 1e-3
