"""
Forced scoring: the score of given label sequences under the exact definition of a search, every component apart. For
search errors (does the reference score better than what was found?), rescoring and audits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .core.ctc import ctc_full_sum
from .core.posteriors import CtcPosteriors
from .core.result import SearchResult, combine_components, length_divisor
from .options import LabelSyncOptions, SearchOptions, TimeSyncOptions
from .scorers.base import expand_rows
from .scorers.combined import ScorerSet
from .time_sync import forced_ctc_part

__all__ = ["forced_label_scores", "forced_scores"]

NEG_INF = float("-inf")


def forced_label_scores(
    scorers: ScorerSet, labels: Tensor, label_lengths: Tensor, *, eos: bool = True, score_end: Tensor | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """
    :param scorers:
    :param labels: [B, N, L]
    :param label_lengths: [B, N]
    :param eos: whether the end is scored
    :param score_end: [B, N] bool, for which sequences it is. None: all
    :return: component -> [B, N] float64, before scales; scores of whole hypotheses after the last step (attention
        sums), name -> [B N, ...]
    """
    batch, num_hyps, max_len = labels.shape
    device = labels.device
    utt = torch.arange(batch, device=device).repeat_interleave(num_hyps)
    rows = torch.arange(batch * num_hyps, device=device)
    flat_labels, lengths = labels.flatten(0, 1), label_lengths.flatten()
    state = expand_rows(scorers.initial_state(batch), num_hyps)
    prev = torch.full_like(rows, scorers.eos_index)
    totals: dict[str, Tensor] = {}
    row_scores: dict[str, Tensor] = {}
    for i in range(max_len + 1):
        scores, state = scorers.step(prev, state, utt)
        inside = i < lengths
        target = torch.where(inside, flat_labels[:, min(i, max_len - 1)] if max_len else prev, scorers.eos_index)
        counts = inside | ((i == lengths) & eos)
        if score_end is not None:
            counts &= inside | score_end.flatten()
        for name in scores.components:
            value = scores.component_of(name, rows, target)
            value = torch.where(counts, value, 0.0)
            totals[name] = totals[name] + value if name in totals else value
        for name, value in scorers.row_scores(state).items():
            at_end = (i == lengths).view(-1, *[1] * (value.dim() - 1))
            row_scores[name] = torch.where(at_end, value, row_scores[name]) if name in row_scores else value
        prev = target
    return {name: value.view(batch, num_hyps) for name, value in totals.items()}, row_scores


def forced_scores(
    *,
    scorers: ScorerSet,
    ctc: CtcPosteriors | None,
    labels: Tensor,
    label_lengths: Tensor,
    opts: SearchOptions,
    frame_lengths: Tensor | None = None,
) -> SearchResult:
    """
    :param scorers: label scorers with their scales
    :param ctc: None if ``opts.ctc_scale`` is 0 and the search is label-synchronous
    :param labels: [B, N, L] int64, zeros behind the end
    :param label_lengths: [B, N]
    :param opts: of the search whose definition counts: :class:`LabelSyncOptions` or :class:`TimeSyncOptions`
    :param frame_lengths: [B] encoder frames, only needed for the length limits of ``published_scoring``
    :return: the hypotheses in the order given; -inf for what is impossible. Length limits (``max_len_ratio``) are not
        applied: they belong to the search, not to its score.
    """
    if isinstance(opts, TimeSyncOptions):
        components, _ = forced_label_scores(scorers, labels, label_lengths, eos=opts.eos_at_end)
        scale = opts.ctc_scale or 1.0
        ctc_part = forced_ctc_part(ctc, labels, label_lengths, opts)
        components = {"ctc": ctc_part / scale, **components}
        scales = {"ctc": scale, **scorers.scales}
        offset = 1
    elif isinstance(opts, LabelSyncOptions):
        score_end = None
        if opts.published_scoring:
            if frame_lengths is None:
                raise ValueError("published_scoring needs the encoder lengths (no end score at the maximum length)")
            max_lens = (frame_lengths * opts.max_len_ratio).long().clamp(min=1)
            score_end = label_lengths < max_lens[:, None]
        components, row_scores = forced_label_scores(scorers, labels, label_lengths, score_end=score_end)
        scales = dict(scorers.scales)
        if opts.ctc_scale:
            num_hyps = labels.shape[1]
            score = ctc_full_sum(
                ctc.log_probs,
                ctc.lengths,
                labels.flatten(0, 1),
                label_lengths.flatten(),
                utt=torch.arange(labels.shape[0], device=labels.device).repeat_interleave(num_hyps),
            )
            components["ctc"] = score.view(label_lengths.shape)
            scales["ctc"] = opts.ctc_scale
        if opts.coverage_scale:
            covered = (row_scores["attention_sums"] > opts.coverage_threshold).sum(dim=1)
            components["coverage"] = covered.view(label_lengths.shape).double()
            scales["coverage"] = opts.coverage_scale
        if opts.monotonicity_scale:
            components["monotonicity"] = row_scores["monotonicity"].view(label_lengths.shape).double()
            scales["monotonicity"] = opts.monotonicity_scale
        offset = 0 if opts.published_scoring else 1
    else:
        raise TypeError(f"no search has the options {type(opts).__name__}")
    divisor = length_divisor(label_lengths, exponent=opts.length_norm_exponent, offset=offset)
    return SearchResult(
        labels=labels,
        label_lengths=label_lengths,
        scores=combine_components(components, scales) / divisor,
        components=components,
        scales=scales,
    )
