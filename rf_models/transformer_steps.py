"""
Single steps of RETURNN's Transformer decoder for many hypotheses side by side, each with a history of its own length:
what its own single steps cannot do, since their rows share one history axis.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import returnn.frontend as rf
import torch
from returnn.frontend.decoder.transformer import TransformerDecoder, TransformerDecoderLayer
from returnn.tensor import Dim
from returnn.torch.util.rope import apply_rope_plain

__all__ = ["TransformerRows", "initial_rows", "step_rows"]


@dataclass
class TransformerRows:
    """State of :func:`step_rows`: N rows (hypotheses), each with a history of its own length."""

    keys_values: torch.Tensor
    """[N, L, num_layers, 2, num_heads, dim per head]: keys (rotated, if the positions are rotary) and values"""
    lengths: torch.Tensor
    """[N] int64 <= L, labels read so far"""


def initial_rows(decoder: TransformerDecoder, num_rows: int) -> TransformerRows:
    """:return: state before BOS, on the device of the parameters"""
    weight = decoder.logits.weight.raw_tensor
    layers = list(decoder.layers)
    att = layers[0].self_att
    shape = (num_rows, 0, len(layers), 2, att.num_heads.dimension, att.key_dim_per_head.dimension)
    return TransformerRows(
        keys_values=weight.new_zeros(shape), lengths=torch.zeros(num_rows, dtype=torch.int64, device=weight.device)
    )


def step_rows(
    decoder: TransformerDecoder,
    prev_labels: torch.Tensor,
    rows: TransformerRows,
    *,
    cross_attention: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, TransformerRows]:
    """
    One label for each row, whatever the lengths of their histories, in evaluation mode. The same numbers as the decoder
    called with whole sequences.

    :param decoder: keys and values have the same dimension; without dropout
    :param prev_labels: [N] int64
    :param rows: is not changed
    :param cross_attention: from the number of the layer (0-based) and its queries [N, heads, dim per head] to the
        contexts [N, heads, dim per head]. None: there is no encoder
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
    positions = rf.convert_to_tensor(lengths, dims=[row_dim])
    labels = rf.convert_to_tensor(prev_labels, dims=[row_dim], sparse_dim=decoder.vocab_dim)
    x = decoder.input_embedding(labels)
    if decoder.input_embedding_scale != 1:
        x = x * decoder.input_embedding_scale
    if decoder.pos_enc is not None:
        x = x + rf.sinusoidal_encoding(positions, feat_dim=decoder.embed_dim or decoder.model_dim)
    if decoder.input_embedding_proj is not None:
        x = decoder.input_embedding_proj(x)
    rotation = None
    for i, layer in enumerate(decoder.layers):
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
        if isinstance(att, rf.RotaryPosCausalSelfAttention):
            if rotation is None:
                rotation = _rotation(positions, att.key_dim_per_head, row_dim)
            q, k = apply_rope_plain(q, rotation), apply_rope_plain(k, rotation)
        new_cache[row_index, lengths, i] = torch.stack((k, v), dim=1)
        keys, values = new_cache[:, :, i].permute(2, 0, 3, 1, 4)  # each [N, heads, L + 1, dim]
        context = torch.nn.functional.scaled_dot_product_attention(
            q[:, :, None], keys, values, attn_mask=attention_mask
        )
        context = rf.convert_to_tensor(context.flatten(1), dims=[row_dim, att.value_dim_total])
        x = x + att.proj(context)
        if cross_attention is not None:
            att = layer.cross_att
            query = att.forward_query(layer.cross_att_layer_norm(x))
            context = cross_attention(
                i, query.copy_compatible_to_dims_raw([row_dim, att.num_heads, att.key_dim_per_head])
            )
            context = rf.convert_to_tensor(context.flatten(1), dims=[row_dim, att.value_dim_total])
            x = x + att.proj(context)
        x = x + layer.ff(layer.ff_layer_norm(x))
    logits = decoder.logits(decoder.final_layer_norm(x))
    return (
        logits.copy_compatible_to_dims_raw([row_dim, decoder.vocab_dim]),
        TransformerRows(keys_values=new_cache, lengths=lengths + 1),
    )


def _rotation(positions: rf.Tensor, head_dim: Dim, row_dim: Dim) -> torch.Tensor:
    """:return: [N, 1, dim per head] sines, then cosines, as in :class:`rf.RotaryPosCausalSelfAttention`"""
    base = 10_000 ** (1 - 2 / head_dim.dimension)
    encoding = rf.sinusoidal_encoding(positions, feat_dim=head_dim, base=base)
    return encoding.copy_compatible_to_dims_raw([row_dim, head_dim])[:, None]
