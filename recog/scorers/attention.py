"""
The attention decoder as a label scorer.

One step is run in plain torch on the module's own parameters: the frontend's overhead and its buffers of
[B, K, T, attention] would make the step 1.2 to 3 times as expensive as its arithmetic.
"""

from __future__ import annotations

import returnn.frontend as rf
import torch
from torch import Tensor
from torch.nn import functional

from rf_models.decoder import AttentionDecoder, AttentionMemory
from rf_models.transformer_decoder import TransformerAttentionDecoder

from .base import LabelScorer, State
from .coverage import initial_track, next_track, track_scores
from .decoder_cell import DecoderCell
from .transformer import TransformerAttentionScorer

__all__ = ["AttentionScorer", "make_attention_scorer"]

_CHUNK_BYTES = {"cpu": 3 << 20}
"""Size of the buffer [rows, T, attention], by type of device: on a CPU it should stay in the cache."""
_CHUNK_BYTES_DEFAULT = 256 << 20


def make_attention_scorer(
    decoder: AttentionDecoder | TransformerAttentionDecoder,
    memory: AttentionMemory | rf.State,
    lengths: Tensor,
    *,
    track: bool = False,
) -> LabelScorer:
    """
    :param decoder: of any kind
    :param memory: what it needs of the encoder, of a batch of B utterances
    :param lengths: [B] encoder frames
    :param track: also keep what the coverage and monotonicity scores need, as ``state["track"]``
    """
    if isinstance(decoder, TransformerAttentionDecoder):
        return TransformerAttentionScorer(decoder, memory, lengths, track=track)
    return AttentionScorer(decoder, memory, lengths, track=track)


class AttentionScorer(LabelScorer):
    """
    :func:`rf_models.decoder.AttentionDecoder.step` in evaluation mode, for rows of any utterances.

    State: LSTM h and c, context vector, accumulated attention weights (beta), and whether there is a label yet.
    """

    on_cpu: bool | None = None
    """Whether lengths may be read on the host in each step. None: if the encoder states are on a CPU."""

    def __init__(self, decoder: AttentionDecoder, memory: AttentionMemory, lengths: Tensor, *, track: bool = False):
        """
        :param decoder:
        :param memory: of a batch of B utterances
        :param lengths: [B] encoder frames
        :param track: also keep what the coverage and monotonicity scores need
        """
        self.num_labels = decoder.target_dim.dimension
        batch_dim = memory.enc.remaining_dims([memory.enc_spatial_dim, decoder.enc_dim])
        dims = [*batch_dim, memory.enc_spatial_dim]
        self.enc = memory.enc.copy_transpose([*dims, decoder.enc_dim]).raw_tensor
        self.enc_ctx = memory.enc_ctx.copy_transpose([*dims, decoder.att_dim]).raw_tensor
        fertility = memory.inv_fertility.copy_transpose([*dims, decoder.feedback_dim]).raw_tensor
        self.half_fertility = 0.5 * fertility[:, :, 0]
        self.lengths = lengths.to(self.enc.device)
        self.outside = torch.arange(self.enc.shape[1], device=self.enc.device) >= self.lengths[:, None]
        # One copy to the host per batch, none per step. On a CPU, chunks are cut to their utterances' length.
        self.max_length = int(self.lengths.max())
        if self.on_cpu is None:
            self.on_cpu = self.enc.device.type == "cpu"
        self.track = track

        def weight(param, *dims) -> Tensor:
            return param.copy_transpose(dims).raw_tensor.detach()

        self.cell = DecoderCell(
            target_embed=decoder.target_embed,
            s=decoder.s,
            readout_in=decoder.readout_in,
            output_prob=decoder.output_prob,
        )
        self.w_feedback = weight(decoder.weight_feedback.weight, decoder.feedback_dim, decoder.att_dim)  # [1, A]
        self.w_s = weight(decoder.s_transformed.weight, decoder.att_dim, decoder.lstm_dim)
        self.w_energy = weight(decoder.energy.weight, decoder.att_dim, decoder.feedback_dim)[:, 0]
        item_size = self.enc_ctx.element_size()
        chunk_bytes = _CHUNK_BYTES.get(self.enc.device.type, _CHUNK_BYTES_DEFAULT)
        self.chunk_rows = max(1, chunk_bytes // (max(1, self.max_length) * self.enc_ctx.shape[2] * item_size))

    def initial_state(self, batch_size: int) -> State:
        """:return: all zero: the first step sees no embedding and no context, as in training"""
        if batch_size != self.enc.shape[0]:
            raise ValueError(f"{batch_size} utterances, but the decoder has the encoder states of {self.enc.shape[0]}")
        new = self.enc.new_zeros
        state = {**self.cell.initial_state(batch_size), "beta": new((batch_size, self.enc.shape[1]))}
        if self.track:
            state["track"] = initial_track(new((batch_size, self.enc.shape[1])))
        return state

    def step(self, prev_labels: Tensor, state: State, utt: Tensor) -> tuple[Tensor, State]:
        """See :func:`LabelScorer.step`."""
        embed = self.cell.embed(prev_labels, state)
        s, h, c = self.cell.lstm(embed, state)
        weights, context = self._attend(functional.linear(s, self.w_s), state["beta"], utt)
        new_state = {
            "h": h,
            "c": c,
            "att": context,
            "beta": torch.addcmul(state["beta"], weights, self.half_fertility.index_select(0, utt)),
            "has_label": torch.ones_like(state["has_label"]),
        }
        if self.track:
            new_state["track"] = next_track(state["track"], weights)
        return self.cell.readout(s, embed, context), new_state

    def row_scores(self, state: State) -> dict[str, Tensor]:
        """:return: see :func:`recog.scorers.coverage.track_scores`. None without tracking"""
        return track_scores(state["track"]) if self.track else {}

    def _attend(self, s: Tensor, beta: Tensor, utt: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param s: [N, A] transformed LSTM output
        :param beta: [N, T]
        :param utt: [N]
        :return: attention weights [N, T], context [N, enc]
        """
        num_rows = s.shape[0]
        if num_rows <= self.chunk_rows and not self.on_cpu:
            return self._attend_chunk(s, beta, utt, self.enc.shape[1])
        weights, context = torch.zeros_like(beta), s.new_empty((num_rows, self.enc.shape[2]))
        lengths = self.lengths[utt].tolist() if self.on_cpu else [self.enc.shape[1]] * num_rows
        for start in range(0, num_rows, self.chunk_rows):
            rows = slice(start, start + self.chunk_rows)
            length = max(lengths[rows])
            weights[rows, :length], context[rows] = self._attend_chunk(s[rows], beta[rows], utt[rows], length)
        return weights, context

    def _attend_chunk(self, s: Tensor, beta: Tensor, utt: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The same for as many rows as one buffer holds, over the first frames only."""
        hidden = self.enc_ctx[:, :length].index_select(0, utt)  # [n, T, A], a copy
        # + beta w_feedback + s, as one matrix product that adds to it
        left = torch.stack((beta[:, :length], torch.ones_like(beta[:, :length])), dim=2)
        right = torch.stack((self.w_feedback.expand_as(s), s), dim=1)
        hidden.baddbmm_(left, right).tanh_()
        energy = torch.matmul(hidden, self.w_energy)
        energy = energy.masked_fill_(self.outside[:, :length].index_select(0, utt), float("-inf"))
        weights = energy.softmax(dim=1)
        context = torch.bmm(weights[:, None], self.enc[:, :length].index_select(0, utt))[:, 0]
        return weights, context
