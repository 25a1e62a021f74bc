"""
What the coverage and monotonicity scores need of the attention weights of a hypothesis: a part of a decoder's state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import State

__all__ = ["initial_track", "next_track", "track_scores"]


def initial_track(zeros: Tensor) -> State:
    """
    :param zeros: [N, T]
    :return: of the empty hypothesis
    """
    return {"att_sum": zeros, "position": zeros[:, :1].sum(1), "backward": zeros[:, :1].sum(1)}


def next_track(state: State, weights: Tensor) -> State:
    """
    :param state: of N rows
    :param weights: [N, T] attention weights of the next label
    :return: new state
    """
    frames = torch.arange(weights.shape[1], device=weights.device, dtype=weights.dtype)
    position = weights @ frames
    step_back = (state["position"] - position).clamp(min=0.0)
    return {
        "att_sum": state["att_sum"] + weights,
        "position": position,
        "backward": state["backward"] + step_back,
    }


def track_scores(state: State) -> dict[str, Tensor]:
    """
    :param state: of N rows
    :return: "attention_sums" [N, T]: weights summed over the labels, for the coverage score;
        "monotonicity" [N]: minus the frames that the mean attention position has moved back
    """
    return {"attention_sums": state["att_sum"], "monotonicity": -state["backward"]}
