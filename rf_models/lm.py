"""
Language models over the labels of the ASR model: LSTM, and Transformer decoder without encoder.

Both are called with whole label sequences or with one label per row, and a state. The previous label at the start of a
sentence is BOS = EOS, whose embedding is used (other than in the attention decoder, where it is a zero vector).
"""

from __future__ import annotations

import returnn.frontend as rf
from returnn.frontend.decoder.transformer import TransformerDecoder
from returnn.tensor import Dim, Tensor

from .lm_options import LstmLmOptions, TransformerLmOptions

__all__ = ["LstmLm", "TransformerLm"]


class LstmLm(rf.Module):
    """Embedding, LSTM layers, softmax. The states of the rows (hypotheses) have no length: each may have its own."""

    kind = "lstm_lm"
    """Name of this kind of model in checkpoints and messages."""

    def __init__(self, opts: LstmLmOptions, *, num_labels: int, eos_index: int):
        """
        :param opts: sizes
        :param num_labels: V, EOS included
        :param eos_index: EOS = BOS
        """
        super().__init__()
        self.opts = opts
        self.eos_index = eos_index
        self.target_dim = Dim(num_labels, name="labels")
        self.embed_dim = Dim(opts.embed_dim, name="lm-embed")
        self.lstm_dim = Dim(opts.lstm_dim, name="lm-lstm")
        self.input = rf.Embedding(self.target_dim, self.embed_dim)
        self.input_bias = rf.Parameter([self.embed_dim])
        self.input_bias.initial = 0.0
        self.layers = rf.ModuleList(
            rf.LSTM(self.lstm_dim if i else self.embed_dim, self.lstm_dim) for i in range(opts.num_layers)
        )
        self.output = rf.Linear(self.lstm_dim, self.target_dim)

    def default_initial_state(self, *, batch_dims: list[Dim]) -> rf.State:
        """State before BOS: all zero."""
        layers = self.layers.items()
        return rf.State({name: layer.default_initial_state(batch_dims=batch_dims) for name, layer in layers})

    def __call__(self, prev_labels: Tensor, *, spatial_dim: Dim, state: rf.State) -> tuple[Tensor, rf.State]:
        """
        :param prev_labels: {batch..., spatial_dim} -> target_dim, BOS first
        :param spatial_dim: or ``single_step_dim`` for one label per row
        :param state: before the first of them
        :return: logits {batch..., spatial_dim, target_dim} of the next labels, state after the last
        """
        new_state = rf.State()
        x = self.input(prev_labels) + self.input_bias
        x.feature_dim = self.embed_dim
        for name, layer in self.layers.items():
            x = rf.dropout(x, self.opts.dropout, axis=x.feature_dim)
            x, new_state[name] = layer(x, state=state[name], spatial_dim=spatial_dim)
        x = rf.dropout(x, self.opts.dropout, axis=x.feature_dim)
        return self.output(x), new_state


class TransformerLm(TransformerDecoder):
    """RETURNN's Transformer decoder without encoder, pre-norm, with an embedding narrower than the model."""

    kind = "transformer_lm"
    """Name of this kind of model in checkpoints and messages."""

    def __init__(self, opts: TransformerLmOptions, *, num_labels: int, eos_index: int):
        """
        :param opts: sizes
        :param num_labels: V, EOS included
        :param eos_index: EOS = BOS
        """
        self.opts = opts
        self.eos_index = eos_index
        self.target_dim = Dim(num_labels, name="labels")
        att_dim = Dim(opts.att_dim, name="lm-att")
        super().__init__(
            None,
            self.target_dim,
            Dim(opts.model_dim, name="lm-model"),
            num_layers=opts.num_layers,
            ff_dim=Dim(opts.ff_dim, name="lm-ff"),
            ff_activation={"relu": rf.relu, "gelu": rf.gelu, "gelu_tanh": _gelu_tanh}[opts.activation],
            pos_enc=rf.sinusoidal_positional_encoding if opts.positional_encoding else None,
            dropout=opts.dropout,
            num_heads=opts.num_heads,
            att_dropout=opts.att_dropout,
            layer_opts={"self_att_opts": {"with_bias": False, "key_dim_total": att_dim, "value_dim_total": att_dim}},
            embed_dim=Dim(opts.embed_dim, name="lm-embed"),
            share_embedding=False,
            input_embedding_scale=1.0,
            input_dropout=opts.dropout,
            logits_with_bias=True,
        )


def _gelu_tanh(x: Tensor) -> Tensor:
    """See :attr:`TransformerLmOptions.activation`."""
    return 0.5 * x * (1.0 + rf.tanh((2.0 / 3.141592653589793) ** 0.5 * (x + 0.044715 * x**3.0)))
