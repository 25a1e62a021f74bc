"""
Several label scorers with their scales, scored together: the label part of the score of a hypothesis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import LabelScorer, State

__all__ = ["LabelScores", "ScorerSet"]


@dataclass
class LabelScores:
    """Scores of all next labels, for N rows."""

    total: Tensor  # [N, V] float32: sum of scale times component
    components: dict[str, Tensor]  # name -> [N, V] (or [V] if it does not depend on the row), before scales

    def component_of(self, name: str, rows: Tensor, labels: Tensor) -> Tensor:
        """:return: float64, the component of these (row, label) pairs (any equal shape)"""
        value = self.components[name]
        return (value[labels] if value.dim() == 1 else value[rows, labels]).double()


class ScorerSet:
    """
    Components of the score that are defined label by label. Names: "att", "lm", "ilm" (scorers), "length" (1 for each
    label) and "prior" (label log-prior). Scales carry their sign. Scorers with scale 0 are left out and never run.
    """

    def __init__(
        self,
        scorers: dict[str, LabelScorer],
        scales: dict[str, float],
        *,
        num_labels: int,
        eos_index: int,
        ilm_eos: bool = True,
        label_log_prior: Tensor | None = None,
        device: torch.device | str = "cpu",
    ):
        """
        :param scorers: by component name
        :param scales: by component name, also "length" and "prior"
        :param num_labels: V
        :param eos_index:
        :param ilm_eos: whether the component "ilm" counts for EOS
        :param label_log_prior: [V], needed for a scale of "prior"
        :param device:
        """
        for name, scorer in scorers.items():
            if scorer.num_labels != num_labels:
                raise ValueError(
                    f"the vocabulary of the scorer {name!r} has {scorer.num_labels} labels, that of the search"
                    f" {num_labels}: they must be the same"
                )
        self.num_labels = num_labels
        self.eos_index = eos_index
        self.ilm_eos = ilm_eos
        self.scorers = {name: scorer for name, scorer in scorers.items() if scales.get(name)}
        self.scales = {name: scales[name] for name in self.scorers}
        missing = [n for n, scale in scales.items() if scale and n not in scorers and n not in ("length", "prior")]
        if missing:
            raise ValueError(f"scale of {', '.join(missing)} is not 0, but this run has no such model")
        self.constant: dict[str, Tensor] = {}  # [V]
        if scales.get("length"):
            self.constant["length"] = torch.ones(num_labels, device=device)
        if scales.get("prior"):
            if label_log_prior is None:
                raise ValueError("a scale for the label prior, but no prior")
            self.constant["prior"] = label_log_prior.to(device).float().clone()
        for name, value in self.constant.items():
            value[eos_index] = 0.0
            self.scales[name] = scales[name]

    def initial_state(self, batch_size: int) -> State:
        """:return: one row for each utterance"""
        return {name: scorer.initial_state(batch_size) for name, scorer in self.scorers.items()}

    def step(self, prev_labels: Tensor, state: State, utt: Tensor) -> tuple[LabelScores, State]:
        """As :func:`recog.scorers.base.LabelScorer.step`, for all."""
        components: dict[str, Tensor] = {}
        new_state = {}
        total = None
        for name, scorer in self.scorers.items():
            log_probs, new_state[name] = scorer.step(prev_labels, state[name], utt)
            if name == "ilm" and not self.ilm_eos:
                log_probs = log_probs.clone()
                log_probs[:, self.eos_index] = 0.0
            components[name] = log_probs
            total = log_probs * self.scales[name] if total is None else total.add_(log_probs, alpha=self.scales[name])
        if total is None:
            total = torch.zeros((prev_labels.shape[0], self.num_labels), device=prev_labels.device)
        for name, value in self.constant.items():
            components[name] = value
            total.add_(value, alpha=self.scales[name])
        return LabelScores(total=total, components=components), new_state

    def row_scores(self, state: State) -> dict[str, Tensor]:
        """See :func:`recog.scorers.base.LabelScorer.row_scores`; of the scorer "att"."""
        return self.scorers["att"].row_scores(state["att"]) if "att" in self.scorers else {}
