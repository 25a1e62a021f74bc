"""
Gaussian window over the input of a CTC head. With w taps and standard deviation s (frames)::

    g_k  = exp(-0.5 (k / s)^2) / Z,   k = -floor(w/2) ... w - 1 - floor(w/2),   Z such that sum_k g_k = 1
    h'_t = sum_k g_k h_{t+k},         h = 0 outside of the utterance

For an even w, the window reaches one frame further to the left, as in the original TensorFlow models. The limit s = 0
is the frame itself. Frames of the padding are no part of the sum: an utterance has the same output in any batch.
"""

from __future__ import annotations

import math

import returnn.frontend as rf
from returnn.tensor import Dim, Tensor

__all__ = ["GaussianWindow", "gaussian_kernel"]


def gaussian_kernel(size: int, std: float) -> list[float]:
    """
    :param size: w, taps
    :param std: s, frames
    :return: g_k, see the module docstring; sum 1
    :raises ValueError: no taps, or a negative standard deviation
    """
    if size < 1 or std < 0:
        raise ValueError(f"Gaussian window of {size} frames with standard deviation {std}")
    offsets = [i - size // 2 for i in range(size)]
    if std == 0:
        return [float(k == 0) for k in offsets]
    kernel = [math.exp(-0.5 * (k / std) ** 2) for k in offsets]
    return [g / sum(kernel) for g in kernel]


class GaussianWindow(rf.Module):
    """See the module docstring. Has no parameters."""

    def __init__(self, in_dim: Dim, *, size: int, std: float, with_input: bool):
        """
        :param in_dim: encoder states
        :param size: w, frames
        :param std: s, frames
        :param with_input: output is [h_t ; h'_t] instead of h'_t
        """
        super().__init__()
        self.in_dim = in_dim
        self.kernel = gaussian_kernel(size, std)
        self.with_input = with_input
        self.out_dim = 2 * in_dim if with_input else in_dim

    def __call__(self, x: Tensor, *, spatial_dim: Dim) -> Tensor:
        """
        :param x: {batch, spatial_dim, in_dim}
        :param spatial_dim: frames
        :return: {batch, spatial_dim, out_dim}
        """
        size = len(self.kernel)
        padded, (padded_dim,) = rf.pad(
            x.copy_masked(0.0, dims=[spatial_dim]),
            axes=[spatial_dim],
            padding=[(size // 2, size - 1 - size // 2)],
            value=0.0,
            handle_dynamic_dims=False,  # masked above
        )
        window = None
        for i, weight in enumerate(self.kernel):
            if weight:
                part, _ = rf.slice(padded, axis=padded_dim, start=i, size=spatial_dim)
                window = weight * part if window is None else window + weight * part
        window.feature_dim = self.in_dim
        if not self.with_input:
            return window
        return rf.concat((x, self.in_dim), (window, self.in_dim), out_dim=self.out_dim)[0]
