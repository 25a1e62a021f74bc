"""
Search errors and model errors: did the search miss the reference, or does the model prefer something wrong?

Two n-best files of the same models, scales and utterances are compared: what the search found, and the *forced* scores
of given label sequences under the exact definition of the same search (:mod:`recog.forced_score`): of the reference in
its canonical segmentation, and of hypotheses of the search. In an utterance where the labels of the best hypothesis
differ from the reference,

- the reference scores better: a **search error**, the search should have found it (or something better still);
- the reference scores worse: a **model error**, no search can help;
- equal up to rounding: a **tie**.

The number of search errors is a lower bound: where neither is the best sequence of all, nobody knows. A hypothesis that
is forced to its own labels must get its own score: that is the audit (:func:`audit_forced_scores`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..nbest import Hypothesis, NBestHeader, Utterance
from ..text import DEFAULT_NORMALISER, TextNormaliser
from .arrays import count_word_errors
from .runs import AnalysisError, Run

__all__ = [
    "Audit",
    "SearchErrors",
    "UtteranceResult",
    "audit_forced_scores",
    "check_same_definition",
    "count_search_errors",
    "find_reference",
    "score_tolerance",
]

Kind = Literal["correct", "segmentation", "search_error", "model_error", "tie", "impossible", "no_hypothesis"]

KINDS: tuple[Kind, ...] = (
    "correct",
    "segmentation",
    "search_error",
    "model_error",
    "tie",
    "impossible",
    "no_hypothesis",
)


@dataclass(frozen=True)
class UtteranceResult:
    """One utterance."""

    seq_tag: str
    kind: Kind
    """"correct": the labels of the reference. "segmentation": its words, in other labels, which score better.
    "search_error", "model_error", "tie": see the module. "impossible": the reference has no finite score (e.g. more
    labels than CTC frames), so it is a model error of its own kind. "no_hypothesis": neither the search nor the
    reference has a score."""
    gap: float | None
    """Score of the reference minus score of the best hypothesis; > 0 in search errors. None: one has no score."""
    word_errors: int
    """Of the best hypothesis."""
    num_ref_words: int
    ref: str
    hyp: str
    ref_score: float | None
    hyp_score: float | None
    component_gaps: dict[str, float] = field(default_factory=dict)
    """Component -> its part of the gap: scale times score, divided by the length divisor."""
    rank: int | None = None
    """Place of the reference in the n-best list, from 1. None: not in it."""

    @property
    def search_error(self) -> bool:
        """:return: whether the reference scores better than what was found"""
        return self.kind == "search_error"


@dataclass(frozen=True)
class Audit:
    """Forced scores of hypotheses that the search scored itself."""

    num_hyps: int
    """Hypotheses that are in both files."""
    num_different: int
    """Of these, with another score (beyond the tolerance)."""
    max_gap: float
    """Largest absolute difference."""
    num_first_higher: int
    """Of those that differ, with the higher score when forced: the search has lost some of their alignments."""
    examples: list[str]
    """Some messages."""


@dataclass(frozen=True)
class SearchErrors:
    """Counts over utterances."""

    utterances: list[UtteranceResult]
    """By gap, largest first; those without a gap at the end."""

    @property
    def num_utts(self) -> int:
        """:return: all utterances with a reference"""
        return len(self.utterances)

    def count(self, kind: Kind) -> int:
        """:return: number of utterances of this kind"""
        return sum(utt.kind == kind for utt in self.utterances)

    def percent(self, kind: Kind) -> float:
        """:return: of all utterances"""
        return 100.0 * self.count(kind) / max(self.num_utts, 1)

    @property
    def wer(self) -> float | None:
        """:return: word error rate of the search in percent; None without reference words"""
        return self._wer(sum(utt.word_errors for utt in self.utterances))

    @property
    def wer_without_search_errors(self) -> float | None:
        """:return: the same if the search had found the reference wherever it scores better"""
        return self._wer(sum(utt.word_errors for utt in self.utterances if not utt.search_error))

    def _wer(self, errors: int) -> float | None:
        words = sum(utt.num_ref_words for utt in self.utterances)
        return 100.0 * errors / words if words else None

    def component_means(self) -> dict[str, dict[str, float]]:
        """:return: kind (search_error, model_error) -> component -> mean part of the gap"""
        means: dict[str, dict[str, float]] = {}
        for kind in ("search_error", "model_error"):
            utts = [utt for utt in self.utterances if utt.kind == kind and utt.gap is not None]
            if utts:
                names = utts[0].component_gaps
                means[kind] = {n: float(np.mean([utt.component_gaps[n] for utt in utts])) for n in names}
        return means

    def as_dict(self) -> dict[str, Any]:
        """:return: for JSON, with all utterances"""
        gaps = [utt.gap for utt in self.utterances if utt.search_error and utt.gap is not None]
        return {
            "num_utts": self.num_utts,
            "counts": {kind: self.count(kind) for kind in KINDS},
            "percent": {kind: self.percent(kind) for kind in KINDS},
            "search_errors_without_word_errors": sum(u.search_error and not u.word_errors for u in self.utterances),
            "search_errors_with_reference_in_list": sum(u.search_error and u.rank is not None for u in self.utterances),
            "wer_percent": self.wer,
            "wer_percent_without_search_errors": self.wer_without_search_errors,
            "search_error_gaps": _quantiles(gaps),
            "mean_component_gaps": self.component_means(),
            "utterances": [vars(utt) for utt in self.utterances],
        }


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, median, high = np.quantile(values, [0.0, 0.5, 1.0]).tolist()
    return {"min": low, "median": median, "max": high}


def check_same_definition(recognition: Run, forced: Run) -> None:
    """
    :param recognition: what the search found
    :param forced: forced scores
    :raises AnalysisError: their scores cannot be compared: other scales, length normalisation or vocabulary
    """
    ours, theirs = recognition.header, forced.header
    pairs: list[tuple[str, Any, Any]] = [
        ("vocabulary", ours.vocab, theirs.vocab),
        ("scales", _nonzero(ours.scales), _nonzero(theirs.scales)),
        ("length_norm_exponent", ours.length_norm_exponent, theirs.length_norm_exponent),
        ("length_norm_offset", ours.length_norm_offset, theirs.length_norm_offset),
    ]
    # Options that change the definition of a score, where both files state them.
    for name in (
        "recombination blank_scale repeat_scale one_minus_term eos_at_end ilm_eos published_scoring ctc_layer ctc_eos"
        " lm_checkpoint ilm_type ilm_checkpoint ilm_context_file ctc_checkpoint"
        " prior_scale prior_file prior_type blank_penalty soft_collapse_threshold blank_collapse_threshold"
        " coverage_threshold"
    ).split():
        if name in ours.options and name in theirs.options:
            pairs.append((name, ours.options[name], theirs.options[name]))
    for name, a, b in pairs:
        if a != b:
            raise AnalysisError(
                f"{forced.file} was scored with another {name} ({b}) than {recognition.file} ({a}): their scores cannot"
                " be compared. Score with the options of the search"
            )


def _nonzero(scales: Mapping[str, float]) -> dict[str, float]:
    return {name: round(scale, 9) for name, scale in sorted(scales.items()) if scale}


def find_reference(
    utt: Utterance,
    *,
    references_only: bool = False,
    labels_of: Callable[[str], Sequence[int]] | None = None,
    best_segmentation: bool = False,
    normaliser: TextNormaliser = DEFAULT_NORMALISER,
) -> Hypothesis | None:
    """
    :param utt: of the file with forced scores
    :param references_only: the file has nothing else than references, in their canonical segmentation
    :param labels_of: canonical segmentation of a text. None: there must not be several
    :param best_segmentation: the best score of all segmentations in the file instead of that of the canonical one
    :param normaliser: of texts
    :return: the reference with its score; None: it is not there, i.e. it has no finite score
    :raises AnalysisError: several hypotheses have its words, and nobody knows which of them is canonical
    """
    if utt.ref is None:
        return None
    if references_only:
        return utt.hyps[0] if utt.hyps else None
    if labels_of is not None and not best_segmentation:
        canonical = list(labels_of(utt.ref))
        return next((hyp for hyp in utt.hyps if hyp.labels == canonical), None)
    words = normaliser.words(utt.ref)
    same = [hyp for hyp in utt.hyps if normaliser.words(hyp.text) == words]
    if best_segmentation or len(same) <= 1:
        return same[0] if same else None  # the best comes first
    raise AnalysisError(
        f"utterance {utt.seq_tag!r}: {len(same)} label sequences have the words of the reference. Which is the"
        " canonical one? Give the vocabulary (--vocab), or use the best one (--best-segmentation)"
    )


def score_tolerance(hyp: Hypothesis, header: NBestHeader) -> float:
    """
    :param hyp:
    :param header: of its file
    :return: what two float32 computations of its total score may differ by
    """
    size = sum(abs(header.scales.get(name, 0.0) * score) for name, score in hyp.scores.items())
    return (1e-3 + 1e-5 * size) / _divisor(hyp, header)


def _divisor(hyp: Hypothesis, header: NBestHeader) -> float:
    return max(len(hyp.labels) + header.length_norm_offset, 1) ** header.length_norm_exponent


def count_search_errors(
    recognition: Run,
    forced: Run,
    *,
    forced_hyps: Run | None = None,
    labels_of: Callable[[str], Sequence[int]] | None = None,
    best_segmentation: bool = False,
    normaliser: TextNormaliser = DEFAULT_NORMALISER,
) -> SearchErrors:
    """
    :param recognition: what the search found
    :param forced: forced scores of the references, and perhaps of hypotheses: if the best one of the search is among
        them, its forced score counts, since that of the search may lack alignments that were pruned
    :param forced_hyps: forced scores of the hypotheses, if they are in a file of their own
    :param labels_of: see :func:`find_reference`
    :param best_segmentation: see :func:`find_reference`
    :param normaliser: of texts
    :raises AnalysisError: not the same utterances, references or definition of the score
    """
    check_same_definition(recognition, forced)
    of_hyps = _is_forced(forced) and bool(forced.header.options.get("nbest_file"))
    if of_hyps and not best_segmentation:  # with it, the file can have several segmentations of the references
        raise AnalysisError(
            f"{forced.file} has forced scores of hypotheses (of {forced.header.options['nbest_file']}), not of"
            " references: those are what the forced config gives without ++nbest_file"
        )
    references_only = _is_forced(forced) and not of_hyps
    if forced_hyps is not None:
        check_same_definition(recognition, forced_hyps)
    hyps_by_tag = {utt.seq_tag: utt.hyps for utt in forced_hyps.utterances} if forced_hyps is not None else {}
    by_tag = {utt.seq_tag: utt for utt in forced.utterances}
    results = []
    for utt in recognition.utterances:
        if utt.ref is None:
            continue
        other = by_tag.get(utt.seq_tag)
        if other is None or other.ref is None:
            raise AnalysisError(f"{forced.file} has no reference with a score for utterance {utt.seq_tag!r}")
        if normaliser.words(other.ref) != normaliser.words(utt.ref):
            raise AnalysisError(f"utterance {utt.seq_tag!r} has another reference in {forced.file}: {other.ref!r}")
        reference = find_reference(
            other,
            references_only=references_only,
            labels_of=labels_of,
            best_segmentation=best_segmentation,
            normaliser=normaliser,
        )
        rescored = [*other.hyps, *hyps_by_tag.get(utt.seq_tag, [])]
        results.append(_judge(utt, rescored, reference, recognition.header, normaliser))
    if not results:
        raise AnalysisError(f"{recognition.file}: no utterance has a reference")
    if all(result.ref_score is None for result in results):
        raise AnalysisError(f"{forced.file}: no reference has a score: is it a file with forced scores of references?")
    results.sort(key=lambda r: (r.gap is None, -(r.gap or 0.0), r.seq_tag))
    return SearchErrors(results)


def _is_forced(run: Run) -> bool:
    """:return: whether the file comes from a forced config (configs/*_forced_*.config)"""
    return run.header.search.startswith("forced_")


def _judge(
    utt: Utterance,
    forced: Sequence[Hypothesis],
    reference: Hypothesis | None,
    header: NBestHeader,
    normaliser: TextNormaliser,
) -> UtteranceResult:
    ref_words = normaliser.words(utt.ref or "")
    first = utt.hyps[0] if utt.hyps else None
    rank = gap = None
    parts: dict[str, float] = {}
    if reference is not None:
        rank = next((i for i, hyp in enumerate(utt.hyps, 1) if hyp.labels == reference.labels), None)
    found = first
    if first is not None:
        found = next((hyp for hyp in forced if hyp.labels == first.labels), first)
    if reference is not None and found is not None:
        gap = reference.score - found.score
        for name, scale in header.scales.items():
            if scale:
                values = [h.scores.get(name, math.nan) * scale / _divisor(h, header) for h in (reference, found)]
                parts[name] = values[0] - values[1]
    words = normaliser.words(first.text) if first is not None else []
    return UtteranceResult(
        seq_tag=utt.seq_tag,
        kind=_kind(first, found, reference, gap, header, same_words=first is not None and words == ref_words),
        gap=gap,
        word_errors=count_word_errors(ref_words, words),
        num_ref_words=len(ref_words),
        ref=utt.ref or "",
        hyp=first.text if first is not None else "",
        ref_score=None if reference is None else reference.score,
        hyp_score=None if found is None else found.score,
        component_gaps=parts,
        rank=rank,
    )


def _kind(
    first: Hypothesis | None,
    found: Hypothesis | None,
    reference: Hypothesis | None,
    gap: float | None,
    header: NBestHeader,
    *,
    same_words: bool,
) -> Kind:
    if first is None or found is None:
        # The search came out with nothing, though the reference has a score.
        return "no_hypothesis" if reference is None else "search_error"
    if reference is None:
        return "segmentation" if same_words else "impossible"
    if first.labels == reference.labels:
        return "correct"
    assert gap is not None
    tolerance = max(score_tolerance(found, header), score_tolerance(reference, header))
    if gap > tolerance:
        return "search_error"
    if same_words:
        return "segmentation"
    return "model_error" if gap < -tolerance else "tie"


def audit_forced_scores(recognition: Run, *forced: Run) -> Audit:
    """
    :param recognition: what the search found
    :param forced: files of forced scores, by :func:`check_same_definition` of the same kind
    :return: comparison of the scores of all label sequences that the search found and that were forced
    """
    by_tag: dict[str, dict[tuple[int, ...], Hypothesis]] = {}
    for run in forced:
        for utt in run.utterances:
            by_tag.setdefault(utt.seq_tag, {}).update({tuple(hyp.labels): hyp for hyp in utt.hyps})
    num_hyps = num_different = num_higher = 0
    max_gap, examples = 0.0, []
    for utt in recognition.utterances:
        forced_hyps = by_tag.get(utt.seq_tag, {})
        for i, hyp in enumerate(utt.hyps, 1):
            again = forced_hyps.get(tuple(hyp.labels))
            if again is None:
                continue
            gap = again.score - hyp.score
            num_hyps += 1
            max_gap = max(max_gap, abs(gap))
            if abs(gap) > score_tolerance(hyp, recognition.header):
                num_different += 1
                num_higher += gap > 0
                if len(examples) < 5:
                    examples.append(f"{utt.seq_tag}, hypothesis {i}: {hyp.score:.6g}, but forced {again.score:.6g}")
    return Audit(num_hyps, num_different, max_gap, num_higher, examples)
