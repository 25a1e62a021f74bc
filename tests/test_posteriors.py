"""EOS, prior, collapse of frames, greedy search, prior files."""

import itertools

import pytest
import torch
from brute_force import EOS, NEG_INF, random_posteriors, scorer_set
from hypothesis import given, settings
from hypothesis import strategies as st

from recog.core.posteriors import prepare_ctc_log_probs
from recog.ctc_greedy import ctc_greedy_search
from recog.label_sync import label_sync_search
from recog.options import LabelSyncOptions, TimeSyncOptions
from recog.prior import load_log_prior, save_log_prior
from recog.time_sync import time_sync_search

V = 4


def posteriors(seed, lengths, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(lengths), max(lengths), V + 1, generator=generator) * sharpness
    return logits.log_softmax(-1), torch.tensor(lengths)


def test_eos_mass_goes_to_blank():
    log_probs, lengths = posteriors(0, [5, 3])
    res = prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS)
    assert (res.log_probs[:, :, EOS] == NEG_INF).all()
    torch.testing.assert_close(res.log_probs.exp().sum(-1), torch.ones(2, 5))
    torch.testing.assert_close(res.log_probs[..., V].exp(), log_probs[..., V].exp() + log_probs[..., EOS].exp())
    kept = prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS, eos="keep")
    torch.testing.assert_close(kept.log_probs, log_probs)


def test_frame_prior():
    log_probs, lengths = posteriors(1, [6])
    prior = torch.rand(V + 1).log_softmax(0)
    res = prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS, eos="keep", log_prior=prior, prior_scale=0.4)
    expected = (log_probs - 0.4 * prior).log_softmax(-1)
    torch.testing.assert_close(res.log_probs, expected)
    assert res.label_log_prior is None
    # With merged EOS, nothing is NaN, although the prior of EOS is then 0, too.
    res = prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS, log_prior=prior, prior_scale=0.4)
    assert not res.log_probs.isnan().any() and (res.log_probs[..., EOS] == NEG_INF).all()


def test_label_prior_has_no_blank():
    log_probs, lengths = posteriors(1, [6])
    prior = torch.tensor([0.05, 0.1, 0.2, 0.05, 0.6]).log()
    res = prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS, log_prior=prior, prior_scale=0.4, prior_type="label")
    torch.testing.assert_close(res.label_log_prior[1:].exp(), torch.tensor([0.1, 0.2, 0.05]) / 0.35)
    torch.testing.assert_close(res.log_probs, prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS).log_probs)


def test_label_that_the_label_prior_does_not_know_gets_no_correction():
    log_probs, lengths = posteriors(1, [6])
    prior = torch.tensor([0.0, 0.1, 0.3, 0.0, 0.6]).log()
    ctc = prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS, log_prior=prior, prior_scale=0.4, prior_type="label")
    torch.testing.assert_close(ctc.label_log_prior[1:].exp(), torch.tensor([0.25, 0.75, 1.0]))
    scorers = scorer_set({}, {"prior": -0.4}, num_labels=V, label_log_prior=ctc.label_log_prior)
    opts = LabelSyncOptions(att_scale=0.0, ctc_scale=1.0, beam_size=1)
    result = label_sync_search(scorers=scorers, ctc=ctc, frame_lengths=lengths, opts=opts)
    assert result.label_lengths[0, 0] > 0  # had found the empty sequence only: places of the beam went to label 3
    for recombination in ("max", "sum"):
        opts = TimeSyncOptions(att_scale=0.0, ctc_scale=1.0, beam_size=2, recombination=recombination)
        assert time_sync_search(scorers=scorers, ctc=ctc, opts=opts).label_lengths[0, 0] > 0


def test_prior_of_another_vocabulary_is_refused():
    log_probs, lengths = posteriors(1, [6])
    with pytest.raises(ValueError, match="7 entries, but the CTC head 5"):
        prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS, log_prior=torch.zeros(7), prior_scale=0.4)


def by_hand_blank_collapse(confident):
    """Indices of the frames to keep"""
    runs = [(k, [i for i, _ in g]) for k, g in itertools.groupby(enumerate(confident), key=lambda x: x[1])]
    keep = []
    for number, (is_blank, frames) in enumerate(runs):
        if not is_blank:
            keep += frames
        elif 0 < number < len(runs) - 1:
            keep.append(frames[-1])
    return keep or [0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.2, 0.5, 0.9]), lengths=st.permutations([1, 4, 9, 12]))
def test_blank_collapse(seed, threshold, lengths):
    log_probs, lengths = posteriors(seed, lengths)
    log_probs = (log_probs + torch.tensor([NEG_INF, 0, 0, 0, 1.5])).log_softmax(-1)
    res = prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS, blank_collapse_threshold=threshold)
    for utt, length in enumerate(lengths.tolist()):
        confident = (log_probs[utt, :length, V].exp() > threshold).tolist()
        keep = by_hand_blank_collapse(confident)
        assert int(res.lengths[utt]) == len(keep)
        assert res.frames[utt, : len(keep)].tolist() == keep
        torch.testing.assert_close(res.log_probs[utt, : len(keep)], log_probs[utt, keep])
    assert res.log_probs.shape[1] == int(res.lengths.max())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), threshold=st.sampled_from([0.4, 0.6, 0.9]), lengths=st.permutations([1, 4, 9, 12]))
def test_soft_collapse(seed, threshold, lengths):
    log_probs, lengths = posteriors(seed, lengths)
    log_probs = (log_probs + torch.tensor([NEG_INF, 0, 0, 0, 1.5])).log_softmax(-1)
    res = prepare_ctc_log_probs(log_probs, lengths, eos_index=EOS, soft_collapse_threshold=threshold)
    for utt, length in enumerate(lengths.tolist()):
        probs = log_probs[utt, :length].exp()
        expected, starts, previous = [], [], None
        for t in range(length):
            best, label = probs[t].max(0)
            key = int(label) if best >= threshold else None
            if key is not None and key == previous:
                expected[-1].append(probs[t])
            else:
                expected.append([probs[t]])
                starts.append(t)
            previous = key
        assert int(res.lengths[utt]) == len(expected)
        assert res.frames[utt, : len(starts)].tolist() == starts
        means = torch.stack([torch.stack(run).mean(0) for run in expected])
        torch.testing.assert_close(res.log_probs[utt, : len(starts)].exp(), means)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), lengths=st.permutations([1, 3, 8, 12]))
def test_greedy(seed, lengths):
    ctc = random_posteriors(4, 12, V, seed=seed, lengths=lengths)
    res = ctc_greedy_search(ctc, eos_index=EOS)
    for utt, length in enumerate(lengths):
        best, classes = ctc.log_probs[utt, :length].max(-1)
        expected = [k for k, _ in itertools.groupby(classes.tolist()) if k != V]
        assert res.labels[utt, 0, : int(res.label_lengths[utt, 0])].tolist() == expected
        assert res.scores[utt, 0].item() == pytest.approx(best.sum().item(), abs=1e-5)


def test_greedy_first_label_equal_to_last():
    """An utterance that begins and ends with the same label keeps both."""
    log_probs = torch.full((1, 4, V + 1), -5.0)
    for t, k in enumerate([2, 1, V, 2]):
        log_probs[0, t, k] = 0.0
    res = prepare_ctc_log_probs(log_probs.log_softmax(-1), torch.tensor([4]), eos_index=EOS)
    res = ctc_greedy_search(res, eos_index=EOS)
    assert res.labels[0, 0, :3].tolist() == [2, 1, 2]


def test_prior_file(tmp_path):
    filename = str(tmp_path / "prior.txt")
    prior = torch.randn(V + 1, dtype=torch.float64).log_softmax(0)
    save_log_prior(filename, prior)
    torch.testing.assert_close(load_log_prior(filename, num_classes=V + 1), prior)
    with pytest.raises(ValueError, match="5 values, but the CTC head has 8"):
        load_log_prior(filename, num_classes=8)
    values = "\n".join(str(p) for p in prior.exp().tolist())
    linear = tmp_path / "linear.txt"
    linear.write_text("# ctc-prior domain=linear num_classes=5\n" + values)
    torch.testing.assert_close(load_log_prior(str(linear), num_classes=5), prior)
    linear.write_text("# ctc-prior domain=log num_classes=5\n" + values)
    with pytest.raises(ValueError, match="wrong domain"):
        load_log_prior(str(linear), num_classes=5)
    linear.write_text(values)
    with pytest.raises(ValueError, match="first line must be"):
        load_log_prior(str(linear), num_classes=5)
    linear.write_text("# ctc-prior domain=log num_classes=5\nnan\n1\n2\n3\n4")
    with pytest.raises(ValueError):
        load_log_prior(str(linear), num_classes=5)
