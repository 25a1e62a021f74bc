"""
Initial parameters.

RETURNN's frontend draws matrices and filters uniformly after Glorot and Bengio 2010, with the limit
sqrt(6 / (fan_in + fan_out)), and sets everything else to 0, or to 1 for scales. That is also what RETURNN's TensorFlow
layers do, but for these, which ``param_init = "tensorflow"`` brings back (after the network of the published TED-LIUM 2
training, with its "fairseq" initialisation):

- self-attention ``qkv``: half of the variance, limit sqrt(3 / (fan_in + fan_out)), fan_out being queries, keys and
  values together;
- learned relative positions: Glorot instead of 0;
- zoneout LSTM of the decoder: forget bias 1 instead of 0; one Glorot limit for the matrix of input and recurrent
  weights together, sqrt(6 / (in + out + 4 out)), instead of one for each.
"""

from __future__ import annotations

import math

import returnn.frontend as rf
from returnn.frontend.encoder.conformer import ConformerEncoder

from .decoder import AttentionDecoder

__all__ = ["init_decoder_like_tensorflow", "init_embedding", "init_encoder_like_tensorflow"]


def init_encoder_like_tensorflow(encoder: ConformerEncoder) -> None:
    """Changes what differs, see the module docstring."""
    for layer in encoder.layers:
        layer.self_att.qkv.weight.initial = rf.init.VarianceScaling(scale=0.5, mode="fan_avg", distribution="uniform")
        if layer.self_att.learned_pos_emb is not None:
            layer.self_att.learned_pos_emb.pos_emb.initial = rf.init.Glorot()


def init_decoder_like_tensorflow(decoder: AttentionDecoder) -> None:
    """Changes what differs, see the module docstring."""
    lstm = decoder.s
    dim_in, dim_out = lstm.in_dim.dimension, lstm.out_dim.dimension
    limit = math.sqrt(6 / (dim_in + dim_out + 4 * dim_out))
    for param in (lstm.ff_weight, lstm.rec_weight):
        # Uniform with the same limit: sqrt(3 scale / fan_avg) = limit.
        fan_avg = sum(dim.dimension for dim in param.dims) / 2
        param.initial = rf.init.VarianceScaling(
            scale=limit**2 * fan_avg / 3, mode="fan_avg", distribution="uniform", dtype=param.dtype
        )
    gates = {"j": 0.0, "i": 0.0, "f": 1.0, "o": 0.0}
    parts = [rf.full(dims=[lstm.out_dim], fill_value=gates[gate], dtype=lstm.bias.dtype) for gate in lstm.parts_order]
    lstm.bias.initial = rf.concat(*((part, lstm.out_dim) for part in parts), out_dim=4 * lstm.out_dim)[0]


def init_embedding(embedding: rf.Embedding, stddev: float) -> None:
    """Normal distribution, truncated at two standard deviations (RETURNN's ``rf.init.Normal``)."""
    embedding.weight.initial = rf.init.Normal(stddev)
