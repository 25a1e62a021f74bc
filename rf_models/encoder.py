"""
Features and Conformer encoder. Both are RETURNN's; what is here chooses their options.
"""

from __future__ import annotations

from typing import Any

import returnn.frontend as rf
import torch
from returnn.frontend.encoder.conformer import (
    ConformerConvSubsample,
    ConformerEncoder,
    ConformerEncoderLayer,
    ConformerPositionwiseFeedForward,
)
from returnn.tensor import Dim, Tensor

from .options import SAMPLE_RATE, AedCtcOptions
from .pretraining import GrowingLayers

__all__ = ["SAMPLE_RATE", "LogMelFeatures", "make_conformer_encoder"]


class LogMelFeatures(rf.Module):
    """
    Log-mel features: Hann window 25 ms, step 10 ms, FFT 512, ``log(mel) / log(base)``,
    optionally normalised per filter by statistics that are stored in the checkpoint, or by those of the batch (in
    training; their running means later).
    """

    def __init__(self, opts: AedCtcOptions):
        super().__init__()
        self.out_dim = Dim(opts.num_mel_filters, name="mel")
        self.log_base = opts.log_mel_base
        self.mean = self.stddev = None
        if opts.mel_normalization:
            self.mean = rf.Parameter([self.out_dim], auxiliary=True)
            self.mean.initial = 0.0
            self.stddev = rf.Parameter([self.out_dim], auxiliary=True)
            self.stddev.initial = 1.0
        self.batch_norm = None
        if opts.feature_batch_norm:
            self.batch_norm = rf.BatchNorm(self.out_dim, affine=False, use_mask=True)

    def __call__(self, audio: Tensor, *, in_spatial_dim: Dim) -> tuple[Tensor, Dim]:
        """
        :param audio: {batch, in_spatial_dim} or with a feature dim of 1, samples at :data:`SAMPLE_RATE`
        :param in_spatial_dim: samples
        :return: features {batch, frames, out_dim}, frames dim (10 ms)
        """
        for dim in audio.dims:
            if dim.dimension == 1:  # RETURNN's datasets deliver raw audio with one "feature"
                audio = rf.squeeze(audio, axis=dim)
        # Not in mixed precision: energies of loud audio are beyond float16, and bfloat16 has two digits.
        with torch.autocast(audio.raw_tensor.device.type, enabled=False):
            features, spatial_dim = rf.audio.log_mel_filterbank_from_raw(
                audio,
                in_spatial_dim=in_spatial_dim,
                out_dim=self.out_dim,
                sampling_rate=SAMPLE_RATE,
                log_base=self.log_base,
            )
        if self.mean is not None:
            features = (features - self.mean) / self.stddev
            features.feature_dim = self.out_dim
        if self.batch_norm is not None:
            features = self.batch_norm(features)
            features.feature_dim = self.out_dim
        return features, spatial_dim


def _relu_square(x: Tensor) -> Tensor:
    """relu(x)^2, So et al. 2021 (Primer), as in the published models"""
    return rf.relu(x) ** 2.0


def _self_att_opts(opts: AedCtcOptions) -> dict[str, Any]:
    """:return: of :class:`rf.RelPosSelfAttention`, see ``enc_rel_pos``"""
    if opts.enc_rel_pos == "transformer_xl":
        return dict(pos_emb_dropout=opts.enc_pos_emb_dropout)
    return dict(
        with_bias=False,
        with_linear_pos=False,
        with_pos_bias=False,
        learnable_pos_emb=True,
        learnable_pos_emb_clipping=opts.enc_rel_pos_clipping,
        separate_pos_emb_per_head=False,
        pos_emb_dropout=opts.enc_pos_emb_dropout,
    )


def make_conformer_encoder(in_dim: Dim, opts: AedCtcOptions) -> ConformerEncoder:
    """
    :param in_dim: feature dim
    :param opts:
    :return: convolutional frontend (time / ``opts.time_reduction``, one frequency pooling by 2), then Conformer blocks
        with relative positions
    """
    num_convs = len(opts.enc_frontend_channels)
    frontend_class = ConformerConvSubsample
    if opts.enc_frontend_padding == "tf_same":
        from .padding import TfSameConvSubsample as frontend_class
    frontend = frontend_class(
        in_dim,
        out_dims=[Dim(n, name=f"frontend-conv{i}") for i, n in enumerate(opts.enc_frontend_channels)],
        filter_sizes=[(3, 3)] * num_convs,
        strides=[(stride, 1) for stride in opts.enc_frontend_time_strides],
        pool_sizes=[(1, 2)],
    )
    enc_dim = Dim(opts.enc_dim, name="enc")
    return ConformerEncoder(
        in_dim,
        enc_dim,
        num_layers=opts.enc_num_layers,
        input_layer=frontend,
        input_dropout=opts.enc_input_dropout,
        encoder_layer=ConformerEncoderLayer(
            out_dim=enc_dim,
            ff=ConformerPositionwiseFeedForward(
                out_dim=enc_dim,
                ff_dim=Dim(opts.enc_ff_dim, name="enc-ff"),
                dropout=opts.enc_dropout,
                activation=_relu_square,
                with_bias=opts.enc_ff_bias,
            ),
            dropout=opts.enc_dropout,
            conv_kernel_size=opts.enc_conv_kernel_size,
            conv_norm_opts=dict(use_mask=True),
            num_heads=opts.enc_num_heads,
            self_att_opts=_self_att_opts(opts),
            att_dropout=opts.enc_att_dropout,
        ),
        sequential=GrowingLayers,
    )
