"""Losses and gradients that are not finite: nothing changes, and the log says where."""

from __future__ import annotations

import math
import os
import re
import sys

import numpy
import pytest
import returnn.frontend as rf
import torch
from returnn.tensor import Tensor, TensorDict, batch_dim
from runs import REPO, SMALL_TRAINING, run_command
from test_bad_data import VOCAB, make_corpus

from rf_models.step_guard import StepGuard, TrainingError


class Model(rf.Module):
    """y = w x, and the mean of x as a statistic."""

    def __init__(self):
        super().__init__()
        self.w = rf.Parameter([], dtype="float32")
        self.w.raw_tensor.data.fill_(2.0)
        self.mean = rf.Parameter([], dtype="float32", auxiliary=True)
        self.mean.raw_tensor.data.fill_(0.5)


def step(*, model, extern_data):
    x = extern_data["data"]
    model.mean.raw_tensor.data.copy_(x.raw_tensor.mean())
    loss = model.w * x
    if extern_data["seq_tag"].raw_tensor[0] == "sqrt":  # finite, but with an infinite gradient
        loss = rf.sqrt((model.w - 2.0) * x)
    loss.mark_as_loss("loss", custom_inv_norm_factor=x)
    rf.cast(x > 0, "float32").mark_as_loss("error", as_error=True)


def run(guard, model, values, tags, *, train=True):
    """:return: losses, weights, as RETURNN's engine reads them, after the backward pass"""
    rf.init_train_step_run_ctx(train_flag=train, step=7, epoch=3)
    batch_dim.reset_eager()
    batch_dim.dyn_size_ext = Tensor(
        "batch", dims=[], dtype="int32", raw_tensor=torch.tensor(len(values), dtype=torch.int32)
    )
    data = TensorDict()
    data.data["data"] = Tensor("data", dims=[batch_dim], dtype="float32", raw_tensor=torch.tensor(values))
    data.data["seq_tag"] = Tensor("seq_tag", dims=[batch_dim], dtype="string", raw_tensor=numpy.array(tags))
    guard(model=model, extern_data=data)
    ctx = rf.get_run_ctx()
    model.w.raw_tensor.grad = None
    if train:
        ctx.total_loss().raw_tensor.backward()
        guard.after_step()
    return {
        name: (float(loss.get_summed_loss().raw_tensor), float(loss.get_inv_norm_factor().raw_tensor))
        if not isinstance(loss.get_inv_norm_factor(), int)
        else float(loss.get_summed_loss().raw_tensor)
        for name, loss in ctx.losses.items()
    }


@pytest.fixture
def model():
    rf.select_backend_torch()
    return Model()


def test_rule(model, capsys):
    guard = StepGuard(step)
    assert run(guard, model, [1.0, 2.0], ["a", "b"])["loss"] == (6.0, 3.0)
    assert model.w.raw_tensor.grad == 3.0 and model.mean.raw_tensor == 1.5
    assert not capsys.readouterr().out
    for bad in (math.nan, math.inf):
        losses = run(guard, model, [1.0, bad], ["c", "d"])
        assert losses["loss"][0] == losses["error"][0] == 0.0 and losses["loss"][1] < 1e-20
        assert model.w.raw_tensor.grad.isnan() and model.mean.raw_tensor == 1.5  # to be skipped; statistics are back
        assert re.fullmatch(
            rf"sub-epoch 3, step 7: loss loss {bad}; the step is skipped\. Utterances: c, d\n", capsys.readouterr().out
        )
    assert run(guard, model, [1.0], ["sqrt"])["loss"][0] == 0.0
    assert not model.w.raw_tensor.grad.isfinite()
    assert (
        "the losses are finite, their gradient is not; the step is skipped. Utterances: sqrt" in capsys.readouterr().out
    )
    guard.end_of_epoch(3)
    assert "sub-epoch 3: 3 of 4 steps were skipped" in capsys.readouterr().out
    run(guard, model, [math.nan], ["e"])
    with pytest.raises(TrainingError, match="sub-epoch 4: no loss"):
        guard.end_of_epoch(4)


def test_evaluation_is_not_embellished(model, capsys):
    """A dev score that is not finite stays so."""
    guard = StepGuard(step)
    assert math.isnan(run(guard, model, [math.nan], ["f"], train=False)["loss"][0])
    assert "on the data to evaluate on. Utterances: f" in capsys.readouterr().out


CONFIG = '''#!rnn.py
"""The demo's training, with infinite samples in one or all utterances behind the checks of the data."""
import sys

sys.path.insert(0, {repo!r})

from configs.base import demo
from configs.base.train import training_run
from rf_models import aed_ctc

inner = aed_ctc.train_step


def with_infinity(*, model, extern_data, opts):
    for row, tag in zip(extern_data["data"].raw_tensor, extern_data["seq_tag"].raw_tensor):
        if "{bad}" in str(tag):
            row[1000] = float("inf")
    inner(model=model, extern_data=extern_data, opts=opts)


aed_ctc.train_step = with_infinity
globals().update(training_run(globals(), demo.setup))
'''


def test_training_with_infinities(tmp_path):
    """One bad utterance: its steps are skipped, the model stays finite. All bad: the run stops and says why."""
    data = make_corpus(tmp_path)
    options = {**SMALL_TRAINING, "num_epochs": 2, "max_seqs": 1, "data_dir": data, "vocab": VOCAB, "num_workers": 1}
    results = {}
    for name, bad, more in (("one", "train/19-198-0001", {}), ("all", "train/", {"max_skipped_steps": 3})):
        config = tmp_path / f"{name}.config"
        config.write_text(CONFIG.format(repo=REPO, bad=bad))
        command = [os.path.join(os.path.dirname(sys.executable), "rnn.py"), str(config)]
        for key, value in {**options, **more}.items():
            command += [f"++{key}", str(value)]
        results[name] = run_command(command, str(tmp_path), ok=name == "one")
    out = results["one"].stdout
    for epoch in (1, 2):
        pattern = rf"sub-epoch {epoch}, step \d+: loss .*nan; the step is skipped\. Utterances: train/19-198-0001\n"
        assert len(re.findall(pattern, out)) == 1 and f"sub-epoch {epoch}: 1 of 6 steps were skipped" in out
    state = torch.load(tmp_path / "output" / "one" / "models" / "epoch.002.pt", weights_only=True)["model"]
    assert len(state) > 50 and all(value.isfinite().all() for value in state.values())
    assert any("running_mean" in name and value.any() for name, value in state.items())
    rates = (tmp_path / "output" / "one" / "learning_rates").read_text()
    assert "train_loss_ce" in rates and "nan" not in rates
    everything = results["all"].stdout + results["all"].stderr
    assert results["all"].returncode != 0 and "Got 4 invalid gradients in succession, abort training" in everything
    assert len(re.findall(r"the step is skipped\. Utterances: train/", results["all"].stdout)) == 4
