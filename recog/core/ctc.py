"""
CTC scores of given label sequences: full sum, best path (Viterbi) with alignment, and the same with separate scales for
frames with a new label, repeated labels and blanks, as the time-synchronous search defines its hypotheses.

One lattice (Graves et al. 2006) serves all. State (i, b): i labels seen, last frame blank; state (i, n): i labels seen,
last frame is label i::

    b_t(i) = (b_{t-1}(i) + n_{t-1}(i)) blank_t
    n_t(i) = n_{t-1}(i) repeat_t(i) + (b_{t-1}(i-1) + [y_i != y_{i-1}] n_{t-1}(i-1)) new_t(i)

where + and product are replaced by logadd (or max) and sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Combine", "CtcLattice", "ctc_full_sum", "ctc_viterbi", "make_lattice"]

NEG_INF = float("-inf")
# Stands for -inf inside of the recursion, where logaddexp(-inf, -inf) would have the gradient NaN.
_LOG_ZERO = -1e30


@dataclass(frozen=True)
class Combine:
    """How the scores of two sets of paths are combined."""

    scale: float | None = None
    """None: maximum. Otherwise ``scale log(exp(a / scale) + exp(b / scale))``: the sum of path probabilities, for
    scores that are log-probs times scale."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """:return: a, b combined, broadcast"""
        if self.scale is None:
            return torch.maximum(a, b)
        if self.scale == 1.0:
            return torch.logaddexp(a, b)
        return torch.logaddexp(a / self.scale, b / self.scale) * self.scale


@dataclass
class CtcLattice:
    """Scores of all transitions of the lattices of a batch of label sequences, float64."""

    blank: Tensor  # [B, T]
    repeat: Tensor  # [B, T, L]: frame t repeats label i
    new_after_blank: Tensor  # [B, T, L]: frame t has label i first, the frame before was blank (or the beginning)
    new_after_label: Tensor  # [B, T, L]: the frame before had label i - 1; -inf if the two labels are equal
    lengths: Tensor  # [B] frames
    label_lengths: Tensor  # [B]

    def score(self, combine: Combine) -> Tensor:
        """
        :param combine: sum or maximum over the paths
        :return: [B] float64 score of each label sequence, -inf if impossible
        """
        return self._forward(combine, with_backpointers=False)[0]

    def best_path(self) -> tuple[Tensor, Tensor]:
        """
        :return: score [B] of the best path; the path [B, T] int64: 2 i for blank after i labels, 2 i - 1 for label i
            (1-based). -1 in padding and for impossible sequences.
        """
        score, from_b, from_n = self._forward(Combine(), with_backpointers=True)
        batch, num_frames = self.blank.shape
        path = torch.full((batch, num_frames), -1, dtype=torch.int64, device=self.blank.device)
        index = torch.arange(batch, device=path.device)
        possible = score > NEG_INF
        i, in_label = self.label_lengths.clone(), torch.zeros(batch, dtype=torch.bool, device=path.device)
        for t in range(num_frames - 1, -1, -1):
            last = self.lengths == t + 1
            inside = (t < self.lengths) & possible
            in_label = torch.where(last, self._ends_in_label, in_label)
            path[:, t] = torch.where(inside, 2 * i - in_label.long(), -1)
            b_source, n_source = from_b[t][index, i], from_n[t][index, i]
            # n_source: 0 repeat, 1 new after blank, 2 new after label
            next_in_label = torch.where(in_label, n_source != 1, b_source == 1)
            i = torch.where(inside & in_label & (n_source > 0), i - 1, i)
            in_label = torch.where(inside, next_in_label, in_label)
        return score, path

    def _forward(self, combine: Combine, *, with_backpointers: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """:return: score [B]; for each frame where b and n came from, [B, L+1]"""
        batch, num_frames = self.blank.shape
        num_labels = self.repeat.shape[2]
        opts = dict(dtype=torch.float64, device=self.blank.device)
        b = torch.full((batch, num_labels + 1), _LOG_ZERO, **opts)
        b[:, 0] = 0.0
        n = torch.full((batch, num_labels + 1), _LOG_ZERO, **opts)
        never = torch.full((batch, 1), _LOG_ZERO, **opts)
        blank, repeat, new_after_blank, new_after_label = (
            x.clamp(min=_LOG_ZERO) for x in (self.blank, self.repeat, self.new_after_blank, self.new_after_label)
        )
        final_b, final_n = b, n
        from_b, from_n = [], []
        for t in range(num_frames):
            stay = n[:, 1:] + repeat[:, t]
            after_blank = b[:, :-1] + new_after_blank[:, t]
            after_label = n[:, :-1] + new_after_label[:, t]
            if with_backpointers:
                from_b.append((n > b).long())
                sources = torch.stack((stay, after_blank, after_label))
                from_n.append(torch.nn.functional.pad(sources.argmax(dim=0), (1, 0)))
            b = combine(b, n) + blank[:, t, None]
            n = torch.cat((never, combine(stay, combine(after_blank, after_label))), dim=1)
            inside = (t < self.lengths)[:, None]
            final_b, final_n = torch.where(inside, b, final_b), torch.where(inside, n, final_n)
        end = self.label_lengths[:, None]
        end_b, end_n = final_b.gather(1, end)[:, 0], final_n.gather(1, end)[:, 0]
        self._ends_in_label = end_n > end_b
        score = combine(end_b, end_n)
        return score.masked_fill(score < 0.5 * _LOG_ZERO, NEG_INF), from_b, from_n


def make_lattice(
    log_probs: Tensor,
    lengths: Tensor,
    labels: Tensor,
    label_lengths: Tensor,
    *,
    utt: Tensor | None = None,
    label_scale: float = 1.0,
    blank_scale: float = 1.0,
    repeat_scale: float = 1.0,
    one_minus_term: bool = False,
) -> CtcLattice:
    """
    :param log_probs: [B, T, V+1], blank last
    :param lengths: [B] frames
    :param labels: [B, L] int64, anything behind the end
    :param label_lengths: [B]
    :param utt: [R] int64, for R label sequences [R, L] of these utterances: which one each belongs to. (log_probs are
        then not repeated for all V.) None: one of each
    :param label_scale: of frames with a new label
    :param blank_scale: of blank frames
    :param repeat_scale: of frames with a repeated label
    :param one_minus_term: see :class:`recog.options.TimeSyncOptions`
    """
    num_frames, num_labels = log_probs.shape[1], labels.shape[1]
    if utt is None:
        utt = torch.arange(log_probs.shape[0], device=log_probs.device)
    # Labels behind the end must be valid indices; they cannot be reached from the end that is read out.
    behind = torch.arange(num_labels, device=labels.device) >= label_lengths[:, None]
    labels = labels.masked_fill(behind, 0)
    time = torch.arange(num_frames, device=log_probs.device)
    emit = log_probs[utt[:, None, None], time[:, None], labels[:, None, :]].double()  # [R, T, L]
    blank = log_probs[:, :, -1].double()[utt]
    new_after_blank = new_after_label = scaled(emit, label_scale)
    if one_minus_term:
        from_blank, from_label = one_minus_terms(blank, emit)
        new_after_blank = new_after_blank + from_blank[:, :, None]
        previous = torch.nn.functional.pad(from_label[:, :, :-1], (1, 0)) if num_labels else from_label
        new_after_label = new_after_label + previous
    same = torch.zeros_like(labels, dtype=torch.bool)
    same[:, 1:] = labels[:, 1:] == labels[:, :-1]
    return CtcLattice(
        blank=scaled(blank, blank_scale),
        repeat=scaled(emit, repeat_scale),
        new_after_blank=new_after_blank,
        new_after_label=new_after_label.masked_fill(same[:, None, :], NEG_INF),
        lengths=lengths.to(labels.device)[utt],
        label_lengths=label_lengths,
    )


def scaled(log_probs: Tensor, scale: float) -> Tensor:
    """:return: scale times log_probs; what is impossible stays so, also with scale 0"""
    if scale == 1.0:
        return log_probs
    if scale == 0.0:
        return torch.zeros_like(log_probs).masked_fill(log_probs == NEG_INF, NEG_INF)
    return log_probs * scale


def one_minus_terms(blank: Tensor, repeated: Tensor) -> tuple[Tensor, Tensor]:
    """
    The term log(1 - p_t(blank) - p_t(repeated label)) of the original recipes: what is left for new labels.

    :param blank: [B, T] (or [B]) log p_t(blank)
    :param repeated: [B, T, L] (or [B, L]) log p_t(label that the frame could repeat)
    :return: the term after a blank frame, as blank; the term after a frame with this label, as repeated
    """
    floor = 1e-20  # as in the original recipes
    left = 1.0 - blank.exp()
    return left.clamp(min=floor).log(), (left[..., None] - repeated.exp()).clamp(min=floor).log()


def ctc_full_sum(
    log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor, *, utt: Tensor | None = None
) -> Tensor:
    """
    :param log_probs: [B, T, V+1], blank last
    :param lengths: [B] frames
    :param labels: [B, L] int64
    :param label_lengths: [B]
    :param utt: see :func:`make_lattice`
    :return: [B] float64 log P_ctc(labels | x): sum over all alignments; -inf if impossible. Differentiable.
    """
    return make_lattice(log_probs, lengths, labels, label_lengths, utt=utt).score(Combine(1.0))


def ctc_viterbi(log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """
    :param log_probs: [B, T, V+1], blank last
    :param lengths: [B] frames
    :param labels: [B, L] int64
    :param label_lengths: [B]
    :return: [B] float64 log-prob of the best alignment; the alignment [B, T] int64: label or blank (V) of each frame,
        -1 in padding and for impossible sequences
    """
    lattice = make_lattice(log_probs, lengths, labels, label_lengths)
    score, path = lattice.best_path()
    if not labels.shape[1]:
        labels = labels.new_zeros((labels.shape[0], 1))
    label = labels.gather(1, ((path.clamp(min=1) + 1) // 2 - 1).clamp(max=labels.shape[1] - 1))
    alignment = torch.where(path % 2 == 1, label, log_probs.shape[2] - 1)
    return score, torch.where(path < 0, path, alignment)
