"""The models of the configs at full size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import returnn.frontend as rf

from configs.base import ls960, ted2
from rf_models.aed_ctc import AedCtcModel
from rf_models.ilm import MiniLstmIlm
from rf_models.lm import LstmLm, TransformerLm
from rf_models.lm_options import MiniLstmIlmOptions


@pytest.fixture(autouse=True)
def _no_random_values(monkeypatch):
    """Only shapes are looked at: drawing hundreds of millions of numbers takes most of the time."""
    monkeypatch.setattr(rf.init.VarianceScaling, "__call__", lambda *_args, **_kwargs: 0.0)


def num_parameters(module: rf.Module) -> int:
    """:return: trained parameters, i.e. without the statistics of batch normalisation"""
    return sum(param.num_elements() for name, param in module.named_parameters() if "running_" not in name)


@pytest.mark.parametrize(
    ("setup", "num_labels", "expected_millions"), [(ls960.setup, 10_025, 103.5), (ted2.setup, 1_057, 86.2)]
)
def test_published_sizes(setup, num_labels, expected_millions):
    """The published models have one CTC head, on the top layer."""
    rf.select_backend_torch()
    model = AedCtcModel(setup.model, num_labels=num_labels, eos_index=0)
    heads = num_parameters(model.ctc_heads)
    one_head = num_parameters(model.ctc_heads["layer12"])
    assert heads == len(setup.model.ctc_layers) * one_head
    assert one_head == (512 + 1) * (num_labels + 1)
    assert (num_parameters(model) - heads + one_head) / 1e6 == pytest.approx(expected_millions, abs=0.05)
    assert num_parameters(model.encoder) / 1e6 == pytest.approx(74.1, abs=0.05)


@pytest.mark.parametrize(
    ("setup", "num_labels", "decoder_millions", "head_millions"),
    [(ls960.setup, 10_025, 24.3, 5.1), (ted2.setup, 1_057, 11.6, 0.5), (ted2.frontend_setup, 1_057, 11.6, 0.5)],
)
def test_published_parts(setup, num_labels, decoder_millions, head_millions):
    rf.select_backend_torch()
    model = AedCtcModel(setup.model, num_labels=num_labels, eos_index=0)
    assert num_parameters(model.decoder) / 1e6 == pytest.approx(decoder_millions, abs=0.05)
    assert num_parameters(model.ctc_heads["layer12"]) / 1e6 == pytest.approx(head_millions, abs=0.05)
    shapes = {name: tuple(dim.dimension for dim in param.dims) for name, param in model.named_parameters()}
    embed, enc, lstm = setup.model.dec_embed_dim, 512, 1024
    for name, shape in {
        "encoder.input_projection.weight": (2560, enc),
        "encoder.layers.11.self_att.learned_pos_emb.pos_emb": (33, 64),
        "encoder.layers.11.conv_block.depthwise_conv.filter": (enc, 1, 32),
        "ctc_heads.layer12.weight": (enc, num_labels + 1),
        "decoder.enc_ctx.weight": (enc, 1024),
        "decoder.target_embed.weight": (num_labels, embed),
        "decoder.s.ff_weight": (4 * lstm, embed + enc),
        "decoder.s.rec_weight": (4 * lstm, lstm),
        "decoder.weight_feedback.weight": (1, 1024),
        "decoder.readout_in.weight": (lstm + embed + enc, 1024),
        "decoder.output_prob.weight": (512, num_labels),
    }.items():
        assert shapes[name] == shape, name


@pytest.mark.parametrize(
    ("setup", "num_labels", "expected_millions"), [(ls960.setup, 10_025, 79.2), (ted2.setup, 1_057, 74.6)]
)
def test_published_ctc_only(setup, num_labels, expected_millions):
    """Encoder 74.1 M and one head. Weight dropout and the other options of a training add no parameters."""
    rf.select_backend_torch()
    opts = replace(setup.model, ctc_layers=(12,), with_decoder=False)
    model = AedCtcModel(opts, num_labels=num_labels, eos_index=0)
    assert num_parameters(model) / 1e6 == pytest.approx(expected_millions, abs=0.1)
    assert (
        num_parameters(model)
        == num_parameters(model.encoder) + 513 * (num_labels + 1) + 2 * 80 * opts.mel_normalization
    )


@pytest.mark.parametrize(
    ("model_class", "opts", "num_labels", "expected_millions"),
    [
        (LstmLm, ls960.lstm_lm, 10_025, 140.3),
        (TransformerLm, ls960.transformer_lm, 10_025, 313.9),
        (TransformerLm, ted2.transformer_lm, 1_057, 260.8),
        (LstmLm, ted2.transcript_lm, 1_057, 5.7),
    ],
)
def test_published_language_models(model_class, opts, num_labels, expected_millions):
    rf.select_backend_torch()
    model = model_class(opts, num_labels=num_labels, eos_index=0)
    assert num_parameters(model) / 1e6 == pytest.approx(expected_millions, abs=0.05)


def test_published_internal_language_model():
    rf.select_backend_torch()
    model = MiniLstmIlm(MiniLstmIlmOptions(), num_labels=10_025, eos_index=0)
    model.freeze_decoder()
    trained = [param for param in model.parameters() if param.trainable is not False]
    assert sum(param.num_elements() for param in trained) / 1e6 == pytest.approx(0.16, abs=0.005)
    embedding = num_parameters(model.target_embed)  # the published number leaves it to the ASR model
    assert (num_parameters(model) - embedding) / 1e6 == pytest.approx(16.5, abs=0.05)
