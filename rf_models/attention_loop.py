"""
The recurrence of the attention decoder over given labels, in plain torch: the part of a training step that runs once
per label. See :mod:`rf_models.decoder` for the model; x_i is the part of the LSTM's input that does not depend on the
recurrence.

Automatic differentiation of this loop adds, in each step, the gradients of large matrices and of the transformed
encoder states [batch, frames, att_dim] to those of the steps before, and keeps several tensors of that size per step.
Here the backward pass is written out:

- gradients of matrices are one product over all labels, after the loop;
- of the size [batch, frames, att_dim], one tensor per label is kept, h = tanh(...), and since d tanh = 1 - h^2, what is
  needed of it are sums of h^2 with weights [batch, frames];
- an utterance whose labels have ended takes no part in further steps (the batch is sorted by the number of labels).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

__all__ = ["LoopConstants", "attention_loop"]


@dataclass(frozen=True)
class LoopConstants:
    """What needs no gradient. Rows are utterances, with decreasing numbers of labels."""

    num_rows: list[int]
    """Per label position: how many utterances (the first ones) have a label there. Not increasing."""
    frames_mask: torch.Tensor
    """[batch, frames] bool: no padding"""
    gates: str
    """Order of the gates in x and W_r: a permutation of i (input), j (cell input), f (forget), o (output)."""
    forget_bias: float
    zoneout_output: bool
    """Whether the output of the LSTM is its zoned-out state."""
    update_cell: list[torch.Tensor | float]
    """Per label position: how much of the cell is updated, 0 (zoneout) to 1. [units], [batch, units] or a number"""
    update_output: list[torch.Tensor | float]
    """The same for the state h."""
    att_dropout: list[torch.Tensor] | None
    """Per label position: factors of the attention weights, [frames] or [batch, frames]"""


def attention_loop(
    x: torch.Tensor,
    enc: torch.Tensor,
    enc_ctx: torch.Tensor,
    fertility: torch.Tensor,
    *,
    context_weight: torch.Tensor,
    rec_weight: torch.Tensor,
    query_weight: torch.Tensor,
    feedback_weight: torch.Tensor,
    energy_weight: torch.Tensor,
    constants: LoopConstants,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    :param x: [batch, labels, 4 units] input of the LSTM without its part of the context vector, with bias
    :param enc: [batch, frames, enc_dim]
    :param enc_ctx: [batch, frames, att_dim]
    :param fertility: [batch, frames]
    :param context_weight: [4 units, enc_dim]
    :param rec_weight: [4 units, units]
    :param query_weight: [units, att_dim] W_s
    :param feedback_weight: [att_dim] W_fb
    :param energy_weight: [att_dim] v
    :param constants:
    :return: s [batch, labels, units], c [batch, labels, enc_dim]; 0 behind the last label of an utterance. Under
        autocast, the matrix products and enc_ctx have its type.
    """
    tensors = (x, enc, enc_ctx, fertility, context_weight, rec_weight, query_weight, feedback_weight, energy_weight)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return _Loop.apply(constants, keep, *tensors)


def _compute_type(x: torch.Tensor) -> torch.dtype:
    """:return: of matrix products"""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _Loop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, constants: LoopConstants, keep: bool, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = _compute_type(tensors[0])
        x, enc, enc_ctx, fertility, context_weight, rec_weight, w_query, w_feedback, v = tensors
        state_type = x.dtype if x.dtype != torch.bfloat16 and x.dtype != torch.float16 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            x, fertility = x.to(state_type), fertility.to(state_type)
            enc, enc_ctx, w_query, w_feedback, v = (t.to(dtype) for t in (enc, enc_ctx, w_query, w_feedback, v))
            w_state = torch.cat([context_weight, rec_weight], dim=1).to(dtype)  # [4 units, enc_dim + units]
            saved = _Saved(dtype=dtype, state_type=state_type, keep=keep)
            out = _forward(constants, saved, x, enc, enc_ctx, fertility, w_state, w_query, w_feedback, v)
        if saved.keep:
            ctx.constants, ctx.saved = constants, saved
            ctx.types = [t.dtype for t in tensors]
            ctx.save_for_backward(enc, fertility, w_state, w_query, w_feedback, v, *saved.pack())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_s: torch.Tensor, grad_c: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        enc, fertility, w_state, w_query, w_feedback, v, *packed = ctx.saved_tensors
        saved = ctx.saved
        with torch.autocast(enc.device.type, enabled=False):
            saved.unpack(packed)
            grads = _backward(
                ctx.constants,
                saved,
                grad_s.to(saved.state_type),
                grad_c.to(saved.state_type),
                (enc, fertility, w_state, w_query, w_feedback, v),
            )
            saved.clear()
        return None, None, *(grad.to(dtype) for grad, dtype in zip(grads, ctx.types, strict=True))


class _Saved:
    """Results of the forward pass that the backward pass needs, one per label."""

    NAMES = ("gates", "cells", "tanh_cells", "states", "outputs", "hidden", "att", "accum")

    def __init__(self, *, dtype: torch.dtype, state_type: torch.dtype, keep: bool):
        self.dtype = dtype
        self.state_type = state_type
        self.keep = keep
        self.clear()

    def clear(self) -> None:
        for name in self.NAMES:
            setattr(self, name, [])

    def pack(self) -> list[torch.Tensor]:
        """:return: all in one list, so that torch manages their memory; they are not held here any more"""
        res = [tensor for name in self.NAMES for tensor in getattr(self, name)]
        self.clear()
        return res

    def unpack(self, tensors: list[torch.Tensor]) -> None:
        """Reverse of :func:`pack`."""
        num = len(tensors) // len(self.NAMES)
        for i, name in enumerate(self.NAMES):
            setattr(self, name, tensors[i * num : (i + 1) * num])


def _rows(factor: torch.Tensor | float, num: int) -> torch.Tensor | float:
    """:return: of a factor for [batch, ...], that of the first utterances"""
    return factor[:num] if isinstance(factor, torch.Tensor) and factor.ndim == 2 else factor


def _forward(constants, saved, x, enc, enc_ctx, fertility, w_state, w_query, w_feedback, v):
    """:return: s, c of all labels"""
    batch, num_labels, _ = x.shape
    num_frames, enc_dim = enc.shape[1:]
    units = w_query.shape[0]
    out_s = x.new_zeros([num_labels, batch, units])
    out_c = x.new_zeros([num_labels, batch, enc_dim])
    cell = x.new_zeros([batch, units])
    state = x.new_zeros([batch, enc_dim + units])  # context vector and h: what is multiplied with w_state
    accum = x.new_zeros([batch, num_frames])
    no_frame = ~constants.frames_mask
    w_state = w_state.t()
    for i, n in enumerate(constants.num_rows):
        state, cell, accum = state[:n], cell[:n], accum[:n]
        gates = x[:n, i] + (state.to(saved.dtype) @ w_state).to(saved.state_type)
        parts = dict(zip(constants.gates, gates.split(units, dim=1), strict=True))
        parts["f"] += constants.forget_bias
        parts["j"].tanh_()  # in place: these are views of gates
        for gate in "ifo":
            parts[gate].sigmoid_()
        new_cell = torch.addcmul(parts["f"] * cell, parts["i"], parts["j"])
        tanh_cell = torch.tanh(new_cell)
        new_h = parts["o"] * tanh_cell
        h = state[:, enc_dim:]
        h = h + _rows(constants.update_output[i], n) * (new_h - h)
        s = h if constants.zoneout_output else new_h
        if saved.keep:
            saved.gates.append(gates)
            saved.cells.append(cell)
            saved.tanh_cells.append(tanh_cell)
            saved.states.append(state)
            saved.outputs.append(s)
            saved.accum.append(accum)
        cell = cell + _rows(constants.update_cell[i], n) * (new_cell - cell)

        hidden = torch.mul(accum.to(saved.dtype).unsqueeze(2), w_feedback)  # [n, frames, att_dim]
        hidden += enc_ctx[:n]
        hidden += (s.to(saved.dtype) @ w_query).unsqueeze(1)
        hidden.tanh_()
        energy = (hidden @ v).to(saved.state_type)
        att = torch.softmax(energy.masked_fill_(no_frame[:n], float("-inf")), dim=1)
        if saved.keep:
            saved.hidden.append(hidden)
            saved.att.append(att)
        if constants.att_dropout is not None:
            att = att * _rows(constants.att_dropout[i], n)
        accum = torch.addcmul(accum, att, fertility[:n], value=0.5)
        context = (att.to(saved.dtype).unsqueeze(1) @ enc[:n]).squeeze(1).to(saved.state_type)
        out_s[i, :n], out_c[i, :n] = s, context
        state = torch.cat([context, h], dim=1)
    return out_s.transpose(0, 1), out_c.transpose(0, 1)


def _backward(constants, saved, grad_s, grad_c, tensors):
    """:return: gradients of the arguments of :func:`attention_loop`"""
    enc, fertility, w_state, w_query, w_feedback, v = tensors
    batch, num_labels, units = grad_s.shape
    num_frames, enc_dim = enc.shape[1:]
    att_dim = v.shape[0]
    zeros = grad_s.new_zeros
    d_gates = zeros([num_labels, batch, 4 * units])
    d_query = zeros([num_labels, batch, att_dim])
    d_context = zeros([num_labels, batch, enc_dim])  # c_i
    all_att = zeros([num_labels, batch, num_frames])
    d_state, d_cell, d_accum = zeros([batch, enc_dim + units]), zeros([batch, units]), zeros([batch, num_frames])
    d_fertility = zeros([batch, num_frames])
    sum_d_energy = zeros([batch, num_frames])
    sum_squares = zeros([batch, num_frames, att_dim])  # of d_energy h^2
    d_v, d_feedback = zeros([att_dim]), zeros([att_dim])
    squares = torch.empty([batch, num_frames, att_dim], dtype=saved.dtype, device=enc.device)
    feedback_v = w_feedback * v
    for i in reversed(range(num_labels)):
        n = constants.num_rows[i]
        att, hidden, accum = saved.att[i], saved.hidden[i], saved.accum[i]
        # attention
        d_ctx = d_context[i, :n]
        torch.add(grad_c[:n, i], d_state[:n, :enc_dim], out=d_ctx)
        used_att = att
        d_att = (enc[:n] @ d_ctx.to(saved.dtype).unsqueeze(2)).squeeze(2).to(saved.state_type)
        d_att = torch.addcmul(d_att, d_accum[:n], fertility[:n], value=0.5)
        if constants.att_dropout is not None:
            factor = _rows(constants.att_dropout[i], n)
            used_att = att * factor
            d_att = d_att * factor
        all_att[i, :n] = used_att
        d_fertility[:n].addcmul_(d_accum[:n], used_att, value=0.5)
        d_energy = att * (d_att - (att * d_att).sum(dim=1, keepdim=True))
        # h = tanh(enc_ctx + w_feedback accum + query), energy = v h, and so with D = d_energy v (1 - h^2):
        # d_enc_ctx = D, d_query = sum over frames of D, d_accum = D w_feedback, d_w_feedback = sum of accum D
        square = squares[:n]
        torch.mul(hidden, hidden, out=square)
        sum_d_energy[:n] += d_energy
        sum_squares[:n].addcmul_(square, d_energy.unsqueeze(2))
        weights = torch.stack([d_energy, accum * d_energy], dim=1)  # [n, 2, frames]
        sums = (weights.to(saved.dtype) @ square).to(saved.state_type)  # [n, 2, att_dim]
        sums = weights.sum(dim=2, keepdim=True) - sums
        d_query[i, :n] = sums[:, 0] * v
        d_feedback += sums[:, 1].sum(dim=0)
        d_v += (d_energy.to(saved.dtype).reshape(-1) @ hidden.reshape(-1, att_dim)).to(saved.state_type)
        d_accum[:n] += d_energy * (feedback_v.sum() - (square @ feedback_v)).to(saved.state_type)
        # LSTM
        d_s = (d_query[i, :n].to(saved.dtype) @ w_query.t()).to(saved.state_type) + grad_s[:n, i]
        d_h = d_state[:n, enc_dim:]
        if constants.zoneout_output:
            d_h = d_h + d_s
        update = _rows(constants.update_output[i], n)
        d_new_h = update * d_h
        d_prev_h = d_h - d_new_h
        if not constants.zoneout_output:
            d_new_h = d_new_h + d_s
        parts = dict(zip(constants.gates, saved.gates[i].split(units, dim=1), strict=True))
        d_parts = dict(zip(constants.gates, d_gates[i, :n].split(units, dim=1), strict=True))
        tanh_cell = saved.tanh_cells[i]
        d_new_cell = _rows(constants.update_cell[i], n) * d_cell[:n]
        d_prev_cell = d_cell[:n] - d_new_cell
        d_new_cell = d_new_cell + d_new_h * parts["o"] * (1 - tanh_cell**2)
        d_cell[:n] = torch.addcmul(d_prev_cell, d_new_cell, parts["f"])
        for gate, grad in (
            ("o", d_new_h * tanh_cell),
            ("f", d_new_cell * saved.cells[i]),
            ("i", d_new_cell * parts["j"]),
        ):
            torch.mul(grad, parts[gate] * (1 - parts[gate]), out=d_parts[gate])
        torch.mul(d_new_cell * parts["i"], 1 - parts["j"] ** 2, out=d_parts["j"])
        d_state[:n] = (d_gates[i, :n].to(saved.dtype) @ w_state).to(saved.state_type)
        d_state[:n, enc_dim:] += d_prev_h

    states, outputs = _stack(saved.states, batch), _stack(saved.outputs, batch)
    flat_gates = d_gates.flatten(0, 1).to(saved.dtype)
    d_w_state = flat_gates.t() @ states.flatten(0, 1).to(saved.dtype)
    d_w_query = outputs.flatten(0, 1).to(saved.dtype).t() @ d_query.flatten(0, 1).to(saved.dtype)
    d_enc = all_att.permute(1, 2, 0).to(saved.dtype) @ d_context.transpose(0, 1).to(saved.dtype)
    d_enc_ctx = torch.sub(sum_d_energy.unsqueeze(2), sum_squares, out=sum_squares).mul_(v)
    return (
        *(d_gates.transpose(0, 1), d_enc, d_enc_ctx, d_fertility),
        *(d_w_state[:, :enc_dim], d_w_state[:, enc_dim:], d_w_query, d_feedback * v, d_v),
    )


def _stack(tensors: list[torch.Tensor], batch: int) -> torch.Tensor:
    """:return: [labels, batch, ...], with 0 where there are fewer rows"""
    res = tensors[0].new_zeros([len(tensors), batch, *tensors[0].shape[1:]])
    for i, tensor in enumerate(tensors):
        res[i, : tensor.shape[0]] = tensor
    return res
