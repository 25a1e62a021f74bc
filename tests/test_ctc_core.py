"""CTC scores against enumeration of all alignments."""

import itertools
import math

import pytest
import torch
from brute_force import EOS, NEG_INF, log_sum, path_scores, random_posteriors
from hypothesis import given, settings
from hypothesis import strategies as st

from recog.core.ctc import ctc_full_sum, ctc_viterbi
from recog.core.ctc_prefix import CtcPrefixScorer


def all_sequences(num_labels, max_len):
    labels = [v for v in range(num_labels) if v != EOS]
    for length in range(max_len + 1):
        yield from itertools.product(labels, repeat=length)


def as_batch(sequences):
    max_len = max(map(len, sequences), default=0)
    labels = torch.full((len(sequences), max_len), 1)
    for i, seq in enumerate(sequences):
        labels[i, : len(seq)] = torch.tensor(seq, dtype=torch.int64)
    return labels, torch.tensor([len(s) for s in sequences])


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_full_sum_and_viterbi_equal_enumeration(num_frames):
    num_labels = 3
    ctc = random_posteriors(1, num_frames, num_labels, seed=num_frames)
    scores = path_scores(ctc.log_probs[0].tolist())
    sequences = list(all_sequences(num_labels, num_frames + 1))
    labels, label_lengths = as_batch(sequences)
    n = len(sequences)
    # One more frame of padding must not matter.
    log_probs = torch.nn.functional.pad(ctc.log_probs, (0, 0, 0, 1)).expand(n, -1, -1)
    lengths = ctc.lengths.expand(n)
    full_sum = ctc_full_sum(log_probs, lengths, labels, label_lengths)
    best, alignment = ctc_viterbi(log_probs, lengths, labels, label_lengths)
    assert not full_sum.isnan().any() and not best.isnan().any()
    for i, seq in enumerate(sequences):
        if seq not in scores:
            assert full_sum[i] == NEG_INF and best[i] == NEG_INF
            assert (alignment[i] == -1).all()
            continue
        assert full_sum[i].item() == pytest.approx(log_sum(scores[seq]), abs=1e-5)
        assert best[i].item() == pytest.approx(max(scores[seq]), abs=1e-5)
        path = alignment[i, :num_frames]
        assert tuple(k for k, _ in itertools.groupby(path.tolist()) if k != num_labels) == seq
        along = ctc.log_probs[0].gather(1, path[:, None]).sum().item()
        assert along == pytest.approx(best[i].item(), abs=1e-5)
        assert alignment[i, num_frames] == -1


def test_full_sum_agrees_with_torch_and_is_differentiable():
    torch.manual_seed(1)
    log_probs = torch.randn(4, 30, 8, dtype=torch.float64).log_softmax(-1).requires_grad_()
    lengths, label_lengths = torch.tensor([30, 25, 12, 7]), torch.tensor([9, 5, 5, 0])
    labels = torch.randint(0, 7, (4, 9))
    labels[0, 3] = labels[0, 2]  # a repeated label
    ours = ctc_full_sum(log_probs, lengths, labels, label_lengths)
    reference = -torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), labels, lengths, label_lengths, blank=7, reduction="none"
    )
    torch.testing.assert_close(ours, reference, atol=1e-6, rtol=0)
    (ours_grad,) = torch.autograd.grad(ours.sum(), log_probs, retain_graph=True)
    (reference_grad,) = torch.autograd.grad(reference.sum(), log_probs)
    # torch's gradient is that with respect to the logits in front of a log_softmax.
    probs = log_probs.exp()
    torch.testing.assert_close(
        ours_grad - probs * ours_grad.sum(-1, keepdim=True),
        reference_grad - probs * reference_grad.sum(-1, keepdim=True),
        atol=1e-6,
        rtol=0,
    )


def prefix_scores(log_probs, prefix):
    """By enumeration: log sum over all alignments of sequences that begin with the prefix; cut where it is complete."""
    scores = path_scores(log_probs)
    values = [v for seq, paths in scores.items() if seq[: len(prefix)] == tuple(prefix) for v in paths]
    return log_sum(values) if values else NEG_INF


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_frames=st.integers(1, 5),
    prefix=st.lists(st.integers(1, 3), max_size=5),
    sharpness=st.sampled_from([0.5, 2.0, 10.0]),
)
def test_prefix_scores_equal_enumeration(seed, num_frames, prefix, sharpness):
    num_labels = 4
    ctc = random_posteriors(1, num_frames, num_labels, seed=seed, sharpness=sharpness)
    frames = ctc.log_probs[0].tolist()
    padded = torch.nn.functional.pad(ctc.log_probs, (0, 0, 0, 2))
    scorer = CtcPrefixScorer(padded, ctc.lengths, eos_index=EOS)
    state = scorer.initial_state()
    for i in range(len(prefix) + 1):
        psi = scorer.score_all(state)
        assert not psi.isnan().any()
        for v in range(num_labels):
            if v == EOS:
                paths = path_scores(frames).get(tuple(prefix[:i]))
                expected = log_sum(paths) if paths else NEG_INF
            else:
                expected = prefix_scores(frames, [*prefix[:i], v])
            found = psi[0, 0, v].item()
            if expected < -80:  # below the range of float32: a lower bound, but never lost
                assert found <= expected + 1e-3 and (found > NEG_INF or expected == NEG_INF)
            else:
                assert found == pytest.approx(expected, abs=1e-4), (prefix[:i], v)
        if i < len(prefix):
            label = torch.tensor([[prefix[i]]])
            state = scorer.advance(state, torch.zeros_like(label), label, psi[:, :, prefix[i]])


def test_prefix_scores_of_long_utterances_keep_their_range():
    """10 minutes at 60 ms per frame, peaky posteriors: no overflow, no underflow, equal to the full sum."""
    torch.manual_seed(0)
    num_frames, num_labels = 10_000, 5
    logits = torch.randn(1, num_frames, num_labels + 1) * 8
    log_probs = logits.log_softmax(-1)
    log_probs[:, :, EOS] = NEG_INF
    lengths = torch.tensor([num_frames])
    scorer = CtcPrefixScorer(log_probs, lengths, eos_index=EOS)
    state = scorer.initial_state()
    labels = torch.randint(1, num_labels, (1, 40))
    for label in labels[0]:
        psi = scorer.score_all(state)
        assert psi[0, 0, 1:].isfinite().all()
        state = scorer.advance(state, torch.zeros(1, 1, dtype=torch.int64), label.view(1, 1), psi[:, :, label])
    end = scorer.end_scores(state)[0, 0]
    expected = ctc_full_sum(log_probs, lengths, labels, torch.tensor([40]))[0]
    assert math.isfinite(expected)
    assert end.item() == pytest.approx(expected.item(), abs=1e-4)
