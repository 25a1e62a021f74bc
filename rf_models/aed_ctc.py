"""
Attention encoder-decoder with CTC heads on one encoder: the joint model, and its training step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import returnn.frontend as rf
from returnn.tensor import Dim, Tensor, TensorDict

from .ctc_window import GaussianWindow
from .decoder import AttentionDecoder, AttentionMemory
from .encoder import LogMelFeatures, make_conformer_encoder
from .initialisation import init_decoder_like_tensorflow, init_embedding, init_encoder_like_tensorflow
from .mixup import FrameBuffer, mixup
from .options import AedCtcOptions, AedCtcTrainOptions
from .pretraining import pretrain_stage, pretraining
from .sequences import append_eos, spatial_dim_of
from .transformer_decoder import TransformerAttentionDecoder
from .weight_dropout import add_weight_dropout

__all__ = ["AedCtcModel", "EncoderOutput", "spatial_dim_of", "train_step"]


@dataclass
class EncoderOutput:
    """Result of :func:`AedCtcModel.encode`."""

    enc: Tensor  # {batch, enc_spatial_dim, enc_dim}
    enc_spatial_dim: Dim
    layers: dict[int, Tensor]  # outputs of the layers that have a CTC head: number (1-based) -> as enc


class AedCtcModel(rf.Module):
    """
    Conformer encoder, CTC heads on some of its layers, attention decoder.

    Labels are 0 ... num_labels-1 with EOS (= BOS) among them; blank is the additional last index of the CTC heads.
    """

    kind = "aed_ctc"
    """Name of this kind of model in checkpoints and messages."""

    def __init__(self, opts: AedCtcOptions, *, num_labels: int, eos_index: int):
        """
        :param opts: sizes
        :param num_labels: V, EOS included, blank not
        :param eos_index: EOS = BOS
        """
        super().__init__()
        self.opts = opts
        self.eos_index = eos_index
        self.blank_index = num_labels
        self.target_dim = Dim(num_labels, name="labels")
        self.target_dim_with_blank = Dim(num_labels + 1, name="labels-with-blank")
        self.features = LogMelFeatures(opts)
        self.encoder = make_conformer_encoder(self.features.out_dim, opts)
        self.enc_dim = self.encoder.out_dim
        self.ctc_window = None
        if opts.ctc_window_size:
            with_input = opts.ctc_window_input == "both"
            self.ctc_window = GaussianWindow(
                self.enc_dim, size=opts.ctc_window_size, std=opts.ctc_window_std, with_input=with_input
            )
        ctc_in_dim = self.ctc_window.out_dim if self.ctc_window else self.enc_dim
        self.ctc_heads = rf.ModuleList(
            {f"layer{layer}": rf.Linear(ctc_in_dim, self.target_dim_with_blank) for layer in sorted(opts.ctc_layers)}
        )
        self.decoder: AttentionDecoder | TransformerAttentionDecoder | None = None
        if opts.with_decoder and opts.dec_kind == "transformer":
            self.decoder = TransformerAttentionDecoder(self.enc_dim, self.target_dim, opts, eos_index=eos_index)
        elif opts.with_decoder:
            self.decoder = AttentionDecoder(self.enc_dim, self.target_dim, opts)
        if opts.param_init == "tensorflow":
            init_encoder_like_tensorflow(self.encoder)
            if isinstance(self.decoder, AttentionDecoder):
                init_decoder_like_tensorflow(self.decoder)
        if opts.dec_embed_init_stddev is not None:
            lstm = isinstance(self.decoder, AttentionDecoder)
            embedding = self.decoder.target_embed if lstm else self.decoder.input_embedding
            init_embedding(embedding, opts.dec_embed_init_stddev)
        self.weight_dropouts = add_weight_dropout(self.encoder, opts)
        self.mixup_buffer = FrameBuffer()  # not in checkpoints

    def encode(
        self, audio: Tensor, *, in_spatial_dim: Dim, train_opts: AedCtcTrainOptions | None = None
    ) -> EncoderOutput:
        """
        :param audio: {batch, in_spatial_dim[, 1]} samples
        :param in_spatial_dim:
        :param train_opts: options of mixup and SpecAugment; None: no augmentation
        """
        features, spatial_dim = self.features(audio, in_spatial_dim=in_spatial_dim)
        if train_opts and train_opts.use_mixup:
            dims = {"spatial_dim": spatial_dim, "feature_dim": self.features.out_dim}
            features = mixup(features, self.mixup_buffer, **dims, opts=train_opts)
        if train_opts and train_opts.use_specaugment:
            features = rf.audio.specaugment(
                features,
                spatial_dim=spatial_dim,
                feature_dim=self.features.out_dim,
                steps=train_opts.specaugment_steps,
                max_consecutive_spatial_dims=train_opts.specaugment_max_consecutive_spatial_dims,
                max_consecutive_feature_dims=train_opts.specaugment_max_consecutive_feature_dims,
                num_spatial_mask_factor=train_opts.specaugment_num_spatial_mask_factor,
            )
        collected_outputs: dict[str, Tensor] = {}
        enc, enc_spatial_dim = self.encoder(features, in_spatial_dim=spatial_dim, collected_outputs=collected_outputs)
        return EncoderOutput(
            enc=enc,
            enc_spatial_dim=enc_spatial_dim,
            layers={layer: collected_outputs[str(layer - 1)] for layer in self.opts.ctc_layers},
        )

    def ctc_log_probs(self, encoder_output: EncoderOutput, *, layer: int | None = None) -> Tensor:
        """
        :param encoder_output:
        :param layer: which head (encoder layer, 1-based). None: the top-most
        :return: {batch, enc_spatial_dim, target_dim_with_blank} log softmax
        :raises ValueError: if there is no such head
        """
        if not self.opts.ctc_layers:
            raise ValueError("this model has no CTC head (ctc_layers is empty): use ctc_scale 0")
        if layer is None:
            layer = max(self.opts.ctc_layers)
        if layer not in self.opts.ctc_layers:
            raise ValueError(
                f"ctc_layer = {layer}: this model has CTC heads on layers {sorted(self.opts.ctc_layers)} only"
            )
        enc = encoder_output.layers[layer]
        if self.ctc_window is not None:
            enc = self.ctc_window(enc, spatial_dim=encoder_output.enc_spatial_dim)
        logits = self.ctc_heads[f"layer{layer}"](enc)
        return rf.log_softmax(logits, axis=self.target_dim_with_blank)

    def attention_memory(self, encoder_output: EncoderOutput) -> AttentionMemory | rf.State:
        """:return: what the decoder needs of the encoder; which type depends on the kind of decoder"""
        if self.decoder is None:
            raise ValueError("this model has no attention decoder (CTC-only): use att_scale 0")
        return self.decoder.transform_encoder(encoder_output.enc, axis=encoder_output.enc_spatial_dim)


def train_step(*, model: AedCtcModel, extern_data: TensorDict, opts: AedCtcTrainOptions) -> None:
    """
    Marks the losses: ``ce`` (decoder, label smoothing), ``ce_<layer>`` (the same of lower decoder layers) and
    ``ctc_<layer>``; errors ``fer`` and ``fer_<layer>`` (label error rate of the decoder with the correct history).

    :param model:
    :param extern_data: "data" {batch, time[, 1]} audio samples, "classes" {batch, labels} without EOS
    :param opts:
    """
    stage = None
    if opts.pretrain_layers:
        epoch = int(rf.get_run_ctx().epoch)
        stage = pretrain_stage(opts, num_layers=model.opts.enc_num_layers, epoch=epoch)
    if stage is not None:
        opts = replace(opts, label_smoothing=0.0)
    with pretraining(model, stage):
        _mark_losses(model, extern_data, opts)


def _mark_losses(model: AedCtcModel, extern_data: TensorDict, opts: AedCtcTrainOptions) -> None:
    """See :func:`train_step`; the same in any stage of pretraining."""
    audio, targets = extern_data["data"], extern_data["classes"]
    audio_spatial_dim, targets_spatial_dim = spatial_dim_of(audio), spatial_dim_of(targets)
    targets_eos, targets_eos_spatial_dim = append_eos(
        targets, targets_spatial_dim, eos_index=model.eos_index, target_dim=model.target_dim
    )
    targets = rf.copy(targets)
    targets.sparse_dim = model.target_dim
    encoder_output = model.encode(audio, in_spatial_dim=audio_spatial_dim, train_opts=opts)

    ctc_targets, ctc_spatial_dim = (
        (targets_eos, targets_eos_spatial_dim) if opts.ctc_with_eos else (targets, targets_spatial_dim)
    )
    for layer, scale in opts.ctc_scales_for(model.opts.ctc_layers).items():
        if not scale:
            continue
        log_probs = model.ctc_log_probs(encoder_output, layer=layer)
        loss = rf.ctc_loss(
            logits=log_probs,
            logits_normalized=True,
            targets=ctc_targets,
            input_spatial_dim=encoder_output.enc_spatial_dim,
            targets_spatial_dim=ctc_spatial_dim,
            blank_index=model.blank_index,
        )
        loss.mark_as_loss(
            f"ctc_{layer}",
            scale=scale,
            custom_inv_norm_factor=ctc_spatial_dim.get_size_tensor(),
            use_normalized_loss=True,
        )

    if model.decoder is not None and opts.aed_loss_scale:
        memory = model.attention_memory(encoder_output)
        if isinstance(model.decoder, TransformerAttentionDecoder):
            logits, labels = model.decoder.teacher_forcing_layers(
                targets_eos, spatial_dim=targets_eos_spatial_dim, memory=memory, pack=True
            )
            for layer in model.decoder.aux_layers:
                if opts.dec_aux_loss_scale:
                    scale = opts.aed_loss_scale * opts.dec_aux_loss_scale
                    _mark_decoder_loss(logits[layer], labels, f"_{layer}", scale=scale, model=model, opts=opts)
            logits = logits[model.opts.dec_num_layers]
        else:
            logits, labels = model.decoder.teacher_forcing(
                targets_eos, spatial_dim=targets_eos_spatial_dim, memory=memory, pack=True
            )
        _mark_decoder_loss(logits, labels, "", scale=opts.aed_loss_scale, model=model, opts=opts)


def _mark_decoder_loss(
    logits: Tensor, labels: Tensor, postfix: str, *, scale: float, model: AedCtcModel, opts: AedCtcTrainOptions
) -> None:
    """Cross entropy with label smoothing, as ``ce<postfix>``, and error rate, as ``fer<postfix>``."""
    log_probs = rf.log_softmax(logits, axis=model.target_dim)
    log_probs = rf.label_smoothed_log_prob_gradient(log_probs, opts.label_smoothing, axis=model.target_dim)
    loss = rf.cross_entropy(estimated=log_probs, estimated_type="log-probs", target=labels, axis=model.target_dim)
    loss.mark_as_loss(f"ce{postfix}", scale=scale, use_normalized_loss=True)
    (rf.reduce_argmax(logits, axis=model.target_dim) != labels).mark_as_loss(f"fer{postfix}", as_error=True)
