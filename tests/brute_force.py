"""Plain definitions of all scores on tiny vocabularies, by enumeration, for comparison with the search."""

import itertools
import math

import torch

from recog.core.posteriors import CtcPosteriors
from recog.scorers.base import LabelScorer
from recog.scorers.combined import ScorerSet

NEG_INF = float("-inf")
EOS = 0


class TableScorer(LabelScorer):
    """A random distribution for each label history and utterance."""

    def __init__(self, num_labels, *, max_len, num_utts, seed, sharpness=2.0):
        self.num_labels = num_labels
        generator = torch.Generator().manual_seed(seed)
        num_histories = (num_labels + 1) ** (max_len + 1)
        logits = torch.randn(num_utts, num_histories, num_labels, generator=generator) * sharpness
        self.table = logits.log_softmax(-1)
        self.num_rows = 0

    def initial_state(self, batch_size):
        return {"history": torch.full((batch_size,), -1), "unused": (torch.zeros(batch_size, 2),)}

    def step(self, prev_labels, state, utt):
        self.num_rows += len(utt)
        history = state["history"]
        history = torch.where(history < 0, 0, history * (self.num_labels + 1) + prev_labels + 1)
        history = history % self.table.shape[1]  # only hypotheses beyond max_len wrap around
        return self.table[utt, history], {"history": history, "unused": state["unused"]}

    def score(self, labels, utt, *, eos):
        """log p(labels [EOS])"""
        history, total = 0, 0.0
        for label in labels:
            total += self.table[utt, history, label].item()
            history = history * (self.num_labels + 1) + label + 1
        return total + (self.table[utt, history, EOS].item() if eos else 0.0)


def collapse(path, blank):
    """Labels of an alignment"""
    return tuple(k for k, _ in itertools.groupby(path) if k != blank)


def path_scores(log_probs, *, label_scale=1.0, blank_scale=1.0, repeat_scale=1.0, one_minus=False):
    """Dict: label sequence -> list of the scores of all its alignments; log_probs [T, V+1] as nested list"""
    blank = len(log_probs[0]) - 1
    res = {}
    symbols = [k for k in range(blank + 1) if k != EOS]
    for path in itertools.product(symbols, repeat=len(log_probs)):
        score, prev = 0.0, blank
        for frame, k in zip(log_probs, path, strict=True):
            if k == blank:
                score += blank_scale * frame[k] if blank_scale else 0.0
            elif k == prev:
                score += repeat_scale * frame[k] if repeat_scale else 0.0
            else:
                score += label_scale * frame[k] if label_scale else 0.0
                if one_minus:
                    left = 1.0 - math.exp(frame[blank]) - (math.exp(frame[prev]) if prev != blank else 0.0)
                    score += math.log(max(left, 1e-20))
            prev = k
        res.setdefault(collapse(path, blank), []).append(score)
    return res


def log_sum(values, scale=1.0):
    """scale log sum exp(values / scale)"""
    top = max(values)
    if top == NEG_INF:
        return NEG_INF
    return top + scale * math.log(sum(math.exp((v - top) / scale) for v in values))


def random_posteriors(batch, num_frames, num_labels, *, seed, lengths=None, sharpness=2.0):
    """CTC posteriors whose EOS has probability 0"""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, num_frames, num_labels + 1, generator=generator) * sharpness
    logits[:, :, EOS] = NEG_INF
    lengths = torch.full((batch,), num_frames) if lengths is None else torch.tensor(lengths)
    frames = torch.arange(num_frames).expand(batch, num_frames)
    return CtcPosteriors(log_probs=logits.log_softmax(-1), lengths=lengths, frames=frames)


def scorer_set(scorers, scales, *, num_labels, **kwargs):
    """With EOS = 0"""
    return ScorerSet(scorers, scales, num_labels=num_labels, eos_index=EOS, **kwargs)


def nbest(result, utt):
    """List of (labels, score), of one utterance"""
    res = []
    for i in range(int(result.num_hyps[utt])):
        length = int(result.label_lengths[utt, i])
        res.append((tuple(result.labels[utt, i, :length].tolist()), result.scores[utt, i].item()))
    return res


def assert_same_nbest(found, expected, *, tolerance=1e-4):
    """Same hypotheses in the same order but for ties, same scores"""
    assert len(found) == len(expected)
    expected_scores = dict(expected)
    assert len(expected_scores) == len(expected)
    for (labels, score), (_, rank_score) in zip(found, expected, strict=True):
        assert labels in expected_scores, f"{labels} must not be there"
        assert abs(score - expected_scores[labels]) < tolerance, (labels, score, expected_scores[labels])
        assert abs(score - rank_score) < tolerance, (labels, score, rank_score)
    assert len({labels for labels, _ in found}) == len(found)
