"""
Both beam searches with *limited* beams against textbook versions of the same algorithms, in plain Python loops over
dicts: the same hypotheses must be pruned. And the scoring of the original recipes against its formula.
"""

from __future__ import annotations

import itertools
import math

import torch
from brute_force import (
    EOS,
    NEG_INF,
    TableScorer,
    assert_same_nbest,
    log_sum,
    nbest,
    path_scores,
    random_posteriors,
    scorer_set,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from recog.core.posteriors import merge_eos_into_blank, prepare_ctc_log_probs
from recog.forced_score import forced_scores
from recog.label_sync import label_sync_search
from recog.options import LabelSyncOptions, TimeSyncOptions
from recog.time_sync import time_sync_search

V, T = 5, 5
SCALES = {"att": 0.6, "lm": 0.3, "ilm": -0.2, "length": 0.1}
CTC_SCALE = 0.4
OPTS = dict(att_scale=0.6, ctc_scale=CTC_SCALE, lm_scale=0.3, ilm_scale=0.2, length_reward=0.1)


def make(seed, num_frames):
    tables = {name: TableScorer(V, max_len=T, num_utts=1, seed=seed + i) for i, name in enumerate(("att", "lm", "ilm"))}
    ctc = random_posteriors(1, num_frames, V, seed=seed + 10)
    return tables, scorer_set(tables, SCALES, num_labels=V), ctc


def label_score(tables, labels, *, eos):
    total = SCALES["length"] * len(labels)
    return total + sum(SCALES[name] * table.score(labels, 0, eos=eos) for name, table in tables.items())


def plus(a, b, scale):
    """Maximum (scale None), or log sum of probabilities to the power of scale"""
    return max(a, b) if scale is None else log_sum([a, b], scale)


def textbook_time_sync(tables, log_probs, *, beam_size, recombination, blank_scale, repeat_scale):
    """CTC prefix beam search (Hannun et al. 2014), with other scores of the labels: list of (labels, score)"""
    blank = V
    scale = CTC_SCALE if recombination == "sum" else None
    beam = {(): (0.0, NEG_INF)}  # prefix -> scores of the paths that end in blank, in its last label
    for frame in log_probs:
        new = {}

        def add(prefix, end, score, new=new):
            b, n = new.get(prefix, (NEG_INF, NEG_INF))
            new[prefix] = (plus(b, score, scale), n) if end == "b" else (b, plus(n, score, scale))

        for prefix, (b, n) in beam.items():
            add(prefix, "b", plus(b, n, scale) + blank_scale * frame[blank])
            if prefix:
                add(prefix, "n", n + repeat_scale * frame[prefix[-1]])
            for v in range(V):
                if v != EOS:
                    before = b if prefix and prefix[-1] == v else plus(b, n, scale)
                    add((*prefix, v), "n", before + CTC_SCALE * frame[v])
        total = {p: plus(*ends, scale) + label_score(tables, p, eos=False) for p, ends in new.items()}
        best = sorted(total, key=total.get, reverse=True)[:beam_size]
        beam = {p: new[p] for p in best if total[p] > NEG_INF}
    result = [(p, plus(*ends, scale) + label_score(tables, p, eos=True)) for p, ends in beam.items()]
    return sorted(result, key=lambda x: -x[1])


def prefix_score(log_probs, labels):
    """log of the probability that the label sequence begins with these labels (Graves 2008), in loops over time"""
    b, n = [0.0], [NEG_INF]
    for frame in log_probs:
        b.append(b[-1] + frame[V])
        n.append(NEG_INF)
    psi = 0.0
    for i, label in enumerate(labels):
        new_b, new_n, psi = [NEG_INF], [NEG_INF], NEG_INF
        for t, frame in enumerate(log_probs):
            phi = b[t] if i and labels[i - 1] == label else log_sum([b[t], n[t]])
            psi = log_sum([psi, phi + frame[label]])
            new_n.append(log_sum([new_n[t], phi]) + frame[label])
            new_b.append(log_sum([new_b[t], new_n[t]]) + frame[V])
        b, n = new_b, new_n
    return psi, log_sum([b[-1], n[-1]])


def textbook_label_sync(tables, log_probs, *, beam_size, published=False, exponent=0.0, max_len=None):
    """Beam search with ended hypotheses beside the beam; all steps up to the maximum length"""
    max_len = len(log_probs) if max_len is None else max_len
    active, ended = [()], []
    for length in range(max_len + 1):
        for prefix in active:
            psi, end = prefix_score(log_probs, prefix)
            if published and length == max_len:  # cut: no EOS score
                score = CTC_SCALE * psi + label_score(tables, prefix, eos=False)
            else:
                score = CTC_SCALE * end + label_score(tables, prefix, eos=True)
            ended.append((prefix, score / max(length + (0 if published else 1), 1) ** exponent))
        candidates = {}
        for prefix in active:
            for v in range(V):
                if v != EOS:
                    psi, _ = prefix_score(log_probs, (*prefix, v))
                    candidates[(*prefix, v)] = CTC_SCALE * psi + label_score(tables, (*prefix, v), eos=False)
        active = sorted(candidates, key=candidates.get, reverse=True)[:beam_size]
        active = [p for p in active if candidates[p] > NEG_INF]
    ended = [hyp for hyp in ended if hyp[1] > NEG_INF]
    return sorted(ended, key=lambda x: -x[1])[:beam_size]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_frames=st.integers(1, T),
    beam_size=st.sampled_from([1, 2, 3, 5, 9]),
    recombination=st.sampled_from(["max", "sum"]),
    blank_scale=st.sampled_from([1.0, "ctc", 0.7]),
)
def test_time_sync_prunes_as_the_textbook(seed, num_frames, beam_size, recombination, blank_scale):
    tables, scorers, ctc = make(seed, num_frames)
    opts = TimeSyncOptions(
        **OPTS, beam_size=beam_size, recombination=recombination, blank_scale=blank_scale, repeat_scale="ctc"
    )
    expected = textbook_time_sync(
        tables,
        ctc.log_probs[0].tolist(),
        beam_size=beam_size,
        recombination=recombination,
        blank_scale=CTC_SCALE if blank_scale == "ctc" else blank_scale,
        repeat_scale=CTC_SCALE,
    )
    assert_same_nbest(nbest(time_sync_search(scorers=scorers, ctc=ctc, opts=opts), 0), expected)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_frames=st.integers(1, T),
    beam_size=st.sampled_from([1, 2, 3, 5]),
    exponent=st.sampled_from([0.0, 1.0]),
    published=st.booleans(),
    max_len_ratio=st.sampled_from([0.5, 1.0]),
)
def test_label_sync_prunes_as_the_textbook(seed, num_frames, beam_size, exponent, published, max_len_ratio):
    tables, scorers, ctc = make(seed, num_frames)
    opts = LabelSyncOptions(
        **OPTS,
        beam_size=beam_size,
        early_stop=False,
        length_norm_exponent=exponent,
        published_scoring=published,
        max_len_ratio=max_len_ratio,
    )
    result = label_sync_search(scorers=scorers, ctc=ctc, frame_lengths=ctc.lengths, opts=opts)
    expected = textbook_label_sync(
        tables,
        ctc.log_probs[0].tolist(),
        beam_size=beam_size,
        exponent=exponent,
        published=published,
        max_len=max(1, int(num_frames * max_len_ratio)),
    )
    assert_same_nbest(nbest(result, 0), expected)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), lengths=st.lists(st.integers(1, 4), min_size=2, max_size=3))
def test_published_time_sync_scoring(seed, lengths):
    """
    The formula of the original recipe: best alignment, new labels scaled, blanks and repetitions not, EOS of all label
    scorers at the end: of every utterance, not only the longest of the batch.
    """
    tables = {
        name: TableScorer(V, max_len=4, num_utts=len(lengths), seed=seed + i)
        for i, name in enumerate(("att", "lm", "ilm"))
    }
    ctc = random_posteriors(len(lengths), max(lengths), V, seed=seed + 10, lengths=lengths)
    opts = TimeSyncOptions(**{**OPTS, "length_reward": 0.0}, beam_size=900, published_scoring=True)
    scales = {"att": 0.6, "lm": 0.3, "ilm": -0.2}
    result = time_sync_search(scorers=scorer_set(tables, scales, num_labels=V), ctc=ctc, opts=opts)
    for utt, length in enumerate(lengths):
        paths = path_scores(ctc.log_probs[utt, :length].tolist(), label_scale=CTC_SCALE)
        expected = []
        for labels, scores in paths.items():
            label_part = sum(scales[name] * tables[name].score(labels, utt, eos=True) for name in scales)
            expected.append((labels, max(scores) + label_part))
        assert_same_nbest(nbest(result, utt), sorted(expected, key=lambda x: -x[1]))


def test_published_scoring_leaves_the_prior_of_eos_alone():
    """p(blank) + p(EOS) - scale * prior(blank): the original recipes merged the posteriors, but not the priors."""
    log_probs = torch.randn(1, 3, V + 1).log_softmax(-1)
    log_prior = torch.randn(V + 1).log_softmax(-1)
    opts = dict(eos_index=EOS, log_prior=log_prior, prior_scale=0.5)
    published = prepare_ctc_log_probs(log_probs, torch.tensor([3]), **opts, merge_prior=False).log_probs
    merged = merge_eos_into_blank(log_probs, eos_index=EOS)
    expected = (merged - 0.5 * log_prior).log_softmax(-1)
    torch.testing.assert_close(published, expected)
    ours = prepare_ctc_log_probs(log_probs, torch.tensor([3]), **opts).log_probs
    assert not torch.allclose(ours, published)
    expected = merged - 0.5 * merge_eos_into_blank(log_prior, eos_index=EOS).masked_fill(torch.arange(V + 1) == EOS, 0)
    torch.testing.assert_close(ours, expected.log_softmax(-1))


def test_blank_penalty():
    log_probs = torch.randn(1, 3, V + 1).log_softmax(-1)
    found = prepare_ctc_log_probs(log_probs, torch.tensor([3]), eos_index=EOS, blank_penalty=1.5).log_probs
    without = prepare_ctc_log_probs(log_probs, torch.tensor([3]), eos_index=EOS).log_probs
    torch.testing.assert_close(found[..., :-1], without[..., :-1])
    torch.testing.assert_close(found[..., -1], without[..., -1] - 1.5)


def test_many_forced_sequences_of_one_utterance_need_no_copies_of_the_posteriors():
    """Forced scores of all sequences at once equal those one by one; the gradient arrives at the posteriors."""
    _, scorers, ctc = make(3, 5)
    sequences = [seq for n in range(4) for seq in itertools.product(range(1, V), repeat=n)]
    labels = torch.zeros(1, len(sequences), 3, dtype=torch.int64)
    for i, seq in enumerate(sequences):
        labels[0, i, : len(seq)] = torch.tensor(seq, dtype=torch.int64)
    lengths = torch.tensor([[len(seq) for seq in sequences]])
    ctc.log_probs.requires_grad_(True)
    found = forced_scores(
        scorers=scorers, ctc=ctc, labels=labels, label_lengths=lengths, opts=LabelSyncOptions(**OPTS)
    ).components["ctc"]
    paths = path_scores(ctc.log_probs[0].tolist())
    for i, seq in enumerate(sequences):
        expected = log_sum(paths[seq]) if seq in paths else NEG_INF
        assert math.isclose(found[0, i].item(), expected, abs_tol=1e-5)
    found[found > NEG_INF].exp().sum().backward()
    assert ctc.log_probs.grad.nan_to_num(nan=7.0).abs().sum() > 0 and not ctc.log_probs.grad.isnan().any()
