"""
Attention decoder: one-head MLP attention with weight feedback and a zoneout LSTM (Zeyer et al. 2018,
https://arxiv.org/abs/1805.03294; Zeineldeen et al. 2022, https://arxiv.org/abs/2111.03442).

With encoder states h_t, previous label y_{i-1} (embedding 0 and context 0 at i = 1)::

    e_i    = Embed(y_{i-1})
    s_i    = ZoneoutLSTM([e_i ; c_{i-1}], s_{i-1})
    a_i,t  = softmax_t( v^T tanh( W_h h_t + b + W_fb beta_{i-1,t} + W_s s_i ) )
    beta_t = beta_t + 0.5 sigmoid(v_fert^T h_t) a_i,t            (weight feedback, inverse fertility)
    c_i    = sum_t a_i,t h_t
    p(y_i) = softmax( W_o maxout_2( W_r [s_i ; e_i ; c_i] + b_r ) + b_o )
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor

from .attention_loop import LoopConstants, attention_loop
from .options import AedCtcOptions

__all__ = ["AttentionDecoder", "AttentionMemory", "DecoderState"]


@dataclass
class AttentionMemory:
    """What the decoder needs of the encoder; computed once per utterance."""

    enc: Tensor  # {batch, enc_spatial_dim, enc_dim}
    enc_ctx: Tensor  # {batch, enc_spatial_dim, att_dim}: W_h h_t + b
    inv_fertility: Tensor  # {batch, enc_spatial_dim, 1}: sigmoid(v_fert^T h_t)
    enc_spatial_dim: Dim


class DecoderState(rf.State):
    """Recurrent state between labels: LSTM state, context vector c {..., enc_dim}, beta {..., enc_spatial_dim, 1}."""

    def __init__(self, *_args, s: rf.LstmState = None, att: Tensor = None, accum_att: Tensor = None):
        super().__init__(*_args)
        if not _args:
            self.s = s
            self.att = att
            self.accum_att = accum_att


class _SplitInputZoneoutLSTM(rf.ZoneoutLSTM):
    """
    Zoneout LSTM over two concatenated inputs [embedding ; context], where the part that depends on the embedding alone
    can be computed for all labels at once: it is most of the work of a step that needs no recurrence.
    """

    def __init__(self, embed_dim: Dim, context_dim: Dim, out_dim: Dim, **kwargs):
        super().__init__(embed_dim + context_dim, out_dim, **kwargs)
        self.embed_dim = embed_dim
        self.context_dim = context_dim

    def split_weights(self) -> tuple[Tensor, Tensor]:
        """:return: the columns of ff_weight for the embedding, and those for the context vector"""
        w_embed, w_context = rf.split(self.ff_weight, axis=self.in_dim, out_dims=[self.embed_dim, self.context_dim])
        return w_embed, w_context

    def embed_part(self, embed: Tensor, w_embed: Tensor) -> Tensor:
        """:return: W_e e_i + b, for any dims of embed"""
        return rf.dot(embed, w_embed, reduce=self.embed_dim) + self.bias

    def step_from_parts(
        self, x_embed: Tensor, context: Tensor, w_context: Tensor, *, state: rf.LstmState
    ) -> tuple[Tensor, rf.LstmState]:
        """One step, given :func:`embed_part` of this label."""
        return self._inner_step(x_embed + rf.dot(context, w_context, reduce=self.context_dim), state=state)


class AttentionDecoder(rf.Module):
    """See the module docstring. Parameter names are those of the published checkpoints."""

    def __init__(self, enc_dim: Dim, target_dim: Dim, opts: AedCtcOptions):
        """
        :param enc_dim: encoder states
        :param target_dim: labels 0 ... V-1, EOS included
        :param opts:
        """
        super().__init__()
        self.enc_dim = enc_dim
        self.target_dim = target_dim
        self.embed_dim = Dim(opts.dec_embed_dim, name="embed")
        self.att_dim = Dim(opts.dec_att_dim, name="att")
        self.lstm_dim = Dim(opts.dec_lstm_dim, name="lstm")
        self.readout_dim = Dim(opts.dec_readout_dim, name="readout")
        self.feedback_dim = Dim(1, name="att-head")
        self.dropout = opts.dec_dropout
        self.att_dropout = opts.dec_att_dropout
        self.dropout_broadcast = rf.dropout_broadcast_default()

        self.enc_ctx = rf.Linear(enc_dim, self.att_dim)
        self.inv_fertility = rf.Linear(enc_dim, self.feedback_dim, with_bias=False)
        self.target_embed = rf.Embedding(target_dim, self.embed_dim)
        self.s = _SplitInputZoneoutLSTM(
            self.embed_dim,
            enc_dim,
            self.lstm_dim,
            zoneout_factor_cell=opts.dec_zoneout_cell,
            zoneout_factor_output=opts.dec_zoneout_output,
            use_zoneout_output=opts.dec_use_zoneout_output,
            parts_order="jifo",  # as in converted TensorFlow checkpoints, where the forget bias is part of the bias
            forget_bias=0.0,
        )
        self.weight_feedback = rf.Linear(self.feedback_dim, self.att_dim, with_bias=False)
        self.s_transformed = rf.Linear(self.lstm_dim, self.att_dim, with_bias=False)
        self.energy = rf.Linear(self.att_dim, self.feedback_dim, with_bias=False)
        self.readout_in = rf.Linear(self.lstm_dim + self.embed_dim + enc_dim, self.readout_dim)
        self.readout_half_dim = Dim(opts.dec_readout_dim // 2, name="readout-maxout")
        self.output_prob = rf.Linear(self.readout_half_dim, target_dim)

    def transform_encoder(self, enc: Tensor, *, axis: Dim) -> AttentionMemory:
        """
        :param enc: {batch, axis, enc_dim}
        :param axis: encoder frames
        """
        return AttentionMemory(
            enc=enc,
            enc_ctx=self.enc_ctx(enc),
            inv_fertility=rf.sigmoid(self.inv_fertility(enc)),
            enc_spatial_dim=axis,
        )

    def default_initial_state(self, *, batch_dims: list[Dim], memory: AttentionMemory) -> DecoderState:
        """State before the first label: all zero."""
        return DecoderState(
            s=self.s.default_initial_state(batch_dims=batch_dims),
            att=rf.zeros([*batch_dims, self.enc_dim], feature_dim=self.enc_dim),
            accum_att=rf.zeros([*batch_dims, memory.enc_spatial_dim, self.feedback_dim], feature_dim=self.feedback_dim),
        )

    def embed(self, labels: Tensor) -> Tensor:
        """:return: e for labels y (not for the start of the sentence, where e = 0), {..., embed_dim}"""
        return self.target_embed(labels)

    def step(self, embed: Tensor, *, memory: AttentionMemory, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """
        One label.

        :param embed: e_i {..., embed_dim}, zero at the first label
        :param memory:
        :param state:
        :return: logits {..., target_dim} of y_i, state after it
        """
        w_embed, w_context = self.s.split_weights()
        s, state = self._step(self.s.embed_part(embed, w_embed), w_context, memory=memory, state=state)
        return self.readout(s, embed, state.att), state

    def _step(
        self, x_embed: Tensor, w_context: Tensor, *, memory: AttentionMemory, state: DecoderState
    ) -> tuple[Tensor, DecoderState]:
        """The recurrence: LSTM and attention. :return: s_i {..., lstm_dim}, new state"""
        s, s_state = self.s.step_from_parts(x_embed, state.att, w_context, state=state.s)
        hidden = rf.tanh(memory.enc_ctx + self.weight_feedback(state.accum_att) + self.s_transformed(s))
        energy = self.energy(hidden)  # {..., enc_spatial_dim, 1}
        att_weights = rf.softmax(energy, axis=memory.enc_spatial_dim)
        att_weights = rf.dropout(att_weights, self.att_dropout, axis=self.dropout_broadcast and memory.enc_spatial_dim)
        accum_att = state.accum_att + 0.5 * att_weights * memory.inv_fertility
        att_weights = rf.squeeze(att_weights, axis=self.feedback_dim)
        # use_mask=False: the softmax is masked, the weights of the padding are 0.
        att = rf.dot(att_weights, memory.enc, reduce=memory.enc_spatial_dim, use_mask=False)
        att.feature_dim = self.enc_dim
        return s, DecoderState(s=s_state, att=att, accum_att=accum_att)

    def readout(self, s: Tensor, embed: Tensor, att: Tensor) -> Tensor:
        """:return: logits {..., target_dim}, for any (equal) batch dims of the arguments"""
        readout = self.readout_in(
            rf.concat((s, self.lstm_dim), (embed, self.embed_dim), (att, self.enc_dim), allow_broadcast=True)[0]
        )
        readout = rf.reduce_out(readout, mode="max", num_pieces=2, out_dim=self.readout_half_dim)
        readout = rf.dropout(readout, self.dropout, axis=self.dropout_broadcast and self.readout_half_dim)
        return self.output_prob(readout)

    def run(self, labels: Tensor, *, spatial_dim: Dim, memory: AttentionMemory) -> tuple[Tensor, Tensor, Tensor]:
        """
        All but the readout, for given label sequences. What does not depend on the recurrence is not in the loop.

        :param labels: {batch, spatial_dim} -> target_dim
        :param spatial_dim: labels
        :param memory:
        :return: e {batch, spatial_dim, embed_dim}, s {batch, spatial_dim, lstm_dim}, c {batch, spatial_dim, enc_dim}
        """
        embed = self.embed(labels)
        embed = rf.shift_right(embed, axis=spatial_dim, pad_value=0.0)
        w_embed, w_context = self.s.split_weights()
        x_embed = self.s.embed_part(embed, w_embed)
        (batch_dim,) = labels.remaining_dims(spatial_dim)
        enc_spatial_dim = memory.enc_spatial_dim
        label_lens = _sizes(spatial_dim, batch_dim).cpu()
        rows = torch.sort(label_lens, descending=True, stable=True).indices
        rows = None if rows.equal(torch.arange(len(rows))) else rows.to(x_embed.raw_tensor.device)

        def raw(x: Tensor, *dims: Dim) -> torch.Tensor:
            """:return: [batch, *dims], sorted by the number of labels"""
            x = x.copy_compatible_to_dims_raw([batch_dim, *dims])
            return x if rows is None else x.index_select(0, rows)

        inv_fertility = rf.squeeze(memory.inv_fertility, axis=self.feedback_dim)
        max_frames = int(enc_spatial_dim.get_dim_value())
        frames = _sizes(enc_spatial_dim, batch_dim).to(x_embed.raw_tensor.device)
        frames_mask = torch.arange(max_frames, device=frames.device) < frames[:, None]
        num_labels = int(spatial_dim.get_dim_value())
        s, att = attention_loop(
            raw(x_embed, spatial_dim, 4 * self.lstm_dim),
            raw(memory.enc, enc_spatial_dim, self.enc_dim),
            raw(memory.enc_ctx, enc_spatial_dim, self.att_dim),
            raw(inv_fertility, enc_spatial_dim),
            context_weight=w_context.copy_compatible_to_dims_raw([4 * self.lstm_dim, self.enc_dim]),
            rec_weight=self.s.rec_weight.raw_tensor,
            query_weight=self.s_transformed.weight.raw_tensor,
            feedback_weight=self.weight_feedback.weight.raw_tensor.flatten(),
            energy_weight=self.energy.weight.raw_tensor.flatten(),
            constants=LoopConstants(
                num_rows=[int((label_lens > i).sum()) for i in range(num_labels)],
                frames_mask=frames_mask if rows is None else frames_mask[rows],
                gates=self.s.parts_order,
                forget_bias=self.s.forget_bias,
                zoneout_output=self.s.use_zoneout_output,
                **self._loop_dropout(num_labels, batch_dim, enc_spatial_dim, raw),
            ),
        )
        if rows is not None:
            back = torch.argsort(rows)
            s, att = s.index_select(0, back), att.index_select(0, back)
        return (
            embed,
            rf.convert_to_tensor(s, dims=[batch_dim, spatial_dim, self.lstm_dim], feature_dim=self.lstm_dim),
            rf.convert_to_tensor(att, dims=[batch_dim, spatial_dim, self.enc_dim], feature_dim=self.enc_dim),
        )

    def _loop_dropout(
        self, num_labels: int, batch_dim: Dim, enc_spatial_dim: Dim, raw: Callable[..., torch.Tensor]
    ) -> dict[str, Any]:
        """
        :param num_labels:
        :param batch_dim:
        :param enc_spatial_dim:
        :param raw: as in :func:`run`
        :return: what differs between training and evaluation in :class:`LoopConstants`. The random numbers are drawn in
            the order in which the steps use them.
        """
        train = rf.get_run_ctx().is_train_flag_enabled(func=AttentionDecoder.run)
        res: dict[str, list] = {"update_cell": [], "update_output": [], "att_dropout": []}
        zoneout = {"update_cell": self.s.zoneout_factor_cell, "update_output": self.s.zoneout_factor_output}

        def dropped(drop_prob: float, dim: Dim, broadcast: bool) -> torch.Tensor:
            """:return: 0 or 1 / (1 - drop_prob), [dim] or [batch, dim]"""
            ones = rf.ones([dim] if broadcast else [batch_dim, dim])
            factors = rf.dropout(ones, drop_prob, on_forward=True)
            return factors.raw_tensor if broadcast else raw(factors, dim)

        for _ in range(num_labels):
            for name, factor in zoneout.items():
                update: torch.Tensor | float = 1.0 - factor
                if train and factor:
                    update = (1.0 - factor) * dropped(factor, self.lstm_dim, self.s.dropout_broadcast)
                res[name].append(update)
            if train and self.att_dropout:
                res["att_dropout"].append(dropped(self.att_dropout, enc_spatial_dim, self.dropout_broadcast))
        return {**res, "att_dropout": res["att_dropout"] or None}

    def teacher_forcing(
        self, labels: Tensor, *, spatial_dim: Dim, memory: AttentionMemory, pack: bool = False
    ) -> tuple[Tensor, Tensor]:
        """
        Decoder outputs for given label sequences. Only the recurrence (LSTM, attention) is in the loop over labels; the
        embedding's part of the LSTM input is computed before, readout and softmax after it, for all labels at once.

        :param labels: {batch, spatial_dim} -> target_dim, EOS at the end
        :param spatial_dim: labels
        :param memory:
        :param pack: replace {batch, spatial_dim} of the result by one packed dim without padding: the softmax over
            10k labels is then not computed for padding
        :return: logits {batch, spatial_dim, target_dim} or {packed, target_dim}; the labels with the same dims
        """
        batch_dims = labels.remaining_dims(spatial_dim)
        embed, stacked_s, stacked_att = self.run(labels, spatial_dim=spatial_dim, memory=memory)
        if pack:
            dims = [*batch_dims, spatial_dim]
            labels, packed_dim = rf.pack_padded(labels, dims=dims, enforce_sorted=False)
            stacked_s, embed, stacked_att = (
                rf.pack_padded(x, dims=dims, enforce_sorted=False, out_dim=packed_dim)[0]
                for x in (stacked_s, embed, stacked_att)
            )
        return self.readout(stacked_s, embed, stacked_att), labels


def _sizes(dim: Dim, batch_dim: Dim) -> torch.Tensor:
    """:return: [batch] sizes of a dim per sequence"""
    sizes = dim.get_size_tensor().raw_tensor
    return sizes if sizes.ndim else sizes.expand(int(batch_dim.get_dim_value()))
