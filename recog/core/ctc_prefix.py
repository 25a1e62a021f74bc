"""
CTC prefix scores of all one-label continuations of a beam of hypotheses, exactly and for the whole vocabulary.

With p_t(k) the CTC posteriors, n_t(g), b_t(g) the forward probabilities of the label sequence g with the last frame a
label or blank, the prefix probability of g extended by v is (Graves 2008; Watanabe et al. 2017,
https://doi.org/10.1109/JSTSP.2017.2763455, Alg. 2)::

    psi(g v) = sum_t phi_{t-1}(g, v) p_t(v),      phi(g, v) = b(g) + [v != last(g)] n(g)
    psi(g EOS) = n_T(g) + b_T(g)                  (probability that the labels are exactly g)

The sum over t is a matrix product of [K, T] with [T, V], computed in the probability domain after division by the
maximum of phi. Forward probabilities are only needed of the hypotheses that survive, where they are first-order linear
recurrences over t,

    n_t(g v) = p_t(v) (n_{t-1}(g v) + phi_{t-1}(g, v)),        b_t(g v) = p_t(blank) (b_{t-1}(g v) + n_{t-1}(g v)),

solved by cumulative sums: no loop over labels or over time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["CtcPrefixScorer", "CtcPrefixState"]

NEG_INF = float("-inf")
# Stands for log 0 inside cumulative sums, where -inf - -inf would be NaN: far below any real score, and so small that
# sums over 10 minutes of frames keep a precision of 1e-6 in float64.
_LOG_ZERO = -1e6
# Both factors of the matrix product are multiplied by e^38 and are 0 below e^-81: then no product overflows or is a
# denormal number (on a CPU ten times as slow), and float32 has an even range on both sides.
_GAIN = 38.0
_FLOOR = -81.0


@dataclass
class CtcPrefixState:
    """Hypotheses g of a beam. Index 0 ... T of time is the number of frames seen."""

    n: Tensor  # [B, K, T+1] float64 log n_t(g)
    b: Tensor  # [B, K, T+1] float64 log b_t(g)
    either: Tensor  # [B, K, T+1] float64 log (n_t(g) + b_t(g))
    last: Tensor  # [B, K] int64 last label, -1 for the empty sequence
    psi: Tensor  # [B, K] float64 log psi(g)


class CtcPrefixScorer:
    """Memory: O(B T V) for the posteriors, O(B K (T + V)) for a beam."""

    cut_frames: bool | None = None
    """Leave out the frames where no hypothesis of an utterance has probability, which is most of them if posteriors are
    peaky. Their number must be known on the host. None: on a CPU."""

    def __init__(self, log_probs: Tensor, lengths: Tensor, *, eos_index: int):
        """
        :param log_probs: [B, T, V+1], blank last. Those of EOS are not used: EOS stands for the end.
        :param lengths: [B] frames
        :param eos_index:
        """
        num_frames, num_classes = log_probs.shape[1:]
        self.eos_index = eos_index
        self.lengths = lengths.to(log_probs.device)
        inside = torch.arange(num_frames, device=log_probs.device) < self.lengths[:, None]
        self.outside = ~inside  # [B, T]
        self.log_probs = log_probs[:, :, : num_classes - 1].float()  # [B, T, V]
        self.probs = _with_gain(self.log_probs).masked_fill_(self.outside[:, :, None], 0.0)
        if self.cut_frames is None:
            self.cut_frames = log_probs.device.type == "cpu"
        blank = log_probs[:, :, -1].double().clamp(min=_LOG_ZERO)
        self.blank_sum = blank.cumsum(dim=1)  # [B, T] log of the product of p_s(blank), s <= t

    def initial_state(self) -> CtcPrefixState:
        """:return: state of the empty sequence, K = 1"""
        b = _to_log_zero(torch.nn.functional.pad(self.blank_sum, (1, 0))[:, None, :])
        return CtcPrefixState(
            n=torch.full_like(b, NEG_INF),
            b=b,
            either=b,
            last=torch.full((b.shape[0], 1), -1, dtype=torch.int64, device=b.device),
            psi=b.new_zeros((b.shape[0], 1)),
        )

    def score_all(self, state: CtcPrefixState) -> Tensor:
        """
        :return: [B, K, V] float32: log psi(g v) of all labels v; for EOS the log-prob of g as the whole sequence
        """
        b = state.b[:, :, :-1]
        phi = state.either[:, :, :-1].masked_fill(self.outside[:, None, :], NEG_INF)
        shift, frame = phi.max(dim=2)  # [B, K]
        dead = shift == NEG_INF
        shift = shift.masked_fill(dead, 0.0)
        shifted = _with_gain((phi - shift[:, :, None]).float())
        psi = self._product(shifted).log_()
        # Where all terms of a label are below that range, the one at the maximum of phi stands for them.
        utt = torch.arange(len(frame), device=frame.device)[:, None]
        at_max = self.log_probs[utt, frame].add_(2.0 * _GAIN)
        psi = torch.maximum(psi, at_max, out=at_max)
        psi.add_((shift - 2.0 * _GAIN).masked_fill(dead, NEG_INF)[:, :, None].float())
        # The last label again: only after blank.
        last = state.last.clamp(min=0)
        psi_last = torch.logsumexp(b + self._frames_of(last), dim=2).float()
        old = psi.gather(2, last[:, :, None])[:, :, 0]
        psi.scatter_(2, last[:, :, None], torch.where(state.last >= 0, psi_last, old)[:, :, None])
        psi[:, :, self.eos_index] = self.end_scores(state).float()
        return psi

    def end_scores(self, state: CtcPrefixState) -> Tensor:
        """:return: [B, K] float64 log-prob that the labels are exactly g"""
        end = self.lengths[:, None, None].expand(-1, state.b.shape[1], 1)
        return state.either.gather(2, end)[:, :, 0]

    def advance(self, state: CtcPrefixState, parents: Tensor, labels: Tensor, psi: Tensor) -> CtcPrefixState:
        """
        :param state:
        :param parents: [B, K'] index into K
        :param labels: [B, K'] the label that extends it, not EOS
        :param psi: [B, K'] its prefix score, from :func:`score_all`
        :return: state of the extended hypotheses
        """
        num_frames = self.log_probs.shape[1]
        index = parents[:, :, None].expand(-1, -1, num_frames + 1)
        same = (state.last.gather(1, parents) == labels)[:, :, None]
        phi = torch.where(same, state.b.gather(1, index), state.either.gather(1, index))[:, :, :-1]
        x = self._frames_of(labels).double()
        new_n = _linear_recurrence(x.clamp(min=_LOG_ZERO).cumsum(dim=2), phi)
        new_b = _linear_recurrence(self.blank_sum[:, None, :], new_n[:, :, :-1])
        either = torch.logaddexp(new_n, new_b)
        return CtcPrefixState(n=new_n, b=new_b, either=either, last=labels, psi=psi.double())

    def _frames_of(self, labels: Tensor) -> Tensor:
        """
        :param labels: [B, K]
        :return: [B, K, T] their log-probs in all frames, -inf in padding
        """
        num_frames = self.log_probs.shape[1]
        x = self.log_probs.gather(2, labels[:, None, :].expand(-1, num_frames, -1)).transpose(1, 2)
        return x.masked_fill(self.outside[:, None, :], NEG_INF)

    def _product(self, phi: Tensor) -> Tensor:
        """
        :param phi: [B, K, T]
        :return: [B, K, V] sum over t of phi_t p_t(v), both with their gain
        """
        if not self.cut_frames:
            return torch.bmm(phi, self.probs)
        product = phi.new_zeros((*phi.shape[:2], self.probs.shape[2]))
        used = phi.amax(dim=1) > 0
        for b, frames in enumerate(used.tolist()):
            if True in frames:
                start, end = frames.index(True), len(frames) - frames[::-1].index(True)
                torch.mm(phi[b, :, start:end], self.probs[b, start:end], out=product[b])
        return product


def _with_gain(log_x: Tensor) -> Tensor:
    """:return: x times a constant, 0 where x is negligible"""
    # In place: this is done for all posteriors.
    x = (log_x + _GAIN).exp_()
    return torch.nn.functional.threshold_(x, math.exp(_FLOOR + _GAIN), 0.0)


def _linear_recurrence(log_factors_sum: Tensor, log_inputs: Tensor) -> Tensor:
    """
    :param log_factors_sum: [B, K or 1, T] log of the product of the factors f_1 ... f_t
    :param log_inputs: [B, K, T] log of the inputs u_0 ... u_{T-1}
    :return: [B, K, T+1] log y_t with y_0 = 0, y_t = f_t (y_{t-1} + u_{t-1})
    """
    # y_t / F_t = y_{t-1} / F_{t-1} + u_{t-1} / F_{t-1}
    before = torch.nn.functional.pad(log_factors_sum[:, :, :-1], (1, 0))
    y = torch.logcumsumexp(log_inputs - before, dim=2) + log_factors_sum
    return _to_log_zero(torch.nn.functional.pad(y, (1, 0), value=NEG_INF))


def _to_log_zero(x: Tensor) -> Tensor:
    """:return: x, with -inf for what contains a factor 0"""
    return x.masked_fill(x < 0.5 * _LOG_ZERO, NEG_INF)
