"""
External language models as label scorers. (As an internal LM with a negative scale, they are the density ratio.)

At the beginning of a hypothesis they read the embedding of BOS (= EOS), as in their training; the attention decoder and
the internal LMs that are made of it read a zero vector there.
"""

from __future__ import annotations

import returnn.frontend as rf
import torch
from torch import Tensor
from torch.nn import functional

from rf_models.lm import LstmLm, TransformerLm
from rf_models.transformer_steps import TransformerRows, initial_rows, step_rows

from .base import Growing, LabelScorer, State

__all__ = ["LstmLmScorer", "TransformerLmScorer", "make_lm_scorer"]


def make_lm_scorer(model: rf.Module) -> LabelScorer:
    """
    :param model: language model of any kind
    :raises TypeError: it is something else
    """
    if isinstance(model, LstmLm):
        return LstmLmScorer(model)
    if isinstance(model, TransformerLm):
        return TransformerLmScorer(model)
    raise TypeError(f"{type(model).__name__} is no language model that can be searched with")


class LstmLmScorer(LabelScorer):
    """:class:`rf_models.lm.LstmLm` in evaluation mode, in plain torch. State: h and c of each layer."""

    def __init__(self, lm: LstmLm):
        """:param lm:"""
        self.num_labels = lm.target_dim.dimension
        self.embedding = (lm.input.weight.raw_tensor + lm.input_bias.raw_tensor).detach()
        self.layers = []
        for layer in lm.layers:
            gates = 4 * layer.out_dim
            ff_weight = layer.ff_weight.copy_transpose([gates, layer.in_dim]).raw_tensor.detach()
            rec_weight = layer.rec_weight.copy_transpose([gates, layer.out_dim]).raw_tensor.detach()
            bias = layer.bias.raw_tensor.detach()
            self.layers.append((ff_weight, rec_weight, bias, torch.zeros_like(bias)))
        self.output_weight = lm.output.weight.copy_transpose([lm.target_dim, lm.lstm_dim]).raw_tensor.detach()
        self.output_bias = lm.output.bias.raw_tensor.detach()

    def initial_state(self, batch_size: int) -> State:
        """:return: before BOS: all zero"""
        zeros = self.output_weight.new_zeros((batch_size, self.output_weight.shape[1]))
        return [(zeros, zeros) for _ in self.layers]

    def step(self, prev_labels: Tensor, state: State, utt: Tensor) -> tuple[Tensor, State]:
        """See :func:`LabelScorer.step`."""
        x = functional.embedding(prev_labels, self.embedding)
        new_state = []
        for weights, hidden in zip(self.layers, state, strict=True):
            x, c = torch.lstm_cell(x, hidden, *weights)
            new_state.append((x, c))
        logits = functional.linear(x, self.output_weight, self.output_bias)
        return logits.float().log_softmax(dim=1), new_state


class TransformerLmScorer(LabelScorer):
    """
    :class:`rf_models.lm.TransformerLm` in evaluation mode. State: keys and values of each hypothesis, whose lengths
    differ in time-synchronous search.
    """

    def __init__(self, lm: TransformerLm):
        """:param lm:"""
        self.num_labels = lm.target_dim.dimension
        self.lm = lm

    def initial_state(self, batch_size: int) -> State:
        """:return: before BOS: nothing read"""
        rows = initial_rows(self.lm, batch_size)
        return Growing(data=rows.keys_values, lengths=rows.lengths, max_length=0)

    def step(self, prev_labels: Tensor, state: State, utt: Tensor) -> tuple[Tensor, State]:
        """See :func:`LabelScorer.step`."""
        rows = TransformerRows(keys_values=state.data[:, : state.max_length], lengths=state.lengths)
        logits, rows = step_rows(self.lm, prev_labels, rows)
        new_state = Growing(data=rows.keys_values, lengths=rows.lengths, max_length=state.max_length + 1)
        return logits.float().log_softmax(dim=1), new_state
