"""Small models with random parameters (large enough that their distributions differ from label to label)."""

from __future__ import annotations

import os
from dataclasses import asdict, replace

import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor
from returnn.util.basic import BehaviorVersion

from configs.base.run import BEHAVIOR_VERSION
from recog.standalone import audio_batch as make_audio_batch
from rf_models.checkpoint import ModelInfo, build_model
from rf_models.lm_options import LstmLmOptions, MiniLstmIlmOptions, TransformerLmOptions
from rf_models.options import AedCtcOptions

KINDS = {
    AedCtcOptions: "aed_ctc",
    LstmLmOptions: "lstm_lm",
    TransformerLmOptions: "transformer_lm",
    MiniLstmIlmOptions: "mini_lstm_ilm",
}
AED = AedCtcOptions(
    enc_num_layers=1,
    enc_dim=16,
    enc_ff_dim=16,
    enc_num_heads=2,
    enc_conv_kernel_size=4,
    enc_frontend_channels=(4, 4, 4),
    ctc_layers=(1,),
    dec_embed_dim=12,
    dec_lstm_dim=20,
    dec_att_dim=24,
    dec_readout_dim=18,
)
TRANSFORMER_AED = replace(
    AED, dec_kind="transformer", dec_num_layers=2, dec_dim=16, dec_num_heads=2, dec_ff_dim=24, dec_aux_layers=(1,)
)
LSTM_LM = LstmLmOptions(num_layers=2, embed_dim=8, lstm_dim=14)
TRANSFORMER_LM = TransformerLmOptions(num_layers=2, embed_dim=8, model_dim=12, ff_dim=16, num_heads=2, att_dim=12)
MINI_ILM = MiniLstmIlmOptions(mini_lstm_dim=5, enc_dim=16, dec_embed_dim=12, dec_lstm_dim=20, dec_readout_dim=18)


def randomise(model: rf.Module, seed: int, std: float = 0.4) -> None:
    """Random values for all parameters that are trained."""
    generator = torch.Generator().manual_seed(seed)
    for _, param in model.named_parameters():
        if not param.auxiliary:
            raw = param.raw_tensor
            raw.data.copy_(torch.randn(raw.shape, generator=generator) * std)


def make_model(opts, *, num_labels: int, eos_index: int = 0, seed: int = 1, std: float = 0.4) -> rf.Module:
    """:return: random model in evaluation mode"""
    rf.select_backend_torch()
    if BehaviorVersion.get() < BEHAVIOR_VERSION:
        BehaviorVersion.set(BEHAVIOR_VERSION)
    info = ModelInfo(KINDS[type(opts)], asdict(opts), num_labels, eos_index)
    model = build_model(info)
    randomise(model, seed, std)
    rf.init_forward_step_run_ctx(step=0, epoch=1)
    return model


def save_model(filename: str, opts, *, num_labels: int, eos_index: int = 0, seed: int = 1) -> str:
    """:return: filename of a checkpoint as the converter writes it"""
    from returnn.torch.frontend.bridge import rf_module_to_pt_module

    model = make_model(opts, num_labels=num_labels, eos_index=eos_index, seed=seed)
    os.makedirs(os.path.dirname(filename), exist_ok=True)
    info = ModelInfo(KINDS[type(opts)], asdict(opts), num_labels, eos_index).as_dict()
    state = rf_module_to_pt_module(model).state_dict()
    torch.save({"model": state, "epoch": 1, "step": 1, "model_info": info}, filename)
    return filename


def audio_batch(seconds: list[float], *, seed: int = 0) -> tuple[Tensor, Dim]:
    """
    :param seconds: of each utterance; utterances of the same duration and seed have the same audio in any batch
    :return: {batch, time} noise, time
    """
    waveforms = []
    for samples in (round(s * 16_000) for s in seconds):
        generator = torch.Generator().manual_seed(seed + samples)
        waveforms.append((torch.randn(samples, generator=generator) * 0.1).numpy())
    return make_audio_batch(waveforms)
