"""Layer-wise pretraining: what runs, what is trained, and that it goes on after an interruption."""

from __future__ import annotations

from dataclasses import replace

import pytest
import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor, TensorDict, batch_dim
from tiny_models import AED, audio_batch, make_model

from rf_models.aed_ctc import train_step
from rf_models.options import AedCtcTrainOptions
from rf_models.pretraining import PretrainStage, num_pretrain_epochs, pretrain_stage, pretraining

MODEL = replace(
    AED,
    enc_num_layers=4,
    ctc_layers=(1, 4),
    enc_ff_weight_dropout=0.2,
    enc_pos_emb_dropout=0.1,
    dec_att_dropout=0.1,
)
OPTS = AedCtcTrainOptions(pretrain_layers=(2, 2, 3, 4), pretrain_epochs=3, use_specaugment=False)


def test_schedule_of_the_published_training():
    opts = AedCtcTrainOptions(pretrain_layers=(2, 2, 4, 6, 8, 10, 12))
    stages = [pretrain_stage(opts, num_layers=12, epoch=epoch) for epoch in range(1, 25)]
    expected = [n for n in (2, 2, 4, 6, 8, 10, 12, None) for _ in range(3)]
    assert [stage and stage.num_layers for stage in stages] == expected
    scales = [stage.enc_dropout_scale for stage in stages[:21:3]]
    assert scales == pytest.approx([0, 0, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert [stage.dec_dropout_scale for stage in stages[:21:3]] == [0, 0, 1, 1, 1, 1, 1]
    assert num_pretrain_epochs(opts, num_layers=12) == 21


def test_smaller_encoder():
    opts = AedCtcTrainOptions(pretrain_layers=(2, 2, 4, 6), pretrain_epochs=1)
    assert [pretrain_stage(opts, num_layers=5, epoch=epoch) for epoch in (2, 3, 4)] == [
        PretrainStage(2, 0.0, 0.0),
        PretrainStage(4, 0.5 + 0.5 * 2 / 3, 1.0),
        None,
    ]
    assert pretrain_stage(opts, num_layers=2, epoch=1) == PretrainStage(2, 0.0, 0.0)
    assert pretrain_stage(opts, num_layers=1, epoch=1) is None
    assert pretrain_stage(AedCtcTrainOptions(), num_layers=4, epoch=1) is None


def test_dropout_is_scaled_and_restored():
    model = make_model(MODEL, num_labels=7)
    layer, decoder = model.encoder.layers[3], model.decoder

    def values() -> list[float]:
        return [
            model.encoder.input_dropout,
            layer.dropout,
            layer.ffn2.dropout,
            layer.self_att.att_dropout,
            layer.self_att.pos_emb_dropout,
            model.weight_dropouts[0].drop_prob,
            decoder.dropout,
            decoder.att_dropout,
        ]

    before = values()
    assert all(before)
    with pretraining(model, PretrainStage(3, 0.6, 0.5)):
        assert values() == pytest.approx([0.6 * v for v in before[:6]] + [0.5 * v for v in before[6:]])
        assert model.encoder.layers.num_active == 3
    assert values() == before and model.encoder.layers.num_active is None
    with pytest.raises(KeyError), pretraining(model, PretrainStage(3, 0.0, 0.0)):
        raise KeyError
    assert values() == before and model.encoder.layers.num_active is None


def _train(model: rf.Module, epoch: int, opts: AedCtcTrainOptions = OPTS, *, train: bool = True, seed: int = 1):
    """:return: losses by name; gradients of the parameters that have some"""
    audio, _ = audio_batch([0.9, 0.7])
    lengths = Tensor("n", [batch_dim], "int32", raw_tensor=torch.tensor([3, 2], dtype=torch.int32))
    labels_dim = Dim(lengths, name="classes")
    labels = Tensor(
        "classes",
        [batch_dim, labels_dim],
        "int32",
        sparse_dim=Dim(7, name="vocab"),
        raw_tensor=torch.tensor([[1, 2, 3], [4, 5, 0]], dtype=torch.int32),
    )
    rf.init_train_step_run_ctx(train_flag=train, step=0, epoch=epoch)
    for param in model.parameters():
        param.raw_tensor.grad = None
    extern_data = TensorDict()
    extern_data.data = {"data": audio, "classes": labels}
    torch.manual_seed(seed)
    train_step(model=model, extern_data=extern_data, opts=opts)
    ctx = rf.get_run_ctx()
    losses = {name: rf.reduce_mean(loss.loss, axis=loss.loss.dims).raw_tensor for name, loss in ctx.losses.items()}
    if train:
        ctx.total_loss().raw_tensor.backward()
    grads = {n: p.raw_tensor.grad for n, p in model.named_parameters() if p.raw_tensor.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, grads


def test_layers_above_have_no_gradient():
    model = make_model(MODEL, num_labels=7)
    for epoch, num in ((1, 2), (6, 2), (7, 3), (10, 4), (13, 4)):
        _, grads = _train(model, epoch)
        for i in range(4):
            names = [name for name in grads if name.startswith(f"encoder.layers.{i}.")]
            assert bool(names) == (i < num), (epoch, i)
        assert grads["ctc_heads.layer4.weight"].abs().max() > 0
        assert grads["decoder.output_prob.weight"].abs().max() > 0


def test_same_as_a_model_with_fewer_layers():
    """In evaluation: a model that has only these layers gives the same losses."""
    model = make_model(MODEL, num_labels=7)
    small = make_model(replace(MODEL, enc_num_layers=2, ctc_layers=(1, 2)), num_labels=7)
    own = dict(model.named_parameters())
    for name, param in small.named_parameters():
        param.raw_tensor.data.copy_(own[name.replace("ctc_heads.layer2", "ctc_heads.layer4")].raw_tensor.data)
    no_pretraining = replace(OPTS, pretrain_layers=(), label_smoothing=0.0)
    losses, _ = _train(model, 1, train=False)
    expected, _ = _train(small, 1, no_pretraining, train=False)
    assert losses["ctc_4"] == pytest.approx(expected["ctc_2"]) and losses["ce"] == pytest.approx(expected["ce"])
    assert losses["ctc_1"] == pytest.approx(expected["ctc_1"])
    losses, _ = _train(model, 13, train=False)
    assert losses["ctc_4"] != pytest.approx(expected["ctc_2"], rel=1e-3)


def test_no_dropout_and_no_label_smoothing_at_first():
    model = make_model(replace(MODEL, dec_zoneout_cell=0.0, dec_zoneout_output=0.0), num_labels=7)
    train, _ = _train(model, 1)
    evaluation, _ = _train(model, 1, train=False)
    # Batch normalisation differs between training and evaluation; two trainings with other random numbers do not.
    other, _ = _train(model, 2, seed=2)
    assert train == pytest.approx(other) and set(train) == set(evaluation)
    later = [_train(model, 8, seed=seed)[0]["ctc_4"] for seed in (1, 2)]
    assert later[0] != pytest.approx(later[1], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrain_layers": (4, 2)}, "pretrain_layers"),
        ({"pretrain_layers": (0, 2)}, "pretrain_layers"),
        ({"pretrain_layers": (2,), "pretrain_epochs": 0}, "pretrain_epochs"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        AedCtcTrainOptions(**options)
