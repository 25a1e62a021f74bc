"""CTC priors: definition, files, the configs as users run them, and what a search makes of the files."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from returnn.tensor import batch_dim
from tiny_setup import TinySetup, make_tiny_setup

from configs.base.run import BEHAVIOR_VERSION
from recog.nbest import load_nbest
from recog.prior import load_log_prior, log_prior_from_counts, posterior_sums, save_log_prior
from recog.standalone import audio_batch, load_model

NEG_INF = float("-inf")


def test_posterior_sums():
    log_probs = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    lengths = torch.tensor([5, 2, 0], dtype=torch.int32)
    sums = posterior_sums(log_probs, lengths)
    for u, length in enumerate([5, 2, 0]):
        expected = sum((log_probs[u, t].double().exp() for t in range(length)), torch.zeros(4, dtype=torch.float64))
        torch.testing.assert_close(sums[u], expected)
        assert sums[u].sum() == pytest.approx(length)


def test_counts(tmp_path):
    log_prior = log_prior_from_counts(torch.tensor([7, 3, 0, 1]), eos_index=0, smoothing=1.0)
    torch.testing.assert_close(log_prior.exp(), torch.tensor([0.0, 4 / 7, 1 / 7, 2 / 7, 0.0], dtype=torch.float64))
    with pytest.raises(ValueError, match="no label was counted"):
        log_prior_from_counts(torch.tensor([5, 0]), eos_index=0, smoothing=0.0)
    save_log_prior(str(tmp_path / "p.txt"), log_prior)
    torch.testing.assert_close(load_log_prior(str(tmp_path / "p.txt"), num_classes=5), log_prior)


@pytest.fixture(scope="module")
def setup(tmp_path_factory) -> TinySetup:
    return make_tiny_setup(str(tmp_path_factory.mktemp("prior")))


def test_config(setup):
    """Against the posteriors of single utterances; with the files, searches run, and they change the scores."""
    done = setup.run("demo_prior.config", "++batch_size", 30_000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean posterior" in done.stdout + done.stderr and "<blank>" in done.stdout + done.stderr
    folder = os.path.join(setup.folder, "output", "demo_prior")
    with open(os.path.join(folder, "prior.json")) as file:
        record = json.load(file)
    assert record["num_utts"] == 7 and record["parts"] == ["train"]
    num_classes = setup.vocab.num_labels + 1
    log_prior = load_log_prior(os.path.join(folder, "prior.txt"), num_classes=num_classes)
    expected, num_frames = posteriors_one_by_one(setup)
    assert record["num_frames"] == num_frames
    np.testing.assert_allclose(log_prior.exp().numpy(), expected, rtol=2e-4)

    counts = np.ones(setup.vocab.num_labels)
    for text in training_texts(setup):
        np.add.at(counts, setup.vocab.text_to_labels(text), 1)
    counts[setup.vocab.eos_index] = 0
    label_prior = load_log_prior(os.path.join(folder, "label_prior.txt"), num_classes=num_classes).exp().numpy()
    np.testing.assert_allclose(label_prior[:-1], counts / counts.sum(), rtol=1e-9)
    assert label_prior[-1] == 0.0

    again = setup.run("demo_prior.config", "++batch_size", 30_000)
    assert again.returncode == 0 and "has finished before" in again.stdout
    search = ["demo_recog_timesync.config", "++beam_size", 2, "++prior_scale", 0.5]
    search += ["++prior_file", os.path.join(folder, "label_prior.txt"), "++prior_type", "label"]
    done = setup.run(*search)
    assert done.returncode == 0, done.stdout + done.stderr
    header, utts = load_nbest(os.path.join(setup.folder, "output", "demo_recog_timesync", "nbest.jsonl"))
    assert header.scales["prior"] == -0.5
    for utt in utts:
        for hyp in utt.hyps:
            expected_score = np.log(label_prior[hyp.labels]).sum()
            assert hyp.scores["prior"] == pytest.approx(expected_score, rel=1e-4, abs=1e-4)


def training_samples(setup):
    """:return: (audio, text) of the training data, as RETURNN reads it"""
    from returnn.datasets import init_dataset

    from configs.base.corpus import CorpusOptions, open_corpus

    opts = CorpusOptions(data_dir=setup.data_dir, vocab=setup.vocab.name)
    corpus = open_corpus("demo", opts, parts=("train",), prepare_command="")
    dataset = init_dataset(corpus.forward_dataset(("train",)))
    dataset.init_seq_order(epoch=1)
    samples, i = [], 0
    while dataset.is_less_than_num_seqs(i):
        dataset.load_seqs(i, i + 1)
        samples.append((dataset.get_data(i, "data"), bytes(dataset.get_data(i, "orth").astype("uint8")).decode()))
        i += 1
    return samples


def training_texts(setup):
    return [text for _, text in training_samples(setup)]


def posteriors_one_by_one(setup):
    """:return: mean posterior over all frames, number of frames; each utterance alone"""
    model = load_model(setup.checkpoints["aed"], behavior_version=BEHAVIOR_VERSION)
    total, num_frames = np.zeros(setup.vocab.num_labels + 1), 0
    for samples, _ in training_samples(setup):
        audio, time_dim = audio_batch([samples[:, 0]])
        with torch.no_grad():
            encoded = model.encode(audio, in_spatial_dim=time_dim)
            log_probs = model.ctc_log_probs(encoded)
        dims = [batch_dim, encoded.enc_spatial_dim, model.target_dim_with_blank]
        raw = log_probs.copy_transpose(dims).raw_tensor
        total += raw[0].exp().double().sum(dim=0).numpy()
        num_frames += raw.shape[1]
    return total / num_frames, num_frames
