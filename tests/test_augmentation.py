"""Augmentation is drawn for each utterance and epoch; other processes or another order change nothing."""

from dataclasses import replace

import numpy
import pytest
import torch
from corpora import make_librispeech
from returnn.datasets.basic import init_dataset
from returnn.torch.data import returnn_dataset_wrapper

from configs.base.augmentation import AudioPadding
from configs.base.corpus import CorpusOptions, open_corpus
from configs.base.options import OptionError
from configs.base.utterances import sequence_seed
from tools.prepare_librispeech import main as prepare_librispeech


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("augmentation")
    make_librispeech(str(folder / "source"), {"train": 9, "dev": 1})
    arguments = [str(folder / "source"), str(folder / "data"), "--workers", "1", "--corpus", "demo"]
    assert prepare_librispeech([*arguments, "--vocab", "spm_unigram_60"]) == 0
    opts = CorpusOptions(
        data_dir=str(folder / "data"),
        vocab="spm_unigram_60",
        speed_perturbation=(0.9, 1.0, 1.1),
        audio_padding=100,
        subword_sampling_alpha=0.3,
        train_seq_ordering="default",
    )
    return open_corpus("demo", opts, parts=("train",), prepare_command="")


def load(corpus, *, epoch, num_workers=0, seq_ordering="default"):
    """:return: tag -> samples, labels, as RETURNN's engine loads them"""
    dataset = init_dataset({**corpus.train_dataset(), "seq_ordering": seq_ordering})
    wrapped = returnn_dataset_wrapper.ReturnnDatasetIterDataPipe(
        dataset, reset_callback=_Reset(dataset, epoch), shard_workers=True
    )
    loader = torch.utils.data.DataLoader(
        wrapped, batch_size=None, num_workers=num_workers, multiprocessing_context="spawn" if num_workers else None
    )
    seqs = [(str(seq["seq_tag"]), numpy.asarray(seq["data"]), numpy.asarray(seq["classes"])) for seq in loader]
    assert len(seqs) == 9
    return {tag: (audio, labels) for tag, audio, labels in seqs}


class _Reset:
    """Starts the epoch, in the process that loads."""

    def __init__(self, dataset, epoch):
        self.dataset = dataset
        self.epoch = epoch

    def __call__(self):
        self.dataset.init_seq_order(epoch=self.epoch)


def equal(x, y):
    assert set(x) == set(y)
    return all(numpy.array_equal(x[tag][0], y[tag][0]) and numpy.array_equal(x[tag][1], y[tag][1]) for tag in x)


def test_other_processes_and_orders(corpus):
    reference = load(corpus, epoch=3)
    assert equal(reference, load(corpus, epoch=3, seq_ordering="random"))
    for num_workers in (1, 3):
        assert equal(reference, load(corpus, epoch=3, num_workers=num_workers))


def test_each_epoch_is_another(corpus):
    epochs = [load(corpus, epoch=epoch) for epoch in (1, 2, 3, 4)]
    for tag in epochs[0]:
        assert len({len(epoch[tag][0]) for epoch in epochs}) > 1
        assert len({corpus.vocab.labels_to_text(epoch[tag][1]) for epoch in epochs}) == 1
    assert len({tuple(epoch[tag][1]) for epoch in epochs for tag in epoch}) > 2 * len(epochs[0])


def test_other_augmentation_does_not_change_the_labels(corpus):
    """Sub-words have random numbers of their own."""
    other = replace(corpus, opts=replace(corpus.opts, speed_perturbation=(1.0,), audio_padding=0))
    expected = load(corpus, epoch=2)
    assert all(numpy.array_equal(labels, expected[tag][1]) for tag, (_, labels) in load(other, epoch=2).items())


def test_sampling_that_the_vocabulary_has_not(corpus):
    other = replace(corpus, opts=replace(corpus.opts, subword_sampling_alpha=None, subword_dropout=0.1))
    with pytest.raises(OptionError, match="is a unigram model without merges: use subword_sampling_alpha"):
        other.train_dataset()


def test_padding():
    rng = numpy.random.RandomState(1)
    audio = numpy.ones(5, dtype="float32")
    lengths = {len(AudioPadding(2)(audio, 16_000, rng)) for _ in range(100)}
    assert lengths == {5, 6, 7, 8, 9}
    assert sequence_seed(1, "a") != sequence_seed(2, "a") != sequence_seed(2, "b")
