"""
Second pass on n-best files alone: other scales, and components of other runs that scored the same hypotheses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..nbest import Hypothesis, NBestHeader, Utterance, total_score
from ..vocab import vocab_differences
from .runs import AnalysisError, Run

__all__ = ["FIRST_PASS", "add_components", "rescale"]

FIRST_PASS = "first_pass"
"""Component: the total score that a hypothesis came with."""


def add_components(run: Run, others: Mapping[str, Run]) -> tuple[Run, int]:
    """
    :param run: first pass
    :param others: name -> run that scored the same hypotheses (a second pass, forced scores of an n-best file)
    :return: the first pass with the additional components ``<name>.<component>`` (scale 0) and "first_pass" (scale 1;
        all others 0); number of hypotheses that were left out because one of the others has no score for them
    :raises AnalysisError: other vocabulary, or other utterances
    """
    by_tag = {}
    for name, other in others.items():
        if vocab_differences(run.header.vocab, other.header.vocab):
            raise AnalysisError(f"{other.file} has another vocabulary than {run.file}")
        by_tag[name] = {utt.seq_tag: {tuple(h.labels): h for h in utt.hyps} for utt in other.utterances}
        missing = [utt.seq_tag for utt in run.utterances if utt.seq_tag not in by_tag[name]]
        if missing:
            raise AnalysisError(
                f"{other.file} has no utterance {missing[0]!r} ({len(missing)} of {len(run.utterances)} are missing):"
                f" expected scores of all hypotheses of {run.file}"
            )
    if FIRST_PASS in run.header.scales:
        raise AnalysisError(f"{run.file} is a second pass with the component {FIRST_PASS} already")
    left_out = 0
    utterances = []
    for utt in run.utterances:
        hyps = []
        for hyp in utt.hyps:
            scores = {**hyp.scores, FIRST_PASS: hyp.score}
            found = {name: tags[utt.seq_tag].get(tuple(hyp.labels)) for name, tags in by_tag.items()}
            if None in found.values():
                left_out += 1
                continue
            for name, other in found.items():
                scores.update({f"{name}.{component}": score for component, score in other.scores.items()})
            hyps.append(replace(hyp, scores=scores))
        error = utt.error or (None if hyps else "no hypothesis has a score in all of the runs")
        utterances.append(replace(utt, hyps=hyps, error=error))
    names = [*run.header.scales, FIRST_PASS]
    names += [f"{name}.{component}" for name, other in others.items() for component in other.header.scales]
    scales = {name: float(name == FIRST_PASS) for name in names}
    files = {name: other.file for name, other in others.items()}
    options = {**run.header.options, "second_pass": {"first": run.file, **files}}
    header = replace(run.header, search="rescore", scales=scales, length_norm_exponent=0.0, options=options)
    return replace(run, header=header, utterances=utterances), left_out


def rescale(
    run: Run, scales: Mapping[str, float], *, length_norm_exponent: float = 0.0
) -> tuple[NBestHeader, list[Utterance]]:
    """
    :param run:
    :param scales: component -> scale with its sign; components that are not named get 0
    :param length_norm_exponent:
    :return: header, utterances with new totals, best hypothesis first
    :raises AnalysisError: there is no such component
    """
    for name in scales:
        if name not in run.header.scales:
            raise AnalysisError(f"{run.file} has no component {name!r}, only {', '.join(run.header.scales)}")
    new = {name: float(scales.get(name, 0.0)) for name in run.header.scales}
    header = replace(run.header, scales=new, length_norm_exponent=length_norm_exponent)

    def rescored(hyp: Hypothesis) -> Hypothesis:
        try:
            return replace(hyp, score=total_score(hyp, header))
        except ValueError as exc:
            raise AnalysisError(f"{run.file}: {exc}") from None

    return header, [
        replace(utt, hyps=sorted(map(rescored, utt.hyps), key=lambda hyp: -hyp.score)) for utt in run.utterances
    ]
