"""Both beam searches against enumeration, with random label scorers; their properties."""

import itertools
from dataclasses import replace

import pytest
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
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recog.core.result import combine_components, length_divisor
from recog.forced_score import forced_scores
from recog.label_sync import label_sync_search
from recog.options import LabelSyncOptions, TimeSyncOptions
from recog.time_sync import forced_ctc_part, time_sync_search

V, T = 4, 4
SCALES = st.sampled_from([0.0, 0.0, 0.15, 0.5, 1.0, 1.3])
UNLIMITED = 400  # more than the 3^0 + ... + 3^4 = 121 label sequences


def sequences(max_len):
    for length in range(max_len + 1):
        yield from itertools.product([v for v in range(V) if v != EOS], repeat=length)


def make(seed, scales, lengths=(T,), *, ilm_eos=True, prior=None):
    """Scorers for all scales that are not 0, posteriors"""
    scorers = {
        name: TableScorer(V, max_len=T, num_utts=len(lengths), seed=seed + i)
        for i, name in enumerate(("att", "lm", "ilm"))
    }
    ctc = random_posteriors(len(lengths), max(lengths), V, seed=seed + 10, lengths=list(lengths))
    return scorer_set(scorers, scales, num_labels=V, ilm_eos=ilm_eos, label_log_prior=prior), scorers, ctc


def label_part(scorers, scales, labels, utt, *, eos, ilm_eos=True, prior=None):
    """Weighted label scores of a complete sequence"""
    total = 0.0
    for name in ("att", "lm", "ilm"):
        if scales.get(name):
            total += scales[name] * scorers[name].score(labels, utt, eos=eos and (ilm_eos or name != "ilm"))
    total += scales.get("length", 0.0) * len(labels)
    if scales.get("prior"):
        total += scales["prior"] * sum(prior[v].item() for v in labels)
    return total


def signed(att, lm, ilm, length=0.0, prior=0.0):
    return {"att": att, "lm": lm, "ilm": -ilm, "length": length, "prior": -prior}


def search_options(cls, att, ctc, lm, ilm, length=0.0, **kwargs):
    return cls(
        att_scale=att, ctc_scale=ctc, lm_scale=lm, ilm_scale=ilm, length_reward=length, beam_size=UNLIMITED, **kwargs
    )


def assert_audit(result, exponent=0.0, offset=1):
    """Total = sum of scale times component, divided by the length divisor"""
    total = combine_components(result.components, result.scales)
    total = total / length_divisor(result.label_lengths, exponent=exponent, offset=offset)
    exists = result.scores > NEG_INF
    torch.testing.assert_close(total[exists], result.scores[exists], atol=1e-4, rtol=0)
    assert not result.scores.isnan().any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    att=SCALES,
    ctc_scale=SCALES,
    lm=SCALES,
    ilm=SCALES,
    length=st.sampled_from([0.0, 0.7]),
    prior=st.sampled_from([0.0, 0.3]),
    exponent=st.sampled_from([0.0, 1.0]),
    num_frames=st.integers(1, T),
    ilm_eos=st.booleans(),
)
def test_label_sync_finds_everything(seed, att, ctc_scale, lm, ilm, length, prior, exponent, num_frames, ilm_eos):
    if not (att or ctc_scale or lm):
        att = 1.0
    scales = signed(att, lm, ilm, length, prior)
    log_prior = torch.randn(V, generator=torch.Generator().manual_seed(seed)).log_softmax(0)
    scorers, tables, ctc = make(seed, scales, (num_frames,), ilm_eos=ilm_eos, prior=log_prior)
    opts = search_options(
        LabelSyncOptions, att, ctc_scale, lm, ilm, length, length_norm_exponent=exponent, early_stop=False
    )
    result = label_sync_search(
        scorers=scorers, ctc=ctc if ctc_scale else None, frame_lengths=torch.tensor([num_frames]), opts=opts
    )
    ctc_scores = path_scores(ctc.log_probs[0].tolist())
    expected = []
    for labels in sequences(num_frames):
        score = label_part(tables, scales, labels, 0, eos=True, ilm_eos=ilm_eos, prior=log_prior)
        if ctc_scale:
            if labels not in ctc_scores:
                continue
            score += ctc_scale * log_sum(ctc_scores[labels])
        expected.append((labels, score / (len(labels) + 1) ** exponent))
    expected.sort(key=lambda x: -x[1])
    assert_same_nbest(nbest(result, 0), expected)
    assert_audit(result, exponent)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    att=SCALES,
    ctc_scale=st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    lm=SCALES,
    ilm=SCALES,
    length=st.sampled_from([0.0, 0.7]),
    prior=st.sampled_from([0.0, 0.3]),
    exponent=st.sampled_from([0.0, 1.0]),
    num_frames=st.integers(1, T),
    recombination=st.sampled_from(["max", "sum"]),
    blank_scale=st.sampled_from([1.0, 0.5, "ctc"]),
    repeat_scale=st.sampled_from([1.0, "ctc"]),
    one_minus=st.booleans(),
    eos_at_end=st.booleans(),
    exact_ctc=st.booleans(),
)
def test_time_sync_finds_everything(
    seed,
    att,
    ctc_scale,
    lm,
    ilm,
    length,
    prior,
    exponent,
    num_frames,
    recombination,
    blank_scale,
    repeat_scale,
    one_minus,
    eos_at_end,
    exact_ctc,
):
    if not (att or ctc_scale or lm):
        att = 1.0
    scales = signed(att, lm, ilm, length, prior)
    log_prior = torch.randn(V, generator=torch.Generator().manual_seed(seed)).log_softmax(0)
    scorers, tables, ctc = make(seed, scales, (num_frames,), prior=log_prior)
    opts = search_options(
        TimeSyncOptions,
        att,
        ctc_scale,
        lm,
        ilm,
        length,
        length_norm_exponent=exponent,
        recombination=recombination,
        blank_scale=blank_scale,
        repeat_scale=repeat_scale,
        one_minus_term=one_minus,
        eos_at_end=eos_at_end,
        exact_ctc=exact_ctc,
    )
    result = time_sync_search(scorers=scorers, ctc=ctc, opts=opts)
    paths = path_scores(
        ctc.log_probs[0].tolist(),
        label_scale=ctc_scale,
        blank_scale=ctc_scale if blank_scale == "ctc" else blank_scale,
        repeat_scale=ctc_scale if repeat_scale == "ctc" else repeat_scale,
        one_minus=one_minus,
    )
    expected = []
    for labels, scores in paths.items():
        combined = log_sum(scores, ctc_scale) if recombination == "sum" and ctc_scale else max(scores)
        score = label_part(tables, scales, labels, 0, eos=eos_at_end, prior=log_prior) + combined
        expected.append((labels, score / (len(labels) + 1) ** exponent))
    expected.sort(key=lambda x: -x[1])
    assert_same_nbest(nbest(result, 0), expected)
    assert_audit(result, exponent)
    forced = forced_ctc_part(ctc, result.labels, result.label_lengths, opts) / result.scales["ctc"]
    exists = result.scores > NEG_INF
    torch.testing.assert_close(forced[exists], result.components["ctc"][exists], atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(5))
def test_label_sync_and_time_sync_agree(seed):
    """Full sum, all frames scaled alike: two ways to the same scores."""
    scales = signed(0.6, 0.3, 0.2)
    scorers, _, ctc = make(seed, scales, (4, 2, 3))
    opts = dict(att_scale=0.6, ctc_scale=0.4, lm_scale=0.3, ilm_scale=0.2, beam_size=UNLIMITED)
    by_label = label_sync_search(
        scorers=scorers, ctc=ctc, frame_lengths=ctc.lengths, opts=LabelSyncOptions(**opts, early_stop=False)
    )
    by_time = time_sync_search(
        scorers=scorers,
        ctc=ctc,
        opts=TimeSyncOptions(**opts, recombination="sum", blank_scale="ctc", repeat_scale="ctc"),
    )
    for utt in range(3):
        assert_same_nbest(nbest(by_label, utt), nbest(by_time, utt))


def run(search, scorers, ctc, opts):
    if search == "label_sync":
        return label_sync_search(scorers=scorers, ctc=ctc, frame_lengths=ctc.lengths, opts=opts)
    return time_sync_search(scorers=scorers, ctc=ctc, opts=opts)


def one_utterance(ctc, tables, scales, utt, padding):
    """The same utterance alone, with other padding"""
    length = int(ctc.lengths[utt])
    log_probs = torch.nn.functional.pad(ctc.log_probs[utt : utt + 1, :length], (0, 0, 0, padding), value=-1.0)
    alone = replace(ctc, log_probs=log_probs, lengths=ctc.lengths[utt : utt + 1])
    scorers = {}
    for name, table in tables.items():
        scorers[name] = TableScorer(V, max_len=T, num_utts=1, seed=0)
        scorers[name].table = table.table[utt : utt + 1]
    return scorer_set(scorers, scales, num_labels=V), alone


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    search=st.sampled_from(["label_sync", "time_sync"]),
    beam_size=st.sampled_from([1, 2, 3, 30]),
    variant=st.integers(0, 3),
    padding=st.integers(0, 3),
)
@example(seed=792, search="label_sync", beam_size=1, variant=0, padding=0)  # went on because others did
def test_results_do_not_depend_on_the_batch(seed, search, beam_size, variant, padding):
    scales = signed(0.6, 0.3, 0.2)
    scorers, tables, ctc = make(seed, scales, (2, 4, 1, 3, 4))
    opts = dict(att_scale=0.6, ctc_scale=0.4, lm_scale=0.3, ilm_scale=0.2, beam_size=beam_size)
    if search == "label_sync":
        ended = "in_beam" if variant % 2 else "separate"
        opts = LabelSyncOptions(**opts, ended_hyps=ended, length_norm_exponent=float(variant > 1))
    else:
        recombination = "sum" if variant % 2 else "max"
        opts = TimeSyncOptions(**opts, recombination=recombination, pruning_threshold=3.0 if variant > 1 else None)
    together = run(search, scorers, ctc, opts)
    assert_audit(together, opts.length_norm_exponent)
    for utt in range(5):
        alone = run(search, *one_utterance(ctc, tables, scales, utt, padding), opts)
        assert_same_nbest(nbest(together, utt), nbest(alone, 0))


class CoveringScorer(TableScorer):
    """Label 1 is less probable than label 2, but the attention after it covers a frame more."""

    def __init__(self):
        super().__init__(V, max_len=T, num_utts=1, seed=0)
        self.table[:] = torch.tensor([0.1, 0.3, 0.5, 0.1]).log()

    def row_scores(self, state):
        starts_with_1 = state["history"] == 1 + 1
        return {"attention_sums": torch.stack((torch.ones(len(starts_with_1)), starts_with_1.float()), dim=1)}


def test_coverage_counts_when_the_beam_is_pruned():
    """The coverage of the last label was missing in the comparison of hypotheses, and came one label later."""
    scorers = scorer_set({"att": CoveringScorer()}, {"att": 1.0}, num_labels=V)
    opts = LabelSyncOptions(beam_size=2, n_best=12, coverage_scale=5.0, max_len_ratio=0.5, early_stop=False)
    lengths = torch.tensor([4])
    result = label_sync_search(scorers=scorers, ctc=None, frame_lengths=lengths, opts=opts)
    assert {labels[0] for labels, _ in nbest(result, 0) if len(labels) == 2} == {1}


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), beam_size=st.integers(1, 8), recombination=st.sampled_from(["max", "sum"]))
def test_time_sync_pruning_loses_only_paths(seed, beam_size, recombination):
    """With pruning, the CTC part is at most that of forced scoring; exact_ctc makes it equal."""
    scales = signed(0.6, 0.0, 0.0)
    scorers, _, ctc = make(seed, scales, (4, 3))
    opts = TimeSyncOptions(att_scale=0.6, ctc_scale=0.4, beam_size=beam_size, recombination=recombination)
    result = time_sync_search(scorers=scorers, ctc=ctc, opts=opts)
    exists = result.scores > NEG_INF
    forced = forced_ctc_part(ctc, result.labels, result.label_lengths, opts) / 0.4
    assert (result.components["ctc"][exists] <= forced[exists] + 1e-4).all()
    exact = time_sync_search(scorers=scorers, ctc=ctc, opts=replace(opts, exact_ctc=True))
    forced = forced_ctc_part(ctc, exact.labels, exact.label_lengths, opts) / 0.4
    torch.testing.assert_close(exact.components["ctc"][exists], forced[exists], atol=1e-4, rtol=0)


@pytest.mark.parametrize("recombination", ["max", "sum"])
def test_a_repeated_label_needs_a_blank(recombination):
    """Frames that say "a, blank, a": the prefix search must not merge the two ways in which "a" can end."""
    log_probs = torch.full((1, 3, V + 1), 1e-3)
    log_probs[0, 0, 2] = log_probs[0, 1, V] = log_probs[0, 2, 2] = 1.0
    log_probs[:, :, EOS] = 0.0
    log_probs = (log_probs / log_probs.sum(-1, keepdim=True)).log()
    ctc = replace(random_posteriors(1, 3, V, seed=0), log_probs=log_probs)
    opts = TimeSyncOptions(att_scale=0.0, ctc_scale=1.0, beam_size=2, recombination=recombination)
    result = time_sync_search(scorers=scorer_set({}, {}, num_labels=V), ctc=ctc, opts=opts)
    assert nbest(result, 0)[0][0] == (2, 2)


@pytest.mark.parametrize("search", ["label_sync", "time_sync"])
def test_corner_cases(search):
    """All blank; one frame; an utterance too short for what the decoder wants; beam larger than all that exists."""
    scales = signed(1.0, 0.0, 0.0)
    scorers, _, ctc = make(3, scales, (4, 1, 2))
    log_probs = ctc.log_probs.clone()
    log_probs[0, :, :-1], log_probs[0, :, -1] = NEG_INF, 0.0
    ctc = replace(ctc, log_probs=log_probs)
    cls = LabelSyncOptions if search == "label_sync" else TimeSyncOptions
    for beam_size in (1, 3, 1000):
        result = run(search, scorers, ctc, cls(att_scale=1.0, ctc_scale=0.5, beam_size=beam_size))
        assert not result.scores.isnan().any()
        assert [labels for labels, _ in nbest(result, 0)] == [()]
        assert all(len(labels) <= 1 for labels, _ in nbest(result, 1))
        assert_audit(result)
    assert len(nbest(result, 1)) == V  # nothing, or one of three labels


def test_scores_of_pruned_labels_are_not_needed():
    """num_candidates >= V is the same as no pre-selection; fewer candidates give a subset of paths."""
    scales = signed(0.7, 0.0, 0.0)
    scorers, _, ctc = make(11, scales, (4, 3))
    opts = TimeSyncOptions(att_scale=0.7, ctc_scale=0.3, beam_size=UNLIMITED)
    everything = time_sync_search(scorers=scorers, ctc=ctc, opts=opts)
    for num_candidates in (V, V + 5):
        same = time_sync_search(scorers=scorers, ctc=ctc, opts=replace(opts, num_candidates=num_candidates))
        assert_same_nbest(nbest(same, 0), nbest(everything, 0))
    fewer = time_sync_search(scorers=scorers, ctc=ctc, opts=replace(opts, num_candidates=2))
    scores = dict(nbest(everything, 0))
    found = nbest(fewer, 0)
    assert 1 < len(found) < len(scores)
    assert all(score <= scores[labels] + 1e-5 for labels, score in found)
    assert len({labels for labels, _ in found}) == len(found)


def test_decoder_runs_once_per_prefix():
    scales = signed(1.0, 0.0, 0.0)
    scorers, tables, ctc = make(1, scales, (4, 4, 4))
    opts = TimeSyncOptions(att_scale=1.0, ctc_scale=1.0, beam_size=UNLIMITED)
    result = time_sync_search(scorers=scorers, ctc=ctc, opts=opts)
    assert tables["att"].num_rows == int(result.stats["decoder_rows"])
    # Unlimited beam: nothing is pruned, so that each prefix is evaluated exactly once.
    prefixes = sum(len(nbest(result, utt)) for utt in range(3))
    assert int(result.stats["decoder_rows"]) == prefixes
    assert tables["lm"].num_rows == tables["ilm"].num_rows == 0


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    search=st.sampled_from(["label_sync", "time_sync"]),
    exponent=st.sampled_from([0.0, 1.0]),
    ilm_eos=st.booleans(),
    published=st.booleans(),
    recombination=st.sampled_from(["max", "sum"]),
)
def test_forced_scores_equal_those_of_the_search(seed, search, exponent, ilm_eos, published, recombination):
    scales = signed(0.6, 0.3, 0.2, 0.1)
    scorers, _, ctc = make(seed, scales, (4, 2, 3), ilm_eos=ilm_eos)
    opts = dict(att_scale=0.6, ctc_scale=0.4, lm_scale=0.3, ilm_scale=0.2, length_reward=0.1, beam_size=UNLIMITED)
    if search == "label_sync":
        opts = LabelSyncOptions(**opts, length_norm_exponent=exponent, published_scoring=published, early_stop=False)
    else:
        opts = TimeSyncOptions(**opts, length_norm_exponent=exponent, recombination=recombination)
    result = run(search, scorers, ctc, opts)
    forced = forced_scores(
        scorers=scorers,
        ctc=ctc,
        labels=result.labels,
        label_lengths=result.label_lengths,
        opts=opts,
        frame_lengths=ctc.lengths,
    )
    exists = result.scores > NEG_INF
    assert forced.scales == result.scales
    if published and search == "label_sync":
        # What is cut at the maximum length is a prefix: its CTC score is that of all continuations.
        exists &= result.label_lengths < ctc.lengths[:, None]
    torch.testing.assert_close(forced.scores[exists], result.scores[exists], atol=1e-4, rtol=0)
    for name, value in result.components.items():
        torch.testing.assert_close(forced.components[name][exists], value[exists], atol=1e-4, rtol=0)


def test_forced_scores_of_impossible_sequences():
    scales = signed(1.0, 0.0, 0.0)
    scorers, _, ctc = make(5, scales, (2,))
    opts = TimeSyncOptions(att_scale=1.0, ctc_scale=0.5)
    labels = torch.tensor([[[1, 1, 0], [1, 2, 3], [1, 0, 0]]])
    forced = forced_scores(scorers=scorers, ctc=ctc, labels=labels, label_lengths=torch.tensor([[2, 3, 1]]), opts=opts)
    assert forced.scores[0, :2].tolist() == [NEG_INF, NEG_INF] and forced.scores[0, 2].isfinite()
