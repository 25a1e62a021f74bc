"""
N-best lists as arrays: component scores and word errors of all hypotheses, for everything that re-scores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from kaldialign import edit_distance

from ..nbest import Hypothesis, NBestHeader, Utterance
from ..text import DEFAULT_NORMALISER, TextNormaliser

__all__ = ["NBestArrays", "count_word_errors", "make_arrays", "scale_size"]


def count_word_errors(ref: Sequence[str], hyp: Sequence[str]) -> int:
    """:return: Levenshtein distance of two word sequences"""
    if not ref or not hyp or list(ref) == list(hyp):
        return abs(len(ref) - len(hyp))
    return edit_distance(list(ref), list(hyp))["total"]


@dataclass(frozen=True)
class NBestArrays:
    """
    U utterances with up to K hypotheses and C components. The total score of a hypothesis is ``features @ scales``.

    An utterance without hypotheses has one pseudo-hypothesis: empty text, all its words are deletions.
    """

    components: tuple[str, ...]
    """Names, C."""
    features: np.ndarray
    """[U, K, C] float64: score of each component (natural log, before scales), divided by the length divisor."""
    valid: np.ndarray
    """[U, K] bool: there is such a hypothesis. The first one of each utterance always is."""
    errors: np.ndarray
    """[U, K] int64: word errors."""
    num_ref_words: np.ndarray
    """[U] int64"""
    seq_tags: tuple[str, ...]
    """U"""

    @property
    def num_words(self) -> int:
        """:return: words of all references"""
        return int(self.num_ref_words.sum())

    def vector(self, scales: Mapping[str, float]) -> np.ndarray:
        """:return: [C] float64, scales in the order of the components; 0 for those that are not given"""
        return np.array([float(scales.get(name, 0.0)) for name in self.components])

    def mapping(self, scales: np.ndarray) -> dict[str, float]:
        """:return: component -> scale, of scales [C]"""
        return {name: float(scale) for name, scale in zip(self.components, scales, strict=True)}

    def totals(self, scales: np.ndarray) -> np.ndarray:
        """
        :param scales: [C] with sign
        :return: [U, K] float64 total scores, -inf where there is no hypothesis
        """
        return np.where(self.valid, self.features @ scales, -np.inf)

    def best(self, scales: np.ndarray) -> np.ndarray:
        """
        :param scales: [C] with sign
        :return: [U] index of the best hypothesis; of equal ones the first
        """
        return self.totals(scales).argmax(axis=1)

    def errors_of(self, scales: np.ndarray) -> np.ndarray:
        """
        :param scales: [C] with sign
        :return: [U] word errors of the best hypotheses
        """
        return self.errors[np.arange(len(self.errors)), self.best(scales)]

    def num_errors(self, scales: np.ndarray) -> int:
        """:return: word errors of the best hypotheses of all utterances"""
        return int(self.errors_of(scales).sum())

    def wer(self, num_errors: float) -> float:
        """:return: word error rate in percent"""
        return 100.0 * num_errors / self.num_words

    def oracle_errors(self, n: int | None = None) -> np.ndarray:
        """
        :param n: consider the first n hypotheses only. None: all
        :return: [U] word errors of the hypothesis with the fewest
        """
        errors = np.where(self.valid, self.errors, np.iinfo(np.int64).max)
        return errors[:, :n].min(axis=1)

    def select(self, index: np.ndarray) -> NBestArrays:
        """:return: only these utterances (indices or mask)"""
        return replace(
            self,
            features=self.features[index],
            valid=self.valid[index],
            errors=self.errors[index],
            num_ref_words=self.num_ref_words[index],
            seq_tags=tuple(np.array(self.seq_tags, dtype=object)[index]),
        )


def make_arrays(
    header: NBestHeader,
    utterances: Sequence[Utterance],
    *,
    components: Sequence[str] | None = None,
    length_norm_exponent: float | None = None,
    normaliser: TextNormaliser = DEFAULT_NORMALISER,
) -> NBestArrays:
    """
    :param header: of the n-best file
    :param utterances: those without a reference are left out
    :param components: names. None: those with a scale in the header. "length" (number of labels) is always possible.
    :param length_norm_exponent: None: that of the header
    :param normaliser: for references and hypotheses
    :raises ValueError: no utterance has a reference, or a hypothesis has no score of a component
    """
    utterances = [utt for utt in utterances if utt.ref is not None]
    if not utterances:
        raise ValueError("no utterance has a reference")
    names = tuple(components if components is not None else [n for n, scale in header.scales.items() if scale])
    exponent = header.length_norm_exponent if length_norm_exponent is None else length_norm_exponent
    shape = (len(utterances), max(1, max(len(utt.hyps) for utt in utterances)))
    features, valid = np.zeros((*shape, len(names))), np.zeros(shape, dtype=bool)
    errors, num_ref_words = np.zeros(shape, dtype=np.int64), np.zeros(len(utterances), dtype=np.int64)
    for u, utt in enumerate(utterances):
        ref = normaliser.words(utt.ref or "")
        num_ref_words[u] = len(ref)
        if not utt.hyps:
            valid[u, 0], errors[u, 0] = True, len(ref)
        known: dict[str, int] = {}
        for k, hyp in enumerate(utt.hyps):
            if hyp.text not in known:
                known[hyp.text] = count_word_errors(ref, normaliser.words(hyp.text))
            errors[u, k], valid[u, k] = known[hyp.text], True
            divisor = max(len(hyp.labels) + header.length_norm_offset, 1) ** exponent
            features[u, k] = [_component(hyp, name, utt) / divisor for name in names]
    return NBestArrays(names, features, valid, errors, num_ref_words, tuple(utt.seq_tag for utt in utterances))


def _component(hyp: Hypothesis, name: str, utt: Utterance) -> float:
    """:raises ValueError: not there"""
    if name in hyp.scores:
        return hyp.scores[name]
    if name == "length":
        return float(len(hyp.labels))
    raise ValueError(
        f"utterance {utt.seq_tag!r}: no score of component {name!r}, only {', '.join(sorted(hyp.scores)) or 'none'}:"
        " search or rescore with a scale for it first"
    )


def scale_size(scales: Mapping[str, float]) -> float:
    """:return: |att| + |ctc|, the size of a set of scales; without both, the largest one; 1 if all are 0"""
    size = abs(scales.get("att", 0.0)) + abs(scales.get("ctc", 0.0))
    return size or max((abs(value) for value in scales.values()), default=0.0) or 1.0
