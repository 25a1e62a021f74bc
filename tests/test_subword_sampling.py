"""Sub-words drawn at random: right distribution, same text, same draws from the same seed."""

from __future__ import annotations

import collections
import math
import os
import pickle

import numpy
import pytest
from corpora import make_librispeech

from recog.subword_sampling import SubwordSampling, sampling_vocabulary
from recog.vocab import load_vocab
from tools.prepare_librispeech import main as prepare_librispeech

TEXT = "THE QUICK BROWN FOX'S QUESTION"
KINDS = {"unigram": "spm_unigram_60", "spm_bpe": "spm_bpe_60", "bpe": "bpe_60"}


@pytest.fixture(scope="module")
def vocabs(tmp_path_factory):
    """:return: kind -> vocabulary"""
    folder = tmp_path_factory.mktemp("subwords")
    make_librispeech(str(folder / "source"), {"train": 9, "dev": 1})
    args = [str(folder / "source"), str(folder / "data"), "--workers", "1", "--corpus", "demo"]
    for name in KINDS.values():
        assert prepare_librispeech([*args, "--vocab", name]) == 0
    return {kind: load_vocab(os.path.join(folder, "data", "vocab", f"{name}.json")) for kind, name in KINDS.items()}


def draw(vocab, sampling, *, num=1, text=TEXT, seed=1):
    """:return: drawn segmentations"""
    sampler = sampling_vocabulary(vocab, SubwordSampling(**sampling))
    res = []
    for i in range(num):
        sampler.set_random_seed(1000 * seed + i)
        res.append(tuple(sampler.get_seq(text)))
    return res


SAMPLINGS = [
    ("unigram", {"alpha": 0.0}),
    ("unigram", {"alpha": 0.7}),
    ("unigram", {"alpha": 0.3, "nbest": 20}),
    ("unigram", {"breadth_prob": 0.3}),
    ("spm_bpe", {"dropout": 0.3}),
    ("spm_bpe", {"breadth_prob": 0.3}),
    ("bpe", {"dropout": 0.3}),
    ("bpe", {"breadth_prob": 0.3}),
]


@pytest.mark.parametrize(("kind", "sampling"), SAMPLINGS)
def test_same_text(vocabs, kind, sampling):
    vocab = vocabs[kind]
    drawn = draw(vocab, sampling, num=40)
    assert len(set(drawn)) > 3
    for labels in drawn:
        assert vocab.labels_to_text(labels) == TEXT and all(0 <= i < vocab.num_labels for i in labels)
    assert draw(vocab, sampling, num=40) == drawn  # nothing but the seed matters
    sampler = sampling_vocabulary(vocab, SubwordSampling(**sampling))
    sampler.set_random_seed(1003)
    assert tuple(pickle.loads(pickle.dumps(sampler)).get_seq(TEXT)) == drawn[3]
    assert sampler.num_labels == vocab.num_labels and draw(vocab, sampling, text="") == [()]


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("unigram", {"alpha": 1000.0}),
        ("unigram", {"alpha": 1000.0, "nbest": 5}),
        ("spm_bpe", {"dropout": 1e-9}),
        ("bpe", {"dropout": 1e-9}),
    ],
)
def test_limit_is_the_canonical_segmentation(vocabs, kind, sampling):
    for text in (TEXT, "A", "SHE SAID  WEATHER AND JUGS OF WINE", "VEXINGLY"):
        expected = tuple(vocabs[kind].text_to_labels(text))
        assert set(draw(vocabs[kind], sampling, text=text, num=5)) == {expected}


def test_dropout_of_everything_gives_characters(vocabs):
    for kind in ("spm_bpe", "bpe"):
        (labels,) = draw(vocabs[kind], {"dropout": 1.0}, text="QUICK FOX")
        assert len(labels) == len("QUICK FOX") + (1 if kind == "spm_bpe" else -1)


def segmentations(vocab, text):
    """:return: all, as labels -> log-probability, by recursion"""
    sp = vocab._load().sp
    pieces = {sp.id_to_piece(i): i for i in range(2, vocab.num_labels)}

    def ways(rest):
        if not rest:
            return [()]
        return [
            (pieces[rest[:n]], *more) for n in range(1, len(rest) + 1) if rest[:n] in pieces for more in ways(rest[n:])
        ]

    return {way: sum(sp.get_score(i) for i in way) for way in ways("▁" + text.replace(" ", "▁"))}


@pytest.mark.parametrize(("alpha", "nbest"), [(0.0, None), (0.7, None), (2.0, None), (0.5, 3)])
def test_distribution(vocabs, alpha, nbest):
    """Against the enumeration of all segmentations (chi-square below its 1 - 1e-6 quantile; the seeds are fixed)."""
    from scipy.stats import chisquare

    vocab, num, text = vocabs["unigram"], 4000, "QUESTION"
    scores = segmentations(vocab, text)
    assert len(scores) > 4
    best = sorted(scores, key=lambda way: -scores[way])[:nbest]
    weights = {way: math.exp(alpha * scores[way]) for way in best}
    counts = collections.Counter(draw(vocab, {"alpha": alpha, "nbest": nbest}, num=num, text=text))
    assert set(counts) <= set(weights)
    expected = numpy.array([weights[way] for way in best]) * num / sum(weights.values())
    found = numpy.array([counts[way] for way in best])
    rare = expected < 5
    if rare.any():
        expected = numpy.append(expected[~rare], expected[rare].sum())
        found = numpy.append(found[~rare], found[rare].sum())
    assert chisquare(found, expected).pvalue > 1e-6


def test_unknown_characters(vocabs):
    """The label that the vocabulary has for them, one for all in a row, as without sampling."""
    for kind, sampling in SAMPLINGS:
        vocab = vocabs[kind]
        if kind != "bpe":
            expected = vocab.text_to_labels("FOX ÄÖ").count(vocab.unknown_index)
            (labels,) = draw(vocab, sampling, text="FOX ÄÖ")
            assert expected == 1 and labels.count(vocab.unknown_index) == 1


def own_vocab(folder, **options):
    """:return: vocabulary of a SentencePiece model that was trained with other options than ours"""
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["A BAD CAB", "DAB A BACCA"] * 9),
        model_prefix=str(folder / "v"),
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    sp = sentencepiece.SentencePieceProcessor(model_file=str(folder / "v.model"))
    (folder / "v.json").write_text(
        f'{{"type": "sentencepiece", "num_labels": {sp.vocab_size()}, "eos_index": 2, "files": {{"model": "v.model"}}}}'
    )
    return load_vocab(str(folder / "v.json"))


def test_words_without_a_mark_before_the_first(tmp_path):
    """The samplers that work word by word had lost the first one."""
    vocab = own_vocab(tmp_path, vocab_size=20, add_dummy_prefix=False)
    for labels in draw(vocab, {"alpha": 0.1}, text="BAD CAB", num=9):
        assert vocab.labels_to_text(labels) == "BAD CAB"
    with pytest.raises(ValueError, match="add_dummy_prefix"):
        draw(vocab, {"breadth_prob": 0.1}, text="BAD CAB")


def test_bytes_for_unknown_characters(tmp_path):
    vocab = own_vocab(tmp_path, vocab_size=280, byte_fallback=True)
    for labels in draw(vocab, {"alpha": 0.1}, text="BAD ÄC", num=9):
        assert vocab.labels_to_text(labels) == "BAD ÄC"


@pytest.mark.parametrize(
    ("kind", "sampling", "message"),
    [
        ("bpe", {"alpha": 0.7}, "subword_sampling_alpha = 0.7: the vocabulary bpe_60 is a BPE model"),
        ("spm_bpe", {"alpha": 0.7}, "the vocabulary spm_bpe_60 is a BPE model"),
        ("unigram", {"dropout": 0.1}, "subword_dropout = 0.1: the vocabulary spm_unigram_60 is a unigram model"),
        ("unigram", {"alpha": -1.0}, "subword_sampling_alpha = -1.0: expected a number of at least 0"),
        ("unigram", {"alpha": math.inf}, "subword_sampling_alpha = inf"),
        ("unigram", {"nbest": 5}, "subword_sampling_nbest = 5 has no effect without"),
        ("unigram", {"alpha": 0.5, "nbest": 1}, "subword_sampling_nbest = 1: expected at least 2"),
        ("unigram", {"breadth_prob": 1.5}, "subword_breadth_prob = 1.5: expected a probability"),
        ("unigram", {"alpha": 0.5, "breadth_prob": 0.5}, "exclude each other"),
    ],
)
def test_errors(vocabs, kind, sampling, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        sampling_vocabulary(vocabs[kind], SubwordSampling(**sampling))
