"""
Mixup of features: past speech as quiet background (after Zhang et al. 2018, https://arxiv.org/abs/1710.09412, without
mixing the labels)::

    x'_t = x_t + sum_{k=1..K} w_k b_{p_k + t},    sum_k w_k = lambda

with K and lambda drawn per utterance, and b_{p_k} ... b_{p_k + T - 1} a random piece of the last frames of this
training. Only in training, no gradient through b. The frames are kept beside the model, not in checkpoints: each
sub-epoch begins with none (so that a training that is continued is the same as one that was not interrupted), and mixes
nothing until there are as many as the longest utterance of a batch has.
"""

from __future__ import annotations

import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor

from .options import AedCtcTrainOptions

__all__ = ["FrameBuffer", "mixup", "mixup_raw"]


class FrameBuffer:
    """The last frames, as a ring."""

    def __init__(self) -> None:
        self.frames: torch.Tensor | None = None
        """[size, features]; the first num_frames are filled"""
        self.num_frames = 0
        self.position = 0
        """Where the next frame goes"""

    def clear(self) -> None:
        """Forgets all frames; the memory is kept."""
        self.num_frames = self.position = 0

    def append(self, frames: torch.Tensor, *, size: int) -> None:
        """
        :param frames: [any number, features]
        :param size: of the buffer; the same in each call
        """
        if self.frames is None:
            self.frames = torch.empty([size, frames.shape[1]], dtype=frames.dtype, device=frames.device)
        frames = frames.detach()[-size:]
        first = frames[: size - self.position]
        self.frames[self.position : self.position + len(first)] = first
        self.frames[: len(frames) - len(first)] = frames[len(first) :]
        self.num_frames = min(size, self.num_frames + len(frames))
        self.position = (self.position + len(frames)) % size


def mixup_raw(x: torch.Tensor, frames_mask: torch.Tensor, past: torch.Tensor, opts: AedCtcTrainOptions) -> torch.Tensor:
    """
    :param x: [batch, frames, features]
    :param frames_mask: [batch, frames] bool: no padding
    :param past: [at least as many frames as x, features]
    :param opts: the options that begin with ``mixup_``
    :return: like x; the padding is as it was
    """
    batch, num_frames, _ = x.shape

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, device=x.device)

    low, high = opts.mixup_lambda
    total = (low + (high - low) * uniform(batch)) * (uniform(batch) < opts.mixup_prob)
    num = 1 + (uniform(batch) * opts.mixup_max_num).long()
    weights = 1e-3 + uniform(batch, opts.mixup_max_num)
    weights = weights * (torch.arange(opts.mixup_max_num, device=x.device) < num[:, None])
    weights = weights * (total / weights.sum(dim=1))[:, None]
    starts = (uniform(batch, opts.mixup_max_num) * (past.shape[0] - num_frames + 1)).long()
    frames = torch.arange(num_frames, device=x.device)
    background = torch.zeros_like(x)
    for k in range(opts.mixup_max_num):
        background += weights[:, k, None, None].to(x.dtype) * past[starts[:, k, None] + frames]
    return x + background * frames_mask[:, :, None]


def mixup(
    features: Tensor, buffer: FrameBuffer, *, spatial_dim: Dim, feature_dim: Dim, opts: AedCtcTrainOptions
) -> Tensor:
    """
    :param features: {batch, spatial_dim, feature_dim}
    :param buffer: frames of the batches before; gets these
    :param spatial_dim: frames
    :param feature_dim:
    :param opts: the options that begin with ``mixup_``
    :return: like features; the same outside of training
    """
    if not rf.get_run_ctx().is_train_flag_enabled(func=mixup):
        return features
    (batch_dim,) = features.remaining_dims([spatial_dim, feature_dim])
    dims = [batch_dim, spatial_dim, feature_dim]
    x = features.copy_compatible_to_dims_raw(dims)
    lengths = spatial_dim.get_size_tensor(device=features.device).raw_tensor
    mask = torch.arange(x.shape[1], device=x.device) < lengths.reshape(-1, 1)
    mixed = x
    if buffer.num_frames >= x.shape[1]:
        mixed = mixup_raw(x, mask, buffer.frames[: buffer.num_frames], opts)
    buffer.append(x[mask], size=opts.mixup_buffer_frames)
    return rf.convert_to_tensor(mixed, dims=dims, feature_dim=feature_dim)
