"""
From the posteriors of a CTC head to what the searches see: EOS, label prior, collapse of frames. The one place for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = [
    "CtcPosteriors",
    "blank_collapse",
    "merge_eos_into_blank",
    "prepare_ctc_log_probs",
    "soft_collapse",
    "subtract_prior",
]

NEG_INF = float("-inf")


@dataclass
class CtcPosteriors:
    """CTC scores of a batch, ready for a search."""

    log_probs: Tensor  # [B, T, V+1] float32, blank last
    lengths: Tensor  # [B] int64
    frames: Tensor  # [B, T] int64: first frame of the encoder that each frame stands for
    label_log_prior: Tensor | None = None  # [V] to be subtracted once per new label; finite


def prepare_ctc_log_probs(
    log_probs: Tensor,
    lengths: Tensor,
    *,
    eos_index: int,
    eos: Literal["merge", "keep"] = "merge",
    log_prior: Tensor | None = None,
    prior_scale: float = 0.0,
    prior_type: Literal["frame", "label"] = "frame",
    merge_prior: bool = True,
    blank_penalty: float = 0.0,
    soft_collapse_threshold: float | None = None,
    blank_collapse_threshold: float | None = None,
) -> CtcPosteriors:
    """
    :param log_probs: [B, T, V+1] log softmax of a CTC head, blank last
    :param lengths: [B] frames
    :param eos_index:
    :param eos: see :class:`recog.options.CtcOptions`, also for the other options
    :param log_prior: [V+1] natural log
    :param prior_scale:
    :param prior_type:
    :param merge_prior: with ``eos = "merge"``, whether the prior of EOS is merged into that of blank, as the posterior
        is. The original recipes did not.
    :param blank_penalty:
    :param soft_collapse_threshold: None: off
    :param blank_collapse_threshold: None: off
    """
    log_probs = log_probs.float()
    lengths = lengths.to(device=log_probs.device, dtype=torch.int64)
    if log_prior is not None:
        if log_prior.shape != log_probs.shape[-1:]:
            raise ValueError(
                f"the CTC prior has {log_prior.numel()} entries, but the CTC head {log_probs.shape[-1]}"
                " (labels and blank)"
            )
        log_prior = log_prior.to(log_probs)
    if eos == "merge":
        log_probs = merge_eos_into_blank(log_probs, eos_index=eos_index)
        if log_prior is not None and merge_prior:
            log_prior = merge_eos_into_blank(log_prior, eos_index=eos_index)
    label_log_prior = None
    if log_prior is not None and prior_scale:
        if prior_type == "frame":
            log_probs = subtract_prior(log_probs, log_prior, scale=prior_scale)
        else:
            label_log_prior = torch.log_softmax(log_prior[:-1], dim=0)
            # Subtracting log 0 would make a label that the prior does not know the best of all: it gets no correction.
            label_log_prior = label_log_prior.masked_fill(label_log_prior == NEG_INF, 0.0)
    if blank_penalty:
        log_probs = torch.cat((log_probs[..., :-1], log_probs[..., -1:] - blank_penalty), dim=-1)
    frames = torch.arange(log_probs.shape[1], device=log_probs.device).expand(log_probs.shape[:2])
    if soft_collapse_threshold is not None:
        log_probs, lengths, frames = soft_collapse(log_probs, lengths, frames, threshold=soft_collapse_threshold)
    if blank_collapse_threshold is not None:
        log_probs, lengths, frames = blank_collapse(log_probs, lengths, frames, threshold=blank_collapse_threshold)
    return CtcPosteriors(log_probs=log_probs, lengths=lengths, frames=frames, label_log_prior=label_log_prior)


def merge_eos_into_blank(log_probs: Tensor, *, eos_index: int) -> Tensor:
    """
    Models trained with EOS in the CTC targets put a frame of EOS at the end, which is no label of the hypotheses.

    :param log_probs: [..., V+1], blank last
    :return: p(blank) += p(EOS), p(EOS) = 0
    """
    log_probs = log_probs.clone()
    log_probs[..., -1] = torch.logaddexp(log_probs[..., -1], log_probs[..., eos_index])
    log_probs[..., eos_index] = NEG_INF
    return log_probs


def subtract_prior(log_probs: Tensor, log_prior: Tensor, *, scale: float) -> Tensor:
    """
    :param log_probs: [..., V+1]
    :param log_prior: [V+1]
    :param scale:
    :return: log_probs - scale log_prior, renormalised; classes with probability 0 keep it
    """
    # A class that the prior does not know (-inf) is only harmless where its posterior is 0, too.
    correction = log_prior.masked_fill(log_prior == NEG_INF, 0.0)
    return torch.log_softmax(log_probs - scale * correction, dim=-1)


def blank_collapse(
    log_probs: Tensor, lengths: Tensor, frames: Tensor, *, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Keeps one frame, the last, of each run of frames with p(blank) > threshold, and none of a run at the beginning or
    the end of the utterance (at least one frame of each utterance stays).

    :param log_probs: [B, T, V+1]
    :param lengths: [B]
    :param frames: [B, T] what each frame stands for
    :param threshold: probability
    :return: the same three, shorter
    """
    num_frames = log_probs.shape[1]
    time = torch.arange(num_frames, device=log_probs.device)
    inside = time < lengths[:, None]
    confident = (log_probs[:, :, -1].exp() > threshold) & inside
    label = inside & ~confident
    followed = torch.nn.functional.pad(confident[:, 1:], (0, 1))  # the next frame belongs to the run, too
    first = torch.where(label, time, num_frames).amin(dim=1, keepdim=True)
    last = torch.where(label, time, -1).amax(dim=1, keepdim=True)
    keep = label | (confident & ~followed & (time > first) & (time < last))
    keep[:, 0] |= ~keep.any(dim=1)
    return _select_frames(log_probs, frames, keep)


def soft_collapse(
    log_probs: Tensor, lengths: Tensor, frames: Tensor, *, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Replaces each run of frames which have the same most probable class, all with a probability >= threshold, by the
    mean of their distributions.

    :param log_probs: [B, T, V+1]
    :param lengths: [B]
    :param frames: [B, T] what each frame stands for
    :param threshold: probability
    :return: the same three, shorter
    """
    num_frames = log_probs.shape[1]
    inside = torch.arange(num_frames, device=log_probs.device) < lengths[:, None]
    best, label = log_probs.max(dim=2)
    confident = (best.exp() >= threshold) & inside
    joins = torch.zeros_like(confident)  # the frame belongs to the run of the frame before
    joins[:, 1:] = confident[:, 1:] & confident[:, :-1] & (label[:, 1:] == label[:, :-1])
    keep = inside & ~joins
    run = (keep.cumsum(dim=1) - 1).clamp(min=0)
    probs = torch.where(inside[:, :, None], log_probs, NEG_INF).exp()
    sums = torch.zeros_like(probs).scatter_add_(1, run[:, :, None].expand_as(probs), probs)
    counts = torch.zeros_like(best).scatter_add_(1, run, inside.to(best.dtype))
    means = (sums / counts.clamp(min=1.0)[:, :, None]).log()
    selected, lengths, frames = _select_frames(log_probs, frames, keep)
    merged = counts[:, : selected.shape[1], None] > 1  # runs of one frame keep their scores bit by bit
    return torch.where(merged, means[:, : selected.shape[1]], selected), lengths, frames


def _select_frames(log_probs: Tensor, frames: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:return: log_probs [B, T', V+1], lengths [B], frames [B, T'] of the frames to keep"""
    max_len = int(keep.sum(dim=1).max())
    order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, :max_len]
    selected = log_probs.gather(1, order[:, :, None].expand(-1, -1, log_probs.shape[2]))
    return selected, keep.sum(dim=1), frames.gather(1, order)
