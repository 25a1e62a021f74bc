"""The written-out gradients of the decoder's recurrence: against automatic differentiation and finite differences."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import returnn.frontend as rf
import torch
from returnn.tensor import Dim, Tensor
from tiny_models import AED, make_model

from configs.base import ls960
from rf_models.attention_loop import LoopConstants, attention_loop
from tools import benchmark_training

FRAMES, LABELS = [5, 7, 3], [2, 4, 3]
BATCH = Dim(3, name="batch")


def _sequences(name: str, lengths: list[int]) -> Dim:
    return Dim(Tensor(name, [BATCH], "int32", raw_tensor=torch.tensor(lengths, dtype=torch.int32)), name=name)


@pytest.mark.parametrize("zoneout_output", [False, True])
@pytest.mark.parametrize("per_utterance", [False, True])
def test_finite_differences(zoneout_output, per_utterance):
    generator = torch.Generator().manual_seed(1)
    batch, frames, labels, units, enc_dim, att_dim = 3, 5, 4, 2, 3, 4

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    def mask(size: int) -> torch.Tensor:
        shape = [batch, size] if per_utterance else [size]
        return (torch.rand(*shape, generator=generator, dtype=torch.float64) > 0.3).double()

    constants = LoopConstants(
        num_rows=[3, 3, 2, 1],
        frames_mask=torch.arange(frames) < torch.tensor([[4], [5], [2]]),
        gates="jifo",
        forget_bias=0.5,
        zoneout_output=zoneout_output,
        update_cell=[mask(units) for _ in range(labels)],
        update_output=[0.9] * labels,
        att_dropout=[mask(frames) for _ in range(labels)],
    )
    names = ("context_weight", "rec_weight", "query_weight", "feedback_weight", "energy_weight")
    shapes = ([4 * units, enc_dim], [4 * units, units], [units, att_dim], [att_dim], [att_dim])
    arguments = (
        random(batch, labels, 4 * units),
        random(batch, frames, enc_dim),
        random(batch, frames, att_dim),
        random(batch, frames),
        *(random(*shape) for shape in shapes),
    )

    def loop(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return attention_loop(*args[:4], **dict(zip(names, args[4:], strict=True)), constants=constants)

    s, c = loop(*arguments)
    for i, n in enumerate(constants.num_rows):
        assert s[:n, i].abs().min() > 0 and not s[n:, i].any() and not c[n:, i].any()
    assert torch.autograd.gradcheck(loop, arguments)


def _labels(model: rf.Module) -> tuple[Tensor, Dim]:
    dim = _sequences("labels", LABELS)
    raw = torch.randint(0, 7, (3, 4), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    return Tensor("labels", [BATCH, dim], "int32", raw_tensor=raw, sparse_dim=model.target_dim), dim


def _run(model: rf.Module, *, steps: bool, seed: int = 5) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    :param model:
    :param steps: label by label, with automatic gradients
    :param seed: of dropout and zoneout
    :return: logits of all labels of all utterances, gradients of their cross-entropy
    """
    decoder = model.decoder
    labels, labels_dim = _labels(model)
    frames = _sequences("frames", FRAMES)
    raw = torch.randn(3, 7, model.enc_dim.dimension, generator=torch.Generator().manual_seed(3)).requires_grad_()
    enc = Tensor("enc", [BATCH, frames, model.enc_dim], "float32", raw_tensor=raw, feature_dim=model.enc_dim)
    memory = decoder.transform_encoder(enc, axis=frames)
    rf.set_random_seed(seed)
    torch.manual_seed(seed)
    if steps:
        state = decoder.default_initial_state(batch_dims=[BATCH], memory=memory)
        embed = rf.zeros([BATCH, decoder.embed_dim], feature_dim=decoder.embed_dim)
        outputs = []
        for i in range(max(LABELS)):
            logits, state = decoder.step(embed, memory=memory, state=state)
            outputs.append(logits)
            embed = decoder.embed(rf.gather(labels, axis=labels_dim, indices=i))
        logits, _ = rf.stack(outputs, out_dim=labels_dim)
    else:
        logits, _ = decoder.teacher_forcing(labels, spatial_dim=labels_dim, memory=memory)
    logits = logits.copy_compatible_to_dims_raw([BATCH, labels_dim, model.target_dim])
    logits = torch.cat([logits[i, :n] for i, n in enumerate(LABELS)])
    targets = torch.cat([labels.raw_tensor[i, :n] for i, n in enumerate(LABELS)]).long()
    for param in model.parameters():
        param.raw_tensor.grad = None
    torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum").backward()
    grads = {name: param.raw_tensor.grad for name, param in decoder.named_parameters()}
    return logits.detach(), {**grads, "enc": raw.grad}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"dec_use_zoneout_output": False}, {"dec_att_dropout": 0.2}, {"dec_zoneout_cell": 0.0}]
)
def test_same_as_steps(train, options):
    """Also the same random numbers: one step draws them in the same order."""
    model = make_model(replace(AED, dec_dropout=0.0, **options), num_labels=7)
    rf.init_train_step_run_ctx(train_flag=train, step=0, epoch=1)
    logits, grads = _run(model, steps=False)
    expected, expected_grads = _run(model, steps=True)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for name, grad in expected_grads.items():
        assert grad.abs().max() > 0, name
        torch.testing.assert_close(grads[name], grad, rtol=1e-4, atol=1e-5, msg=name)
    if train:
        other, _ = _run(model, steps=False, seed=6)
        assert not torch.allclose(other, expected, atol=1e-3)


def test_mixed_precision():
    model = make_model(replace(AED, dec_dropout=0.0), num_labels=7, std=0.2)
    rf.init_train_step_run_ctx(train_flag=True, step=0, epoch=1)
    expected, expected_grads = _run(model, steps=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, grads = _run(model, steps=False)
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)
    for name, grad in expected_grads.items():
        assert grads[name].dtype == torch.float32
        assert (grads[name] - grad).norm() < 0.05 * grad.norm(), name


def test_benchmark(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ls960, "setup", replace(ls960.setup, model=AED))
    file = tmp_path / "training.json"
    args = ["--batch", "3", "--frames", "9", "--labels", "5", "--vocab", "11", "--rounds", "2", "--json", str(file)]
    assert benchmark_training.main(args) == 0
    ways = json.loads(file.read_text())["ways"]
    out = capsys.readouterr().out
    assert list(ways) == ["ours", "recurrence in frontend", "all in frontend"]
    for name, row in ways.items():
        assert name in out
        assert row["total"] > 0 and row["difference"] < 1e-4
        assert row["ours_ratio"] == pytest.approx(ways["ours"]["total"] / row["total"])


def test_benchmark_finds_a_wrong_gradient(monkeypatch, capsys):
    monkeypatch.setattr(ls960, "setup", replace(ls960.setup, model=AED))
    right = benchmark_training.Batch.ours
    monkeypatch.setattr(benchmark_training.Batch, "ours", lambda batch: right(batch) * 1.01)
    args = ["--batch", "3", "--frames", "9", "--labels", "5", "--vocab", "11", "--rounds", "1"]
    assert benchmark_training.main(args) == 1
    assert "gradients differ" in capsys.readouterr().err
