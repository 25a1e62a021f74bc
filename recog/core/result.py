"""
What every search returns, and how final scores are normalised by length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["SearchResult", "combine_components", "length_divisor", "sort_hypotheses"]

NEG_INF = float("-inf")


@dataclass
class SearchResult:
    """N-best of a batch, best first. ``scores = sum_c scales[c] components[c] / length divisor``."""

    labels: Tensor  # [B, N, L] int64, zeros behind the end; without EOS
    label_lengths: Tensor  # [B, N] int64
    scores: Tensor  # [B, N] float64, -inf where there is no hypothesis
    components: dict[str, Tensor]  # name -> [B, N] float64, before scales
    scales: dict[str, float]  # name -> scale with its sign, the same keys
    stats: dict[str, Tensor] = field(default_factory=dict)  # counters, e.g. "decoder_rows" []

    @property
    def num_hyps(self) -> Tensor:
        """:return: [B] int64, number of hypotheses that exist"""
        return (self.scores > NEG_INF).sum(dim=1)


def length_divisor(label_lengths: Tensor, *, exponent: float, offset: int) -> Tensor:
    """
    :param label_lengths: [...] int64 number of labels without EOS
    :param exponent: 0: no normalisation
    :param offset: 1: EOS counts as a label; 0: as the original recipes did, max(length, 1)
    :return: [...] float64
    """
    return (label_lengths + offset).clamp(min=1).to(torch.float64) ** exponent


def combine_components(components: dict[str, Tensor], scales: dict[str, float]) -> Tensor:
    """
    :param components: name -> [...]
    :param scales: name -> scale
    :return: [...] sum of scale times component; -inf if one of the components is -inf, whatever the sign of its scale
    """
    total = impossible = None
    for name, value in components.items():
        bad = value == NEG_INF
        part = scales[name] * value.masked_fill(bad, 0.0)
        total = part if total is None else total + part
        impossible = bad if impossible is None else impossible | bad
    return total.masked_fill(impossible, NEG_INF)


def sort_hypotheses(result: SearchResult, *, n_best: int) -> SearchResult:
    """:return: the n_best (or fewer, if there are not so many places) best hypotheses, best first"""
    scores, index = torch.sort(result.scores, dim=1, descending=True, stable=True)
    index = index[:, :n_best]
    max_len = result.labels.shape[2]
    return SearchResult(
        labels=result.labels.gather(1, index[:, :, None].expand(-1, -1, max_len)),
        label_lengths=result.label_lengths.gather(1, index),
        scores=scores[:, :n_best],
        components={name: value.gather(1, index) for name, value in result.components.items()},
        scales=result.scales,
        stats=result.stats,
    )
