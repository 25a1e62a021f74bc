"""
The Transformer decoder as a label scorer.
"""

from __future__ import annotations

import returnn.frontend as rf
import torch
from torch import Tensor
from torch.nn import functional

from rf_models.transformer_decoder import TransformerAttentionDecoder
from rf_models.transformer_steps import TransformerRows, initial_rows, step_rows

from .base import Growing, LabelScorer, State
from .coverage import initial_track, next_track, track_scores

__all__ = ["TransformerAttentionScorer"]


class TransformerAttentionScorer(LabelScorer):
    """
    :class:`rf_models.transformer_decoder.TransformerAttentionDecoder` in evaluation mode, for rows of any utterances.

    State: keys and values of the self-attention of each hypothesis, whose lengths differ in time-synchronous search.
    "Attention weights" (coverage, monotonicity, plots) are those of the top layer, averaged over its heads.
    """

    def __init__(self, decoder: TransformerAttentionDecoder, memory: rf.State, lengths: Tensor, *, track: bool = False):
        """
        :param decoder:
        :param memory: of a batch of B utterances
        :param lengths: [B] encoder frames
        :param track: also keep what the coverage and monotonicity scores need
        """
        self.num_labels = decoder.target_dim.dimension
        self.decoder = decoder
        self.track = track
        self.keys_values: list[tuple[Tensor, Tensor]] = []  # for each layer, [B, heads, T, dim per head]
        for name, layer in decoder.layers.items():
            att, state = layer.cross_att, memory[name].cross_att
            dims = [*state.k.remaining_dims([state.kv_axis, att.num_heads, att.key_dim_per_head])]
            dims += [att.num_heads, state.kv_axis]
            self.keys_values.append(
                (
                    state.k.copy_transpose([*dims, att.key_dim_per_head]).raw_tensor,
                    state.v.copy_transpose([*dims, att.value_dim_per_head]).raw_tensor,
                )
            )
        keys = self.keys_values[0][0]
        self.batch_size, _, self.num_frames, _ = keys.shape
        self.inside = torch.arange(self.num_frames, device=keys.device) < lengths.to(keys.device)[:, None]

    def initial_state(self, batch_size: int) -> State:
        """:return: before BOS: nothing read"""
        if batch_size != self.batch_size:
            raise ValueError(f"{batch_size} utterances, but the decoder has the encoder states of {self.batch_size}")
        rows = initial_rows(self.decoder, batch_size)
        state = {"self_att": Growing(data=rows.keys_values, lengths=rows.lengths, max_length=0)}
        if self.track:
            state["track"] = initial_track(self.keys_values[0][0].new_zeros((batch_size, self.num_frames)))
        return state

    def step(self, prev_labels: Tensor, state: State, utt: Tensor) -> tuple[Tensor, State]:
        """See :func:`LabelScorer.step`."""
        history = state["self_att"]
        rows = TransformerRows(keys_values=history.data[:, : history.max_length], lengths=history.lengths)
        attention = _CrossAttention(self, utt)
        logits, rows = step_rows(self.decoder, prev_labels, rows, cross_attention=attention)
        new_state = {
            "self_att": Growing(data=rows.keys_values, lengths=rows.lengths, max_length=history.max_length + 1)
        }
        if self.track:
            new_state["track"] = next_track(state["track"], attention.weights)
        return logits.float().log_softmax(dim=1), new_state

    def row_scores(self, state: State) -> dict[str, Tensor]:
        """:return: see :func:`recog.scorers.coverage.track_scores`. None without tracking"""
        return track_scores(state["track"]) if self.track else {}


class _CrossAttention:
    """
    The cross-attention of the rows of one step. The rows are sorted into a rectangle [utterances, rows of each], so
    that the keys and values of an utterance are read in place by all its rows, and not copied for each.
    """

    def __init__(self, scorer: TransformerAttentionScorer, utt: Tensor):
        """
        :param scorer:
        :param utt: [N] int64 utterance of each row
        """
        self.scorer = scorer
        # The only values that the host must know: which utterances there are, and the largest number of rows.
        present, place, counts = torch.unique(utt, return_inverse=True, return_counts=True)
        order = torch.argsort(place, stable=True)
        first = counts.cumsum(0) - counts
        self.index = torch.empty_like(utt)  # of each row in the rectangle
        num_columns = int(counts.max()) if len(utt) else 0
        rank = torch.arange(len(utt), device=utt.device) - first[place[order]]
        self.index[order] = place[order] * num_columns + rank
        self.rectangle = (len(present), num_columns)
        self.present = None if len(present) == scorer.batch_size else present
        inside = scorer.inside if self.present is None else scorer.inside[self.present]
        self.mask = inside[:, None, None, :]  # [U, heads, rows, T]
        self.weights: Tensor | None = None  # [N, T] of the top layer, mean over the heads, if they are tracked

    def __call__(self, layer: int, query: Tensor) -> Tensor:
        """
        :param layer: 0-based
        :param query: [N, heads, dim per head]
        :return: contexts [N, heads, dim per head]
        """
        keys, values = self.scorer.keys_values[layer]
        if self.present is not None:
            keys, values = keys[self.present], values[self.present]
        _, num_heads, head_dim = query.shape
        slots = query.new_zeros((self.rectangle[0] * self.rectangle[1], num_heads, head_dim))
        slots[self.index] = query
        slots = slots.view(*self.rectangle, num_heads, head_dim).transpose(1, 2)  # [U, heads, rows, dim]
        if self.scorer.track and layer == len(self.scorer.keys_values) - 1:
            energy = slots @ keys.transpose(2, 3) * head_dim**-0.5
            weights = energy.masked_fill(~self.mask, float("-inf")).softmax(dim=3)
            context = weights @ values
            self.weights = weights.mean(dim=1).flatten(0, 1)[self.index]
        else:
            context = functional.scaled_dot_product_attention(slots, keys, values, attn_mask=self.mask)
        return context.transpose(1, 2).flatten(0, 1)[self.index]
