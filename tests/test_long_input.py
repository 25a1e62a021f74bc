"""
10 minutes of audio, 10,000 encoder frames: CTC sums neither overflow nor lose what is asked for, in any search.

The reference is the plain recursion with logarithms in extended precision (64 bits of mantissa on x86), frame by frame.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from recog.core.ctc import ctc_full_sum, ctc_viterbi
from recog.core.ctc_prefix import CtcPrefixScorer
from recog.core.posteriors import CtcPosteriors, prepare_ctc_log_probs
from recog.ctc_greedy import collapse_alignment, ctc_greedy_search
from recog.options import TimeSyncOptions
from recog.scorers.combined import ScorerSet
from recog.time_sync import time_sync_search

NUM_FRAMES, NUM_LABELS, LENGTH, EOS = 10_000, 12, 40, 0


def posteriors(kind: str, seed: int = 1, num_frames: int = NUM_FRAMES) -> tuple[torch.Tensor, torch.Tensor]:
    """:return: log_probs [1, T, V+1] float32; labels of a sequence with many repetitions [1, L]"""
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, NUM_LABELS, size=LENGTH)
    labels[1::7] = labels[0::7][: len(labels[1::7])]
    logits = rng.standard_normal((num_frames, NUM_LABELS + 1))
    if kind == "peaky":  # as of a good model: a blank nearly everywhere, the labels in single frames
        logits *= 2.0
        logits[:, -1] += 16.0
        frames = np.sort(rng.choice(np.arange(2, num_frames - 1, 3), size=LENGTH, replace=False))
        logits[frames, labels] += 34.0
    log_probs = torch.from_numpy(logits).float().log_softmax(-1)
    return log_probs[None], torch.from_numpy(labels)[None]


def reference(log_probs: torch.Tensor, labels: list[int]) -> tuple[float, float]:
    """:return: log-prob of the labels; log of the prefix probability of the labels (Graves 2008)"""
    frames = log_probs.numpy().astype(np.longdouble)
    emit, blank = frames[:, labels], frames[:, -1]
    zero = np.full(1, -np.inf, dtype=np.longdouble)
    again = np.array([False] + [a == b for a, b in itertools.pairwise(labels)])
    b, n = np.repeat(zero, len(labels) + 1), np.repeat(zero, len(labels) + 1)
    b[0] = 0.0
    prefix = zero[0]
    for t in range(len(frames)):
        before = np.logaddexp(b[:-1], np.where(again, zero, n[:-1]))  # what a new label can follow
        prefix = np.logaddexp(prefix, before[-1] + emit[t, -1])
        b, n = np.logaddexp(b, n) + blank[t], np.concatenate([zero, np.logaddexp(n[1:], before) + emit[t]])
    return float(np.logaddexp(b[-1], n[-1])), float(prefix)


@pytest.mark.parametrize("kind", ["flat", "peaky"])
def test_sums(kind):
    log_probs, labels = posteriors(kind)
    lengths, label_lengths = torch.tensor([NUM_FRAMES]), torch.tensor([LENGTH])
    expected, expected_prefix = reference(log_probs[0], labels[0].tolist())
    full_sum = ctc_full_sum(log_probs, lengths, labels, label_lengths)
    assert full_sum.dtype == torch.float64 and full_sum.item() == pytest.approx(expected, rel=1e-9, abs=1e-6)
    best, alignment = ctc_viterbi(log_probs, lengths, labels, label_lengths)
    assert best.item() <= full_sum.item()
    found, found_lengths = collapse_alignment(alignment, drop=(NUM_LABELS,))
    assert found.tolist() == labels.tolist() and found_lengths.tolist() == label_lengths.tolist()
    along = log_probs[0].double().gather(1, alignment[0][:, None]).sum().item()
    assert best.item() == pytest.approx(along, rel=1e-9)

    scorer = CtcPrefixScorer(log_probs, lengths, eos_index=EOS)
    state = scorer.initial_state()
    first = torch.zeros(1, 1, dtype=torch.int64)
    for label in labels[0]:
        scores = scorer.score_all(state)
        assert not scores.isnan().any() and scores.dtype == torch.float32
        state = scorer.advance(state, first, label.view(1, 1), scores[:, :, label])
    assert scorer.end_scores(state).item() == pytest.approx(expected, rel=1e-9, abs=1e-5)
    # The prefix score of the search is float32: 7 digits.
    assert state.psi.item() == pytest.approx(expected_prefix, rel=3e-7, abs=1e-4)


def test_searches_over_ten_minutes():
    """Greedy and time-synchronous: the same labels as were put in, with the score of all their alignments."""
    log_probs, labels = posteriors("peaky")
    frames = torch.arange(NUM_FRAMES)[None]
    ctc = CtcPosteriors(log_probs=log_probs, lengths=torch.tensor([NUM_FRAMES]), frames=frames, label_log_prior=None)
    greedy = ctc_greedy_search(ctc, eos_index=EOS)
    assert greedy.labels[0, 0].tolist() == labels[0].tolist()
    # The search skips nothing, but the frames that are blank for sure make it long: they are collapsed.
    collapsed = prepare_ctc_log_probs(
        log_probs, ctc.lengths, eos_index=EOS, eos="drop", blank_collapse_threshold=0.9999
    )
    assert LENGTH < int(collapsed.lengths) < NUM_FRAMES
    scorers = ScorerSet({}, {}, num_labels=NUM_LABELS, eos_index=EOS)
    opts = TimeSyncOptions(beam_size=6, att_scale=0.0, ctc_scale=1.0, blank_scale="ctc", repeat_scale="ctc")
    result = time_sync_search(scorers=scorers, ctc=collapsed, frame_lengths=ctc.lengths, opts=opts)
    assert result.labels[0, 0, : int(result.label_lengths[0, 0])].tolist() == labels[0].tolist()
    expected, _ = reference(collapsed.log_probs[0], labels[0].tolist())
    assert result.scores[0, 0].item() == pytest.approx(expected, abs=1e-3)
