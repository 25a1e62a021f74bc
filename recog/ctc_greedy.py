"""
CTC greedy search: the best class of each frame, repetitions and blanks removed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .core.posteriors import CtcPosteriors
from .core.result import SearchResult

__all__ = ["collapse_alignment", "ctc_greedy_search"]


def ctc_greedy_search(ctc: CtcPosteriors, *, eos_index: int) -> SearchResult:
    """
    :param ctc: prior and collapse of frames already applied
    :param eos_index: frames with EOS (only with ``ctc_eos = "keep"``) give no label
    :return: one hypothesis per utterance; component "ctc": log-prob of its best alignment
    """
    num_frames, blank = ctc.log_probs.shape[1], ctc.log_probs.shape[2] - 1
    best, classes = ctc.log_probs.max(dim=2)
    inside = torch.arange(num_frames, device=classes.device) < ctc.lengths[:, None]
    score = torch.where(inside, best, 0.0).double().sum(dim=1, keepdim=True)
    labels, lengths = collapse_alignment(classes.masked_fill(~inside, blank), drop=(blank, eos_index))
    return SearchResult(
        labels=labels[:, None],
        label_lengths=lengths[:, None],
        scores=score,
        components={"ctc": score},
        scales={"ctc": 1.0},
    )


def collapse_alignment(classes: Tensor, *, drop: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """
    :param classes: [B, T] class of each frame
    :param drop: classes that are no labels, such as blank
    :return: labels [B, L] padded with 0, lengths [B]
    """
    is_label = torch.ones_like(classes, dtype=torch.bool)
    is_label[:, 1:] = classes[:, 1:] != classes[:, :-1]
    for k in drop:
        is_label &= classes != k
    lengths = is_label.sum(dim=1)
    order = torch.argsort((~is_label).to(torch.uint8), dim=1, stable=True)[:, : int(lengths.max())]
    labels = classes.gather(1, order)
    behind = torch.arange(labels.shape[1], device=labels.device) >= lengths[:, None]
    return labels.masked_fill(behind, 0), lengths
