"""
Label-synchronous one-pass beam search ("opls"): attention decoder, CTC prefix score, external and internal LM.

All hypotheses of the beam have the same number of labels. Score of a hypothesis: :class:`recog.options.SearchOptions`,
with log p_ctc the CTC prefix log-prob until EOS, then the log-prob of the whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .core.ctc_prefix import CtcPrefixScorer
from .core.posteriors import CtcPosteriors
from .core.result import SearchResult, combine_components, length_divisor, sort_hypotheses
from .options import LabelSyncOptions
from .scorers.base import select_rows
from .scorers.combined import ScorerSet

__all__ = ["label_sync_search"]

NEG_INF = float("-inf")


@dataclass
class _Hyps:
    """K hypotheses of each utterance."""

    labels: Tensor  # [B, K, L]
    lengths: Tensor  # [B, K] int64
    components: dict[str, Tensor]  # name -> [B, K] float64
    scores: Tensor  # [B, K] float64; of ended hypotheses: divided by the length divisor

    def gather(self, index: Tensor) -> _Hyps:
        """:return: the hypotheses index [B, K']"""
        return _Hyps(
            labels=self.labels.gather(1, index[:, :, None].expand(-1, -1, self.labels.shape[2])),
            lengths=self.lengths.gather(1, index),
            components={name: value.gather(1, index) for name, value in self.components.items()},
            scores=self.scores.gather(1, index),
        )

    def joined(self, other: _Hyps) -> _Hyps:
        """:return: both, side by side; labels padded to the longer ones"""
        max_len = max(self.labels.shape[2], other.labels.shape[2])
        pad = torch.nn.functional.pad
        labels = [pad(h.labels, (0, max_len - h.labels.shape[2])) for h in (self, other)]
        return _Hyps(
            labels=torch.cat(labels, dim=1),
            lengths=torch.cat((self.lengths, other.lengths), dim=1),
            components={
                name: torch.cat((value, other.components[name]), dim=1) for name, value in self.components.items()
            },
            scores=torch.cat((self.scores, other.scores), dim=1),
        )


def label_sync_search(
    *,
    scorers: ScorerSet,
    ctc: CtcPosteriors | None,
    frame_lengths: Tensor,
    opts: LabelSyncOptions,
) -> SearchResult:
    """
    :param scorers: label scorers with their scales
    :param ctc: None if ``opts.ctc_scale`` is 0
    :param frame_lengths: [B] encoder frames, what ``max_len_ratio`` refers to
    :param opts:
    :return: components "att", "ctc", "lm", "ilm", "length", ... as far as their scale is not 0. Utterances without a
        possible hypothesis have none (all scores -inf).
    """
    if opts.ctc_scale and ctc is None:
        raise ValueError("ctc_scale > 0, but there are no CTC log-probs")
    device, batch = frame_lengths.device, frame_lengths.shape[0]
    eos, num_labels, beam_size = scorers.eos_index, scorers.num_labels, opts.beam_size
    num_ended = max(beam_size, opts.n_best or 1)
    max_lens = (frame_lengths * opts.max_len_ratio).long().clamp(min=1)
    min_lens = (frame_lengths * opts.min_len_ratio).long()
    max_len = int(max_lens.max())  # the only copy to the host beside the end checks
    check_interval = 1 if device.type == "cpu" else 8

    scales = dict(scorers.scales)
    if opts.ctc_scale:
        scales["ctc"] = opts.ctc_scale
        prefix_scorer = CtcPrefixScorer(ctc.log_probs, ctc.lengths, eos_index=eos)
        ctc_state = prefix_scorer.initial_state()
    row_scales = {}
    if opts.coverage_scale:
        row_scales["coverage"] = opts.coverage_scale
    if opts.monotonicity_scale:
        row_scales["monotonicity"] = opts.monotonicity_scale
    scales.update(row_scales)

    def new_hyps(num_hyps: int, score: float) -> _Hyps:
        zeros = torch.zeros((batch, num_hyps), dtype=torch.float64, device=device)
        return _Hyps(
            labels=torch.zeros((batch, num_hyps, 0), dtype=torch.int64, device=device),
            lengths=zeros.long(),
            components={name: zeros for name in scales},
            scores=zeros + score,
        )

    active, ended = new_hyps(1, 0.0), new_hyps(0, NEG_INF)
    divisor_opts = dict(exponent=opts.length_norm_exponent, offset=0 if opts.published_scoring else 1)
    utt = torch.arange(batch, device=device)[:, None]
    state = scorers.initial_state(batch)
    prev_labels = torch.full((batch, 1), eos, dtype=torch.int64, device=device)
    steps = 0
    for length in range(max_len + 1):
        steps += 1
        num_active = active.scores.shape[1]
        label_scores, state = scorers.step(prev_labels.flatten(), state, utt.expand(-1, num_active).flatten())
        rows = torch.arange(batch * num_active, device=device).view(batch, num_active)
        alive = active.scores > NEG_INF
        if row_scales:
            _add_row_scores(active, row_scales, scorers.row_scores(state), opts)
            active.scores = combine_components(active.components, scales).masked_fill(~alive, NEG_INF)
        if opts.ctc_scale:
            psi = prefix_scorer.score_all(ctc_state)
            end_scores = prefix_scorer.end_scores(ctc_state)

        # End: all components score EOS.
        at_max = (length >= max_lens)[:, None]
        finished = _Hyps(active.labels, active.lengths, dict(active.components), active.scores)
        for name in label_scores.components:
            eos_score = label_scores.component_of(name, rows, torch.full_like(rows, eos))
            if opts.published_scoring:  # hypotheses that are cut at the maximum length get no EOS score
                eos_score = eos_score.masked_fill(at_max, 0.0)
            finished.components[name] = finished.components[name] + eos_score
        if opts.ctc_scale:
            finished.components["ctc"] = (
                torch.where(at_max, ctc_state.psi, end_scores) if opts.published_scoring else end_scores
            )
        allowed = alive & (length >= min_lens)[:, None] & (length <= max_lens)[:, None]
        finished.scores = combine_components(finished.components, scales) / length_divisor(
            finished.lengths, **divisor_opts
        )
        finished.scores = finished.scores.masked_fill(~allowed, NEG_INF)
        ended = ended.joined(finished)
        ended = ended.gather(ended.scores.topk(min(num_ended, ended.scores.shape[1]), dim=1).indices)
        if length == max_len:
            break

        # One more label.
        base = active.scores
        if opts.ctc_scale:  # prefix scores are those of the whole prefix, not of its last label
            base = base - opts.ctc_scale * ctc_state.psi
        base = base.masked_fill(~alive | at_max, NEG_INF)
        candidates = label_scores.total.view(batch, num_active, num_labels)
        if opts.ctc_scale:
            candidates = candidates.add_(psi, alpha=opts.ctc_scale)
        candidates = candidates.add_(base.float()[:, :, None])
        candidates[:, :, eos] = NEG_INF
        candidate_scores, parents, labels = _top_candidates(candidates, beam_size)

        components = {}
        parent_rows = rows.gather(1, parents)
        for name, value in active.components.items():
            components[name] = value.gather(1, parents)
            if name in label_scores.components:
                components[name] = components[name] + label_scores.component_of(name, parent_rows, labels)
        possible = candidate_scores > NEG_INF
        if opts.ctc_scale:
            psi = psi[utt, parents, labels]
            components["ctc"] = psi.double()
            ctc_state = prefix_scorer.advance(ctc_state, parents, labels, psi)
        parent = active.gather(parents)
        active = _Hyps(
            labels=torch.cat((parent.labels, labels[:, :, None]), dim=2),
            lengths=parent.lengths + 1,
            components=components,
            scores=combine_components(components, scales).masked_fill(~possible, NEG_INF),
        )
        state = select_rows(state, parent_rows.flatten())
        prev_labels = labels
        if opts.ended_hyps == "in_beam":
            active, ended = _compete(active, ended, beam_size=beam_size, divisor_opts=divisor_opts)
        # An utterance that is done must not go on only because others of its batch do.
        done = _done(active, ended, max_lens, opts, num_ended, divisor_opts)
        active.scores = active.scores.masked_fill(done[:, None], NEG_INF)
        if steps % check_interval == 0 and bool(done.all()):
            break

    result = SearchResult(
        labels=ended.labels,
        label_lengths=ended.lengths,
        scores=ended.scores,
        components=ended.components,
        scales=scales,
        stats={"steps": torch.tensor(steps)},
    )
    return sort_hypotheses(result, n_best=opts.n_best or beam_size)


def _top_candidates(candidates: Tensor, beam_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """
    :param candidates: [B, K, V]
    :return: scores, parents, labels of the best beam_size (or all), [B, K']
    """
    num_labels = candidates.shape[2]
    # Best labels of each hypothesis first: rows are scanned in parallel, and the second sort is small.
    row_scores, row_labels = candidates.topk(min(beam_size, num_labels), dim=2)
    scores, index = row_scores.flatten(1).topk(min(beam_size, row_scores[0].numel()), dim=1)
    return scores, index // row_labels.shape[2], row_labels.flatten(1).gather(1, index)


def _add_row_scores(active: _Hyps, row_scales: dict[str, float], row_scores: dict[str, Tensor], opts) -> None:
    """Sets the components that are functions of all attention weights so far."""
    shape = active.scores.shape
    if "coverage" in row_scales:
        covered = (row_scores["attention_sums"] > opts.coverage_threshold).sum(dim=1)
        active.components["coverage"] = covered.view(shape).double()
    if "monotonicity" in row_scales:
        active.components["monotonicity"] = row_scores["monotonicity"].view(shape).double()


def _compete(active: _Hyps, ended: _Hyps, *, beam_size: int, divisor_opts: dict) -> tuple[_Hyps, _Hyps]:
    """
    Ended hypotheses keep competing for the places of the beam: with their normalised score, brought to the length of
    the active ones. Who loses is dropped.
    """
    scale = length_divisor(active.lengths[:, :1], **divisor_opts)
    ended_scores = ended.scores * scale
    both = torch.cat((ended_scores, active.scores), dim=1)
    threshold = both.topk(min(beam_size, both.shape[1]), dim=1).values[:, -1:]
    active.scores = active.scores.masked_fill(active.scores < threshold, NEG_INF)
    ended.scores = ended.scores.masked_fill(ended_scores < threshold, NEG_INF)
    return active, ended


def _done(
    active: _Hyps, ended: _Hyps, max_lens: Tensor, opts: LabelSyncOptions, num_ended: int, divisor_opts: dict
) -> Tensor:
    """:return: [B] bool, which utterances need no other step"""
    best_active = active.scores.amax(dim=1)
    done = best_active == NEG_INF
    if opts.ended_hyps == "separate" and opts.early_stop and ended.scores.shape[1] >= num_ended:
        # Scores only fall, so that a hypothesis can at best keep its score; normalised by length, a negative score
        # becomes better with each label.
        best_length = torch.where(best_active < 0, max_lens, active.lengths[:, 0])
        bound = best_active / length_divisor(best_length, **divisor_opts)
        wanted = ended.scores.topk(min(opts.n_best or opts.beam_size, num_ended), dim=1).values[:, -1]
        done = done | (bound < wanted)
    return done
