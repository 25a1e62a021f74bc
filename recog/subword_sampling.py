"""
Segmentations of a text into sub-words drawn at random, for training: an augmentation of the targets.

RETURNN seeds SentencePiece's own sampling with a generator that is one for the whole process, so what it draws depends
on the number of processes that load data and on the order of the utterances. Here all is drawn from the random numbers
that are given. Whatever is drawn, it is the same text: :meth:`recog.vocab.Vocab.labels_to_text` gives it back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
from returnn.datasets.util.vocabulary import BytePairEncoding, SentencePieces, Vocabulary
from returnn.util.bpe import BpeOpts, BpePostMergeSymbol, SamplingBytePairEncoder

from .vocab import Vocab

__all__ = ["SubwordSampling", "sampling_vocabulary"]

_SPACE = "▁"
"""SentencePiece's mark of the beginning of a word."""
_END = "</w>"
"""subword-nmt's mark of the end of a word."""


@dataclass(frozen=True)
class SubwordSampling:
    """How to draw: one of ``alpha``, ``dropout``, ``breadth_prob``, or none of them."""

    alpha: float | None = None
    """Segmentation y of the text with a probability proportional to P(y)^alpha, where P is the unigram model of the
    vocabulary (Kudo 2018, https://arxiv.org/abs/1804.10959). 0: all are equally probable; the larger, the nearer to the
    best one."""
    nbest: int | None = None
    """Only for alpha: draw from so many best segmentations. None: from all."""
    dropout: float = 0.0
    """BPE-dropout (Provilkov et al. 2020, https://arxiv.org/abs/1910.13267): probability that a merge is not considered
    in a step. 0: canonical segmentation, 1: single characters."""
    breadth_prob: float = 0.0
    """RETURNN's ``SamplingBytePairEncoder``: of all sub-words that begin at a character, the longest one is taken; with
    this probability, after each character, it ends there instead. For vocabularies of all kinds."""

    def __post_init__(self):
        if self.alpha is not None and not 0.0 <= self.alpha < math.inf:
            raise ValueError(f"subword_sampling_alpha = {self.alpha}: expected a number of at least 0, or None")
        if self.nbest is not None and self.nbest < 2:
            raise ValueError(f"subword_sampling_nbest = {self.nbest}: expected at least 2, or None for all")
        if self.nbest is not None and self.alpha is None:
            raise ValueError(f"subword_sampling_nbest = {self.nbest} has no effect without subword_sampling_alpha")
        for name in ("dropout", "breadth_prob"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"subword_{name} = {getattr(self, name)}: expected a probability")
        chosen = [self.alpha is not None, self.dropout > 0, self.breadth_prob > 0]
        if sum(chosen) > 1:
            raise ValueError("subword_sampling_alpha, subword_dropout and subword_breadth_prob exclude each other")

    def __bool__(self) -> bool:
        """:return: whether anything is drawn"""
        return self.alpha is not None or self.dropout > 0 or self.breadth_prob > 0


def sampling_vocabulary(vocab: Vocab, sampling: SubwordSampling) -> Vocabulary:
    """
    :param vocab:
    :param sampling: which draws
    :return: RETURNN's vocabulary for the targets of a dataset. After ``set_random_seed``, its ``get_seq`` gives labels
        that are drawn. Can be sent to other processes.
    :raises ValueError: the vocabulary is of another kind
    """
    opts = vocab.returnn_opts()
    cls = {"SentencePieces": _SampledSentencePieces, "BytePairEncoding": _SampledBytePairs}[opts.pop("class")]
    res = cls(**opts)
    is_unigram = vocab.type == "sentencepiece" and _is_unigram(res)
    kind = "unigram" if is_unigram else "BPE"
    if sampling.alpha is not None and not is_unigram:
        raise ValueError(
            f"subword_sampling_alpha = {sampling.alpha}: the vocabulary {vocab.name} is a {kind} model without"
            " probabilities: use subword_dropout or subword_breadth_prob"
        )
    if sampling.dropout and is_unigram:
        raise ValueError(
            f"subword_dropout = {sampling.dropout}: the vocabulary {vocab.name} is a unigram model without merges: use"
            " subword_sampling_alpha or subword_breadth_prob"
        )
    if vocab.type == "sentencepiece" and sampling.alpha is None and not res.sp.normalize("a").startswith(_SPACE):
        raise ValueError(
            f"the SentencePiece model of vocabulary {vocab.name} does not write {_SPACE!r} before each word"
            " (add_dummy_prefix), which subword_dropout and subword_breadth_prob need: use subword_sampling_alpha"
        )
    if sampling.breadth_prob:
        res.sampler = _BreadthSampler(res, sampling.breadth_prob)
    elif sampling.dropout:
        if vocab.type == "sentencepiece":
            res.sampler = _SentencePieceDropout(res, sampling.dropout)
        else:
            res.sampler = _BpeDropout(res, vocab.files["codes"], sampling.dropout)
    elif sampling.alpha is not None:
        res.sampler = _UnigramSampler(res, sampling.alpha, sampling.nbest)
    return res


def _is_unigram(vocab: SentencePieces) -> bool:
    """:return: whether it has probabilities; of another model, SentencePiece cannot list the n best"""
    try:
        vocab.sp.nbest_encode("a", nbest_size=1)
    except RuntimeError:
        return False
    return True


class _Sampled:
    """RETURNN's interface of a vocabulary that draws."""

    sampler: Any = None
    random: numpy.random.RandomState | None = None

    def set_random_seed(self, seed: int) -> None:
        """:param seed: 32 bits"""
        self.random = numpy.random.RandomState(seed)

    def get_seq(self, sentence: str) -> list[int]:
        """:return: labels, the canonical ones if nothing is to be drawn or no seed was given"""
        if self.sampler is None or self.random is None:
            return super().get_seq(sentence)
        return self.sampler.draw(self, sentence, self.random)


class _SampledSentencePieces(_Sampled, SentencePieces):
    """Draws from a SentencePiece model."""


class _SampledBytePairs(_Sampled, BytePairEncoding):
    """Draws from a subword-nmt vocabulary."""


def _pieces(vocab: SentencePieces) -> dict[str, int]:
    """:return: sub-words that occur in texts -> labels"""
    sp = vocab.sp
    special = [sp.is_control, sp.is_unknown, sp.is_unused, sp.is_byte]
    return {sp.id_to_piece(i): i for i in range(sp.get_piece_size()) if not any(test(i) for test in special)}


class _UnigramSampler:
    """Forward filtering, backward sampling: exact, without listing segmentations."""

    def __init__(self, vocab: SentencePieces, alpha: float, nbest: int | None):
        self.alpha, self.nbest = alpha, nbest
        labels = _pieces(vocab)
        self.pieces = {piece: (label, alpha * vocab.sp.get_score(label)) for piece, label in labels.items()}
        self.max_len = max(map(len, self.pieces))
        # As SentencePiece: an unknown character is 10 worse than the worst sub-word.
        self.unknown_score = min(vocab.sp.get_score(label) for label in labels.values()) - 10.0

    def draw(self, vocab: SentencePieces, text: str, random: numpy.random.RandomState) -> list[int]:
        """:return: labels"""
        if self.nbest is not None:
            return self._draw_of_best(vocab, text, random)
        text = vocab.sp.normalize(text)
        # arcs[j]: (begin i, label, score) of all sub-words text[i:j]; total[j]: log of the sum over all ways to j
        arcs: list[list[tuple[int, int, float]]] = [[] for _ in range(len(text) + 1)]
        total = [0.0]
        for end in range(1, len(text) + 1):
            for begin in range(max(0, end - self.max_len), end):
                if (found := self.pieces.get(text[begin:end])) is not None:
                    arcs[end].append((begin, *found))
            if text[end - 1] not in self.pieces:
                arcs[end].append((end - 1, -1, self.alpha * self.unknown_score))
            total.append(_log_sum_exp([total[begin] + score for begin, _, score in arcs[end]]))
        path: list[tuple[int, str]] = []
        end = len(text)
        while end:
            scores = [total[begin] + score for begin, _, score in arcs[end]]
            begin, label, _ = arcs[end][_draw_index(scores, random)]
            path.append((label, text[begin:end]))
            end = begin
        return list(_with_unknown(vocab, path[::-1]))

    def _draw_of_best(self, vocab: SentencePieces, text: str, random: numpy.random.RandomState) -> list[int]:
        """:return: labels"""
        best = vocab.sp.nbest_encode(text, nbest_size=self.nbest, out_type=str)
        if not best:
            return []
        hyp = best[_draw_index([sum(map(self._score, pieces)) for pieces in best], random)]
        return [vocab.sp.piece_to_id(piece) for piece in hyp]

    def _score(self, piece: str) -> float:
        """:return: alpha log-probability; all unknown characters in a row are one piece"""
        known = self.pieces.get(piece)
        return known[1] if known is not None else self.alpha * self.unknown_score * len(piece)


def _with_unknown(vocab: SentencePieces, path: list[tuple[int, str]]) -> Iterator[int]:
    """
    :param path: labels (-1: unknown) and their texts
    :return: labels; unknown characters as bytes if the vocabulary has those, else one label for all in a row
    """
    sp = vocab.sp
    before = None
    for label, text in path:
        if label >= 0:
            yield label
        elif sp.is_byte(first := sp.piece_to_id("<0x00>")):
            yield from (first + byte for byte in text.encode("utf8"))
        elif before != -1:
            yield sp.unk_id()
        before = label


def _log_sum_exp(values: list[float]) -> float:
    """:return: log of the sum, -inf for none"""
    if not values:
        return -math.inf
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def _draw_index(scores: list[float], random: numpy.random.RandomState) -> int:
    """
    :param scores: unnormalised log-probabilities
    :return: index of one, drawn with a single random number
    """
    top = max(scores)
    weights = numpy.cumsum([math.exp(score - top) for score in scores])
    return min(int(numpy.searchsorted(weights, random.random_sample() * weights[-1], side="right")), len(scores) - 1)


class _Merges:
    """BPE-dropout over the merges of a vocabulary."""

    def __init__(self, dropout: float):
        self.dropout = dropout

    def rank(self, left: str, right: str) -> float | None:
        """:return: the smaller, the earlier; None: no such merge"""
        raise NotImplementedError

    def merge(self, symbols: list[str], random: numpy.random.RandomState) -> list[str]:
        """
        :param symbols: single characters of a word
        :return: its sub-words
        """
        symbols = list(symbols)
        while len(symbols) > 1:
            ranks = [self.rank(*pair) for pair in itertools.pairwise(symbols)]
            possible = [(rank, i) for i, rank in enumerate(ranks) if rank is not None]
            if not possible:
                break
            dropped = random.random_sample(len(possible)) < self.dropout
            kept = [candidate for candidate, drop in zip(possible, dropped, strict=True) if not drop]
            if not kept:
                break
            _, i = min(kept)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return symbols


class _SentencePieceDropout(_Merges):
    """A merge is possible if its result is a sub-word; that with the best score comes first."""

    def __init__(self, vocab: SentencePieces, dropout: float):
        super().__init__(dropout)
        self.labels = _pieces(vocab)
        self.ranks = {piece: -vocab.sp.get_score(label) for piece, label in self.labels.items()}

    def rank(self, left: str, right: str) -> float | None:
        """See the base class."""
        return self.ranks.get(left + right)

    def draw(self, vocab: SentencePieces, text: str, random: numpy.random.RandomState) -> list[int]:
        """:return: labels"""
        path = []
        for word in _words(vocab.sp.normalize(text)):
            path += [(self.labels.get(piece, -1), piece) for piece in self.merge(list(word), random)]
        return list(_with_unknown(vocab, path))


class _BpeDropout(_Merges):
    """Merges of the codes of subword-nmt. What is no label in the end is split again, as without dropout."""

    def __init__(self, vocab: BytePairEncoding, codes_file: str, dropout: float):
        from subword_nmt.apply_bpe import BPE

        super().__init__(dropout)
        with open(codes_file, encoding="utf8") as file:
            self.bpe = BPE(file)
        self.labels = vocab._vocab

    def rank(self, left: str, right: str) -> float | None:
        """See the base class."""
        return self.bpe.bpe_codes.get((left, right))

    def draw(self, vocab: BytePairEncoding, text: str, random: numpy.random.RandomState) -> list[int]:
        """:return: labels"""
        from subword_nmt.apply_bpe import check_vocab_and_split

        segments: list[str] = []
        for word in text.split():
            symbols = [*word, _END] if self.bpe.version == (0, 1) else [*word[:-1], word[-1] + _END]
            *pieces, last = self.merge(symbols, random)
            pieces += [last.removesuffix(_END)] if last != _END else []
            pieces = check_vocab_and_split(pieces, self.bpe.bpe_codes_reverse, self.labels, BpePostMergeSymbol)
            segments += [piece + BpePostMergeSymbol for piece in pieces[:-1]] + pieces[-1:]
        return vocab.get_seq_indices(segments)


class _BreadthSampler:
    """RETURNN's sampling from a prefix tree of the sub-words."""

    def __init__(self, vocab: SentencePieces | BytePairEncoding, breadth_prob: float):
        self.is_sentencepiece = isinstance(vocab, SentencePieces)
        self.labels = _pieces(vocab) if self.is_sentencepiece else vocab._vocab
        symbols = {"word_prefix_symbol": _SPACE} if self.is_sentencepiece else {"label_postfix_merge_symbol": "@@"}
        self.encoder = SamplingBytePairEncoder(
            labels=list(self.labels), breadth_prob=breadth_prob, rnd=None, opts=BpeOpts(**symbols)
        )

    def draw(self, vocab: SentencePieces | BytePairEncoding, text: str, random: numpy.random.RandomState) -> list[int]:
        """:return: labels; a word that cannot be made of sub-words has its canonical ones"""
        self.encoder.rnd = random
        words = [w[1:] for w in _words(vocab.sp.normalize(text))] if self.is_sentencepiece else text.split()
        res: list[int] = []
        for word in words:
            pieces = self.encoder.get_bpe_split_for_word(word) if word else None
            if pieces is None:
                res += super(_Sampled, vocab).get_seq(word)
            else:
                res += [self.labels[piece] for piece in pieces]
        return res


def _words(text: str) -> list[str]:
    """
    :param text: as SentencePiece normalises it, e.g. "▁a▁word"
    :return: words with their mark
    """
    return [_SPACE + word for word in text.split(_SPACE)[1:]]
