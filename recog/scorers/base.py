"""
The interface of label scorers, and what searches do with their states.

Hypotheses are the *rows* of all tensors: a flat axis 0 of any size. Row n belongs to the utterance ``utt[n]``. Searches
never look into a state, they select rows of it and write rows into it.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import torch
from torch import Tensor

__all__ = ["Growing", "LabelScorer", "State", "expand_rows", "select_rows", "write_rows"]

State = Any
"""A tensor with rows as axis 0, a :class:`Growing`, or a dict, list or tuple of states."""


@dataclasses.dataclass
class Growing:
    """A history of different length per row, such as the keys of a Transformer's self-attention."""

    data: Tensor  # [N, L, ...], anything (finite) behind the end
    lengths: Tensor  # [N] int64
    max_length: int  # no length is greater. Known without asking the device; L can be more, to have room


class LabelScorer(abc.ABC):
    """Scores the next label given the labels so far."""

    num_labels: int
    """V, EOS included."""

    @abc.abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """:return: state of the empty hypothesis, one row for each utterance"""

    @abc.abstractmethod
    def step(self, prev_labels: Tensor, state: State, utt: Tensor) -> tuple[Tensor, State]:
        """
        :param prev_labels: [N] int64, the last label of each row, BOS (= EOS) in the empty hypothesis
        :param state: of N rows, from the step before. Not changed.
        :param utt: [N] int64 utterance of each row
        :return: [N, V] float32 log-probs of the next label, EOS included; new state
        """

    def row_scores(self, state: State) -> dict[str, Tensor]:
        """
        :param state: of N rows
        :return: scores of whole hypotheses that do not depend on the next label, by name, [N]; most scorers have none
        """
        return {}


def select_rows(state: State, index: Tensor) -> State:
    """:return: a new state of the rows index [N'] (int64)"""
    return _map(state, lambda x: x.index_select(0, index))


def expand_rows(state: State, repeats: int) -> State:
    """:return: a new state with each row repeated"""
    return _map(state, lambda x: x.repeat_interleave(repeats, dim=0))


def write_rows(state: State, index: Tensor, rows: State) -> State:
    """
    :param state: of N rows; changed in place where possible
    :param index: [N'] int64, different rows
    :param rows: of N' rows
    :return: the state with these rows overwritten
    """
    if isinstance(state, Growing):
        have, want = state.data.shape[1], rows.max_length
        if want > have:
            # Room for twice as much, so that the history is not copied at each label.
            grown = state.data.new_zeros((state.data.shape[0], max(want, 2 * have), *state.data.shape[2:]))
            grown[:, :have] = state.data
            state.data = grown
        state.data[index, :want] = rows.data[:, :want]
        state.lengths[index] = rows.lengths
        state.max_length = max(state.max_length, want)
        return state
    if isinstance(state, dict):
        return {key: write_rows(value, index, rows[key]) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(write_rows(value, index, new) for value, new in zip(state, rows, strict=True))
    return state.index_copy_(0, index, rows)


def _map(state: State, func: Any) -> State:
    """:return: state with func applied to all tensors"""
    if isinstance(state, Growing):
        return Growing(
            data=func(state.data[:, : state.max_length]), lengths=func(state.lengths), max_length=state.max_length
        )
    if isinstance(state, dict):
        return {key: _map(value, func) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_map(value, func) for value in state)
    if not isinstance(state, torch.Tensor):
        raise TypeError(f"a scorer's state must consist of tensors, this is {type(state).__name__}")
    return func(state)
