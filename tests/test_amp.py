"""Mixed precision in recognition: only the encoder's, and nearly the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import AED, make_model

from recog.forward import run_search
from recog.inputs import ScoreData, encode
from recog.options import CtcOptions, GreedyOptions, LabelSyncOptions, TimeSyncOptions
from recog.standalone import audio_batch
from rf_models.encoder import LogMelFeatures

SEARCHES = {
    "greedy": GreedyOptions(),
    "label_sync": LabelSyncOptions(beam_size=4, att_scale=0.7, ctc_scale=0.3, max_len_ratio=0.5),
    "time_sync": TimeSyncOptions(beam_size=4, att_scale=0.7, ctc_scale=0.3, blank_scale="ctc", repeat_scale="ctc"),
}


def results(amp, model, waveforms):
    """:return: CTC log-probs of the frames; search -> scores of the best hypotheses"""
    audio, time_dim = audio_batch(waveforms)
    with torch.no_grad():
        encoded = encode(model, audio, in_spatial_dim=time_dim, amp=amp)
        states = [encoded.asr.enc, *encoded.asr.layers.values()]
        assert all(x.dtype == "float32" and x.raw_tensor.dtype == torch.float32 for x in states)
        log_probs = model.ctc_log_probs(encoded.asr).raw_tensor
        scores = {}
        for name, opts in SEARCHES.items():
            result = run_search(model, encoded, opts, CtcOptions(), data=ScoreData(amp=amp))
            scores[name] = result.scores[:, 0]
            assert result.scores.dtype == torch.float64
    return log_probs, scores


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_scores_agree(amp):
    """
    With random parameters, for loud and quiet audio. bfloat16 has 8 bits: steps of 0.4 %, some of them in each layer.
    float16 has 11 bits, but only up to 65504, which the energies of loud audio exceed.
    """
    model = make_model(AED, num_labels=30, std=0.25)
    rng = np.random.default_rng(1)
    waveforms = [rng.standard_normal(n) * s for n, s in ((16_000, 0.2), (24_000, 1.0), (8_000, 0.001))]
    exact, exact_scores = results("off", model, waveforms)
    log_probs, scores = results(amp, model, waveforms)
    assert (log_probs - exact).abs().max() > 0  # it has an effect
    limit = {"bfloat16": 0.01, "float16": 0.001}[amp]
    assert (log_probs - exact).abs().mean() < limit
    for name in SEARCHES:
        difference = (scores[name] - exact_scores[name]).abs()
        assert (difference < 0.03 * exact_scores[name].abs() + 2 * limit).all(), (
            name,
            scores[name],
            exact_scores[name],
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_features_are_float32(dtype):
    """Also in training with mixed precision."""
    features = LogMelFeatures(AED)
    audio, time_dim = audio_batch([np.sin(np.arange(16_000) / 5)])
    exact, _ = features(audio, in_spatial_dim=time_dim)
    with torch.autocast("cpu", dtype=dtype):
        mixed, _ = features(audio, in_spatial_dim=time_dim)
    assert mixed.dtype == "float32" and torch.equal(mixed.raw_tensor, exact.raw_tensor)
