"""
Estimates of the internal language model of the attention decoder (Zeineldeen et al. 2021,
https://arxiv.org/abs/2104.05544; Meng et al. 2021, https://arxiv.org/abs/2011.01991 for the zero context).

All but the density ratio are the decoder itself with another context vector c_i in place of the attention's:

=============  =======================================================================================
zero           c_i = 0
avg            c_i = mean of the encoder states over the frames of the utterance
mini_lstm      c_i = W LSTM(e_i) + b, a small LSTM over the labels (:mod:`rf_models.ilm`); with W = 0 one
               context vector for all, such as the average over the training data
density_ratio  another language model, trained on the transcripts (:mod:`recog.scorers.lm`)
=============  =======================================================================================

c_0, which the LSTM reads before the first label, is 0 in all, as in the decoder, and so is the embedding e_1.

A Transformer decoder has the same estimates but for the Mini-LSTM: its cross-attention sees one encoder state only,
which is 0 or the mean.
"""

from __future__ import annotations

import returnn.frontend as rf
import torch
from returnn.tensor import Dim
from torch import Tensor

from rf_models.decoder import AttentionDecoder
from rf_models.ilm import MiniLstmIlm
from rf_models.transformer_decoder import TransformerAttentionDecoder

from .base import LabelScorer, State
from .decoder_cell import DecoderCell
from .transformer import TransformerAttentionScorer

__all__ = ["FixedContextIlmScorer", "MiniLstmIlmScorer", "average_encoder", "make_fixed_context_ilm_scorer"]


def average_encoder(enc: Tensor, lengths: Tensor) -> Tensor:
    """
    :param enc: [B, T, enc] encoder states, anything behind the end
    :param lengths: [B] frames
    :return: [B, enc] mean over the frames of each utterance (zero if there are none)
    """
    lengths = lengths.to(enc.device)
    outside = torch.arange(enc.shape[1], device=enc.device) >= lengths[:, None]
    return enc.masked_fill(outside[:, :, None], 0.0).sum(dim=1) / lengths.clamp(min=1)[:, None]


def make_fixed_context_ilm_scorer(
    decoder: AttentionDecoder | TransformerAttentionDecoder, context: Tensor | None, *, batch_size: int
) -> LabelScorer:
    """
    :param decoder: of any kind
    :param context: [B, enc] for each utterance. None: zero
    :param batch_size: B
    """
    if not isinstance(decoder, TransformerAttentionDecoder):
        return FixedContextIlmScorer(decoder, context)
    weight = decoder.logits.weight.raw_tensor
    if context is None:
        context = weight.new_zeros((batch_size, decoder.enc_dim.dimension))
    utt_dim, frame_dim = Dim(batch_size, name="utterances"), Dim(1, name="frame")
    enc = rf.convert_to_tensor(context[:, None].to(weight), dims=[utt_dim, frame_dim, decoder.enc_dim])
    enc.feature_dim = decoder.enc_dim
    memory = decoder.transform_encoder(enc, axis=frame_dim)
    return TransformerAttentionScorer(decoder, memory, torch.ones(batch_size, dtype=torch.int64))


class FixedContextIlmScorer(LabelScorer):
    """The decoder with a context vector that does not depend on the labels."""

    def __init__(self, decoder: AttentionDecoder, context: Tensor | None = None):
        """
        :param decoder:
        :param context: [B, enc] (an own one for each utterance) or [enc]. None: zero
        """
        self.cell = DecoderCell(
            target_embed=decoder.target_embed,
            s=decoder.s,
            readout_in=decoder.readout_in,
            output_prob=decoder.output_prob,
        )
        self.num_labels = self.cell.num_labels
        if context is None:
            context = self.cell.bias.new_zeros((self.cell.context_dim,))
        if context.shape[-1] != self.cell.context_dim:
            raise ValueError(
                f"the context vector has {context.shape[-1]} values, the encoder states {self.cell.context_dim}"
            )
        self.context = context.to(self.cell.bias)

    def initial_state(self, batch_size: int) -> State:
        """:return: all zero"""
        return self.cell.initial_state(batch_size)

    def step(self, prev_labels: Tensor, state: State, utt: Tensor) -> tuple[Tensor, State]:
        """See :func:`LabelScorer.step`."""
        embed = self.cell.embed(prev_labels, state)
        s, h, c = self.cell.lstm(embed, state)
        context = self.context[utt] if self.context.dim() == 2 else self.context.expand(len(utt), -1)
        log_probs = self.cell.readout(s, embed, context)
        return log_probs, {"h": h, "c": c, "att": context, "has_label": torch.ones_like(state["has_label"])}


class MiniLstmIlmScorer(LabelScorer):
    """:class:`rf_models.ilm.MiniLstmIlm` in evaluation mode."""

    def __init__(self, ilm: MiniLstmIlm):
        """:param ilm:"""
        self.cell = DecoderCell(
            target_embed=ilm.target_embed,
            s=ilm.prior_s,
            readout_in=ilm.prior_readout_in,
            output_prob=ilm.prior_output_prob,
        )
        self.num_labels = self.cell.num_labels
        mini, gates = ilm.mini_att_lstm, 4 * ilm.mini_att_lstm.out_dim
        bias = mini.bias.raw_tensor.detach()
        self.mini_weights = (
            mini.ff_weight.copy_transpose([gates, mini.in_dim]).raw_tensor.detach(),
            mini.rec_weight.copy_transpose([gates, mini.out_dim]).raw_tensor.detach(),
            bias,
            torch.zeros_like(bias),
        )
        self.att_weight = ilm.mini_att.weight.copy_transpose([ilm.enc_dim, ilm.mini_dim]).raw_tensor.detach()
        self.att_bias = ilm.mini_att.bias.raw_tensor.detach()

    def initial_state(self, batch_size: int) -> State:
        """:return: all zero"""
        zeros = self.att_weight.new_zeros((batch_size, self.att_weight.shape[1]))
        return {**self.cell.initial_state(batch_size), "mini_h": zeros, "mini_c": zeros}

    def step(self, prev_labels: Tensor, state: State, utt: Tensor) -> tuple[Tensor, State]:
        """See :func:`LabelScorer.step`."""
        embed = self.cell.embed(prev_labels, state)
        mini_h, mini_c = torch.lstm_cell(embed, (state["mini_h"], state["mini_c"]), *self.mini_weights)
        context = torch.nn.functional.linear(mini_h, self.att_weight, self.att_bias)
        s, h, c = self.cell.lstm(embed, state)
        new_state = {"h": h, "c": c, "att": context, "has_label": torch.ones_like(state["has_label"])}
        new_state.update(mini_h=mini_h, mini_c=mini_c)
        return self.cell.readout(s, embed, context), new_state
