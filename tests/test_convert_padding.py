"""TensorFlow's "same" padding by each utterance's own length, against its definition written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor

from rf_models.padding import tf_same_conv2d, tf_same_padding


def reference(x: np.ndarray, weight: np.ndarray, strides: tuple[int, int]) -> np.ndarray:
    """
    :param x: [time, freq, in]
    :param weight: [k_time, k_freq, in, out], as in TensorFlow
    :param strides:
    :return: [ceil(time / stride), ceil(freq / stride), out] of tf.nn.convolution with padding "SAME"
    """
    out_sizes, pads = [], []
    for size, k, s in zip(x.shape, weight.shape[:2], strides, strict=False):
        out = -(-size // s)
        total = max((out - 1) * s + k - size, 0)
        out_sizes.append(out)
        pads.append((total // 2, total - total // 2))
    x = np.pad(x, [*pads, (0, 0)])
    out = np.zeros((*out_sizes, weight.shape[3]))
    for i in range(out_sizes[0]):
        for j in range(out_sizes[1]):
            window = x[i * strides[0] :, j * strides[1] :][: weight.shape[0], : weight.shape[1]]
            out[i, j] = np.tensordot(window, weight, axes=3)
    return out


@pytest.mark.parametrize("filter_size", [1, 2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_all_lengths_in_one_batch(filter_size, stride):
    rf.select_backend_torch()
    rng = np.random.default_rng(filter_size * 10 + stride)
    lengths = [13, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    freq, in_size, out_size = 5, 2, 3
    batch_dim, freq_dim = Dim(len(lengths), name="batch"), Dim(freq, name="freq")
    in_dim, out_dim = Dim(in_size, name="in"), Dim(out_size, name="out")
    raw_lengths = torch.tensor(lengths, dtype=torch.int32)
    time_dim = Dim(Tensor("len", [batch_dim], dtype="int32", raw_tensor=raw_lengths), name="time")
    x = rng.normal(size=(len(lengths), max(lengths), freq, in_size)).astype(np.float32)  # the padding is no zero
    conv = rf.Conv2d(in_dim, out_dim, filter_size=(filter_size, 3), strides=(stride, 1), padding="same")
    weight = rng.normal(size=(filter_size, 3, in_size, out_size)).astype(np.float32)
    with torch.no_grad():
        conv.filter.raw_tensor.copy_(torch.from_numpy(weight.transpose(3, 2, 0, 1)))
        conv.bias.raw_tensor.zero_()
        source = Tensor("x", [batch_dim, time_dim, freq_dim, in_dim], dtype="float32", raw_tensor=torch.from_numpy(x))
        source.feature_dim = in_dim
        out, (out_time, out_freq) = tf_same_conv2d(source, conv=conv, in_spatial_dims=(time_dim, freq_dim))
        raw = out.copy_transpose([batch_dim, out_time, out_freq, out_dim]).raw_tensor.numpy()
    out_lengths = out_time.get_size_tensor().raw_tensor.tolist()
    for i, length in enumerate(lengths):
        expected = reference(x[i, :length], weight, (stride, 1))
        assert out_lengths[i] == len(expected)
        np.testing.assert_allclose(raw[i, : len(expected)], expected, atol=1e-4)
        total = max((len(expected) - 1) * stride + filter_size - length, 0)
        assert tf_same_padding(length, filter_size=filter_size, stride=stride) == (total // 2, total - total // 2)
