"""
The union of the n-best lists of several runs that have the same score components.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..nbest import Hypothesis, NBestHeader, Utterance, total_score
from ..vocab import vocab_differences
from .runs import AnalysisError, Run

__all__ = ["merge_runs"]


def merge_runs(runs: Sequence[Run], *, header: NBestHeader | None = None) -> tuple[NBestHeader, list[Utterance]]:
    """
    Each label sequence is kept once; if its scores differ (a time-synchronous search sums over the alignments that it
    did not prune), those with the higher total, which has lost less. Totals are those of the header.

    :param runs: of the same models on the same utterances
    :param header: whose scales and length normalisation make the totals. None: that of the first run
    :return: header, utterances sorted by tag. Utterances that only some of the runs have are left out.
    :raises AnalysisError: other components or vocabularies, or no utterance in common
    """
    header = header or runs[0].header
    wanted = {name for name, scale in header.scales.items() if scale}
    for run in runs:
        if vocab_differences(runs[0].header.vocab, run.header.vocab):
            raise AnalysisError(
                f"{run.file} has another vocabulary ({run.header.vocab}) than {runs[0].file} ({runs[0].header.vocab}):"
                " their labels cannot be merged"
            )
        missing = wanted - {name for name, scale in run.header.scales.items() if scale}
        if missing:
            raise AnalysisError(
                f"{run.file} has no scores of {', '.join(sorted(missing))}, which {runs[0].file} has: n-best lists can"
                " be merged if each has all components (search or rescore with a scale other than 0)"
            )
        if run.header.length_norm_offset != header.length_norm_offset:
            raise AnalysisError(f"{run.file}: another length_norm_offset than {runs[0].file}")
    by_tag = [{utt.seq_tag: utt for utt in run.utterances} for run in runs]
    common = sorted(set(by_tag[0]).intersection(*by_tag[1:]))
    if not common:
        raise AnalysisError(f"no utterance is in all of {', '.join(run.file for run in runs)}")
    header = replace(header, options={**header.options, "merged_from": [run.file for run in runs]})
    return header, [_merge([utterances[tag] for utterances in by_tag], header) for tag in common]


def _merge(versions: Sequence[Utterance], header: NBestHeader) -> Utterance:
    hyps: dict[tuple[int, ...], Hypothesis] = {}
    for hyp in _all_hyps(versions):
        scores = {name: score for name, score in hyp.scores.items() if name in header.scales}
        hyp = replace(hyp, scores=scores)
        hyp = replace(hyp, score=total_score(hyp, header))
        other = hyps.get(tuple(hyp.labels))
        if other is None or hyp.score > other.score:
            hyps[tuple(hyp.labels)] = hyp
    ordered = sorted(hyps.values(), key=lambda hyp: -hyp.score)
    error = None if ordered else "; ".join(sorted({utt.error for utt in versions if utt.error}))
    return replace(versions[0], hyps=ordered, error=error)


def _all_hyps(versions: Iterable[Utterance]) -> Iterable[Hypothesis]:
    for utt in versions:
        yield from utt.hyps
