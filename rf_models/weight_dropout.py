"""
Weight dropout: dropout on the parameters instead of the activations (Wan et al. 2013, "Regularization of neural
networks using DropConnect"), with RETURNN's parametrisations (``rf.weight_dropout``).

In each training step, each weight is set to 0 with probability p, and the others are divided by 1 - p. The original
parameter stays where it is: checkpoints have the same names and values with and without, and recognition uses them as
they are. In RETURNN's TensorFlow layers this was ``param_dropout`` with ``param_dropout_min_ndim=2``: matrices and
filters, but no biases, and no parameters of normalisations.
"""

from __future__ import annotations

from collections.abc import Iterator

import returnn.frontend as rf
from returnn.frontend.encoder.conformer import ConformerEncoder
from returnn.frontend.parametrizations import WeightDropout

from .options import AedCtcOptions

__all__ = ["add_weight_dropout"]


def add_weight_dropout(encoder: ConformerEncoder, opts: AedCtcOptions) -> list[WeightDropout]:
    """
    :param encoder: gets weight dropout in its Conformer layers. They must not be copied after that.
    :param opts:
    :return: one per parameter; their ``drop_prob`` may be changed during training
    """
    res = []
    for module, name, drop_prob in _weights(encoder, opts):
        if drop_prob:
            weight_dropout = WeightDropout(drop_prob)
            rf.register_parametrization(module, name, weight_dropout)
            res.append(weight_dropout)
    return res


def _weights(encoder: ConformerEncoder, opts: AedCtcOptions) -> Iterator[tuple[rf.Module, str, float]]:
    """:return: module, name of its parameter, dropout probability"""
    for layer in encoder.layers:
        for module in (layer.self_att.qkv, layer.self_att.proj):
            yield module, "weight", opts.enc_att_weight_dropout
        for ff in (layer.ffn1, layer.ffn2):
            for module in (ff.linear_ff, ff.linear_out):
                yield module, "weight", opts.enc_ff_weight_dropout
        conv = layer.conv_block
        yield conv.positionwise_conv1, "weight", opts.enc_conv_weight_dropout
        yield conv.depthwise_conv, "filter", opts.enc_conv_weight_dropout
        yield conv.positionwise_conv2, "weight", opts.enc_conv_weight_dropout
