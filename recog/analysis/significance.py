"""
Is one run better than another, or was it luck? Tests on the same utterances.

- Matched pairs sentence-segment word error test (MAPSSWE; Gillick & Cox 1989, "Some statistical issues in the
  comparison of speech recognition algorithms"; NIST's sc_stats): word errors in segments that are independent because
  at least two words in between are correct in both runs.
- McNemar's test (the same paper): utterances that only one of the runs has fully right. Exact, i.e. binomial.
- Paired bootstrap over utterances (Bisani & Ney 2004): interval of the difference in WER.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm

from ..wer import align_words

__all__ = [
    "Comparison",
    "MatchedPairs",
    "McNemar",
    "bootstrap_errors",
    "compare_words",
    "error_segments",
    "matched_pairs",
    "mcnemar",
]

_GOOD_WORDS = 2  # correct in both runs: what separates segments


def bootstrap_errors(
    errors: Sequence[np.ndarray], num_ref_words: np.ndarray, *, samples: int = 1000, seed: int = 1
) -> np.ndarray:
    """
    Bootstrap over utterances (Bisani & Ney 2004).

    :param errors: [U] of each system
    :param num_ref_words: [U]
    :param samples: number of resampled test sets
    :param seed:
    :return: [samples, systems] word error rate in percent on the same resampled sets
    """
    rng = np.random.default_rng(seed)
    num_utts = len(num_ref_words)
    values = np.stack([*errors, num_ref_words], axis=1).astype(np.float64)
    rates = np.empty((samples, len(errors)))
    for start in range(0, samples, 100):
        size = min(100, samples - start)
        counts = rng.multinomial(num_utts, np.full(num_utts, 1.0 / num_utts), size=size)
        sums = counts @ values
        rates[start : start + size] = 100.0 * sums[:, :-1] / np.maximum(sums[:, -1:], 1.0)
    return rates


@dataclass(frozen=True)
class McNemar:
    """Utterances that are fully right in both runs, in one of them, in none."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float
    """Two-sided: probability of a split this uneven if both runs are equally good."""


def mcnemar(right_a: np.ndarray, right_b: np.ndarray) -> McNemar:
    """
    :param right_a: [U] bool, whether run A has no error in the utterance
    :param right_b: [U] bool
    """
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    p = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(int((right_a & right_b).sum()), only_a, only_b, int((~right_a & ~right_b).sum()), p)


@dataclass(frozen=True)
class MatchedPairs:
    """Errors of A minus errors of B, per segment."""

    num_segments: int
    """With at least one error in one of the runs."""
    mean: float
    z: float
    """Mean divided by its standard error, about normal with variance 1 if both runs are equally good."""
    p: float
    """Two-sided. NaN never: 1 without any difference."""


def matched_pairs(differences: Sequence[int] | np.ndarray) -> MatchedPairs:
    """
    :param differences: [S] errors of A minus errors of B in each segment with errors
    """
    z_values = np.asarray(differences, dtype=np.float64)
    n = len(z_values)
    if n < 2 or not z_values.any():
        return MatchedPairs(n, float(z_values.mean()) if n else 0.0, 0.0, 1.0)
    mean, deviation = float(z_values.mean()), float(z_values.std(ddof=1))
    # All segments differ by the same amount: no variance, so that any number of them would be significant. Take the
    # sign test's view of them instead.
    if deviation == 0.0:
        p = float(binomtest(n, n).pvalue)
        return MatchedPairs(n, mean, math.copysign(float(norm.isf(p / 2)), mean), p)
    z = mean / (deviation / math.sqrt(n))
    return MatchedPairs(n, mean, z, float(2 * norm.sf(abs(z))))


def error_segments(ref: Sequence[str], hyp_a: Sequence[str], hyp_b: Sequence[str]) -> list[tuple[int, int]]:
    """
    :param ref: words
    :param hyp_a: words of run A
    :param hyp_b: words of run B
    :return: (errors of A, errors of B) of each segment with errors; segments are separated by two words that both runs
        have right, or by the ends of the utterance
    """
    (inserted_a, wrong_a), (inserted_b, wrong_b) = _errors_by_place(ref, hyp_a), _errors_by_place(ref, hyp_b)
    segments = []
    a = b = good = 0
    for place in range(len(ref) + 1):
        if inserted_a[place] or inserted_b[place]:
            a, b, good = a + inserted_a[place], b + inserted_b[place], 0
        if place == len(ref):
            break
        if wrong_a[place] or wrong_b[place]:
            a, b, good = a + wrong_a[place], b + wrong_b[place], 0
            continue
        good += 1
        if good == _GOOD_WORDS and (a or b):
            segments.append((a, b))
            a = b = 0
    if a or b:
        segments.append((a, b))
    return segments


def _errors_by_place(ref: Sequence[str], hyp: Sequence[str]) -> tuple[list[int], list[int]]:
    """:return: number of insertions before each word of the reference (and behind the last); 1 for each wrong word"""
    inserted, wrong = [0] * (len(ref) + 1), [0] * len(ref)
    place = 0
    for ref_word, hyp_word in align_words(ref, hyp):
        if ref_word is None:
            inserted[place] += 1
        else:
            wrong[place] = int(ref_word != hyp_word)
            place += 1
    return inserted, wrong


@dataclass(frozen=True)
class Comparison:
    """Runs A and B on the same utterances."""

    num_utts: int
    num_ref_words: int
    errors_a: int
    errors_b: int
    matched_pairs: MatchedPairs
    mcnemar: McNemar
    difference_interval: tuple[float, float] | None
    """95 % interval of WER(B) - WER(A) in percent (absolute), from the bootstrap. None without reference words."""
    probability_b_better: float | None
    """Share of resampled sets on which B has the lower WER; equal ones count half. None without reference words."""

    @property
    def wer_a(self) -> float | None:
        """:return: percent; None without reference words"""
        return 100.0 * self.errors_a / self.num_ref_words if self.num_ref_words else None

    @property
    def wer_b(self) -> float | None:
        """:return: percent; None without reference words"""
        return 100.0 * self.errors_b / self.num_ref_words if self.num_ref_words else None

    def as_dict(self) -> dict[str, Any]:
        """:return: for JSON"""
        return {
            "num_utts": self.num_utts,
            "num_ref_words": self.num_ref_words,
            "errors": [self.errors_a, self.errors_b],
            "wer_percent": [self.wer_a, self.wer_b],
            "difference_confidence_95": self.difference_interval,
            "probability_b_better": self.probability_b_better,
            "matched_pairs": vars(self.matched_pairs),
            "mcnemar": vars(self.mcnemar),
        }


def compare_words(
    triples: Sequence[tuple[Sequence[str], Sequence[str], Sequence[str]]], *, samples: int = 1000, seed: int = 1
) -> Comparison:
    """
    :param triples: (words of the reference, of run A, of run B) of each utterance
    :param samples: of the bootstrap
    :param seed:
    """
    segments = [error_segments(*triple) for triple in triples]
    a, b = (np.array([sum(s[i] for s in utt) for utt in segments], dtype=np.int64) for i in (0, 1))
    words = np.array([len(ref) for ref, _, _ in triples], dtype=np.int64)
    interval = better = None
    if samples and words.sum():
        rates = bootstrap_errors([a, b], words, samples=samples, seed=seed)
        difference = rates[:, 1] - rates[:, 0]
        interval = tuple(float(q) for q in np.quantile(difference, [0.025, 0.975]))
        better = float((difference < 0).mean() + 0.5 * (difference == 0).mean())
    return Comparison(
        num_utts=len(triples),
        num_ref_words=int(words.sum()),
        errors_a=int(a.sum()),
        errors_b=int(b.sum()),
        matched_pairs=matched_pairs([x - y for utt in segments for x, y in utt]),
        mcnemar=mcnemar(a == 0, b == 0),
        difference_interval=interval,
        probability_b_better=better,
    )
