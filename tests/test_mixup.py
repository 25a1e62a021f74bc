"""Mixup of features with frames of the past."""

from __future__ import annotations

import pytest
import returnn.frontend as rf
import torch
from returnn.torch.frontend.bridge import rf_module_to_pt_module
from tiny_models import AED, audio_batch, make_model

from rf_models.mixup import FrameBuffer, mixup_raw
from rf_models.options import AedCtcTrainOptions

OPTS = AedCtcTrainOptions(use_mixup=True, use_specaugment=False)


def test_buffer_is_a_ring():
    buffer = FrameBuffer()
    frames = torch.arange(23.0)[:, None] * torch.ones(2)
    done = 0
    for num in (3, 4, 1, 6, 9):  # the last one is more than there is place for
        buffer.append(frames[done : done + num], size=7)
        done += num
        assert buffer.num_frames == min(7, done)
        kept = buffer.frames[: buffer.num_frames, 0]
        assert sorted(kept.tolist()) == list(range(max(0, done - 7), done))
        assert buffer.position == done % 7 or num == 9
    # In order, from the next position on, so that pieces are pieces of speech.
    assert torch.roll(buffer.frames[:, 0], -buffer.position).tolist() == list(range(16, 23))


@pytest.mark.parametrize(("prob", "max_num", "lam"), [(1.0, 4, (0.1, 0.4)), (0.5, 1, (0.3, 0.3)), (1.0, 3, (0.2, 0.2))])
def test_formula(prob, max_num, lam):
    """With frames that tell their position, what was added tells the pieces and the sum of their weights."""
    torch.manual_seed(1)
    opts = AedCtcTrainOptions(use_mixup=True, mixup_prob=prob, mixup_max_num=max_num, mixup_lambda=lam)
    batch, num_frames, num_past = 2000, 5, 50
    x = torch.randn(batch, num_frames, 2)
    mask = torch.arange(num_frames) < torch.randint(1, num_frames + 1, (batch, 1))
    past = torch.stack([torch.ones(num_past), torch.arange(num_past).float()], dim=1)
    added = mixup_raw(x, mask, past, opts) - x
    assert not added[~mask].any()
    total = added[:, 0, 0]  # sum of weights: the first feature of all past frames is 1
    mixed = total > 0
    assert mixed.float().mean().item() == pytest.approx(prob, abs=0.04)
    assert lam[0] - 1e-6 <= total[mixed].min() and total[mixed].max() <= lam[1] + 1e-6
    assert total[mixed].mean().item() == pytest.approx(sum(lam) / 2, abs=0.01)
    # Consecutive frames: the second feature grows by the sum of weights per frame.
    for t in range(1, num_frames):
        grown = added[:, t, 1] - added[:, t - 1, 1]
        torch.testing.assert_close(grown[mask[:, t]], total[mask[:, t]], rtol=1e-3, atol=1e-4)
    start = added[mixed, 0, 1] / total[mixed]  # weighted mean of positions
    assert 0 <= start.min() and start.max() <= num_past - num_frames + 1e-3
    if max_num == 1:
        torch.testing.assert_close(start, start.round(), rtol=0, atol=1e-3)
        assert {0, num_past - num_frames} <= set(start.round().int().tolist())  # all positions are possible
    else:
        assert ((start - start.round()).abs() > 0.01).float().mean() > 0.3  # several pieces


def _encode(model, seed, opts=OPTS):
    torch.manual_seed(seed)
    audio, time_dim = audio_batch([0.4, 0.6])
    model.encode(audio, in_spatial_dim=time_dim, train_opts=opts)
    features, spatial_dim = model.features(audio, in_spatial_dim=time_dim)
    return features, spatial_dim


def test_in_the_model(monkeypatch):
    model = make_model(AED, num_labels=7)
    seen = []
    monkeypatch.setattr(type(model.encoder), "__call__", _recorder(seen, type(model.encoder).__call__))
    names = list(rf_module_to_pt_module(model).state_dict())

    _encode(model, 1)  # evaluation
    assert model.mixup_buffer.frames is None
    rf.init_train_step_run_ctx(train_flag=True, step=0, epoch=1)
    plain, _ = _encode(model, 1)  # the buffer is empty: nothing to mix
    torch.testing.assert_close(seen[-1], plain.raw_tensor)
    lengths = [39, 59]  # (samples - 400) // 160 + 1, rounded up as RETURNN does
    assert abs(model.mixup_buffer.num_frames - sum(lengths)) <= 4
    _encode(model, 2)
    _encode(model, 3)
    first, second = seen[-2:]
    assert not torch.allclose(first, plain.raw_tensor, atol=1e-3) and not torch.allclose(first, second, atol=1e-3)
    assert list(rf_module_to_pt_module(model).state_dict()) == names  # nothing of it in checkpoints

    again = make_model(AED, num_labels=7)
    rf.init_train_step_run_ctx(train_flag=True, step=0, epoch=1)
    for seed in (1, 2):
        _encode(again, seed)
    torch.testing.assert_close(seen[-1], first, rtol=0, atol=0)  # the same seed, the same data


def _recorder(seen, call):
    def record(self, source, **kwargs):
        seen.append(source.raw_tensor)
        return call(self, source, **kwargs)

    return record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_mixup": True, "mixup_lambda": (0.4, 0.1)}, "mixup_lambda"),
        ({"use_mixup": True, "mixup_prob": 1.5}, "mixup_prob"),
        ({"use_mixup": True, "mixup_max_num": 0}, "mixup_max_num"),
        ({"mixup_prob": 0.5}, "no effect without use_mixup"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        AedCtcTrainOptions(**options)
