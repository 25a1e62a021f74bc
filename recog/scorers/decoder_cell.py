"""
What the attention decoder and its internal language models have in common: embedding, zoneout LSTM, readout, softmax.
In evaluation mode, in plain torch on the parameters of the modules.
"""

from __future__ import annotations

import returnn.frontend as rf
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["DecoderCell"]


class DecoderCell:
    """See :mod:`rf_models.decoder` for the formulas; the context vector c_i is given from outside."""

    def __init__(self, *, target_embed: rf.Embedding, s: rf.ZoneoutLSTM, readout_in: rf.Linear, output_prob: rf.Linear):
        """The modules of :class:`rf_models.decoder.AttentionDecoder` with these names."""

        def weight(param: rf.Parameter, *dims: object) -> Tensor:
            return param.copy_transpose(dims).raw_tensor.detach()

        self.zoneout = s
        gates = 4 * s.out_dim
        self.embedding = target_embed.weight.raw_tensor.detach()
        self.ff_weight = weight(s.ff_weight, gates, s.in_dim)
        self.rec_weight = weight(s.rec_weight, gates, s.out_dim)
        self.bias = s.bias.raw_tensor.detach()
        self.readout_weight = weight(readout_in.weight, readout_in.out_dim, readout_in.in_dim)
        self.readout_bias = readout_in.bias.raw_tensor.detach()
        self.output_weight = weight(output_prob.weight, output_prob.out_dim, output_prob.in_dim)
        self.output_bias = output_prob.bias.raw_tensor.detach()
        self.num_labels = self.output_weight.shape[0]
        self.context_dim = s.in_dim.dimension - self.embedding.shape[1]

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        """:return: h, c, the context vector "att" before the first label, and whether there is a label; all zero"""
        hidden, new = self.rec_weight.shape[1], self.bias.new_zeros
        return {
            "h": new((batch_size, hidden)),
            "c": new((batch_size, hidden)),
            "att": new((batch_size, self.context_dim)),
            "has_label": new((batch_size, 1)),
        }

    def embed(self, prev_labels: Tensor, state: dict[str, Tensor]) -> Tensor:
        """:return: e_i [N, embed], zero for the first label"""
        return functional.embedding(prev_labels, self.embedding) * state["has_label"]

    def lstm(self, embed: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Zoneout LSTM. :return: output s_i [N, hidden], new h, new c"""
        x, h, c = torch.cat((embed, state["att"]), dim=1), state["h"], state["c"]
        gates = functional.linear(x, self.ff_weight, self.bias).addmm_(h, self.rec_weight.t())
        zoneout = self.zoneout
        parts = dict(zip(zoneout.parts_order, gates.chunk(4, dim=1), strict=True))
        forget = parts["f"] + zoneout.forget_bias if zoneout.forget_bias else parts["f"]
        new_c = torch.sigmoid(forget) * c + torch.sigmoid(parts["i"]) * torch.tanh(parts["j"])
        new_h = torch.sigmoid(parts["o"]) * torch.tanh(new_c)
        # Zoneout is a mean here: (1 - factor) new + factor old.
        zoned_c = torch.lerp(new_c, c, zoneout.zoneout_factor_cell)
        zoned_h = torch.lerp(new_h, h, zoneout.zoneout_factor_output)
        return (zoned_h if zoneout.use_zoneout_output else new_h), zoned_h, zoned_c

    def readout(self, s: Tensor, embed: Tensor, context: Tensor) -> Tensor:
        """:return: log-probs of the next label [N, V] float32"""
        readout = functional.linear(torch.cat((s, embed, context), dim=1), self.readout_weight, self.readout_bias)
        readout = readout.unflatten(1, (-1, 2)).amax(dim=2)
        return functional.linear(readout, self.output_weight, self.output_bias).float().log_softmax(dim=1)
