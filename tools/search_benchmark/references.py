"""
The usual ways to do what our searches do, written straightforwardly: what the benchmark compares with.

Tests show that they give the same results as ours (tests/test_benchmark_search.py), so that equal work is compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from recog.core.posteriors import CtcPosteriors
from recog.scorers.base import LabelScorer, State, expand_rows, select_rows
from rf_models.decoder import AttentionDecoder, AttentionMemory

from .setting import EOS

__all__ = ["PlainDecoder", "RecursivePrefixScorer", "usual_time_sync_search"]

NEG_INF = float("-inf")
_LOG_ZERO = -1e10


class RecursivePrefixScorer:
    """
    CTC prefix scores as in Watanabe et al. 2017 (https://doi.org/10.1109/JSTSP.2017.2763455), Alg. 2: the forward
    variables of every hypothesis extended by every label, frame by frame. Utterances must have equal lengths.
    """

    def __init__(self, log_probs: Tensor):
        """:param log_probs: [B, T, V+1], blank last"""
        self.x = log_probs[:, :, :-1].clamp(min=_LOG_ZERO).transpose(0, 1)  # [T, B, V]
        self.x_blank = log_probs[:, :, -1].transpose(0, 1)  # [T, B]

    def initial_state(self) -> tuple[Tensor, Tensor, Tensor]:
        """:return: forward variables n and b [T, B, 1], last label [B, 1], of the empty hypothesis"""
        b = self.x_blank.cumsum(dim=0)[:, :, None]
        return torch.full_like(b, _LOG_ZERO), b, torch.full_like(b[0], -1, dtype=torch.int64)

    def score_all(self, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """
        :param state: of K hypotheses
        :return: prefix scores [B, K, V] of the extended hypotheses, that of EOS the score of the end; their forward
            variables n and b [T, B, K, V]
        """
        n, b, last = state
        num_frames, batch, num_hyps = n.shape
        num_labels = self.x.shape[2]
        is_last = last[:, :, None] == torch.arange(num_labels)
        either = torch.logaddexp(n, b)
        new_n = torch.full((num_frames, batch, num_hyps, num_labels), _LOG_ZERO)
        new_b = torch.full((num_frames, batch, num_hyps, num_labels), _LOG_ZERO)
        first = (last < 0)[:, :, None]
        new_n[0] = torch.where(first, self.x[0][:, None, :], _LOG_ZERO)
        psi = new_n[0].clone()
        for t in range(1, num_frames):
            phi = torch.where(is_last, b[t - 1][:, :, None], either[t - 1][:, :, None])
            x = self.x[t][:, None, :]
            new_n[t] = torch.logaddexp(new_n[t - 1], phi) + x
            new_b[t] = torch.logaddexp(new_n[t - 1], new_b[t - 1]) + self.x_blank[t][:, None, None]
            psi = torch.logaddexp(psi, phi + x)
        psi[:, :, EOS] = either[-1]
        return psi, new_n, new_b

    @staticmethod
    def select(new_n: Tensor, new_b: Tensor, parents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        :param new_n: from :func:`score_all`
        :param new_b: from :func:`score_all`
        :param parents: [B, K'] index into K
        :param labels: [B, K']
        :return: state of these extensions
        """
        utt = torch.arange(parents.shape[0])[:, None]
        return new_n[:, utt, parents, labels], new_b[:, utt, parents, labels], labels


class PlainDecoder:
    """
    The step of :class:`rf_models.decoder.AttentionDecoder` written down, with nothing around it: what decoder steps
    cost if nothing else is done. All utterances have K hypotheses.
    """

    _CHUNK = 4  # hypotheses whose attention is computed at once: what fits into the cache

    def __init__(self, decoder: AttentionDecoder, memory: AttentionMemory):
        """
        :param decoder: its options ``dec_zoneout_cell`` and ``dec_use_zoneout_output`` as published
        :param memory: of B utterances of equal lengths
        """
        weights = {name: param.raw_tensor.detach() for name, param in decoder.named_parameters()}
        self.w = weights
        self.enc, self.enc_ctx = memory.enc.raw_tensor, memory.enc_ctx.raw_tensor
        self.half_fertility = 0.5 * memory.inv_fertility.raw_tensor[:, :, 0]
        self.lstm = decoder.s
        self.w_feedback = weights["weight_feedback.weight"][0]
        self.w_energy = weights["energy.weight"][:, 0]

    def run(self, labels: Tensor, row_counts: list[int]) -> Iterator[Tensor]:
        """
        :param labels: [B, K, len(row_counts)], the i-th is fed in step i, none in the first
        :param row_counts: rows of each step: B in the first, then B times the hypotheses per utterance
        :return: log-probs [rows, V] of each step
        """
        batch = self.enc.shape[0]
        h = self.enc.new_zeros(batch, self.lstm.out_dim.dimension)
        state = h, h, self.enc.new_zeros(batch, self.enc.shape[2]), self.enc.new_zeros(self.enc.shape[:2])
        embed = self.enc.new_zeros(batch, self.w["target_embed.weight"].shape[1])
        for i, num_rows in enumerate(row_counts):
            if i:
                num_hyps, have = num_rows // batch, state[0].shape[0] // batch
                if num_hyps != have:
                    state = tuple(x.repeat_interleave(num_hyps // have, dim=0) for x in state)
                embed = functional.embedding(labels[:, :num_hyps, i].flatten(), self.w["target_embed.weight"])
            log_probs, state = self.step(embed, *state)
            yield log_probs

    def step(
        self, embed: Tensor, h: Tensor, c: Tensor, att: Tensor, beta: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """:return: log-probs [B K, V]; new h, c, context, accumulated attention"""
        w, lstm = self.w, self.lstm
        num_hyps = h.shape[0] // self.enc.shape[0]
        gates = functional.linear(torch.cat((embed, att), dim=1), w["s.ff_weight"], w["s.bias"])
        j, i, f, o = (gates + functional.linear(h, w["s.rec_weight"])).chunk(4, dim=1)
        new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(j)
        s = torch.sigmoid(o) * torch.tanh(new_c)
        c = torch.lerp(new_c, c, lstm.zoneout_factor_cell)
        h = torch.lerp(s, h, lstm.zoneout_factor_output)
        s = h if lstm.use_zoneout_output else s
        query = s @ w["s_transformed.weight"]
        contexts, betas = [], []
        for start in range(0, h.shape[0], num_hyps):
            utt = start // num_hyps
            for first in range(start, start + num_hyps, self._CHUNK):
                rows = slice(first, min(first + self._CHUNK, start + num_hyps))
                hidden = self.enc_ctx[utt] + beta[rows, :, None] * self.w_feedback
                hidden += query[rows, None]
                weights = torch.softmax(hidden.tanh_() @ self.w_energy, dim=1)
                contexts.append(weights @ self.enc[utt])
                betas.append(beta[rows] + weights * self.half_fertility[utt])
        att, beta = torch.cat(contexts), torch.cat(betas)
        readout = torch.cat((s, embed, att), dim=1) @ w["readout_in.weight"] + w["readout_in.bias"]
        readout = readout.unflatten(1, (-1, 2)).amax(dim=2)
        logits = readout @ w["output_prob.weight"] + w["output_prob.bias"]
        return torch.log_softmax(logits, dim=1), (h, c, att, beta)


def usual_time_sync_search(
    scorer: LabelScorer,
    ctc: CtcPosteriors,
    *,
    beam_size: int,
    att_scale: float,
    ctc_scale: float,
    blank_scale: float = 1.0,
    repeat_scale: float = 1.0,
    full_sum: bool = False,
    max_frames: int | None = None,
) -> list[list[tuple[tuple[int, ...], float]]]:
    """
    Time-synchronous search as it is usually written: every frame runs the decoder on every hypothesis, copies the
    posteriors to all hypotheses, scores and sorts all labels and blank, and compares label sequences in Python.

    :param scorer:
    :param ctc: scales above 0
    :param beam_size: K
    :param att_scale:
    :param ctc_scale: of frames with a new label
    :param blank_scale: of blank frames
    :param repeat_scale: of frames that repeat the last label
    :param full_sum: sum instead of maximum over alignments; only for equal scales
    :param max_frames: stop after so many
    :return: for each utterance its hypotheses, best first: labels, score with EOS
    """
    batch, num_frames, num_classes = ctc.log_probs.shape
    blank = num_classes - 1
    utt = torch.arange(batch).repeat_interleave(beam_size)
    hyps: list[list[tuple[int, ...]]] = [[()] * beam_size for _ in range(batch)]
    ends_b = torch.full((batch, beam_size), NEG_INF)
    ends_b[:, 0] = 0.0
    ends_n = torch.full_like(ends_b, NEG_INF)
    label_score = torch.zeros_like(ends_b)
    last = torch.full((batch, beam_size), -1)
    state: State = expand_rows(scorer.initial_state(batch), beam_size)

    def combine(a: Tensor, b: Tensor) -> Tensor:
        return torch.logaddexp(a / ctc_scale, b / ctc_scale) * ctc_scale if full_sum else torch.maximum(a, b)

    for t in range(min(num_frames, max_frames or num_frames)):
        log_probs, new_state = scorer.step(last.clamp(min=EOS).flatten(), state, utt)
        label_log_probs = att_scale * log_probs.view(batch, beam_size, -1)
        x = ctc.log_probs.unsqueeze(1).repeat(1, beam_size, 1, 1)[:, :, t]
        x_last = x.gather(2, last.clamp(min=0)[:, :, None])[:, :, 0]
        either = combine(ends_b, ends_n)
        stay_b = either + blank_scale * x[:, :, blank]
        stay_n = ends_n + repeat_scale * x_last
        is_last = last[:, :, None] == torch.arange(num_classes - 1)
        before = torch.where(is_last, ends_b[:, :, None], either[:, :, None])
        ctc_new = before + ctc_scale * x[:, :, :-1]
        total = torch.full((batch, beam_size, num_classes), NEG_INF)
        total[:, :, :-1] = label_score[:, :, None] + label_log_probs + ctc_new
        total[:, :, EOS] = NEG_INF
        # Recombination: who extends another hypothesis of the beam gets the mass of that extension.
        for b in range(batch):
            slots = {h: k for k, h in enumerate(hyps[b]) if either[b, k].item() > NEG_INF}
            for h, k in slots.items():
                if h and h[:-1] in slots:
                    parent = slots[h[:-1]]
                    stay_n[b, k] = combine(stay_n[b, k], ctc_new[b, parent, h[-1]])
                    total[b, parent, h[-1]] = NEG_INF
        total[:, :, blank] = label_score + combine(stay_b, stay_n)
        best, index = total.flatten(1).topk(beam_size, dim=1)
        parents, labels = index // num_classes, index % num_classes
        is_new = labels != blank
        extended = is_new & (best > NEG_INF)
        rows = torch.arange(batch)[:, None]
        safe = labels.clamp(max=num_classes - 2)
        next_values = (
            torch.where(is_new, NEG_INF, stay_b.gather(1, parents)),
            torch.where(is_new, ctc_new[rows, parents, safe], stay_n.gather(1, parents)),
            label_score.gather(1, parents) + torch.where(is_new, label_log_probs[rows, parents, safe], 0.0),
            torch.where(is_new, labels, last.gather(1, parents)),
        )
        running = (t < ctc.lengths)[:, None]
        here = torch.arange(beam_size).expand_as(parents)
        parents = torch.where(running, parents, here)
        old_values = ends_b, ends_n, label_score, last
        ends_b, ends_n, label_score, last = (
            torch.where(running, new, old) for new, old in zip(next_values, old_values, strict=True)
        )
        dead = running & (best == NEG_INF)
        ends_b, ends_n = ends_b.masked_fill(dead, NEG_INF), ends_n.masked_fill(dead, NEG_INF)
        for b in range(batch):
            if t < int(ctc.lengths[b]):
                hyps[b] = [
                    hyps[b][parents[b, k].item()] + ((labels[b, k].item(),) if extended[b, k] else ())
                    for k in range(beam_size)
                ]
        # Only who got a label goes on to the next decoder state.
        flat = (parents + beam_size * rows).flatten()
        moved = (extended & running).flatten()
        old, new = select_rows(state, flat), select_rows(new_state, flat)
        state = {key: torch.where(moved.view(-1, *[1] * (x.dim() - 1)), new[key], x) for key, x in old.items()}

    log_probs, _ = scorer.step(last.clamp(min=EOS).flatten(), state, utt)
    scores = label_score + combine(ends_b, ends_n) + att_scale * log_probs[:, EOS].view(batch, beam_size)
    results = []
    for b in range(batch):
        found = [(hyps[b][k], scores[b, k].item()) for k in range(beam_size) if scores[b, k].item() > NEG_INF]
        results.append(sorted(found, key=lambda pair: -pair[1]))
    return results
