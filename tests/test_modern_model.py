"""What the modern recipe adds to the encoder (batch normalised features, other positions), and its full-size model."""

from __future__ import annotations

import runpy
from dataclasses import replace

import pytest
import returnn.frontend as rf
import torch
from returnn.config import Config, global_config_ctx
from returnn.tensor import batch_dim
from runs import config_file
from test_models import num_parameters
from tiny_models import TRANSFORMER_AED, audio_batch, make_model

from configs.base.options import options_of
from rf_models.aed_ctc import AedCtcModel
from rf_models.options import AedCtcOptions, AedCtcTrainOptions

MODERN = replace(TRANSFORMER_AED, feature_batch_norm=True, enc_rel_pos="transformer_xl", enc_ff_bias=False)


def features_of(model, seconds, *, lengths=False):
    audio, time_dim = audio_batch(seconds)
    features, dim = model.features(audio, in_spatial_dim=time_dim)
    raw = features.copy_transpose([batch_dim, dim, model.features.out_dim]).raw_tensor
    return (raw, dim.get_size_tensor().raw_tensor) if lengths else raw


def test_feature_statistics_are_those_of_the_frames_without_padding():
    plain, model = make_model(TRANSFORMER_AED, num_labels=7), make_model(MODERN, num_labels=7)
    raw, lengths = features_of(plain, [0.4, 1.1, 0.2], lengths=True)
    frames = raw[torch.arange(raw.shape[1]) < lengths[:, None]]  # [frames, filters]
    rf.init_train_step_run_ctx(train_flag=True, step=0, epoch=1)
    found = features_of(model, [0.4, 1.1, 0.2])[torch.arange(raw.shape[1]) < lengths[:, None]]
    expected = (frames - frames.mean(0)) / (frames.var(0, correction=0) + 1e-3).sqrt()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    norm = model.features.batch_norm
    torch.testing.assert_close(norm.running_mean.raw_tensor, 0.1 * frames.mean(0), atol=1e-4, rtol=1e-4)
    # In recognition the running means are used, whatever the batch.
    rf.init_forward_step_run_ctx(step=0, epoch=1)
    norm.running_mean.raw_tensor.copy_(frames.mean(0))
    norm.running_variance.raw_tensor.copy_(frames.var(0, correction=0))
    torch.testing.assert_close(features_of(model, [0.4])[0], found[: lengths[0]], atol=1e-4, rtol=1e-4)
    assert [name for name, _ in norm.named_parameters()] == ["running_mean", "running_variance"]


def test_encoder_does_not_depend_on_the_batch():
    model = make_model(MODERN, num_labels=7)
    names = {name for name, _ in model.encoder.named_parameters()}
    assert "layers.0.self_att.pos_bias_u" in names and "layers.0.self_att.learned_pos_emb.pos_emb" not in names
    assert "layers.0.ffn1.linear_ff.weight" in names and "layers.0.ffn1.linear_ff.bias" not in names
    with torch.no_grad():
        audio, time_dim = audio_batch([0.5, 1.2])
        together = model.ctc_log_probs(model.encode(audio, in_spatial_dim=time_dim)).raw_tensor
        audio, time_dim = audio_batch([0.5])
        alone = model.ctc_log_probs(model.encode(audio, in_spatial_dim=time_dim)).raw_tensor
    torch.testing.assert_close(together[0, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"feature_batch_norm": True, "mel_normalization": True},
        {"enc_rel_pos": "rotary"},
        {"enc_rel_pos": "transformer_xl", "enc_rel_pos_clipping": 8},
    ],
)
def test_options_without_sense_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AedCtcOptions(**options)


@pytest.mark.parametrize("corpus", ["ls960", "ted2"])
def test_large_model(corpus):
    """Sizes of the published 16 x 1024 model with a 6 x 1024 decoder, counted by hand from its description."""
    rf.select_backend_torch()
    with global_config_ctx(Config()):
        groups, _ = options_of(lambda: runpy.run_path(config_file(f"{corpus}_train_modern_large")))
    opts: AedCtcOptions = groups[AedCtcOptions]
    num_labels, d, ff = 10_240, 1024, 2816  # 8/3 d, rounded up to a multiple of 256
    with rf.set_default_device_ctx("meta"):  # only the shapes matter
        model = AedCtcModel(opts, num_labels=num_labels, eos_index=0)
    self_att = 3 * d * d + d * d
    cross_att = 4 * (d * d + d)
    layer = self_att + cross_att + 3 * d * ff + 3 * d
    embedding = num_labels * d  # that of the softmax, too
    aux = num_labels * d + d
    assert num_parameters(model.decoder) == 6 * layer + d + embedding + aux
    conformer_layer = (
        4 * d * 4 * d  # two feed-forward blocks without biases
        + 5 * d * d + 4 * d + 2 * d  # self-attention, projection of the positions, biases of the positions
        + 2 * d * d + 2 * d + 32 * d + d + d * d + d + 2 * d  # convolution with batch normalisation
        + 5 * 2 * d  # norms
    )  # fmt: skip
    frontend = (9 + 1) * 32 + (9 * 32 + 1) * 64 + (9 * 64 + 1) * 64 + 40 * 64 * d
    assert num_parameters(model.encoder) == 16 * conformer_layer + frontend
    assert num_parameters(model.ctc_heads) == 3 * (d + 1) * (num_labels + 1)
    assert opts.ctc_layers == (4, 10, 16) and opts.dec_aux_layers == (3,)
    assert groups[AedCtcTrainOptions].dec_aux_loss_scale == 1.0
