"""
Transformer decoder with cross-attention to the encoder (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762), the
alternative to the LSTM decoder of :mod:`rf_models.decoder`. It is RETURNN's, pre-norm; what is here chooses its
options, and adds what training needs: softmax without padding, and auxiliary softmaxes on lower layers.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import returnn.frontend as rf
import torch
from returnn.frontend.decoder.transformer import FeedForward, FeedForwardGated, TransformerDecoder
from returnn.tensor import Dim, Tensor

from .options import AedCtcOptions

__all__ = ["TransformerAttentionDecoder"]


class TransformerAttentionDecoder(TransformerDecoder):
    """
    See the module docstring. The first previous label is BOS = EOS, whose embedding is used (other than in the LSTM
    decoder, where it is a zero vector). The memory of an utterance (:func:`transform_encoder`) are the keys and values
    of all layers: ``memory["<layer>"].cross_att.k`` and ``.v`` {batch, enc_spatial_dim, heads, dim per head}.
    """

    def __init__(self, enc_dim: Dim, target_dim: Dim, opts: AedCtcOptions, *, eos_index: int):
        """
        :param enc_dim: encoder states
        :param target_dim: labels 0 ... V-1, EOS included
        :param opts:
        :param eos_index: EOS = BOS
        """
        self_att_class = rf.RotaryPosCausalSelfAttention if opts.dec_rotary_pos else rf.CausalSelfAttention
        gated = opts.dec_ff == "swiglu"
        super().__init__(
            enc_dim,
            target_dim,
            Dim(opts.dec_dim, name="dec"),
            num_layers=opts.dec_num_layers,
            ff=FeedForwardGated if gated else FeedForward,
            ff_dim=None if opts.dec_ff_dim is None else Dim(opts.dec_ff_dim, name="dec-ff"),
            pos_enc=rf.sinusoidal_positional_encoding if opts.dec_absolute_pos else None,
            dropout=opts.dec_layer_dropout,
            num_heads=opts.dec_num_heads,
            att_dropout=opts.dec_layer_att_dropout,
            norm=rf.RMSNorm if opts.dec_norm == "rms_norm" else rf.LayerNorm,
            layer_opts={"self_att": rf.build_dict(self_att_class, with_bias=False)},
            share_embedding=opts.dec_share_embedding,
            input_embedding_scale=opts.dec_dim**0.5,
            input_dropout=opts.dec_layer_dropout,
        )
        self.eos_index = eos_index
        self.target_dim = target_dim
        self.enc_dim = enc_dim
        # A norm and a softmax of its own for each of these layers, as at the top. (Only training uses them, but the
        # model is the same everywhere: so every checkpoint is complete and fits.)
        self.aux_layers = tuple(sorted(opts.dec_aux_layers))
        norm_class = type(self.final_layer_norm)
        self.aux_norms = rf.ModuleList({f"layer{i}": norm_class(self.model_dim) for i in self.aux_layers})
        self.aux_logits = rf.ModuleList(
            {f"layer{i}": rf.Linear(self.model_dim, target_dim, with_bias=False) for i in self.aux_layers}
        )

    def run(self, labels: Tensor, *, spatial_dim: Dim, memory: rf.State) -> dict[int, Tensor]:
        """
        All but the softmax, for given label sequences.

        :param labels: {batch, spatial_dim} -> target_dim, EOS at the end
        :param spatial_dim: labels
        :param memory: of :func:`transform_encoder`
        :return: outputs {batch, spatial_dim, model_dim} of the auxiliary layers and of the top one, without their
            norms, by number (1-based), from below
        """
        prev_labels = rf.shift_right(labels, axis=spatial_dim, pad_value=self.eos_index)
        prev_labels.sparse_dim = self.vocab_dim
        x = self.input_embedding(prev_labels) * self.input_embedding_scale
        if self.pos_enc is not None:
            x = x + self.pos_enc(spatial_dim=spatial_dim)
        x = rf.dropout(x, self.input_dropout)
        state = self.default_initial_state(batch_dims=labels.remaining_dims(spatial_dim))
        outputs = {}
        with _compiled_on(x.raw_tensor.device):
            for i, (name, layer) in enumerate(self.layers.items(), 1):
                x, _ = layer(x, spatial_dim=spatial_dim, state=state[name], encoder=memory[name])
                if i in self.aux_layers or i == len(self.layers):
                    outputs[i] = x
        return outputs

    def layer_logits(self, x: Tensor, *, layer: int) -> Tensor:
        """
        :param x: {..., model_dim} of :func:`run`
        :param layer: its number (1-based)
        :return: logits {..., target_dim}
        """
        if layer == len(self.layers):
            return self.logits(self.final_layer_norm(x))
        return self.aux_logits[f"layer{layer}"](self.aux_norms[f"layer{layer}"](x))

    def teacher_forcing(
        self, labels: Tensor, *, spatial_dim: Dim, memory: rf.State, pack: bool = False
    ) -> tuple[Tensor, Tensor]:
        """
        Decoder outputs for given label sequences, all labels at once. See
        :func:`rf_models.decoder.AttentionDecoder.teacher_forcing`.
        """
        logits, labels = self.teacher_forcing_layers(labels, spatial_dim=spatial_dim, memory=memory, pack=pack)
        return logits[len(self.layers)], labels

    def teacher_forcing_layers(
        self, labels: Tensor, *, spatial_dim: Dim, memory: rf.State, pack: bool = False
    ) -> tuple[dict[int, Tensor], Tensor]:
        """
        :param labels: {batch, spatial_dim} -> target_dim, EOS at the end
        :param spatial_dim: labels
        :param memory:
        :param pack: replace {batch, spatial_dim} of the result by one packed dim without padding
        :return: logits {batch, spatial_dim, target_dim} or {packed, target_dim} of the auxiliary layers and of the top
            one, by number (1-based); the labels with the same dims
        """
        outputs = self.run(labels, spatial_dim=spatial_dim, memory=memory)
        if pack:
            dims = [*labels.remaining_dims(spatial_dim), spatial_dim]
            labels, packed_dim = rf.pack_padded(labels, dims=dims, enforce_sorted=False)
            outputs = {
                layer: rf.pack_padded(x, dims=dims, enforce_sorted=False, out_dim=packed_dim)[0]
                for layer, x in outputs.items()
            }
        return {layer: self.layer_logits(x, layer=layer) for layer, x in outputs.items()}, labels


def _compiled_on(device: torch.device) -> AbstractContextManager:
    """
    :return: context in which RETURNN's kernel for rotary positions is compiled or not: on a CPU that would take half a
        minute in each process, need a C++ compiler, and make nothing faster
    """
    return torch.compiler.set_stance("force_eager") if device.type == "cpu" else nullcontext()
