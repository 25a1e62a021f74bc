"""Options of model and training that are off by default: weight dropout, initialisation, CTC window, learning rate."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor, batch_dim
from returnn.torch.frontend.bridge import rf_module_to_pt_module
from tiny_models import AED, audio_batch, make_model

from configs.base.options import OptionError
from configs.base.train import record_options
from configs.base.train_options import LoopOptions
from rf_models.aed_ctc import AedCtcModel
from rf_models.ctc_window import GaussianWindow, gaussian_kernel
from rf_models.options import AedCtcOptions

DROPPED = replace(AED, enc_att_weight_dropout=0.5, enc_ff_weight_dropout=0.3, enc_conv_weight_dropout=0.2)


def _state(model: rf.Module) -> dict[str, torch.Tensor]:
    return rf_module_to_pt_module(model).state_dict()


# weight dropout


def test_weight_dropout_only_in_training():
    plain, model = (make_model(opts, num_labels=7) for opts in (AED, DROPPED))
    assert len(model.weight_dropouts) == 2 + 4 + 3
    assert list(_state(plain)) == list(_state(model))  # names in checkpoints
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in model.named_parameters()]
    rf_module_to_pt_module(model).load_state_dict(_state(plain))
    audio, time_dim = audio_batch([0.5, 0.9])
    expected, out = (m.ctc_log_probs(m.encode(audio, in_spatial_dim=time_dim)).raw_tensor for m in (plain, model))
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_weight_dropout_in_training():
    model = make_model(DROPPED, num_labels=7)
    layer = model.encoder.layers[0]
    rf.init_train_step_run_ctx(train_flag=True, step=0, epoch=1)
    for module, name, p in (
        (layer.self_att.qkv, "weight", 0.5),
        (layer.ffn2.linear_out, "weight", 0.3),
        (layer.conv_block.depthwise_conv, "filter", 0.2),
    ):
        param = vars(module)[name].raw_tensor
        draws = torch.stack([getattr(module, name).raw_tensor.detach() for _ in range(200)])
        kept = draws != 0
        torch.testing.assert_close(draws, torch.where(kept, param / (1 - p), 0.0).detach())  # inverted dropout
        deviation = 4 * math.sqrt(p * (1 - p) / kept.numel())
        assert kept.float().mean().item() == pytest.approx(1 - p, abs=deviation)
        assert not (draws[0] == draws[1]).all()
    # The same mask in the backward pass, though it is drawn a second time there to save memory.
    x = rf.ones([layer.ffn1.linear_ff.in_dim], feature_dim=layer.ffn1.linear_ff.in_dim)
    layer.ffn1.linear_ff(x).raw_tensor.sum().backward()
    grad = vars(layer.ffn1.linear_ff)["weight"].raw_tensor.grad
    assert {round(value, 5) for value in grad.unique().tolist()} == {0.0, round(1 / 0.7, 5)}


def test_no_weight_dropout_by_default():
    assert make_model(AED, num_labels=7).weight_dropouts == []


# initial parameters


def test_tensorflow_initialisation():
    opts = replace(AED, enc_dim=64, enc_num_heads=2, dec_lstm_dim=100, dec_embed_dim=50, param_init="tensorflow")
    rf.select_backend_torch()
    rf.set_random_seed(3)
    model = AedCtcModel(opts, num_labels=300, eos_index=0)
    lstm = model.decoder.s
    limit = math.sqrt(6 / (50 + 64 + 100 + 4 * 100))
    for param in (lstm.ff_weight, lstm.rec_weight):
        assert param.raw_tensor.abs().max().item() == pytest.approx(limit, rel=0.01)
        assert param.raw_tensor.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)
    parts = dict(zip(lstm.parts_order, lstm.bias.raw_tensor.split(100), strict=True))
    assert all((parts[gate] == float(gate == "f")).all() for gate in "ijfo")
    self_att = model.encoder.layers[0].self_att
    assert self_att.qkv.weight.raw_tensor.abs().max().item() == pytest.approx(math.sqrt(3 / (4 * 64)), rel=0.01)
    pos_emb = self_att.learned_pos_emb.pos_emb.raw_tensor
    assert pos_emb.abs().max().item() == pytest.approx(math.sqrt(6 / sum(pos_emb.shape)), rel=0.05)
    with torch.no_grad():  # with a forget bias of 1, an untrained LSTM keeps its cell
        assert torch.sigmoid(parts["f"]).mean().item() == pytest.approx(0.731, abs=0.001)


def test_embedding_initialisation():
    rf.select_backend_torch()
    rf.set_random_seed(3)
    model = AedCtcModel(replace(AED, dec_embed_init_stddev=0.25), num_labels=500, eos_index=0)
    weight = model.decoder.target_embed.weight.raw_tensor
    assert weight.std().item() == pytest.approx(0.25 * 0.8796, rel=0.03)  # of the truncated distribution
    assert weight.abs().max().item() <= 0.5


def test_default_initialisation_is_that_of_the_frontend():
    rf.select_backend_torch()
    rf.set_random_seed(3)
    model = AedCtcModel(AED, num_labels=7, eos_index=0)
    assert not model.decoder.s.bias.raw_tensor.any()
    assert not model.encoder.layers[0].self_att.learned_pos_emb.pos_emb.raw_tensor.any()


# Gaussian window


def test_gaussian_kernel():
    assert gaussian_kernel(1, 1.0) == [1.0]
    assert gaussian_kernel(5, 0.0) == [0, 0, 1, 0, 0]
    assert gaussian_kernel(4, 0.0) == [0, 0, 1, 0]
    g = [math.exp(-0.5 * k**2 / 4) for k in (-2, -1, 0, 1, 2)]
    assert gaussian_kernel(5, 2.0) == pytest.approx([x / sum(g) for x in g])
    assert gaussian_kernel(4, 2.0) == pytest.approx([x / sum(g[:4]) for x in g[:4]])
    for bad in ((0, 1.0), (3, -1.0)):
        with pytest.raises(ValueError):
            gaussian_kernel(*bad)


@pytest.mark.parametrize("size", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("std", [0.0, 0.5, 3.0])
def test_gaussian_window(size, std):
    """Against the sum of its definition; what is in the padding has no effect."""
    rf.select_backend_torch()
    lengths = torch.tensor([7, 4, 1], dtype=torch.int32)
    feature, frames = Dim(3, name="feature"), Dim(Tensor("lengths", [batch_dim], "int32", raw_tensor=lengths), name="t")
    raw = torch.randn(3, 7, 3, generator=torch.Generator().manual_seed(1))
    for i, n in enumerate(lengths):
        raw[i, n:] = 1000.0
    x = Tensor("x", [batch_dim, frames, feature], "float32", raw_tensor=raw, feature_dim=feature)
    window = GaussianWindow(feature, size=size, std=std, with_input=True)
    out = window(x, spatial_dim=frames)
    out = out.copy_compatible_to_dims_raw([batch_dim, frames, window.out_dim]).numpy()
    kernel = gaussian_kernel(size, std)
    for i, n in enumerate(lengths.tolist()):
        h = raw[i].numpy()
        for t in range(n):
            total = np.zeros(3)
            for k, g in zip(range(-(size // 2), size - size // 2), kernel, strict=True):
                if 0 <= t + k < n:
                    total += g * h[t + k]
            np.testing.assert_allclose(out[i, t], np.concatenate([h[t], total]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window_input", "factor"), [("both", 2), ("window", 1)])
def test_model_with_window(window_input, factor):
    opts = replace(AED, ctc_window_size=6, ctc_window_std=2.0, ctc_window_input=window_input)
    model = make_model(opts, num_labels=7)
    assert model.ctc_heads["layer1"].weight.raw_tensor.shape == (factor * AED.enc_dim, 8)
    outputs = []
    for seconds in ([0.9], [0.9, 1.6]):
        audio, time_dim = audio_batch(seconds)
        encoder_output = model.encode(audio, in_spatial_dim=time_dim)
        log_probs = model.ctc_log_probs(encoder_output)
        dims = [batch_dim if batch_dim in log_probs.dims else log_probs.dims[0], encoder_output.enc_spatial_dim]
        raw = log_probs.copy_compatible_to_dims_raw([*dims, model.target_dim_with_blank])
        num_frames = int(encoder_output.enc_spatial_dim.dyn_size_ext.raw_tensor[0])
        outputs.append(raw[0, :num_frames])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)


# learning rate per sub-epoch


def test_learning_rate_per_sub_epoch():
    """The list of the published TED-LIUM 2 training."""
    opts = LoopOptions(
        num_epochs=400,
        peak_learning_rate=8e-4,
        lr_positions=(0.0, 0.45, 0.9, 1.0),
        lr_factors=(0.1, 1.0, 0.1, 1e-6 / 8e-4),
        lr_per_sub_epoch=True,
    )
    expected = [*np.linspace(8e-5, 8e-4, 180), *np.linspace(8e-4, 8e-5, 180), *np.linspace(8e-5, 1e-6, 40)]
    assert [opts.learning_rate_at(i) for i in range(400)] == pytest.approx(expected, rel=1e-12)
    assert opts.learning_rate_at(17.5) == opts.learning_rate_at(17)
    assert opts.learning_rate_at(400) == pytest.approx(1e-6)


@pytest.mark.parametrize("num_epochs", [1, 2, 3])
def test_learning_rate_of_few_sub_epochs(num_epochs):
    opts = LoopOptions(num_epochs=num_epochs, lr_per_sub_epoch=True)
    assert all(0 < opts.learning_rate_at(i) <= opts.peak_learning_rate for i in range(num_epochs))


# training goes on after an update of the program


def test_run_of_a_version_without_these_options(tmp_path):
    """What is new is off by default: a training goes on, unless one of the new options is switched on."""
    groups = [AedCtcOptions(), LoopOptions()]
    options = {key: value for group in groups for key, value in asdict(group).items()}
    record_options(str(tmp_path), options, groups=groups)
    (tmp_path / "models" / "epoch.001.pt").write_bytes(b"")
    file = tmp_path / "options.json"
    new = ("ctc_window_size", "lr_per_sub_epoch", "weight_decay_exclude", "enc_ff_weight_dropout")
    old = {key: value for key, value in json.loads(file.read_text()).items() if key not in new}
    file.write_text(json.dumps(old))
    with pytest.raises(OptionError, match=r"other options \(enc_ff_weight_dropout: 0.0 -> 0.1\)"):
        record_options(str(tmp_path), {**options, "enc_ff_weight_dropout": 0.1}, groups=groups)
    record_options(str(tmp_path), options, groups=groups)
    assert json.loads(file.read_text())["enc_ff_weight_dropout"] == 0.0


# wrong combinations


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enc_ff_weight_dropout": 1.0}, "enc_ff_weight_dropout"),
        ({"ctc_window_size": -1}, "ctc_window_size"),
        ({"ctc_window_std": 2.0}, "no effect without ctc_window_size"),
        ({"ctc_window_size": 5, "ctc_layers": ()}, "no CTC head"),
        ({"param_init": "glorot"}, "param_init"),
        ({"dec_embed_init_stddev": 0.0}, "positive"),
        ({"dec_embed_init_stddev": 1.0, "with_decoder": False}, "without decoder"),
    ],
)
def test_wrong_model_options(options, message):
    with pytest.raises(ValueError, match=message):
        AedCtcOptions(**options)


@pytest.mark.parametrize("options", [{"optimizer_type": "sgd"}, {"keep_best_n": -1}, {"keep_last_n": 0}])
def test_wrong_training_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LoopOptions(**options)
