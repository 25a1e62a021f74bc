"""
Language models over the labels of the ASR model: LSTM, and Transformer decoder without encoder.

Both are called with whole label sequences or with one label per row, and a state. The previous label at the start of a
sentence is BOS = EOS, whose embedding is used (other than in the attention decoder, where it is a zero vector).
"""

from __future__ import annotations

from dataclasses import dataclass

import returnn.frontend as rf
import torch
from returnn.frontend.decoder.transformer import TransformerDecoder, TransformerDecoderLayer
from returnn.tensor import Dim, Tensor

from .lm_options import LstmLmOptions, TransformerLmOptions

__all__ = ["LstmLm", "TransformerLm", "TransformerLmRows"]


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


@dataclass
class TransformerLmRows:
    """State of :func:`TransformerLm.step_rows`: N rows (hypotheses), each with a history of its own length."""

    keys_values: torch.Tensor
    """[N, L, num_layers, 2, num_heads, att_dim / num_heads]: keys and values"""
    lengths: torch.Tensor
    """[N] int64 <= L, labels read so far"""


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

    def initial_rows(self, num_rows: int) -> TransformerLmRows:
        """:return: state before BOS, on the device of the parameters"""
        weight = self.logits.weight.raw_tensor
        head_dim = self.opts.att_dim // self.opts.num_heads
        shape = (num_rows, 0, self.opts.num_layers, 2, self.opts.num_heads, head_dim)
        return TransformerLmRows(
            keys_values=weight.new_zeros(shape),
            lengths=torch.zeros(num_rows, dtype=torch.int64, device=weight.device),
        )

    def step_rows(self, prev_labels: torch.Tensor, rows: TransformerLmRows) -> tuple[torch.Tensor, TransformerLmRows]:
        """
        One label for each row, whatever the lengths of their histories: for searches where hypotheses of different
        length stand side by side. The same numbers as :func:`__call__`.

        :param prev_labels: [N] int64
        :param rows: is not changed
        :return: logits [N, V] of the next labels, new state (L grows by one)
        """
        cache, lengths = rows.keys_values, rows.lengths
        num_rows, old_size = cache.shape[:2]
        new_cache = cache.new_empty((num_rows, old_size + 1, *cache.shape[2:]))
        new_cache[:, :old_size] = cache
        new_cache[:, old_size:] = 0  # a row that is shorter must not meet NaN in unused memory
        row_index = torch.arange(num_rows, device=cache.device)
        visible = torch.arange(old_size + 1, device=cache.device) <= lengths[:, None]
        attention_mask = visible[:, None, None, :]  # [N, heads, query, keys]

        row_dim = Dim(num_rows, name="rows")
        labels = rf.convert_to_tensor(prev_labels, dims=[row_dim], sparse_dim=self.target_dim)
        x = self.input_embedding(labels)
        if self.pos_enc is not None:
            positions = rf.convert_to_tensor(lengths, dims=[row_dim])
            x = x + rf.sinusoidal_encoding(positions, feat_dim=self.embed_dim)
        x = self.input_embedding_proj(x)
        for i, layer in enumerate(self.layers):
            layer: TransformerDecoderLayer
            att = layer.self_att
            q, k, v = (
                part.copy_compatible_to_dims_raw([row_dim, att.num_heads, dim])
                for part, dim in zip(
                    att.forward_qkv(layer.self_att_layer_norm(x)),
                    (att.key_dim_per_head, att.key_dim_per_head, att.value_dim_per_head),
                    strict=True,
                )
            )
            new_cache[row_index, lengths, i] = torch.stack((k, v), dim=1)
            keys, values = new_cache[:, :, i].permute(2, 0, 3, 1, 4)  # each [N, heads, L + 1, dim]
            context = torch.nn.functional.scaled_dot_product_attention(
                q[:, :, None], keys, values, attn_mask=attention_mask
            )
            context = rf.convert_to_tensor(context.reshape(num_rows, -1), dims=[row_dim, att.value_dim_total])
            x = x + att.proj(context)
            x = x + layer.ff(layer.ff_layer_norm(x))
        logits = self.logits(self.final_layer_norm(x))
        return (
            logits.copy_compatible_to_dims_raw([row_dim, self.target_dim]),
            TransformerLmRows(keys_values=new_cache, lengths=lengths + 1),
        )


def _gelu_tanh(x: Tensor) -> Tensor:
    """See :attr:`TransformerLmOptions.activation`."""
    return 0.5 * x * (1.0 + rf.tanh((2.0 / 3.141592653589793) ** 0.5 * (x + 0.044715 * x**3.0)))
