"""
Time-synchronous one-pass beam search ("optsr"): a CTC prefix search whose prefixes are also scored by attention
decoder, external and internal LM.

A hypothesis is a label prefix h with two CTC scores: of its alignments that end in blank (b) and in its last label (n).
Both are kept apart because "a a" can only come from "a blank". With x_t = log p_t, the scales c (ctc_scale),
beta (blank_scale), rho (repeat_scale), and "+" for the combination of paths (maximum, or
c log(exp(x / c) + exp(y / c)), which is log-sum for scores that are c times a log-prob), frame t does::

    b'(h)   = (b(h) + n(h))  beta x_t(blank)
    n'(h)   = n(h) rho x_t(last(h))  +  (b(g) + [last(g) != v] n(g)) c x_t(v)        for h = g v

    S(h)    = b(h) + n(h) combined, plus the label scores of h

Prefixes that are reached from two sides are one hypothesis *before* pruning, so that the beam never holds one twice.
Label scorers are run once for each prefix that enters the beam, in one batch of all new prefixes of the frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .core.ctc import Combine, make_lattice, one_minus_terms, scaled
from .core.posteriors import CtcPosteriors
from .core.prefixes import Prefixes
from .core.result import SearchResult, combine_components, length_divisor, sort_hypotheses
from .options import TimeSyncOptions
from .scorers.base import expand_rows, select_rows, write_rows
from .scorers.combined import ScorerSet

__all__ = ["ctc_part_scales", "forced_ctc_part", "time_sync_search"]

NEG_INF = float("-inf")


def ctc_part_scales(opts: TimeSyncOptions) -> tuple[float, float, float, Combine]:
    """:return: scales of new labels, blanks, repeated labels; combination of paths"""
    label = opts.ctc_scale
    blank, repeat = (label if scale == "ctc" else float(scale) for scale in (opts.blank_scale, opts.repeat_scale))
    # Without a scale there is nothing to sum: all paths are alike.
    return label, blank, repeat, Combine(label if opts.recombination == "sum" and label else None)


def forced_ctc_part(ctc: CtcPosteriors, labels: Tensor, label_lengths: Tensor, opts: TimeSyncOptions) -> Tensor:
    """
    :param ctc: of B utterances
    :param labels: [B, N, L]
    :param label_lengths: [B, N]
    :param opts:
    :return: [B, N] float64: the scaled CTC score of these label sequences, over all alignments
    """
    batch, num_hyps, _ = labels.shape
    label_scale, blank_scale, repeat_scale, combine = ctc_part_scales(opts)
    lattice = make_lattice(
        ctc.log_probs,
        ctc.lengths,
        labels.flatten(0, 1),
        label_lengths.flatten(),
        utt=torch.arange(batch, device=labels.device).repeat_interleave(num_hyps),
        label_scale=label_scale,
        blank_scale=blank_scale,
        repeat_scale=repeat_scale,
        one_minus_term=opts.one_minus_term,
    )
    return lattice.score(combine).view(batch, num_hyps)


def time_sync_search(
    *, scorers: ScorerSet, ctc: CtcPosteriors, opts: TimeSyncOptions, frame_lengths: Tensor | None = None
) -> SearchResult:
    """
    :param scorers: label scorers with their scales
    :param ctc:
    :param opts:
    :param frame_lengths: [B] encoder frames, what ``max_len_ratio`` refers to. None: the frames of ctc
    :return: components "ctc" and those of the scorers. "ctc" is the CTC part divided by ctc_scale; with blank_scale and
        repeat_scale "ctc" it is log P_ctc (recombination "sum") or that of the best alignment ("max").
    """
    batch = ctc.log_probs.shape[0]
    device = ctc.log_probs.device
    # Utterances that are still running must come first: each frame then works on a slice of the batch.
    lengths, order = torch.sort(ctc.lengths, descending=True, stable=True)
    search = _Search(scorers, ctc.log_probs[order], order, opts)
    frame_lengths = ctc.lengths if frame_lengths is None else frame_lengths.to(device)
    max_lens = (frame_lengths * opts.max_len_ratio).long().clamp(min=1)[order]
    if bool((max_lens < lengths).any()):  # there are never more labels than CTC frames
        search.max_lens = max_lens
    lengths_on_host = lengths.tolist()  # the only copy to the host outside of the loop
    num_running = batch
    for t in range(lengths_on_host[0]):
        while lengths_on_host[num_running - 1] <= t:
            num_running -= 1
        search.frame(t, num_running)
    result = search.finish()
    if opts.min_len_ratio:
        too_short = result.label_lengths < (frame_lengths * opts.min_len_ratio).long()[order, None]
        result.components["ctc"] = result.components["ctc"].masked_fill(too_short, NEG_INF)

    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(batch, device=device)
    result.labels, result.label_lengths = result.labels[inverse], result.label_lengths[inverse]
    result.components = {name: value[inverse] for name, value in result.components.items()}
    if opts.exact_ctc:
        ctc_part = forced_ctc_part(ctc, result.labels, result.label_lengths, opts)
        # Slots without a hypothesis keep none.
        empty = result.components["ctc"] == NEG_INF
        result.components["ctc"] = (ctc_part / result.scales["ctc"]).masked_fill(empty, NEG_INF)
    divisor = length_divisor(result.label_lengths, exponent=opts.length_norm_exponent, offset=1)
    result.scores = combine_components(result.components, result.scales) / divisor
    return sort_hypotheses(result, n_best=opts.n_best or opts.beam_size)


class _Search:
    """The beam. Survivors keep their slot, new prefixes overwrite what was pruned: only new states are written."""

    def __init__(self, scorers: ScorerSet, log_probs: Tensor, order: Tensor, opts: TimeSyncOptions):
        """
        :param scorers:
        :param log_probs: [B, T, V+1], longest utterance first
        :param order: [B] the utterance of each row, as the scorers know it
        :param opts:
        """
        self.scorers, self.log_probs, self.opts = scorers, log_probs, opts
        self.batch, _, num_classes = log_probs.shape
        self.num_labels = num_classes - 1
        self.beam_size = opts.beam_size
        self.eos = scorers.eos_index
        self.max_lens: Tensor | None = None  # [B]
        self.device = device = log_probs.device
        self.label_scale, self.blank_scale, self.repeat_scale, self.combine = ctc_part_scales(opts)
        shape = (self.batch, self.beam_size)
        self.b = torch.full(shape, NEG_INF, dtype=torch.float64, device=device)
        self.n = self.b.clone()
        self.b[:, 0] = 0.0
        self.label_score = torch.zeros(shape, dtype=torch.float64, device=device)
        self.components = {name: torch.zeros_like(self.label_score) for name in scorers.scales}
        self.prefixes = Prefixes(self.batch, self.beam_size, device=device)
        self.utt = order[:, None].expand(shape).contiguous()
        self.rows = torch.arange(self.batch * self.beam_size, device=device).view(shape)

        # The empty prefix in slot 0; other slots are rows of the same kind, to be overwritten.
        start = torch.full((self.batch,), self.eos, dtype=torch.int64, device=device)
        state = select_rows(scorers.initial_state(self.batch), order)
        scores, state = scorers.step(start, state, order)
        self.decoder_rows = torch.tensor(self.batch)
        self.state = expand_rows(state, self.beam_size)
        # Scores of all extensions of each prefix, valid as long as the prefix is in the beam.
        self.next_total = scores.total.repeat_interleave(self.beam_size, dim=0)  # [B K, V]
        self.next_components = {
            name: value if value.dim() == 1 else value.repeat_interleave(self.beam_size, dim=0)
            for name, value in scores.components.items()
        }
        self.next_eos = self._eos_scores(scores)  # name -> [rows]
        self.next_eos = {name: value.repeat_interleave(self.beam_size) for name, value in self.next_eos.items()}
        self.next_total[:, self.eos] = NEG_INF  # EOS is no label of a prefix

    def _eos_scores(self, scores) -> dict[str, Tensor]:
        """:return: name -> [rows] float64, score of the end for each component"""
        num_rows = scores.total.shape[0]
        rows = torch.arange(num_rows, device=self.device)
        return {name: scores.component_of(name, rows, torch.full_like(rows, self.eos)) for name in scores.components}

    def frame(self, t: int, num_running: int) -> None:
        """
        One frame.

        :param t:
        :param num_running: the first so many utterances have this frame
        """
        r, beam_size, opts = num_running, self.beam_size, self.opts
        x = self.log_probs[:r, t]  # [r, V+1]
        # Copies: the scores of this frame are written before the extensions read those of the frame before.
        b, n, label_score = self.b[:r].clone(), self.n[:r].clone(), self.label_score[:r]
        last = self.prefixes.last[:r].clamp(min=0)
        x_label, x_blank = x[:, :-1], x[:, -1].double()
        x_last = x_label.gather(1, last).double()  # [r, K]
        new_b = self.combine(b, n) + scaled(x_blank, self.blank_scale)[:, None]
        new_n = n + scaled(x_last, self.repeat_scale)

        # Extension by one label. Paths that end in label v cannot go to a new v directly.
        from_b, from_n = b, n
        if opts.one_minus_term:
            after_blank, after_label = one_minus_terms(x_blank, x_last)
            from_b, from_n = b + after_blank[:, None], n + after_label
        from_any = self.combine(from_b, from_n)
        x_scaled = scaled(x_label, self.label_scale)
        # Prefixes of the beam which are an extension of another one in the beam get its mass now.
        parent, has_parent = self.prefixes.find_parents(r)
        repeats = self.prefixes.last[:r].gather(1, parent) == self.prefixes.last[:r]
        inflow = torch.where(repeats, from_b.gather(1, parent), from_any.gather(1, parent))
        inflow = inflow + x_scaled.gather(1, last).double()
        new_n = self.combine(new_n, inflow.masked_fill(~has_parent, NEG_INF))

        stay = label_score + self.combine(new_b, new_n)
        scores, index = self._top(x_scaled, from_b, from_any, label_score, stay, parent, has_parent)
        if opts.pruning_threshold is not None:
            scores = scores.masked_fill(scores < scores[:, :1] - opts.pruning_threshold, NEG_INF)
        possible = scores > NEG_INF
        is_new = possible & (index >= beam_size)
        kept = _slots_of(index, possible & ~is_new, num_slots=beam_size)
        self.prefixes.keep(kept)
        self.b[:r] = new_b.masked_fill(~kept, NEG_INF)
        self.n[:r] = new_n.masked_fill(~kept, NEG_INF)

        # The j-th new prefix goes to the j-th free slot. Needs a copy to the host: how many there are.
        new_first = torch.argsort((~is_new).to(torch.uint8), dim=1, stable=True)
        free_first = torch.argsort(kept.to(torch.uint8), dim=1, stable=True)[:, : index.shape[1]]
        sorted_new = is_new.gather(1, new_first)
        utt, place = sorted_new.nonzero(as_tuple=True)
        if not utt.numel():
            return
        extension = index.gather(1, new_first)[utt, place] - beam_size
        slot = free_first[utt, place]
        parent_slot, label = extension // self.num_labels, extension % self.num_labels
        mass = torch.where(
            self.prefixes.last[utt, parent_slot] == label, from_b[utt, parent_slot], from_any[utt, parent_slot]
        )
        self._extend(utt, parent_slot, label, slot, mass + x_scaled[utt, label].double())

    def _top(
        self,
        x_scaled: Tensor,
        from_b: Tensor,
        from_any: Tensor,
        label_score: Tensor,
        stay: Tensor,
        parent: Tensor,
        has_parent: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """
        :return: scores [r, K'] of the best prefixes of the next beam, best first; index: slot of a prefix that stays,
            or beam_size + slot * V + label of an extension
        """
        r, beam_size, num_labels = x_scaled.shape[0], self.beam_size, self.num_labels
        if self.opts.num_candidates is not None and self.opts.num_candidates < num_labels:
            x_scaled_top, subset = x_scaled.topk(self.opts.num_candidates, dim=1)
            next_total = self.next_total.view(self.batch, beam_size, num_labels)[:r]
            next_total = next_total.gather(2, subset[:, None, :].expand(-1, beam_size, -1))
        else:
            x_scaled_top, subset = x_scaled, None
            next_total = self.next_total.view(self.batch, beam_size, num_labels)[:r]
        base = (label_score + from_any).float()
        extensions = next_total + x_scaled_top[:, None, :]
        extensions += base[:, :, None]
        if self.max_lens is not None:
            at_max = self.prefixes.lengths[:r] >= self.max_lens[:r, None]
            extensions.masked_fill_(at_max[:, :, None], NEG_INF)
        # The last label again: only the paths that end in blank. Extensions that are in the beam have got their mass.
        last = self.prefixes.last[:r]
        again = (label_score + from_b).float() - base
        again = torch.where(from_b == NEG_INF, NEG_INF, again)
        again = torch.where(last < 0, 0.0, again)
        merged_rows = torch.where(has_parent, parent, 0)
        if subset is None:
            columns = last.clamp(min=0)[:, :, None]
            extensions.scatter_add_(2, columns, again[:, :, None])
            flat = extensions.view(r, -1)
            position = merged_rows * num_labels + last.clamp(min=0)
            blocked = torch.where(has_parent, NEG_INF, 0.0).float()
            flat.scatter_add_(1, position, blocked)
        else:
            is_last = subset[:, None, :] == last[:, :, None]  # [r, K, M]
            extensions += torch.where(is_last, again[:, :, None], 0.0)
            child = (merged_rows[:, None, :] == torch.arange(beam_size, device=self.device)[None, :, None]) & (
                has_parent[:, None, :]
            )  # [r, K parent, K child]
            child_label = torch.where(child, last[:, None, :], -1)  # [r, K, K]
            extensions.masked_fill_((child_label[:, :, :, None] == subset[:, None, None, :]).any(dim=2), NEG_INF)
        width = extensions.shape[2]
        row_scores, row_labels = extensions.topk(min(beam_size, width), dim=2)
        candidates = torch.cat((stay.float(), row_scores.flatten(1)), dim=1)
        scores, choice = candidates.topk(beam_size, dim=1)
        # Places 0 ... K-1 are the prefixes that stay.
        per_row = row_labels.shape[2]
        extension = (choice - beam_size).clamp(min=0)
        label = row_labels.flatten(1).gather(1, extension)
        if subset is not None:
            label = subset.gather(1, label)
        index = torch.where(choice < beam_size, choice, beam_size + (extension // per_row) * num_labels + label)
        return scores, index

    def _extend(self, utt: Tensor, parent_slot: Tensor, label: Tensor, slot: Tensor, mass: Tensor) -> None:
        """
        Writes new prefixes into their slots and runs the scorers on them. All arguments [number of new prefixes].

        :param mass: their CTC score, all ending in the label
        """
        parent_rows, rows = self.rows[utt, parent_slot], self.rows[utt, slot]
        components = {}
        for name, value in self.components.items():
            increment = self.next_components[name]
            increment = increment[label] if increment.dim() == 1 else increment[parent_rows, label]
            components[name] = value[utt, parent_slot] + increment.double()
        total = combine_components(components, self.scorers.scales) if components else torch.zeros_like(mass)
        state = select_rows(self.state, parent_rows)
        self.prefixes.extend(utt, parent_slot, label, slot)
        self.n[utt, slot] = mass
        self.b[utt, slot] = NEG_INF
        self.label_score[utt, slot] = total
        for name, value in components.items():
            self.components[name][utt, slot] = value
        scores, state = self.scorers.step(label, state, self.utt[utt, slot])
        self.decoder_rows += len(utt)
        self.state = write_rows(self.state, rows, state)
        eos_scores = self._eos_scores(scores)
        scores.total[:, self.eos] = NEG_INF
        self.next_total.index_copy_(0, rows, scores.total)
        for name, value in scores.components.items():
            if value.dim() > 1:
                self.next_components[name].index_copy_(0, rows, value)
            self.next_eos[name].index_copy_(0, rows, eos_scores[name])

    def finish(self) -> SearchResult:
        """:return: all prefixes with the scores of the end, unsorted, without total scores"""
        ctc_scale = self.label_scale or 1.0
        scales = {"ctc": ctc_scale, **self.scorers.scales}
        components = {"ctc": self.combine(self.b, self.n) / ctc_scale, **self.components}
        if self.opts.eos_at_end:
            for name in self.components:
                components[name] = components[name] + self.next_eos[name].view_as(components[name])
        return SearchResult(
            labels=self.prefixes.labels,
            label_lengths=self.prefixes.lengths,
            scores=components["ctc"],
            components=components,
            scales=scales,
            stats={"decoder_rows": self.decoder_rows},
        )


def _slots_of(index: Tensor, chosen: Tensor, *, num_slots: int) -> Tensor:
    """:return: [r, num_slots] bool, True at the slots index [r, K'] where chosen [r, K'] is True"""
    slots = torch.zeros((index.shape[0], num_slots + 1), dtype=torch.bool, device=index.device)
    slots.scatter_(1, torch.where(chosen, index, num_slots), True)
    return slots[:, :num_slots]
