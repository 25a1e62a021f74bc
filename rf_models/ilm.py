"""
Mini-LSTM internal language model (Zeineldeen et al. 2021, https://arxiv.org/abs/2104.05544).

The ASR model's own decoder, where a small LSTM over the labels gives what the attention would give. With previous label
y_{i-1} (embedding 0 and context 0 at i = 1, as in :mod:`rf_models.decoder`)::

    e_i    = Embed(y_{i-1})
    c_i    = W LSTM(e_i) + b                                    (the only parameters that are trained)
    s_i    = ZoneoutLSTM([e_i ; c_{i-1}], s_{i-1})
    p(y_i) = softmax( W_o maxout_2( W_r [s_i ; e_i ; c_i] + b_r ) + b_o )
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor, single_step_dim

from .lm_options import MiniLstmIlmOptions

__all__ = ["MiniLstmIlm", "MiniLstmIlmState"]


class MiniLstmIlmState(rf.State):
    """Recurrent state between labels: of both LSTMs, and the context c {..., enc_dim}."""

    def __init__(self, *_args, mini: rf.LstmState = None, s: rf.LstmState = None, att: Tensor = None):
        super().__init__(*_args)
        if not _args:
            self.mini = mini
            self.s = s
            self.att = att


class MiniLstmIlm(rf.Module):
    """See the module docstring. Holds copies of the decoder's parameters (``target_embed``, ``prior_...``)."""

    kind = "mini_lstm_ilm"
    """Name of this kind of model in checkpoints and messages."""

    def __init__(self, opts: MiniLstmIlmOptions, *, num_labels: int, eos_index: int):
        """
        :param opts: sizes
        :param num_labels: V, EOS included
        :param eos_index: EOS = BOS
        """
        super().__init__()
        self.opts = opts
        self.eos_index = eos_index
        self.target_dim = Dim(num_labels, name="labels")
        self.embed_dim = Dim(opts.dec_embed_dim, name="embed")
        self.mini_dim = Dim(opts.mini_lstm_dim, name="mini-lstm")
        self.enc_dim = Dim(opts.enc_dim, name="enc")
        self.lstm_dim = Dim(opts.dec_lstm_dim, name="lstm")
        self.readout_half_dim = Dim(opts.dec_readout_dim // 2, name="readout-maxout")
        self.target_embed = rf.Embedding(self.target_dim, self.embed_dim)
        self.mini_att_lstm = rf.LSTM(self.embed_dim, self.mini_dim)
        self.mini_att = rf.Linear(self.mini_dim, self.enc_dim)
        self.prior_s = rf.ZoneoutLSTM(
            self.embed_dim + self.enc_dim,
            self.lstm_dim,
            zoneout_factor_cell=opts.dec_zoneout_cell,
            zoneout_factor_output=opts.dec_zoneout_output,
            use_zoneout_output=opts.dec_use_zoneout_output,
            parts_order="jifo",
            forget_bias=0.0,
        )
        self.prior_readout_in = rf.Linear(
            self.lstm_dim + self.embed_dim + self.enc_dim, Dim(opts.dec_readout_dim, name="readout")
        )
        self.prior_output_prob = rf.Linear(self.readout_half_dim, self.target_dim)

    def copy_decoder(self, asr_parameters: Mapping[str, torch.Tensor]) -> None:
        """
        Takes over the parameters of the ASR model's decoder.

        :param asr_parameters: of an :class:`rf_models.aed_ctc.AedCtcModel`, by name
        :raises ValueError: some are missing, or have other shapes
        """
        own = dict(self.named_parameters())
        for name, asr_name in _asr_names(own).items():
            param, value = own[name], asr_parameters.get(asr_name)
            shape = tuple(dim.dimension for dim in param.dims)
            if value is None or tuple(value.shape) != shape:
                found = "is missing" if value is None else f"has the shape {tuple(value.shape)}"
                raise ValueError(f"decoder of the ASR model: {asr_name} {found}, expected the shape {shape}")
            with torch.no_grad():
                param.raw_tensor.copy_(value)

    def freeze_decoder(self) -> None:
        """Only the Mini-LSTM and its projection are to be trained."""
        own = dict(self.named_parameters())
        for name in _asr_names(own):
            own[name].trainable = False

    def set_constant_context(self, context: torch.Tensor) -> None:
        """
        The Mini-LSTM's place is taken by a constant: zero-context or average-context internal language model.

        :param context: [enc_dim]; the c of all steps
        """
        with torch.no_grad():
            self.mini_att.weight.raw_tensor.zero_()
            self.mini_att.bias.raw_tensor.copy_(context)

    def default_initial_state(self, *, batch_dims: list[Dim]) -> MiniLstmIlmState:
        """State before the first label: all zero."""
        return MiniLstmIlmState(
            mini=self.mini_att_lstm.default_initial_state(batch_dims=batch_dims),
            s=self.prior_s.default_initial_state(batch_dims=batch_dims),
            att=rf.zeros([*batch_dims, self.enc_dim], feature_dim=self.enc_dim),
        )

    def embed(self, labels: Tensor) -> Tensor:
        """:return: e for labels y (not for the start of the sentence, where e = 0), {..., embed_dim}"""
        return self.target_embed(labels)

    def step(self, embed: Tensor, *, state: MiniLstmIlmState) -> tuple[Tensor, MiniLstmIlmState]:
        """
        One label per row.

        :param embed: e_i {..., embed_dim}, zero at the first label
        :param state:
        :return: logits {..., target_dim} of y_i, state after it
        """
        mini, mini_state = self.mini_att_lstm(embed, state=state.mini, spatial_dim=single_step_dim)
        att = self.mini_att(mini)
        s, s_state = self.prior_s(
            _concat((embed, self.embed_dim), (state.att, self.enc_dim)), state=state.s, spatial_dim=single_step_dim
        )
        return self._readout(s, embed, att), MiniLstmIlmState(mini=mini_state, s=s_state, att=att)

    def __call__(self, labels: Tensor, *, spatial_dim: Dim) -> Tensor:
        """
        :param labels: {batch..., spatial_dim} -> target_dim, EOS at the end
        :param spatial_dim:
        :return: logits {batch..., spatial_dim, target_dim} of the labels themselves, given those before
        """
        batch_dims = labels.remaining_dims(spatial_dim)
        state = self.default_initial_state(batch_dims=batch_dims)
        embed = rf.shift_right(self.embed(labels), axis=spatial_dim, pad_value=0.0)
        mini, _ = self.mini_att_lstm(embed, state=state.mini, spatial_dim=spatial_dim)
        att = self.mini_att(mini)
        prev_att = rf.shift_right(att, axis=spatial_dim, pad_value=0.0)
        s_in = _concat((embed, self.embed_dim), (prev_att, self.enc_dim))
        s, _ = self.prior_s(s_in, state=state.s, spatial_dim=spatial_dim)
        return self._readout(s, embed, att)

    def _readout(self, s: Tensor, embed: Tensor, att: Tensor) -> Tensor:
        """:return: logits {..., target_dim}"""
        readout = self.prior_readout_in(_concat((s, self.lstm_dim), (embed, self.embed_dim), (att, self.enc_dim)))
        readout = rf.reduce_out(readout, mode="max", num_pieces=2, out_dim=self.readout_half_dim)
        return self.prior_output_prob(readout)


def _asr_names(names: Iterable[str]) -> dict[str, str]:
    """:return: those parameters that are copies -> their names in the ASR model"""
    return {
        name: "decoder." + name.removeprefix("prior_") for name in names if name.startswith(("prior_", "target_embed."))
    }


def _concat(*parts: tuple[Tensor, Dim]) -> Tensor:
    """:return: the parts, beside each other along their feature dims"""
    return rf.concat(*parts, allow_broadcast=True)[0]
