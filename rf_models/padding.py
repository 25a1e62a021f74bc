"""
Strided "same" convolution over time as in TensorFlow, for models that were trained there.

TensorFlow pads an axis of length L, for a filter of size k with stride s, by (tf.nn.convolution, "SAME")::

    total = max((ceil(L / s) - 1) s + k - L, 0)      left = floor(total / 2)      right = total - left

so the position of the windows depends on L modulo s. It takes L from the padded batch, and does not mask: there, the
encoder output of an utterance depends on the other utterances of its batch. RETURNN's frontend has its own rule, which
depends on no length (behaviour version >= 24), but a model trained with TensorFlow's windows has other outputs with it.
Here, L is the length of each utterance: it gets what TensorFlow computes for it alone, in any batch.
"""

from __future__ import annotations

import returnn.frontend as rf
from returnn.frontend.encoder.conformer import ConformerConvSubsample
from returnn.tensor import Dim, Tensor

__all__ = ["TfSameConvSubsample", "tf_same_conv2d", "tf_same_padding"]


def tf_same_padding(length: int | Tensor, *, filter_size: int, stride: int) -> tuple[int | Tensor, int | Tensor]:
    """
    :param length: L, frames; a number or an integer tensor
    :param filter_size: k
    :param stride: s
    :return: padding left, right (same kind as length), see the module docstring
    """
    # (ceil(L/s) - 1) s + k - L  =  k - 1 - (L - 1) mod s
    total = filter_size - 1 - (length - 1) % stride
    total = rf.relu(total) if isinstance(total, Tensor) else max(total, 0)
    left = total // 2
    return left, total - left


def tf_same_conv2d(
    source: Tensor, *, conv: rf.Conv2d, in_spatial_dims: tuple[Dim, Dim]
) -> tuple[Tensor, tuple[Dim, Dim]]:
    """
    :param source: {batch..., time, frequency, channels}
    :param conv: its filter, bias and strides are used
    :param in_spatial_dims: time (lengths may differ), frequency (of fixed size)
    :return: output, its time (ceil(length / stride)) and frequency dims
    """
    in_time, in_freq = in_spatial_dims
    time_filter, freq_filter = (dim.dimension for dim in conv.filter_size)
    time_stride, freq_stride = (conv.strides, conv.strides) if isinstance(conv.strides, int) else conv.strides
    out_time, out_freq = rf.make_conv_out_spatial_dims(
        [in_time, in_freq], filter_size=conv.filter_size, strides=conv.strides, padding="same"
    )
    source = source.copy_masked(0.0, dims=[in_time])
    freq_padding = tf_same_padding(in_freq.dimension, filter_size=freq_filter, stride=freq_stride)
    # Some zeros on both sides, and from there the windows of each utterance.
    most_left = (time_filter - 1) // 2
    source, (padded_time, padded_freq) = rf.pad(
        source,
        axes=[in_time, in_freq],
        padding=[(most_left, time_filter - 1 - most_left), freq_padding],
        value=0.0,
        handle_dynamic_dims=False,  # masked above
    )
    if time_stride > 1:
        lengths = in_time.get_size_tensor(device=source.device)
        left, _ = tf_same_padding(lengths, filter_size=time_filter, stride=time_stride)
        indices = rf.range_over_dim(padded_time, device=source.device)
        indices = rf.clip_by_value(indices + (most_left - left), 0, int(padded_time.get_dim_value()) - 1)
        indices.sparse_dim = padded_time
        windows_time = Dim(padded_time.get_size_tensor(), name="tf-same-time")
        indices, _ = rf.replace_dim(indices, in_dim=padded_time, out_dim=windows_time)
        source = rf.gather(source, indices=indices, axis=padded_time)
        padded_time = windows_time
    out, _ = rf.conv(
        source,
        in_dim=conv.in_dim,
        out_dim=conv.out_dim,
        in_spatial_dims=[padded_time, padded_freq],
        out_spatial_dims=[out_time, out_freq],
        filter=conv.filter,
        filter_size=conv.filter_size,
        padding="valid",
        strides=conv.strides,
        bias=conv.bias,
        use_mask=False,
    )
    return out, (out_time, out_freq)


class TfSameConvSubsample(ConformerConvSubsample):
    """
    RETURNN's convolutional frontend (same options and parameters), padded as TensorFlow does for each utterance alone.
    """

    def __init__(self, in_dim: Dim, **kwargs):
        super().__init__(in_dim, **kwargs)
        if any(conv.padding != "same" for conv in self.conv_layers):
            raise ValueError("TfSameConvSubsample: padding must be 'same'")
        if any(pool[0] != 1 for pool in self.pool_sizes or ()):
            raise ValueError(f"TfSameConvSubsample: no pooling over time, got pool_sizes {self.pool_sizes}")

    def __call__(self, source: Tensor, *, in_spatial_dim: Dim) -> tuple[Tensor, Dim]:
        """
        :param source: {batch, in_spatial_dim, in_dim}
        :param in_spatial_dim: frames
        :return: {batch, frames / strides (rounded up), out_dim}, its frames dim
        """
        channels_dim = self._dummy_in_dim
        x = rf.expand_dim(source, dim=channels_dim)
        spatial_dims = (in_spatial_dim, self.in_dim)
        for i, conv in enumerate(self.conv_layers):
            x, spatial_dims = tf_same_conv2d(x, conv=conv, in_spatial_dims=spatial_dims)
            channels_dim = conv.out_dim
            x = self.activation(x)
            if self.pool_sizes and i < len(self.pool_sizes):
                x, spatial_dims = rf.pool2d(
                    x, in_spatial_dims=spatial_dims, pool_size=self.pool_sizes[i], padding="same", mode="max"
                )
        time_dim, freq_dim = spatial_dims
        x, _ = rf.replace_dim(x, in_dim=freq_dim, out_dim=self._final_second_spatial_dim)
        x, _ = rf.merge_dims(x, dims=[self._final_second_spatial_dim, channels_dim], out_dim=self.out_dim)
        return x, time_dim
